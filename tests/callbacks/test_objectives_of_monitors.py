"""Objectives beyond one label an image, asked by monitors in real runs of segmentation, detection and features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import Dataset

import lightning_attngrad as attngrad
from lightning_attngrad.metrics.functional import map_statistics
from lightning_attngrad.probe import Evaluation, Findings
from tests.beyond import segformer, videomae, yolos
from tests.callbacks.small_runs import Classifier, Squares, captured_figures, fit, loader, tiny_vit, words
from tests.probe_options import with_probe

PIXELS = {"image_key": 0, "mean": 0.0, "std": 1.0}


class Marked(Dataset[dict[str, Tensor]]):
    """A bright square on each image, and which pixels it fills, as class 1."""

    def __init__(self, length: int = 8) -> None:
        self.images = 0.3 * torch.rand(length, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        self.labels = torch.zeros(length, 64, 96, dtype=torch.long)
        for index in range(length):
            top, left = 8 * (index % 4), 8 * index
            self.images[index, :, top : top + 24, left : left + 24] += 0.6
            self.labels[index, top : top + 24, left : left + 24] = 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "mask": self.labels[index]}


class Segmenter(Classifier):
    """A user's module for segmentation, whose forward gives Hugging Face's output."""

    def __init__(self) -> None:
        super().__init__(copy.deepcopy(segformer()))

    def loss(self, batch: Any) -> Tensor:
        scores = nn.functional.interpolate(self(batch["image"]).logits, size=(64, 96), mode="bilinear")
        return nn.functional.cross_entropy(scores, batch["mask"])


class Keeps:
    """What a monitor asked last, and the weights it asked it of."""

    evaluations: list[tuple[Evaluation, dict[str, Tensor]]]

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.__dict__.setdefault("evaluations", []).append(
            (evaluation, {name: value.clone() for name, value in evaluation.model.state_dict().items()})
        )
        return super().evaluate(evaluation)  # type: ignore[misc]


class Maps(Keeps, attngrad.AttentionMapMonitor):
    pass


def run_of_segmentation(*monitors: Any, **options: Any) -> Any:
    data = Marked()
    return fit(*monitors, module=Segmenter, train=loader(data), val=loader(data), max_epochs=1, **options)


def there(batch: Any) -> Tensor:
    return batch["mask"] == 1


@pytest.mark.parametrize("method", [None, "gradient_guided"])
def test_a_pixel_a_region_and_the_masks_of_the_images(method: str | None) -> None:
    masked = attngrad.ProbeImages(num_images=4, mask=there)
    common: dict[str, Any] = {"method": method, "on_error": "raise"}
    pixel = Maps(name="pixel", num_images=4, objective=attngrad.PixelClass(1, (20, 30)), **common)
    inside = Maps(name="inside", probe=masked, objective=attngrad.PixelClass(1, "mask"), **common)
    drift = attngrad.AttentionDriftMonitor(num_images=4, objective=attngrad.PixelClass(1, (20, 30)), **common)
    run_of_segmentation(pixel, inside, drift)
    assert len(pixel.evaluations) == 2

    def of_pixel(output: Any) -> Tensor:
        return output.logits[:, 1, 5, 7]

    def of_masks(output: Any) -> Tensor:
        shares = nn.functional.adaptive_avg_pool2d(inside.probe_set.masks, (16, 24))
        return (output.logits[:, 1] * shares).sum(dim=(1, 2)) / shares.sum(dim=(1, 2))

    for monitor, formula in ((pixel, of_pixel), (inside, of_masks)):
        evaluation, weights = monitor.evaluations[-1]
        model = Segmenter()
        model.load_state_dict(weights)
        expected = attngrad.explain(model.eval(), evaluation.images, objective=formula, method=method)
        assert monitor.scalars["entropy"] == pytest.approx(float(map_statistics(expected.heatmap)["entropy"]), rel=1e-4)
    assert 0 < drift.scalars["spearman"] <= 2
    assert inside.scalars["mass_in_mask"] > 0


def test_the_figures_say_what_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = captured_figures(monkeypatch)
    run_of_segmentation(
        attngrad.AttentionMapMonitor(num_images=4, objective=attngrad.PixelClass(1, (20, 30)), on_error="raise")
    )
    _, figures = drawn[0]
    assert "attngrad/maps/classes" not in figures  # about one class, and no class of the image
    assert words(figures["attngrad/maps/overlay"]).count("class 1 at (20, 30)") == 4
    assert "predicted" not in words(figures["attngrad/maps/overlay"])
    assert any("maps of class 1 at (20, 30)" in text for text in words(figures["attngrad/maps/film"]))


def test_images_in_which_the_class_is_not_there_have_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = captured_figures(monkeypatch)

    def some(batch: Any) -> Tensor:
        return (batch["mask"] == 1) & (torch.arange(len(batch["mask"])) > 0)[:, None, None]

    monitor = attngrad.AttentionMapMonitor(
        probe=attngrad.ProbeImages(num_images=4, mask=some), objective=attngrad.PixelClass(1, "mask"), on_error="raise"
    )
    run_of_segmentation(monitor)
    said = words(drawn[0][1]["attngrad/maps/overlay"])
    assert said.count("no map") == said.count("not there") >= 1
    assert 0 < monitor.scalars["entropy"] < 1  # of the others


def test_masks_that_are_not_there_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"PixelClass\(where='mask'\) takes its masks.*ProbeImages\(mask=…\)"):
        attngrad.AttentionMapMonitor(objective=attngrad.PixelClass(1, "mask"))


def test_what_has_no_classes_is_not_rewritten_and_training_goes_on() -> None:
    rewriting = attngrad.RewriteRobustnessMonitor(**with_probe({"num_images": 4, "mean": 0.0, "std": 1.0}))
    run = run_of_segmentation(rewriting)
    (said,) = [message for message in run.messages if "RewriteRobustnessMonitor" in message]
    assert "is not one row of logits an image" in said
    assert len(run.losses) == 2
    alone = run_of_segmentation()
    assert run.losses == alone.losses
    with pytest.raises(ValueError, match="which is about no class"):
        attngrad.FaithfulnessMonitor(objective=attngrad.PixelClass(1))


class Detector(Classifier):
    """A user's module for detection, with a loss that only has to move it."""

    def __init__(self) -> None:
        super().__init__(copy.deepcopy(yolos()))

    def loss(self, batch: Any) -> Tensor:
        output = self(batch["image"])
        return output.logits.square().mean() + output.pred_boxes.square().mean()


