"""Runs that are not as in the manual: each ends in the right figures or in one clear message, and training goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.callbacks.rewriting_runs import Bright
from tests.callbacks.small_runs import (
    FIGURES,
    SCALARS,
    Classifier,
    Squares,
    Stream,
    WatchedMonitor,
    captured_figures,
    fit,
    loader,
    make_trainer,
    names_of,
    tiny_vit,
    words,
)

Make = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A run, and the figures that it ends in or the words of its message."""

    module: Make = Classifier
    train: Make = lambda: loader(Squares())
    val: Make = lambda: loader(Squares(9, seed=1))
    datamodule: Make = lambda: None
    trainer: dict[str, Any] = field(default_factory=dict)
    monitor: dict[str, Any] = field(default_factory=dict)
    figures: set[str] = field(default_factory=lambda: FIGURES)
    message: str = ""
    note: str = ""

    def run(self, *callbacks: pl.Callback) -> Any:
        options = {"train": self.train(), "val": self.val(), "datamodule": self.datamodule()}
        return fit(*callbacks, module=self.module, **options, **{"max_epochs": 1, **self.trainer})


# What a user may bring ------------------------------------------------------------------------------------------


UNSAID_CLASSES = "nothing tells what the 3 numbers are that the model gives an image"


class Batches(Dataset[Any]):
    """Squares in another form."""

    def __init__(self, form: Callable[[Tensor, int], Any], length: int = 9, **options: Any) -> None:
        self.squares, self.form = Squares(length, **options), form

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> Any:
        return self.form(*self.squares[index])


class Other(Classifier):
    """Takes batches of another form, and losses of another kind."""

    def __init__(
        self, net: nn.Module | None = None, images: Any = 0, loss: Callable[..., Tensor] | None = None
    ) -> None:
        super().__init__(net)
        self.key, self.loss_of = images, loss or (lambda output, batch: output.float().pow(2).mean())

    def loss(self, batch: Any) -> Tensor:
        return self.loss_of(self(batch[self.key]), batch)


class HuggingFace(Classifier):
    """A Hugging Face classifier, which returns an output with ``.logits`` and computes its own loss."""

    def __init__(self) -> None:
        from transformers import ViTConfig, ViTForImageClassification

        options = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        names = dict(enumerate(("left", "right", "below")))
        configuration = ViTConfig(hidden_size=32, image_size=32, patch_size=8, id2label=names, **options)
        super().__init__(ViTForImageClassification(configuration))

    def loss(self, batch: Any) -> Tensor:
        return self.net(**batch).loss  # type: ignore[no-any-return]


class OneNumber(nn.Module):
    """A regression model that gives (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_vit(num_classes=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).squeeze(1)  # type: ignore[no-any-return]


class NotANumber(Classifier):
    """Its logits turn NaN in an evaluation (and nowhere else, so that the losses compare)."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.net(images)
        in_evaluation = not self.training and torch.is_grad_enabled()
        return logits * float("nan") if in_evaluation else logits  # type: ignore[no-any-return]


