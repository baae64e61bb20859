"""What the monitor logs: tags, steps, sizes, and numbers that another computation confirms."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from matplotlib.image import imread
from PIL import Image
from torch import Tensor

import lightning_attngrad as attngrad
from lightning_attngrad.probe import shared
from tests.callbacks.small_runs import (
    CLASSES,
    COSTS,
    FIGURES,
    LAYERS,
    SCALARS,
    Classifier,
    Run,
    Squares,
    WatchedMonitor,
    captured_figures,
    events,
    fit,
    image_steps,
    loader,
    names_of,
    scalar_points,
    tensorboard,
    tiny_vit,
    words,
)
from tests.methods import OF_ANY_MODEL


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> tuple[Run, WatchedMonitor, Path]:
    """Two epochs with everything drawn, read by the tests below."""
    folder = tmp_path_factory.mktemp("written")
    monitor = WatchedMonitor(draws=True, keep_weights=True, num_images=4, class_names=CLASSES, on_error="raise")
    loggers = [tensorboard(folder), CSVLogger(folder, name="csv", version="")]
    return fit(monitor, logger=loggers, default_root_dir=folder), monitor, folder


def test_every_figure_and_every_scalar_has_its_tag(written: tuple[Run, WatchedMonitor, Path]) -> None:
    tags = events(written[2]).Tags()
    ours = {tag for tag in tags["scalars"] if tag.startswith("attngrad/")}
    assert ours == {*(f"attngrad/maps/{name}" for name in SCALARS), "attngrad/probe/seconds"}
    assert set(tags["images"]) == {f"attngrad/maps/{name}" for name in FIGURES}


def test_figures_line_up_with_the_scalars_of_the_same_evaluation(written: tuple[Run, WatchedMonitor, Path]) -> None:
    accumulator = events(written[2])
    of_the_user = [step for step, _ in scalar_points(accumulator, "val_loss")]
    assert of_the_user == [2, 5]
    for name in SCALARS:
        assert [step for step, _ in scalar_points(accumulator, f"attngrad/maps/{name}")] == [0, *of_the_user]
    for name in FIGURES:
        assert image_steps(accumulator, f"attngrad/maps/{name}") == [0, *of_the_user]


def test_the_pictures_are_large_enough_to_read_and_hold_colours(written: tuple[Run, WatchedMonitor, Path]) -> None:
    accumulator = events(written[2])
    for name in FIGURES:
        pictures = accumulator.Images(f"attngrad/maps/{name}")
        sizes = [(picture.height, picture.width) for picture in pictures]
        assert all(height >= 200 and width >= 570 for height, width in sizes), (name, sizes)
        if name != "film":  # one more frame each time
            assert len(set(sizes)) == 1
        decoded = imread(io.BytesIO(pictures[0].encoded_image_string))
        assert decoded.shape[:2] == sizes[0]
        assert len({tuple(pixel) for pixel in decoded[::9, ::9].reshape(-1, decoded.shape[-1])}) > 30


def test_the_starting_weights_come_first(written: tuple[Run, WatchedMonitor, Path]) -> None:
    monitor = written[1]
    assert monitor.labels == ["start", "epoch 1", "epoch 2"]
    torch.manual_seed(7)  # as `fit` does before it builds the module
    untrained = Classifier().state_dict()
    assert all(torch.equal(value, untrained[name]) for name, value in monitor.weights[0].items())
    assert not torch.equal(monitor.weights[1]["net.head.weight"], untrained["net.head.weight"])


def test_scalars_equal_what_explain_gives_on_the_same_weights(written: tuple[Run, WatchedMonitor, Path]) -> None:
    """Recomputed from the maps and the attention probabilities, without the package's own statistics."""
    _, monitor, folder = written
    accumulator = events(folder)
    module = Classifier()
    for place, (probe, _) in enumerate(monitor.evaluations):
        module.load_state_dict(monitor.weights[place])
        found = attngrad.explain(module, probe.images, probe.targets)
        expected = _statistics(found.heatmap) | _head_statistics(module, probe.images)
        assert found.completeness_error is not None
        expected["completeness_error"] = sum(found.completeness_error.tolist()) / len(probe.images)
        assert expected.keys() == SCALARS - COSTS
        for name, value in expected.items():
            logged = scalar_points(accumulator, f"attngrad/maps/{name}")[place][1]
            assert logged == pytest.approx(value, abs=1e-5), (place, name)