def test_queries_and_boxes() -> None:
    data = Marked()
    monitors = [
        Maps(name="class", num_images=4, objective=attngrad.QueryClass(2), on_error="raise"),
        Maps(name="box", num_images=4, objective=attngrad.QueryBox(0, target=2), on_error="raise"),
    ]
    fit(*monitors, module=Detector, train=loader(data), val=loader(data), max_epochs=1)
    formulas = (
        lambda output: output.logits[:, :, 2].amax(dim=1),
        lambda output: output.pred_boxes[torch.arange(4), output.logits[:, :, 2].argmax(dim=1), 0],
    )
    for monitor, formula in zip(monitors, formulas, strict=True):
        evaluation, weights = monitor.evaluations[-1]
        model = Detector()
        model.load_state_dict(weights)
        expected = attngrad.explain(model.eval(), evaluation.images, objective=formula)
        assert monitor.scalars["entropy"] == pytest.approx(float(map_statistics(expected.heatmap)["entropy"]), rel=1e-4)


# Likeness to vectors --------------------------------------------------------------------------------------------


def prototypes() -> attngrad.Similarity:
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    return attngrad.Similarity(vectors, ("one", "two", "three"), scale=5.0)


def test_vectors_are_the_classes_of_every_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    likeness = prototypes()
    probe = attngrad.ProbeImages(num_images=3, mean=0.0, std=1.0)
    same = attngrad.ProbeImages(num_images=3, mean=0.0, std=1.0, task=likeness)
    drawn = captured_figures(monkeypatch)
    monitors = [
        Maps(name="short", probe=probe, objective=likeness, on_error="raise"),
        Maps(name="said", probe=same, on_error="raise"),
        attngrad.AttentionDriftMonitor(probe=probe, objective=likeness, on_error="raise"),
        attngrad.FaithfulnessMonitor(probe=probe, objective=likeness, steps=2, on_error="raise"),
        attngrad.RewriteRobustnessMonitor(probe=same, steps=4, long_every=None, on_error="raise"),
    ]
    run = fit(*monitors, module=Features, max_epochs=1)
    assert run.complaints == []
    assert len({monitor.shared for monitor in monitors}) == 1  # the images are read once
    short, said = monitors[:2]
    assert short.scalars["entropy"] == said.scalars["entropy"]
    evaluation, weights = short.evaluations[-1]
    assert evaluation.class_names == ("one", "two", "three")
    model = Features()
    model.load_state_dict(weights)
    found = attngrad.explain(model.eval(), evaluation.images, evaluation.classes(), objective=likeness)
    assert short.scalars["entropy"] == pytest.approx(float(map_statistics(found.heatmap)["entropy"]), rel=1e-4)
    assert monitors[3].scalars["deletion"] < 1
    assert monitors[4].scalars["median_linf"] > 0
    written = words(drawn[0][1]["attngrad/short/overlay"])
    assert set(written) & {"✓ one", "✗ one", "✓ two", "✗ two", "✓ three", "✗ three"}


