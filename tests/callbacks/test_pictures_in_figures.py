"""The colours that a user sees in the figures of real runs, whatever units, channels and hooks the run has."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.measure.rewriting import rewrite_images
from lightning_attngrad.probe import Evaluation, Findings
from lightning_attngrad.reporting.figures import figure_to_array
from tests.probe.pictures import (
    MEAN,
    RED_GREEN_BLUE,
    STD,
    WHITE,
    HookedData,
    PictureData,
    Pictures,
    column,
    photographs,
    thirteen_bands,
)
from tests.probe.runs import everything
from tests.probe.test_display import stretched

BAND_MEAN, BAND_STD = torch.linspace(900, 1500, 13), torch.linspace(200, 700, 13)
BANDS: dict[str, Any] = {"num_images": 4, "channels": RED_GREEN_BLUE, "pixel_range": (0, WHITE)}


class Net(pl.LightningModule):
    """A small transformer for batches that are dictionaries."""

    def __init__(self, channels: int = 13) -> None:
        super().__init__()
        self.net = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3, in_chans=channels
        )
        self.seen: list[float] = []

    def forward(self, images: Tensor) -> Any:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(float(batch["image"].double().sum()))
        return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch["image"]), batch["label"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def bands() -> HookedData:
    """Counts, normalised on the device."""
    return HookedData(Pictures(thirteen_bands()), lambda images: (images - column(BAND_MEAN)) / column(BAND_STD))


class Watched:
    """A monitor that keeps its evaluations and the figures of the last one."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        findings: Findings = super().evaluate(evaluation)  # type: ignore[misc]
        self.last, self.figures = evaluation, findings.figures()
        self.labels = [*getattr(self, "labels", []), evaluation.label]
        return findings


class Maps(Watched, attngrad.AttentionMapMonitor):
    pass


class Drift(Watched, attngrad.AttentionDriftMonitor):
    pass


class Rewriting(Watched, attngrad.RewriteRobustnessMonitor):
    def evaluate(self, evaluation: Evaluation) -> Findings:
        findings = super().evaluate(evaluation)
        _, self.pairs = rewrite_images(evaluation, self.rewriting, self._frozen)  # type: ignore[arg-type]
        return findings


def monitors(**settings: Any) -> tuple[Maps, Drift, Rewriting, attngrad.FaithfulnessMonitor]:
    probe = attngrad.ProbeImages(**{"num_images": 4, **settings})
    return (
        Maps(probe=probe),
        Drift(probe=probe),
        Rewriting(probe=probe, steps=2, long_every=None),
        attngrad.FaithfulnessMonitor(probe=probe),
    )


def fit(data: Any, *callbacks: pl.Callback, channels: int = 13, ckpt_path: Any = None, **options: Any) -> Net:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    module = Net(channels)
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            **{**defaults, **options},
        )
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


def tile(figure: Any, number: int, size: int = 32) -> Tensor:
    """(3, size, size) of a picture of a figure as it is drawn, in [0, 1]: one value for each pixel of the image."""
    drawn, place = figure_to_array(figure), figure.tiles[number]
    shown = torch.from_numpy(drawn[place.top : place.bottom, place.left : place.right, :3].copy())
    rows, columns = ((torch.arange(size) + 0.5) * shown.shape[axis] / size for axis in (0, 1))
    return shown[rows.long()][:, columns.long()].permute(2, 0, 1).float() / 255


def assert_same_colours(drawn: Tensor, expected: Tensor, levels: float = 1.5) -> None:
    """But for the frame around the picture."""
    difference = (drawn - expected)[:, 1:-1, 1:-1].abs()
    assert float(difference.max()) <= levels / 255


def order_of(evaluation: Evaluation, images: Tensor) -> list[int]:
    """Which of the images the probe has chosen, in its order."""
    return [int((images - image.cpu()).flatten(1).abs().amax(1).argmin()) for image in evaluation.images]


def normalised(images: Tensor) -> Tensor:
    return (images - column(MEAN)) / column(STD)