def _statistics(heatmap: Tensor) -> dict[str, float]:
    """Means over the images that have a map."""
    shares = [(one.abs() / one.abs().sum()).double() for one in heatmap if float(one.abs().sum()) > 0]
    patches = shares[0].numel()
    entropy = [-sum(float(p) * math.log(float(p)) for p in share.flatten() if p > 0) for share in shares]
    ring = [float(share.sum() - share[1:-1, 1:-1].sum()) for share in shares]
    corners = [float(share[::3, ::3].sum()) for share in shares]  # of 4 × 4 patches
    largest = [sum(sorted(share.flatten().tolist())[-math.ceil(patches / 10) :]) for share in shares]
    number = len(shares)
    return {
        "entropy": sum(entropy) / number / math.log(patches),
        "border_mass": sum(ring) / number,
        "corner_mass": sum(corners) / number,
        "top_decile_mass": sum(largest) / number,
    }


def _head_statistics(module: Classifier, images: Tensor) -> dict[str, float]:
    """From queries and keys by hand: 2 heads, 1 + 4 × 4 tokens."""
    found: dict[str, float] = {}
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name in LAYERS
    ]
    with torch.no_grad():
        module.eval()(images)
    for hook in hooks:
        hook.remove()
    places = torch.tensor([[i // 4, i % 4] for i in range(16)]).double()
    distances = (places[:, None] - places[None]).norm(dim=-1)
    for name in LAYERS:
        layer: Any = module.get_submodule(name)
        batch, tokens, width = inputs[name].shape
        q, k, _ = layer.qkv(inputs[name]).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / (width // 2) ** 0.5).softmax(-1).double()  # (B, H, N, N)
        entropy = -(attention * attention.log()).sum(-1) / math.log(tokens)
        patches = attention[..., 1:, 1:]
        travelled = (patches * distances).sum(-1) / patches.sum(-1)
        found[f"head_entropy/{name}"] = float(entropy.mean())
        found[f"head_distance/{name}"] = float(travelled.mean())
    return found


def test_the_numbers_of_the_callback_metrics_are_those_of_the_last_evaluation(
    written: tuple[Run, WatchedMonitor, Path],
) -> None:
    run, monitor, _ = written
    for name, value in monitor.evaluations[-1][1].scalars.items():
        if name not in COSTS:
            assert float(run.trainer.callback_metrics[f"attngrad/maps/{name}"]) == pytest.approx(value)


def test_a_logger_without_pictures_gets_files_and_the_same_scalars(
    written: tuple[Run, WatchedMonitor, Path],
) -> None:
    folder = written[2]
    for name in FIGURES:
        files = sorted(path.name for path in (folder / "csv" / "attngrad" / "maps" / name).iterdir())
        assert files == ["step-000000.png", "step-000002.png", "step-000005.png"]
    with (folder / "csv" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["attngrad/maps/entropy"]]
    points = scalar_points(events(folder), "attngrad/maps/entropy")
    assert [int(row["step"]) for row in rows] == [step for step, _ in points]
    assert [float(row["attngrad/maps/entropy"]) for row in rows] == pytest.approx([value for _, value in points])


# What the figures say -------------------------------------------------------------------------------------------


def test_figures_name_predicted_and_true_class_and_the_moment(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    monitor = WatchedMonitor(draws=True, class_names=CLASSES, on_error="raise", top_k=2)
    fit(monitor, max_epochs=1)
    assert [step for step, _ in drawn] == [0, 2]
    assert names_of(list(drawn[0][1])) == FIGURES
    probe = monitor.evaluations[0][0]
    said = words(drawn[0][1]["attngrad/maps/overlay"])
    assert any("start" in text for text in said)
    assert any("epoch 1" in text for text in words(drawn[1][1]["attngrad/maps/overlay"]))
    true = [CLASSES[int(target)] for target in probe.targets]  # type: ignore[union-attr]
    assert all(name in said for name in true)
    probabilities = _probabilities(probe)
    predicted = [CLASSES[int(row.argmax())] for row in probabilities]
    for name, truth in zip(predicted, true, strict=True):
        assert f"{'✓' if name == truth else '✗'} {name}" in said
    assert any(f"predicted, p = {float(probabilities[0].max()):.2f}" in text for text in said)
    film = words(drawn[1][1]["attngrad/maps/film"])
    assert "start" in film
    assert "epoch 1" in film
    assert f"true class: {true[0]}" in " ".join(film)
    layers = words(drawn[0][1]["attngrad/maps/layers"])
    assert "block 0" in layers
    assert "block 1" in layers


def test_the_film_is_of_the_image_that_is_asked_for_and_goes_into_a_file(monkeypatch: Any, tmp_path: Path) -> None:
    drawn = captured_figures(monkeypatch)
    style = attngrad.FigureStyle(dark=True)
    monitor = WatchedMonitor(draws=True, class_names=CLASSES, on_error="raise", film_image=2, style=style)
    with pytest.raises(RuntimeError, match="save_film: nothing has been evaluated"):
        monitor.save_film(tmp_path / "early.gif")
    fit(monitor, max_epochs=1)
    for figure in drawn[1][1].values():
        assert figure.sheet[2, 2, :3].max() < 40  # the style goes to every figure
    probe, _ = monitor.evaluations[-1]
    true = CLASSES[int(probe.targets[2])]
    assert f"true class: {true}" in " ".join(words(drawn[1][1]["attngrad/maps/film"]))
    with Image.open(monitor.save_film(tmp_path / "film.gif", seconds=0.2)) as film:
        assert film.n_frames == len(monitor.film) == 2
    again = WatchedMonitor(film_image=1)
    again.recall(monitor.history())
    assert again.film == []  # the frames of another image are not its own


@pytest.mark.parametrize("place", [-1, 99, True, "first"])
def test_a_place_of_the_film_that_is_none_is_refused(place: Any) -> None:
    with pytest.raises(ValueError, match=r"film_image: got .*; expected the place of one of the"):
        attngrad.AttentionMapMonitor(film_image=place)


def _probabilities(probe: Any) -> Tensor:
    torch.manual_seed(7)
    with torch.no_grad():
        return Classifier().eval()(probe.images).softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("top_k", "classes", "panels"), [(1, (), 1), (2, (), 2), (9, (), 3), (1, (2, 0), 3)])
def test_classes_side_by_side_are_the_most_probable_and_those_asked_for(
    monkeypatch: Any, top_k: int, classes: tuple[int, ...], panels: int
) -> None:
    calls: list[dict[str, Any]] = []
    from lightning_attngrad.measure import map_figures

    def record(pixels: Any, heatmaps: Any, names: Any, probabilities: Any, **options: Any) -> Any:
        calls.append({"maps": heatmaps, "names": names, "probabilities": probabilities})

    monkeypatch.setattr(map_figures, "class_panels", record)
    captured_figures(monkeypatch)
    monitor = WatchedMonitor(draws=True, on_error="raise", top_k=top_k, classes=classes, num_images=2)
    fit(monitor, max_epochs=1)
    probabilities = _probabilities(monitor.evaluations[0][0])
    assert calls[0]["maps"].shape == (2, panels, 4, 4)
    for row, names, shown in zip(probabilities, calls[0]["names"], calls[0]["probabilities"], strict=True):
        order = row.argsort(descending=True)[: min(top_k, 3)].tolist() + list(classes)
        assert names == [str(index) for index in order]
        assert shown.tolist() == pytest.approx(row[order].tolist(), abs=1e-5)


def test_scale_and_targets_stay_the_same_through_training(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    monitor = WatchedMonitor(draws=True, on_error="raise")
    fit(monitor)
    for name in FIGURES:
        bars = [figures[f"attngrad/maps/{name}"].bar for _, figures in drawn]  # type: ignore[attr-defined]
        assert len({bar.ticks for bar in bars}) == 1  # where each tick lies, and what it says
    assert monitor.shared.classes is not None
    assert monitor.shared.classes.tolist() == monitor.evaluations[0][0].targets.tolist()  # type: ignore[union-attr]


def test_without_true_classes_the_map_stays_that_of_the_class_first_predicted() -> None:
    """The prediction moves during training; a map of another class would not compare."""
    images = [image for image, _ in Squares(9, seed=1)]

    class Unlabelled(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch)

    monitor = WatchedMonitor(num_images=6, keep_weights=True, on_error="raise")
    fit(monitor, module=Unlabelled, val=loader(images), max_epochs=4)
    probe = monitor.evaluations[0][0]
    first = _probabilities(probe).argmax(1)
    module = Classifier()
    module.load_state_dict(monitor.weights[-1])
    with torch.no_grad():
        assert not torch.equal(module.eval()(probe.images).argmax(1), first)  # else this test shows nothing
    expected = _statistics(attngrad.explain(module, probe.images, first).heatmap)["entropy"]
    assert monitor.evaluations[-1][1].scalars["entropy"] == pytest.approx(expected, abs=1e-5)


def test_more_images_than_go_through_at_once_give_the_same_numbers(monkeypatch: Any) -> None:
    monitors = []
    sizes: list[int] = []
    for at_once in (9, 2):
        monkeypatch.setattr(shared, "IMAGES_AT_ONCE", at_once)
        monitors.append(WatchedMonitor(num_images=9, on_error="raise"))
        fit(monitors[-1], max_epochs=1)
        sizes.append(monitors[-1].shared._sharing.at_once)
    assert sizes == [9, 2]
    one, other = (monitor.evaluations[-1][1].scalars for monitor in monitors)
    assert len(one) > 6
    assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_every_method_can_be_watched(monkeypatch: Any, method: str) -> None:
    drawn = captured_figures(monkeypatch)
    monitor = WatchedMonitor(draws=True, method=method, on_error="raise")
    fit(monitor, max_epochs=1)
    probe = monitor.evaluations[0][0]
    torch.manual_seed(7)
    explanation = attngrad.explain(Classifier(), probe.images, probe.targets, method=method)
    expected = FIGURES if explanation.layers is not None else FIGURES - {"layers"}
    assert names_of(list(drawn[0][1])) == expected
    assert monitor.evaluations[0][1].scalars["entropy"] == pytest.approx(
        _statistics(explanation.heatmap)["entropy"], abs=1e-5
    )


def test_objective_and_correction_reach_the_map() -> None:
    asked: dict[str, Any] = {"method": "gradient_guided", "objective": "margin"}
    monitor = WatchedMonitor(**asked, method_options={"correction": "negative"}, on_error="raise")
    fit(monitor, max_epochs=1)
    probe = monitor.evaluations[0][0]
    torch.manual_seed(7)
    heatmap = attngrad.explain(Classifier(), probe.images, probe.targets, **asked, correction="negative").heatmap
    assert monitor.evaluations[0][1].scalars["entropy"] == pytest.approx(_statistics(heatmap)["entropy"], abs=1e-5)


class SelfSupervised(pl.LightningModule):
    """A backbone without a classifier, pulled towards the same embedding for two views of an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.net = tiny_vit(num_classes=0)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.net(images)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first, second = (self(images)["embedding"] for images in (batch[0], batch[0].flip(-1)))
        return (first - second).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def length_of_embedding(output: dict[str, Tensor]) -> Tensor:
    return output["embedding"].norm(dim=1)


def test_a_backbone_without_a_classifier_is_watched_through_a_function(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    monitor = WatchedMonitor(draws=True, on_error="raise", objective=length_of_embedding, num_images=3)
    fit(monitor, module=SelfSupervised(), max_epochs=1)
    assert monitor.labels == ["start", "epoch 1"]
    probe, findings = monitor.evaluations[0]
    expected = attngrad.explain(SelfSupervised(), probe.images, objective=length_of_embedding)
    assert findings.scalars["entropy"] == pytest.approx(_statistics(expected.heatmap)["entropy"], abs=1e-5)
    assert names_of(drawn[0][1]) == FIGURES - {"classes"}
    shown = words(drawn[0][1]["attngrad/maps/overlay"])
    assert {f"output {value:.3g}".replace("-", "−") for value in expected.value.tolist()} <= set(shown)


# Masks ----------------------------------------------------------------------------------------------------------

MASK_SCALARS = {"mass_in_mask", "mass_outside_mask", "pointing", "mask_average_precision"}


class MaskedSquares(Squares):
    """The square is the object."""

    def __getitem__(self, index: int) -> Any:
        image, place = super().__getitem__(index)
        return image, place, image[:1] > 0.45


class Masked(Classifier):
    def loss(self, batch: Any) -> Tensor:
        return super().loss(batch[:2])


def squares_of(batch: Any) -> Tensor:
    return batch[0][:, 0] > 0.45


@pytest.mark.parametrize("mask", [2, f"{__name__}:squares_of", squares_of])
def test_masks_give_their_numbers_and_an_outline(monkeypatch: Any, mask: Any) -> None:
    drawn = captured_figures(monkeypatch)
    monitor = WatchedMonitor(draws=True, mask=mask, num_images=4, on_error="raise")
    run = fit(monitor, module=Masked, val=loader(MaskedSquares(9, seed=1)), max_epochs=1)
    probe, findings = monitor.evaluations[0]
    assert {*findings.scalars} >= MASK_SCALARS | {"border_mass", "corner_mass"}
    assert {f"attngrad/maps/{name}" for name in MASK_SCALARS} <= {*run.trainer.callback_metrics}
    torch.manual_seed(7)
    maps = attngrad.explain(Classifier(), probe.images, probe.targets).heatmap.clamp_min(0).double()
    inside = []
    for heatmap, image in zip(maps, probe.images, strict=True):  # each patch is 8 × 8 pixels
        covered = (image[0] > 0.45).double().reshape(4, 8, 4, 8).mean(dim=(1, 3))
        inside.append(float((heatmap * covered).sum() / heatmap.sum()))
    assert findings.scalars["mass_in_mask"] == pytest.approx(sum(inside) / 4, abs=1e-5)
    assert findings.scalars["mass_outside_mask"] == pytest.approx(1 - sum(inside) / 4, abs=1e-5)
    said = " ".join(words(drawn[0][1]["attngrad/maps/overlay"]))
    assert "outline: the mask" in said


def test_images_without_an_object_count_in_no_number_of_masks() -> None:
    def of_the_first_class(batch: Any) -> Tensor:
        return squares_of(batch) & (batch[1] == 0)[:, None, None]

    monitor = WatchedMonitor(mask=of_the_first_class, num_images=6, on_error="raise")
    fit(monitor, module=Masked, val=loader(MaskedSquares(9, seed=1)), max_epochs=1)
    probe, findings = monitor.evaluations[0]
    assert probe.targets is not None
    torch.manual_seed(7)
    maps = attngrad.explain(Classifier(), probe.images, probe.targets).heatmap.clamp_min(0)
    expected = []
    for heatmap, image, target in zip(maps, probe.images, probe.targets, strict=True):
        if target == 0:
            covered = (image[0] > 0.45).float().reshape(4, 8, 4, 8).mean(dim=(1, 3))
            expected.append(float((heatmap * covered).sum() / heatmap.sum()))
    assert len(expected) == 2
    assert findings.scalars["mass_in_mask"] == pytest.approx(sum(expected) / 2, abs=1e-5)


def test_where_no_image_has_an_object_nothing_of_masks_is_logged_and_evaluations_keep_their_cadence() -> None:
    monitor = WatchedMonitor(
        mask=lambda batch: torch.zeros_like(batch[0][:, 0]), every_n_epochs=3, num_images=4, on_error="raise"
    )
    run = fit(monitor, module=Masked, val=loader(MaskedSquares(9, seed=1)), max_epochs=3)
    assert monitor.labels == ["start", "epoch 3"]
    assert not MASK_SCALARS & {*monitor.evaluations[-1][1].scalars}
    assert any("empty or full" in message for message in run.messages)


def test_masks_of_another_size_end_the_monitor_not_the_run() -> None:
    monitor = WatchedMonitor(mask=lambda batch: batch[0][:, 0, ::2, ::2])
    run = fit(monitor, module=Masked, val=loader(MaskedSquares(9, seed=1)), max_epochs=1)
    assert len(run.losses) == 3
    assert len(run.complaints) == 1
    assert "mask: got masks of 16 × 16 pixels; expected 32 × 32" in run.complaints[0]


def test_without_masks_there_are_border_and_corner(written: tuple[Run, WatchedMonitor, Path]) -> None:
    scalars = written[1].evaluations[0][1].scalars
    assert {"border_mass", "corner_mass"} <= {*scalars}
    assert not MASK_SCALARS & {*scalars}


@pytest.mark.parametrize("mask", ["", True, 1.5, "no.such:function"])
def test_a_mask_that_can_never_work_is_refused_at_once(mask: Any) -> None:
    with pytest.raises(ValueError, match="mask: got"):
        attngrad.AttentionMapMonitor(probe=attngrad.ProbeImages(mask=mask))