def test_likeness_is_said_once() -> None:
    with pytest.raises(ValueError, match=r"got Similarity\(…\) beside ProbeImages\(task='multiclass'\)"):
        attngrad.AttentionMapMonitor(probe=attngrad.ProbeImages(task="multiclass"), objective=prototypes())


# Clips ----------------------------------------------------------------------------------------------------------

STRIP = attngrad.ClipStrip(frames=4, tubelet=2)


class Clips(Dataset[dict[str, Tensor]]):
    """Four frames, of noise but for two of them, which are bright."""

    def __init__(self) -> None:
        self.clips = 0.3 * torch.rand(8, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.clips[::2, :2] += 0.6
        self.clips[1::2, 2:] += 0.6

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.clips[index], "labels": torch.tensor(index % 2)}


class Recogniser(Classifier):
    """A user's module for clips."""

    def __init__(self) -> None:
        super().__init__(copy.deepcopy(videomae()))

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch["pixel_values"]).logits, batch["labels"])


def test_clips_are_watched_as_strips() -> None:
    probe = attngrad.ProbeImages(
        num_images=4,
        mean=0.0,
        std=1.0,
        batch_adapter=lambda batch: (STRIP.images(batch["pixel_values"]), batch["labels"]),
        forward=lambda model, images: model(STRIP.clips(images)),
    )
    maps = Maps(probe=probe, on_error="raise")
    drift = attngrad.AttentionDriftMonitor(probe=probe, on_error="raise")
    data = Clips()
    run = fit(maps, drift, module=Recogniser, train=loader(data), val=loader(data), max_epochs=1)
    assert run.complaints == []
    evaluation, weights = maps.evaluations[-1]
    assert evaluation.images.shape == (4, 6, 32, 64)
    assert evaluation.pixels.shape == (4, 3, 32, 64)  # the first frame of every two
    model = Recogniser()
    model.load_state_dict(weights)
    found = attngrad.explain(
        model.eval(), evaluation.images, evaluation.classes(), forward=lambda images: model(STRIP.clips(images))
    )
    assert STRIP.maps(found.heatmap).shape == (4, 2, 4, 4)
    assert maps.scalars["entropy"] == pytest.approx(float(map_statistics(found.heatmap)["entropy"]), rel=1e-4)
    assert drift.scalars["spearman"] > 0


# The start ------------------------------------------------------------------------------------------------------


class Features(Classifier):
    """A user's module whose output are features, trained to spread them out."""

    def __init__(self) -> None:
        super().__init__(tiny_vit(num_classes=0))

    def loss(self, batch: Any) -> Tensor:
        images, _ = batch
        embedding = nn.functional.normalize(self(images), dim=1)
        return (embedding @ embedding.T).exp().mean()


def starting_of(monitor: Any) -> Tensor:
    """The embeddings of the weights that the monitor has seen first."""
    evaluation, weights = monitor.evaluations[0]
    model = Features()
    model.load_state_dict(weights)
    with torch.no_grad():
        found: Tensor = model.eval()(evaluation.images)
    return found