PHOTOGRAPHS = {
    "pixels": (lambda: PictureData(Pictures(photographs())), {}),
    "bytes": (lambda: PictureData(Pictures(255 * photographs())), {}),
    "arguments": (lambda: PictureData(Pictures(photographs(), normalised)), {"mean": MEAN, "std": STD}),
    "hook on uint8": (
        lambda: HookedData(Pictures((255 * photographs()).to(torch.uint8)), lambda images: normalised(images / 255)),
        {},
    ),
    "attributes in 0 to 255": (
        lambda: PictureData(
            Pictures(255 * photographs(), lambda image: normalised(image / 255)),
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_drawn_in_their_own_colours(name: str, tmp_path: Path) -> None:
    data, settings = PHOTOGRAPHS[name]
    maps, drift, rewriting, faithfulness = monitors(**settings)
    fit(data(), maps, drift, rewriting, faithfulness, channels=3, default_root_dir=tmp_path)
    prepared = data()
    images = torch.stack([prepared.dataset[index]["image"] for index in range(4)])
    order = order_of(maps.last, images if prepared.hook is None else prepared.hook(images))
    assert sorted(order) == [0, 1, 2, 3]
    for place, index in enumerate(order):
        assert_same_colours(tile(maps.figures["overlay"], 2 * place), photographs()[index])
    assert_same_colours(tile(maps.figures["film"], 0), photographs()[order[0]])
    first = rewriting.pairs[0].original
    assert min(float((first - photograph).abs().max()) for photograph in photographs()) < 1e-3
    assert_same_colours(tile(rewriting.figures["rewrites"], 0), first)
    assert rewriting.last.display.words == ""


@pytest.mark.parametrize("settings", [BANDS, {"channels": RED_GREEN_BLUE}], ids=["range", "no range"])
def test_thirteen_bands_are_drawn_in_the_colours_of_three_of_them(settings: Any, tmp_path: Path) -> None:
    maps, drift, rewriting, faithfulness = monitors(**settings)
    fit(bands(), maps, drift, rewriting, faithfulness, default_root_dir=tmp_path)
    counts = thirteen_bands()
    order = order_of(maps.last, (counts - column(BAND_MEAN)) / column(BAND_STD))
    expected = stretched(counts[:, list(RED_GREEN_BLUE)])
    for place, index in enumerate(order):
        assert_same_colours(tile(maps.figures["overlay"], 2 * place), expected[index])
    for name in ("film", "classes", "layers"):
        if name in maps.figures:
            assert_same_colours(tile(maps.figures[name], 0), expected[order[0]])
    moved = drift.figures["moved"]
    assert min(float((tile(moved, 0) - one)[:, 1:-1, 1:-1].abs().max()) for one in expected) <= 1.5 / 255
    for figure in (*(maps.figures[name] for name in ("overlay", "film")), moved):
        words = " ".join(text.get_text() for text in figure.texts)
        assert "channels 3, 2, 1 of 0 to 12 as red, green, blue; each image stretched, 2–98 %" in words
    assert faithfulness.scalars["deletion"] > 0
    if "pixel_range" not in settings:
        assert not hasattr(rewriting, "last")
        return
    figure = rewriting.figures["rewrites"]
    for row, pair in enumerate(rewriting.pairs):
        number = int(rewriting.last.images.shape[0] and rewriting_image(rewriting, pair.pair))
        low, high = maps.last.display.limits[number].tolist()  # type: ignore[index]
        before, after = (picture[list(RED_GREEN_BLUE)] for picture in (pair.original, pair.rewritten))
        assert_same_colours(tile(figure, 5 * row), expected[order[number]])
        assert_same_colours(tile(figure, 5 * row + 2), ((after - before + before - low) / (high - low)).clamp(0, 1))
        # The difference is of the values, so that its factor goes with the distance that stands beside it.
        largest = float((after - before).abs().max())
        if largest:
            factor = max(f for f in (0.5, *(s * 10**p for p in range(4) for s in (1, 2, 5))) if f * largest <= 0.5001)
            assert_same_colours(tile(figure, 5 * row + 1), (0.5 + factor * (after - before)).clamp(0, 1))
    words = " ".join(text.get_text() for text in figure.texts)
    assert "stretched, 2–98 %; changes in 10 others not shown" in words


def rewriting_image(monitor: Rewriting, pair: int) -> int:
    index, _ = monitor._frozen.pairs()  # type: ignore[union-attr]
    return int(index[pair])


def test_a_wrong_normalisation_is_not_undone_and_the_figure_says_so(tmp_path: Path, caplog: Any) -> None:
    maps, drift, *_ = monitors(mean=0.5, std=0.9)
    with caplog.at_level(logging.WARNING, logger="lightning_attngrad"):
        data = PictureData(Pictures(photographs(), normalised))
        fit(data, maps, drift, channels=3, default_root_dir=tmp_path)
    order = order_of(maps.last, normalised(photographs()))
    assert_same_colours(tile(maps.figures["overlay"], 0), stretched(normalised(photographs()))[order[0]])
    for figure in (maps.figures["overlay"], drift.figures["moved"]):
        assert "normalisation unknown; each image stretched, 2–98 %" in [text.get_text() for text in figure.texts]
    said = [record.message for record in caplog.records if "undo no normalisation" in record.message]
    assert len(said) == 1
    assert "mean, std: got (0.5,) and (0.9,) (arguments mean and std), but the images lie in" in said[0]


@pytest.mark.parametrize("kind", [attngrad.RewriteRobustnessMonitor, attngrad.CheckpointAudit])
def test_what_needs_the_normalisation_asks_before_training(kind: Any, tmp_path: Path) -> None:
    said: list[tuple[int, str]] = []

    class Listening(kind):  # type: ignore[misc]
        def _switch_off(self, trainer: Any, why: str) -> None:
            said.append((trainer.global_step, why))
            super()._switch_off(trainer, why)

    fit(bands(), Listening(num_images=4), default_root_dir=tmp_path)
    ((step, why),) = said
    assert step == 0
    assert "mean and std are known (what HookedData.on_after_batch_transfer does to a batch)" in why
    assert "probe=attngrad.ProbeImages(pixel_range=(black, white))" in why


def test_thirteen_bands_that_nobody_named_are_asked_about_once(tmp_path: Path, caplog: Any) -> None:
    maps, drift, *_ = monitors()
    with caplog.at_level(logging.WARNING, logger="lightning_attngrad"):
        fit(bands(), maps, drift, default_root_dir=tmp_path, max_epochs=2)
    said = [record.message for record in caplog.records if "channels" in record.message]
    assert len(said) == 1
    assert "the images have 13 channels, and figures show the first three" in said[0]


def test_channels_that_the_images_do_not_have_switch_the_monitors_off(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"channels: got \[3, 2, 1\]; the images have 3 channels, 0 to 2"):
        fit(
            PictureData(Pictures(photographs())),
            attngrad.AttentionMapMonitor(probe=attngrad.ProbeImages(**BANDS), on_error="raise"),
            channels=3,
            default_root_dir=tmp_path,
        )


def test_the_run_is_bit_identical_with_and_without_the_monitors(tmp_path: Path) -> None:
    outcomes = [
        everything(fit(bands(), *callbacks, default_root_dir=tmp_path, max_epochs=2))
        for callbacks in ((), monitors(**BANDS))
    ]
    for outcome in outcomes:
        outcome["metrics"] = {name: one for name, one in outcome["metrics"].items() if "attngrad" not in name}
    assert outcomes[0] == outcomes[1]


def test_a_resumed_run_goes_on_in_the_same_units(tmp_path: Path, caplog: Any) -> None:
    first = monitors(**BANDS)
    fit(bands(), *first, default_root_dir=tmp_path, max_epochs=1, enable_checkpointing=True)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    second = monitors(**BANDS)
    with caplog.at_level(logging.WARNING, logger="lightning_attngrad"):
        fit(bands(), *second, default_root_dir=tmp_path, max_epochs=2, ckpt_path=checkpoint)
    assert not [record.message for record in caplog.records if "history" in record.message]
    assert second[2].rewrite_hash == first[2].rewrite_hash
    assert second[2].labels[-1].startswith("epoch 2")
    assert np.isfinite(second[2].scalars["log_ratio"]) or second[2].scalars["log_ratio"] in (np.inf, -np.inf)
    # In another unit nothing compares.
    third = monitors(**{**BANDS, "pixel_range": (0, 5000)})
    with caplog.at_level(logging.WARNING, logger="lightning_attngrad"):
        fit(bands(), *third, default_root_dir=tmp_path, max_epochs=2, ckpt_path=checkpoint)
    assert any("a new history begins" in record.message for record in caplog.records)
    assert third[2].rewrite_hash != first[2].rewrite_hash
