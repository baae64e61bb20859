"""What the faithfulness monitor logs, against numbers computed from the weights, and what it keeps over a resume."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.image import imread
from scipy.stats import spearmanr
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks import faithfulness_monitor
from lightning_attngrad.measure import faithfulness as measured
from lightning_attngrad.probe import Evaluation, Findings, shared
from tests.callbacks.small_runs import (
    COSTS,
    Classifier,
    Run,
    Squares,
    captured_figures,
    events,
    fit,
    image_steps,
    loader,
    make_trainer,
    scalar_points,
    tensorboard,
    tiny_vit,
    words,
)
from tests.probe_options import with_probe
from tests.references import faithfulness as reference

SCALARS = {"srg", "deletion", "insertion", "class_sensitivity", *COSTS}
STEPS = 4
#: The default one finds nothing in favour of some classes in a model that has learnt so little.
METHOD = "gradient_guided"


class WatchedMonitor(attngrad.FaithfulnessMonitor):
    """The monitor as it is, which keeps what it found, with the weights of that moment, and what went through."""

    def __init__(self, *, draws: bool = False, **options: Any) -> None:
        defaults = {"num_images": 3, "every_n_epochs": 1, "steps": STEPS, "method": METHOD, "on_error": "raise"}
        if "every_n_steps" in options:
            del defaults["every_n_epochs"]
        super().__init__(**with_probe({**defaults, **options}))
        self.draws = draws
        self.evaluations: list[tuple[Evaluation, dict[str, float]]] = []
        self.weights: list[dict[str, Tensor]] = []

    @property
    def labels(self) -> list[str]:
        return [evaluation.label for evaluation, _ in self.evaluations]

    def series(self, name: str) -> list[float]:
        return [scalars[name] for _, scalars in self.evaluations]

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.weights.append({name: value.clone() for name, value in evaluation.model.state_dict().items()})
        findings = super().evaluate(evaluation)
        self.evaluations.append((evaluation, findings.scalars))
        return findings if self.draws else Findings(findings.scalars, dict)


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> tuple[Run, WatchedMonitor, Path]:
    """Two epochs with everything drawn."""
    folder = tmp_path_factory.mktemp("written")
    monitor = WatchedMonitor(draws=True)
    return fit(monitor, logger=[tensorboard(folder)], default_root_dir=folder), monitor, folder


def test_everything_of_the_docstring_is_in_the_users_tensorboard(written: tuple[Run, WatchedMonitor, Path]) -> None:
    run, _, folder = written
    accumulator = events(folder)
    tags = accumulator.Tags()
    assert {tag for tag in tags["scalars"] if tag.startswith("attngrad/")} == {
        *(f"attngrad/faithfulness/{name}" for name in SCALARS),
        "attngrad/probe/seconds",
    }
    assert tags["images"] == ["attngrad/faithfulness/curves"]
    of_the_user = [step for step, _ in scalar_points(accumulator, "val_loss")]
    for name in SCALARS:
        points = scalar_points(accumulator, f"attngrad/faithfulness/{name}")
        assert [step for step, _ in points] == [0, *of_the_user]
        assert all(math.isfinite(value) for _, value in points)
        assert name in attngrad.FaithfulnessMonitor.__doc__
    assert image_steps(accumulator, "attngrad/faithfulness/curves") == [0, *of_the_user]
    pictures = accumulator.Images("attngrad/faithfulness/curves")
    assert len({(picture.height, picture.width) for picture in pictures}) == 1
    assert imread(io.BytesIO(pictures[-1].encoded_image_string)).shape[1] > 570
    assert run.complaints == []


def test_the_numbers_are_those_of_the_weights(written: tuple[Run, WatchedMonitor, Path]) -> None:
    """One image and one patch at a time, from the maps of ``explain``."""
    _, monitor, _ = written
    assert monitor.labels == ["start", "epoch 1", "epoch 2"]
    module = Classifier().eval()
    for (probe, scalars), weights in zip(monitor.evaluations, monitor.weights, strict=True):
        module.load_state_dict(weights)
        target = torch.as_tensor(probe.targets)
        heatmaps = attngrad.explain(module, probe.images, target, method=METHOD).heatmap
        areas: dict[str, list[float]] = {"morf": [], "lerf": []}
        for image, heatmap, label in zip(probe.images, heatmaps, target, strict=True):

            def probability(changed: Any, label: int = int(label)) -> float:
                with torch.no_grad():
                    return float(module(torch.tensor(changed)[None]).softmax(dim=1)[0, label])

            pixels = image.numpy()
            for order, found in areas.items():
                curve = reference.curve(
                    probability, pixels, heatmap.numpy(), reference.mean_colour(pixels), STEPS, order
                )
                found.append(reference.area(curve, heatmap.numel()))
        deletion, insertion = (float(np.mean(areas[order])) for order in ("morf", "lerf"))
        assert scalars["deletion"] == pytest.approx(deletion, abs=1e-5)
        assert scalars["insertion"] == pytest.approx(insertion, abs=1e-5)
        assert scalars["srg"] == pytest.approx(insertion - deletion, abs=1e-5)
        top = module(probe.images).topk(2, dim=1).indices
        maps = [attngrad.explain(module, probe.images, top[:, place], method=METHOD).heatmap for place in (0, 1)]
        ranks = [spearmanr(one.flatten(), other.flatten()).statistic for one, other in zip(*maps, strict=True)]
        assert scalars["class_sensitivity"] == pytest.approx(1 - np.mean(ranks), abs=1e-4)


def test_the_figure_shows_this_evaluation_against_the_first(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    monitor = WatchedMonitor(draws=True)
    fit(monitor)
    assert [step for step, _ in drawn] == [0, 2, 5]
    labels = [
        [line.get_label() for line in figures["attngrad/faithfulness/curves"].plots[0].lines]
        if "attngrad/faithfulness/curves" in figures
        else [line.get_label() for line in figures["curves"].plots[0].lines]
        for _, figures in drawn
    ]
    assert {label.split(":")[0] for label in labels[0]} == {"start (now)"}
    assert {label.split(":")[0] for label in labels[-1]} == {"start", "epoch 2 (now)"}
    (figure,) = drawn[-1][1].values()
    gains = [text for text in words(figure) if text.startswith("gain")]
    assert gains == [f"gain (SRG) {monitor.series('srg')[place]:+.3f}".replace("-", "−") for place in (2, 0)]
    assert any("epoch 2 · gradient guided" in text for text in words(figure))


@pytest.mark.parametrize("images", [3, 5])
def test_how_much_goes_through_the_model_is_known_beforehand(images: int, monkeypatch: Any) -> None:
    """And how often depends on the number of parts alone."""
    monkeypatch.setattr(shared, "IMAGES_AT_ONCE", 2)
    sizes: list[int] = []

    class CountingMonitor(WatchedMonitor):
        def evaluate(self, evaluation: Evaluation) -> Findings:
            evaluation.classes()  # once a run, for all monitors: one forward an image

            def forward(some: Tensor) -> Any:
                if not torch.is_grad_enabled():
                    sizes.append(len(some))
                return evaluation.forward(some)

            return super().evaluate(dataclasses.replace(evaluation, forward=forward))

    fit(CountingMonitor(num_images=images), max_epochs=1)
    evaluations, parts = 2, (images + 1) // 2
    assert sum(sizes) == evaluations * images * 2 * STEPS
    assert len(sizes) == evaluations * parts * STEPS // 2


@pytest.mark.parametrize(
    ("monitor", "trainer", "labels"),
    [
        ({}, {"max_epochs": 3}, ["start", "epoch 1", "epoch 2", "epoch 3"]),
        ({"every_n_epochs": None}, {"max_epochs": 6}, ["start", "epoch 5", "epoch 6"]),
        ({"every_n_epochs": 2}, {"max_epochs": 4}, ["start", "epoch 2", "epoch 4"]),
        ({"every_n_steps": 3}, {"max_epochs": 2}, ["start", "step 3", "step 6"]),
    ],
)
def test_cadence(monitor: dict[str, Any], trainer: dict[str, Any], labels: list[str]) -> None:
    watched = WatchedMonitor(num_images=2, **monitor)
    fit(watched, **trainer)
    assert watched.labels == labels


def one_output() -> Classifier:
    class Binary(Classifier):
        def loss(self, batch: Any) -> Tensor:
            images, targets = batch
            return nn.functional.binary_cross_entropy_with_logits(self(images)[:, 0], (targets == 0).float())

    return Binary(tiny_vit(num_classes=1))


def test_one_output_is_a_probability_only_where_that_is_said() -> None:
    """The labels of the data are 0, 1 and 2: the module makes two classes of them."""
    asks = WatchedMonitor(on_error="log")
    run = fit(asks, module=one_output)
    (message,) = run.complaints
    assert "faithfulness watches the probability of one. Say ProbeImages(task='binary')" in message
    assert run.losses == fit(module=one_output).losses
    monitor = WatchedMonitor(draws=True, task="binary")
    assert fit(monitor, module=one_output).messages == []
    assert set(monitor.scalars) == SCALARS
    assert all(math.isfinite(value) for value in monitor.scalars.values())


def test_two_classes_are_enough() -> None:
    class First(Squares):
        def __getitem__(self, index: int) -> Any:
            image, place = super().__getitem__(index)
            return image, min(place, 1)

    monitor = WatchedMonitor()
    fit(monitor, module=lambda: Classifier(tiny_vit(num_classes=2)), train=loader(First()), val=loader(First(9)))
    assert set(monitor.scalars) == SCALARS
    assert all(math.isfinite(value) for value in monitor.scalars.values())


def test_a_zero_initialised_classifier_has_no_map_until_it_has_learnt(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)

    def fresh() -> Classifier:
        module = Classifier()
        nn.init.zeros_(module.net.head.weight)
        nn.init.zeros_(module.net.head.bias)
        return module

    monitor = WatchedMonitor(draws=True, every_n_epochs=3)
    run = fit(monitor, module=fresh, max_epochs=3)
    assert run.complaints == []
    assert monitor.labels == ["start", "epoch 1", "epoch 3"]  # again as soon as there may be a number
    assert math.isnan(monitor.series("srg")[0])
    assert all(math.isfinite(value) for value in monitor.series("srg")[1:])
    assert any(text == "no map" for text in words(next(iter(drawn[0][1].values()))))
    assert monitor.history()["first"]["label"] == "epoch 1"


def test_an_image_without_a_map_counts_in_none(monkeypatch: Any) -> None:
    """The default method finds nothing in favour of a class in some images of a model that knows next to nothing."""
    curves: list[Tensor] = []
    real = measured.faithfulness_curves

    def listened(model: Any, images: Tensor, heatmap: Tensor, target: Tensor, **options: Any) -> Any:
        found = real(model, images, heatmap, target, **options)
        curves.append(found.srg)
        return found

    explain = faithfulness_monitor.explain_images

    def without_the_second(*arguments: Any, **options: Any) -> Any:
        maps = explain(*arguments, **options)
        maps.heatmap[1] = 0
        return maps

    monkeypatch.setattr(measured, "faithfulness_curves", listened)
    monkeypatch.setattr(faithfulness_monitor, "explain_images", without_the_second)
    monitor = WatchedMonitor()
    fit(monitor, max_epochs=1)
    for found, srg in zip(curves, monitor.series("srg"), strict=True):
        assert found.isnan().tolist() == [False, True, False]
        assert srg == pytest.approx(float(found[[0, 2]].mean()))


def test_classes_stay_those_of_the_first_evaluation() -> None:
    monitor = WatchedMonitor(batch_adapter=lambda batch: (batch[0], None))
    run = fit(monitor, max_epochs=3)
    first = Classifier().eval()
    first.load_state_dict(monitor.weights[0])
    probe = monitor.evaluations[0][0]
    predicted = first(probe.images).argmax(dim=1)
    assert torch.equal(monitor.shared.classes, predicted)
    assert run.complaints == []


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validations_and_tests_of_their_own(stage: str) -> None:
    monitor = WatchedMonitor()
    torch.manual_seed(7)
    trainer = make_trainer(monitor)
    getattr(trainer, stage)(Classifier(), loader(Squares(9, seed=1)), verbose=False)
    assert monitor.labels == [stage]
    for name in SCALARS - COSTS:
        assert float(trainer.callback_metrics[f"attngrad/faithfulness/{name}"]) == pytest.approx(monitor.scalars[name])
    assert monitor.history()["first"] is None  # no history outside a fit


@pytest.mark.parametrize("options", [{"method": "attn_lrp"}, {"replacement": "blur"}, {"steps": 2}], ids=str)
def test_other_settings_are_other_numbers(options: dict[str, Any]) -> None:
    usual, other = WatchedMonitor(), WatchedMonitor(name="other", **options)
    fit(usual, other, max_epochs=1)
    assert usual.scalars["srg"] != other.scalars["srg"]
    assert all(math.isfinite(value) for value in other.scalars.values())


def test_without_attention_it_says_so_and_is_switched_off() -> None:
    monitor = WatchedMonitor(on_error="log")
    run = fit(monitor, module=lambda: Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))))
    (message,) = run.complaints
    assert message.startswith("WatchedMonitor is switched off")
    assert len(run.losses) == 6


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("steps", 1),
        ("steps", True),
        ("steps", 8.0),
        ("replacement", "noise"),
        ("method", "magic"),
        ("correction", "signed"),
        ("max_overhead", -1),
        ("num_images", 0),
        ("every_n_epochs", 0),
    ],
)
def test_a_wrong_argument_is_named_at_construction(argument: str, value: Any) -> None:
    options = {"method_options": {argument: value}} if argument == "correction" else {argument: value}
    with pytest.raises(ValueError, match=f"{argument}: got"):
        attngrad.FaithfulnessMonitor(**options)


# Resuming -------------------------------------------------------------------------------------------------------


def resumed(folder: Path, before: WatchedMonitor, after: WatchedMonitor) -> Run:
    """Two epochs with one instance, two more from its last checkpoint with another."""
    saving = ModelCheckpoint(folder, filename="{step}", save_top_k=-1)
    fit(before, saving, train=loader(Squares()), enable_checkpointing=True)
    return fit(after, train=loader(Squares()), ckpt_path=folder / "step=6.ckpt", max_epochs=4)


def test_a_resumed_run_goes_on_with_its_images_classes_and_first_evaluation(tmp_path: Path) -> None:
    before, after, through = (WatchedMonitor(batch_adapter=lambda batch: (batch[0], None)) for _ in range(3))
    run = resumed(tmp_path, before, after)
    fit(through, train=loader(Squares()), max_epochs=4)
    assert run.complaints == []
    assert after.labels == ["epoch 3", "epoch 4"]
    for name in SCALARS - COSTS:
        assert after.series(name) == through.series(name)[3:], name
    assert torch.equal(after.shared.classes, through.shared.classes)
    mine, other = after.history()["first"], through.history()["first"]
    assert mine["label"] == other["label"] == "start"
    for name in ("shares", "morf", "lerf"):
        assert torch.equal(mine[name], other[name])


def test_the_state_is_plain_enough_for_a_safe_load(tmp_path: Path) -> None:
    monitor = WatchedMonitor()
    fit(monitor, ModelCheckpoint(tmp_path, filename="{step}"), max_epochs=1, enable_checkpointing=True)
    state = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["callbacks"][monitor.state_key]
    assert state["history"]["first"]["label"] == "start"
    assert state["history"]["first"]["morf"].shape == (3, STEPS + 1)
    assert state["images"]["classes"].shape == (3,)


@pytest.mark.parametrize(
    "changed", [{"steps": 3}, {"replacement": "blur"}, {"method": "attn_lrp"}, {"model": "net"}], ids=str
)
def test_other_settings_say_so_once_and_start_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    before, after = WatchedMonitor(), WatchedMonitor(**changed)
    run = resumed(tmp_path, before, after)
    assert sum("so a new history begins" in message for message in run.messages) == 1
    assert after.labels == ["step 6", "epoch 3", "epoch 4"]
    assert after.history()["first"]["label"] == "step 6"


def test_another_run_starts_anew() -> None:
    monitor = WatchedMonitor()
    fit(monitor, max_epochs=1)
    fit(monitor, max_epochs=1, val=loader(Squares(9, seed=4)))
    assert monitor.labels == ["start", "epoch 1", "start", "epoch 1"]
    (first, _), (second, _) = monitor.evaluations[0], monitor.evaluations[2]
    assert not torch.equal(first.images, second.images)
    assert torch.equal(monitor.shared.classes, second.targets)