@pytest.mark.parametrize("kind", ["AttentionMapMonitor", "AttentionDriftMonitor"])
def test_each_image_is_compared_with_its_own_start(kind: str) -> None:
    class Watched(Keeps, getattr(attngrad, kind)):  # type: ignore[misc]
        pass

    monitor = Watched(num_images=4, objective="start", on_error="raise")
    fit(monitor, module=Features, max_epochs=2)
    starting = starting_of(monitor)
    _, kept = monitor._starting
    torch.testing.assert_close(kept, starting)
    evaluation, weights = monitor.evaluations[-1]
    later = Features()
    later.load_state_dict(weights)
    assert not torch.allclose(later.eval()(evaluation.images), starting, atol=1e-2)
    centre = starting.mean(dim=0)
    direction = nn.functional.normalize(starting - centre, dim=1)
    found = attngrad.explain(
        later,
        evaluation.images,
        objective=lambda e: ((e - centre) * direction).sum(dim=1) / (e - centre).detach().norm(dim=1),
    )
    asked = monitor.asked(evaluation).explain(later, evaluation.images)
    torch.testing.assert_close(asked.heatmap, found.heatmap, rtol=1e-4, atol=1e-6)
    if kind == "AttentionMapMonitor":
        assert monitor.scalars["entropy"] == pytest.approx(float(map_statistics(found.heatmap)["entropy"]), rel=1e-4)


def test_a_resumed_run_compares_with_the_same_start(tmp_path: Path) -> None:
    whole = Maps(num_images=4, objective="start", on_error="raise")
    fit(whole, module=Features, max_epochs=3)
    save = ModelCheckpoint(tmp_path, filename="saved")
    before = Maps(num_images=4, objective="start", on_error="raise")
    fit(before, save, module=Features, max_epochs=2, enable_checkpointing=True)
    after = Maps(num_images=4, objective="start", on_error="raise")
    run = fit(after, module=Features, max_epochs=3, ckpt_path=tmp_path / "saved.ckpt")
    assert run.complaints == []
    assert torch.equal(after._starting[1], before._starting[1])
    assert torch.equal(after._starting[1], starting_of(before))
    assert after.scalars["entropy"] == pytest.approx(whole.scalars["entropy"], rel=1e-4)
    assert len(after.film) == len(whole.film) == 4


def test_other_images_have_a_start_of_their_own(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="saved")
    before = Maps(num_images=4, objective="start", on_error="raise")
    fit(before, save, module=Features, max_epochs=1, enable_checkpointing=True)
    after = Maps(num_images=5, objective="start", on_error="raise")
    run = fit(after, module=Features, max_epochs=2, ckpt_path=tmp_path / "saved.ckpt")
    assert any("so a new history begins" in message for message in run.messages)
    assert after._starting[1].shape == (5, 32)


def test_another_fit_has_another_start() -> None:
    monitor = Maps(num_images=4, objective="start", on_error="raise")
    fit(monitor, module=Features, max_epochs=1)
    first = monitor._starting[1]
    monitor.evaluations.clear()
    data = loader(Squares(9, seed=1))
    fit(monitor, module=lambda: tuned(Features()), val=data, max_epochs=1)
    assert not torch.allclose(monitor._starting[1], first, atol=1e-2)
    torch.testing.assert_close(monitor._starting[1], starting_of(monitor))


def tuned(module: Features) -> Features:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def test_a_validation_of_its_own_leaves_the_start_of_the_fit_alone() -> None:
    monitor = Maps(num_images=4, objective="start", on_error="raise")
    run = fit(monitor, module=Features, max_epochs=1)
    kept = monitor._starting
    run.trainer.validate(run.module, loader(Squares(9, seed=1)), verbose=False)
    assert monitor._starting is kept


def test_a_model_without_embeddings_switches_the_monitor_off() -> None:
    monitor = attngrad.AttentionMapMonitor(num_images=4, objective="start")
    run = run_of_segmentation(monitor)
    (said,) = run.complaints
    assert "no embeddings (4, D) are in its output" in said
    assert len(run.losses) == 2