class Breaks(Classifier):
    """Raises in an evaluation."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and torch.is_grad_enabled():
            raise RuntimeError("the disk is full")
        return self.net(images)  # type: ignore[no-any-return]


class NoValidationStep(Classifier):
    validation_step = pl.LightningModule.validation_step


class OwnLoaders(Classifier):
    def train_dataloader(self) -> Any:
        return loader(Squares())

    def val_dataloader(self) -> Any:
        return loader(Squares(9, seed=1))


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader(Squares())

    def val_dataloader(self) -> Any:
        return loader(Squares(9, seed=1))


class UnreadableHere(Squares):
    """Opens something in each worker only."""

    def __getitem__(self, index: int) -> Any:
        if torch.utils.data.get_worker_info() is None:
            raise OSError("opened by worker_init_fn only")
        return super().__getitem__(index)


def images_only(make: Make) -> Make:
    """Training data as ever, and a module that is validated without looking at the batch."""

    class Unlabelled(make):  # type: ignore[misc, valid-type]
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            pass

    return Unlabelled


def regression(output: Tensor, batch: Any) -> Tensor:
    return nn.functional.mse_loss(output.flatten(), batch[1].float())


def binary(output: Tensor, batch: Any) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output.flatten(), (batch[1] > 0).float())


def squares_of(*size: int) -> Make:
    return lambda: loader(Squares(9, size=size))  # type: ignore[arg-type]


def shaped(form: Callable[[Tensor, int], Any]) -> Make:
    return lambda: loader(Batches(form))


def off_by(amount: float) -> Make:
    """Images normalised by numbers that nobody is told."""
    return lambda: loader(Batches(lambda image, place: (image * 5 - amount, place), size=(1, 32, 32)))


FROM_TRAINING = "the run has no validation loader: the probe images come from the training data"
PICTURES = {
    "fast_dev_run": Case(trainer={"fast_dev_run": True}),
    "no sanity check": Case(trainer={"num_sanity_val_steps": 0}),
    "the whole validation as sanity check": Case(trainer={"num_sanity_val_steps": -1}),
    "two validation loaders": Case(
        val=lambda: [loader(Squares(9, seed=1)), loader(Squares(9, seed=2))],
        note="there are 2 validation loaders; the probe images come from dataloader_idx=0",
    ),
    "the second of two validation loaders": Case(
        val=lambda: [loader(Squares(9, seed=1)), loader(Squares(9, seed=2))],
        monitor={"dataloader_idx": 1},
        note="there are 2 validation loaders; the probe images come from dataloader_idx=1",
    ),
    "fewer images than asked for": Case(
        val=lambda: loader(Squares(2)), monitor={"num_images": 8}, note="the data set holds 2: using those"
    ),
    "a single image": Case(val=lambda: loader(Squares(1)), monitor={"num_images": 1}),
    "1 channel": Case(
        module=lambda: Classifier(tiny_vit(in_chans=1)), train=squares_of(1, 32, 32), val=squares_of(1, 32, 32)
    ),
    "1 channel, normalised, and a timm model that knows three means": Case(
        module=lambda: Classifier(
            timm.create_model(
                "vit_tiny_patch16_224",
                img_size=32,
                patch_size=8,
                depth=2,
                embed_dim=32,
                num_heads=2,
                in_chans=1,
                num_classes=3,
            )
        ),
        train=off_by(1.0),
        val=off_by(1.0),
    ),
    "2 channels": Case(
        module=lambda: Classifier(tiny_vit(in_chans=2)), train=squares_of(2, 32, 32), val=squares_of(2, 32, 32)
    ),
    "6 channels": Case(
        module=lambda: Classifier(tiny_vit(in_chans=6)),
        train=squares_of(6, 32, 32),
        val=squares_of(6, 32, 32),
        note="figures show the first three as red, green and blue",
    ),
    "not square": Case(
        module=lambda: Classifier(tiny_vit(img_size=(32, 48))), train=squares_of(3, 32, 48), val=squares_of(3, 32, 48)
    ),
    "one class": Case(
        module=lambda: Other(tiny_vit(num_classes=1), loss=binary),
        figures=FIGURES - {"classes"},
        note="the model has one output, and nothing tells what it means",
    ),
    "regression": Case(
        module=lambda: Other(OneNumber(), loss=regression),
        train=shaped(lambda image, place: (image, float(place))),
        val=shaped(lambda image, place: (image, float(place))),
        figures=FIGURES - {"classes"},
    ),
    "dict batches": Case(
        module=lambda: Other(images="image"),
        train=shaped(lambda image, place: {"image": image, "label": place}),
        val=shaped(lambda image, place: {"image": image, "label": place}),
    ),
    "nested batches and keys": Case(
        module=images_only(Classifier),
        val=shaped(lambda image, place: {"in": {"view": image}, "truth": place}),
        monitor={"image_key": "in.view", "target_key": "truth"},
    ),
    "a batch adapter": Case(
        module=images_only(Classifier),
        val=shaped(lambda image, place: {"a": image, "b": place}),
        monitor={"batch_adapter": lambda batch: (batch["a"], batch["b"])},
    ),
    "Hugging Face": Case(
        module=HuggingFace,
        train=shaped(lambda image, place: {"pixel_values": image, "labels": place}),
        val=shaped(lambda image, place: {"pixel_values": image, "labels": place}),
    ),
    "a part of the module": Case(monitor={"model": "net"}),
    "a hierarchical model": Case(
        module=lambda: Classifier(
            SwinTransformer(img_size=32, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4, num_classes=3)
        )
    ),
    "no targets": Case(module=images_only(Classifier), val=shaped(lambda image, place: image), note=UNSAID_CLASSES),
    "labels to be ignored": Case(
        module=images_only(Classifier), val=shaped(lambda image, place: (image, -100)), note=UNSAID_CLASSES
    ),
    "means for other channels": Case(
        monitor={"mean": (0.5, 0.5), "std": (0.5, 0.5)}, note="figures show stretched images, and undo no normalisation"
    ),
    "loaders of the module": Case(module=OwnLoaders, train=lambda: None, val=lambda: None),
    "loaders of a datamodule": Case(datamodule=Data),
    "loaders anew each epoch": Case(datamodule=Data, trainer={"reload_dataloaders_every_n_epochs": 1}),
    "limit_val_batches=0": Case(trainer={"limit_val_batches": 0}),
    "no validation loader": Case(val=lambda: None, note=FROM_TRAINING),
    "no validation loader, by steps": Case(val=lambda: None, monitor={"every_n_steps": 100}, note=FROM_TRAINING),
    "no validation_step": Case(module=NoValidationStep),
    "a stream": Case(val=lambda: loader(Stream()), note="gathered as validation goes by"),
    "overfit_batches": Case(trainer={"overfit_batches": 1}),
    "barebones": Case(
        trainer={
            "barebones": True,
            "log_every_n_steps": None,
            "num_sanity_val_steps": 0,
            "logger": None,
            "enable_checkpointing": None,
            "enable_progress_bar": None,
            "enable_model_summary": None,
        }
    ),
}

MESSAGES = {
    "no images in the batch": Case(
        module=images_only(Classifier),
        val=shaped(lambda image, place: {"tokens": image.flatten(), "length": place}),
        message="no images (B, C, H, W) found in dict('tokens': float32[",
    ),
    "a key that leads nowhere": Case(
        monitor={"image_key": "pixels"}, message="image_key: got 'pixels', which leads nowhere"
    ),
    "images of several sizes": Case(
        module=images_only(Classifier),
        val=lambda: loader([torch.rand(3, 32, 32 + 8 * index) for index in range(4)], 1),
        message="all probe images must have one size",
    ),
    "an empty data set": Case(val=lambda: loader([]), message="the data set is empty"),
    "no such loader": Case(
        monitor={"dataloader_idx": 1}, message="dataloader_idx: got 1; expected 0, as there is one validation loader"
    ),
    "a data set that only workers can read": Case(
        val=lambda: loader(UnreadableHere(9)),
        module=NoValidationStep,
        monitor={"every_n_steps": 1},
        message="opened by worker_init_fn only",
    ),
    "neither attention nor a feature map": Case(
        module=lambda: Classifier(Bright()), message="makes no attention call over image tokens"
    ),
    "feature maps instead of logits": Case(
        module=lambda: Other(nn.Sequential(tiny_vit(num_classes=12), nn.Unflatten(1, (3, 2, 2)))),
        message="is not one row of logits an image",
    ),
    "NaN logits": Case(module=NotANumber, message="NaN or infinite outputs for 2 of 2 images"),
    "an error in the probe": Case(module=Breaks, message="RuntimeError: the disk is full"),
    "labels beyond the classes": Case(
        module=images_only(Classifier),
        val=shaped(lambda image, place: (image, place + 100)),
        message="there is a label 102: it is not certain that they are classes",
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_it_ends_in_the_right_figures(monkeypatch: Any, name: str) -> None:
    case = PICTURES[name]
    drawn = captured_figures(monkeypatch)
    run = case.run(WatchedMonitor(draws=True, **case.monitor))
    assert run.complaints == []
    assert [note for note in run.messages if case.note not in note] == []
    assert len(run.messages) == bool(case.note)
    assert len(drawn) == 2  # the start and the end
    assert all(names_of(list(figures)) == case.figures for _, figures in drawn)
    assert run.losses == case.run().losses


@pytest.mark.parametrize("name", MESSAGES)
def test_it_ends_in_one_message(monkeypatch: Any, name: str) -> None:
    case = MESSAGES[name]
    drawn = captured_figures(monkeypatch)
    run = case.run(WatchedMonitor(draws=True, **case.monitor))
    (message,) = run.messages
    assert case.message in message
    assert "WatchedMonitor is switched off for the remainder of this run, training goes on" in message
    assert drawn == []
    assert not any(key.startswith("attngrad/") for key in run.trainer.callback_metrics)
    without = case.run()
    assert run.losses == without.losses
    assert len(run.losses) > 0


# What the figures of some of them hold ---------------------------------------------------------------------------


def evaluated(monkeypatch: Any, name: str, **options: Any) -> tuple[WatchedMonitor, dict[str, Any]]:
    drawn = captured_figures(monkeypatch)
    case = PICTURES[name]
    monitor = WatchedMonitor(draws=True, on_error="raise", **{**case.monitor, **options})
    case.run(monitor)
    return monitor, {tag.rsplit("/", 1)[-1]: figure for tag, figure in drawn[0][1].items()}


def test_the_second_loader_gives_other_images(monkeypatch: Any) -> None:
    first, _ = evaluated(monkeypatch, "two validation loaders")
    second, _ = evaluated(monkeypatch, "the second of two validation loaders")
    assert first.probe_set.hash != second.probe_set.hash
    assert all(
        any(torch.equal(image, one) for one in Squares(9, seed=2).images) for image in second.evaluations[0][0].images
    )


def test_a_grid_that_is_not_square(monkeypatch: Any) -> None:
    _, figures = evaluated(monkeypatch, "not square")
    assert any("patch grid 4 × 6" in text for text in words(figures["overlay"]))


def test_an_output_that_is_no_class_is_called_so(monkeypatch: Any) -> None:
    for name in ("regression", "one class"):
        monitor, figures = evaluated(monkeypatch, name)
        probe = monitor.evaluations[0][0]
        torch.manual_seed(7)
        with torch.no_grad():
            value = float(PICTURES[name].module().eval()(probe.images[:1]))
        said = words(figures["overlay"])
        assert any(f"{value:.3g}".replace("-", "−") in text for text in said), said
        assert "predicted" in said  # without a probability
        assert not any("✗" in text or "✓" in text for text in said)


def test_labels_that_are_no_classes(monkeypatch: Any) -> None:
    ignored, figures = evaluated(monkeypatch, "labels to be ignored", class_names=("left", "right", "below"))
    assert "true" not in words(figures["overlay"])  # and not the last class, which Python's index −100 … −1 would give
    torch.manual_seed(7)
    with torch.no_grad():
        predicted = Classifier().eval()(ignored.evaluations[0][0].images).argmax(1)
    assert ignored.shared.classes is not None  # explained is the class first predicted
    assert ignored.shared.classes.tolist() == predicted.tolist()


def test_images_of_unknown_normalisation_are_stretched(monkeypatch: Any) -> None:
    monitor, _ = evaluated(monkeypatch, "1 channel, normalised, and a timm model that knows three means")
    pixels = monitor.evaluations[0][0].pixels
    assert pixels.shape == (3, 1, 32, 32)
    assert torch.allclose(pixels.amin(dim=(1, 2, 3)), torch.zeros(3))
    assert torch.allclose(pixels.amax(dim=(1, 2, 3)), torch.ones(3))


@pytest.mark.parametrize(("name", "shown"), [("2 channels", 1), ("6 channels", 3)])
def test_images_that_are_not_coloured_show_some_of_their_channels(monkeypatch: Any, name: str, shown: int) -> None:
    monitor, _ = evaluated(monkeypatch, name)
    probe = monitor.evaluations[0][0]
    assert probe.pixels.shape[1] == shown
    for picture, image in zip(probe.pixels, probe.images[:, :shown], strict=True):  # stretched, the bands together
        assert torch.corrcoef(torch.stack([picture.flatten(), image.flatten()]))[0, 1] > 0.98


def test_a_hugging_face_model_names_its_classes(monkeypatch: Any) -> None:
    monitor, _ = evaluated(monkeypatch, "Hugging Face")
    assert monitor.evaluations[0][0].class_names == ("left", "right", "below")
    assert monitor.evaluations[0][0].targets is not None


def test_given_keys_and_adapters_find_images_and_targets(monkeypatch: Any) -> None:
    for name in ("nested batches and keys", "a batch adapter"):
        monitor, _ = evaluated(monkeypatch, name)
        assert sorted(monitor.evaluations[0][0].targets.tolist()) == [0, 1, 2]  # type: ignore[union-attr]


# Data sets that notice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tells", [True, False])
def test_how_often_a_data_set_is_read(tells: bool) -> None:
    """Once an image where it tells its classes; else 8 candidates an image, to find some of each class."""
    data = Squares(40)
    if tells:
        data.targets = data.places  # type: ignore[attr-defined]
    untouched = Squares(40)
    fit(val=loader(untouched), max_epochs=1)
    monitor = WatchedMonitor(num_images=3, on_error="raise")
    fit(monitor, val=loader(data), max_epochs=1)
    # the count is an attribute of the data set, and reading puts attributes back: only a run's own reads are seen
    assert data.reads == untouched.reads
    assert sorted(monitor.evaluations[0][0].targets.tolist()) == [0, 1, 2]  # type: ignore[union-attr]

    calls: list[int] = []

    class Counting(Squares):
        def __getitem__(self, index: int) -> Any:
            calls.append(index)
            return super().__getitem__(index)

    counting = Counting(40)
    if tells:
        counting.targets = counting.places  # type: ignore[attr-defined]
    fit(WatchedMonitor(num_images=3, on_error="raise"), val=loader(counting), max_epochs=1, num_sanity_val_steps=0)
    assert len(calls) - 40 == (3 if tells else 8 * 3 + 3)


def test_precision_of_the_run_is_the_precision_of_the_evaluation() -> None:
    kinds: list[torch.dtype] = []

    class Spy(Classifier):
        def forward(self, images: Tensor) -> Any:
            logits = self.net(images)
            if not self.training and torch.is_grad_enabled():
                kinds.append(logits.dtype)
            return logits

    fit(WatchedMonitor(on_error="raise"), module=Spy, precision="bf16-mixed", max_epochs=1)
    assert set(kinds) == {torch.bfloat16}


def test_a_run_without_training_batches_is_left_alone() -> None:
    trainer = make_trainer(WatchedMonitor(on_error="raise"), limit_train_batches=0, max_epochs=1)
    trainer.fit(Classifier(), loader(Squares()), loader(Squares(9)))
    assert trainer.global_step == 0


def test_the_scalars_are_the_same_set_in_every_picture_case() -> None:
    """So that a monitored key does not depend on the data."""
    for name in ("regression", "no targets", "1 channel"):
        case = PICTURES[name]
        run = case.run(WatchedMonitor(on_error="raise"))
        keys = {
            key.removeprefix("attngrad/maps/") for key in run.trainer.callback_metrics if key.startswith("attngrad/")
        }
        keys.remove("attngrad/probe/seconds")
        assert {key.split("/")[0] for key in keys} == {key.split("/")[0] for key in SCALARS}
