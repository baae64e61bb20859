"""How little it takes to rewrite a class, watched in real runs: what is logged, compared, kept and resumed."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from matplotlib.figure import Figure
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks import rewrite_robustness_monitor
from lightning_attngrad.metrics.functional import paired_log_ratio
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.rewriting_runs import (
    PIXELS,
    Bright,
    WatchedRewriting,
    beside_the_line_on_maps,
    bright,
    fit_and_save,
    saving,
)
from tests.callbacks.small_runs import (
    COSTS,
    Classifier,
    Squares,
    Stream,
    captured_figures,
    events,
    fit,
    image_steps,
    loader,
    make_trainer,
    names_of,
    scalar_points,
    tensorboard,
    tiny_vit,
    words,
)
from tests.probe_options import with_probe

LEVELS = ("1_255", "2_255", "4_255", "8_255", "16_255")
SCALARS = {
    *("median_linf", "q25_linf", "q75_linf", "area", "psnr", "ssim", "survives_8_bit", "map_shift"),
    *COSTS,
    *(f"{kind}/{level}" for kind in ("success", "robust_accuracy") for level in LEVELS),
    *("log_ratio", "log_ratio_low", "log_ratio_high"),
    *(f"health/{what}" for what in ("zero_gradient", "unconverged", "never_rewritten", "one_step_better")),
}
FIGURES = {"rewrites", "success", "classes"}
MEDIAN = "attngrad/rewrite/median_linf"


# What is logged -------------------------------------------------------------------------------------------------


def test_everything_of_the_docstring_is_in_the_users_tensorboard(tmp_path: Path) -> None:
    mine = WatchedRewriting(draws=True, num_images=2, long_every=1, steps=3)
    fit(mine, logger=tensorboard(tmp_path), max_epochs=2)
    written = events(tmp_path)
    tags = written.Tags()
    scalars = {tag.removeprefix("attngrad/rewrite/") for tag in tags["scalars"] if "attngrad" in tag}
    assert scalars == SCALARS | {"short_over_long", "attngrad/probe/seconds"}
    assert [step for step, _ in scalar_points(written, "attngrad/rewrite/short_over_long")] == [
        2,
        5,
    ]  # not at the start
    assert names_of(tags["images"]) == FIGURES
    for figure in FIGURES:
        assert image_steps(written, f"attngrad/rewrite/{figure}") == [0, 2, 5]
    for name in ("area", "median_linf", "health/never_rewritten", "log_ratio"):
        points = scalar_points(written, f"attngrad/rewrite/{name}")
        assert [step for step, _ in points] == [0, 2, 5]
        expected = mine.series(name)
        assert [value for _, value in points] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("norm", "radius"), [("l2", "0.25"), ("l0", "4"), ("l0_patches", "0.05")], ids=["l2", "l0", "l0_patches"]
)
def test_other_norms_have_their_own_names(norm: Any, radius: str) -> None:
    mine = WatchedRewriting(norm=norm)
    fit(mine, max_epochs=1)
    assert {f"median_{norm}", f"q25_{norm}", f"q75_{norm}", f"success/{radius}"} <= mine.scalars.keys()
    assert not any("linf" in name or "255" in name for name in mine.scalars)


def test_a_share_of_the_patches_makes_rewriting_harder() -> None:
    few, everywhere = WatchedRewriting(steps=6, top_share=0.1), WatchedRewriting(steps=6, name="everywhere")
    fit(few, everywhere, max_epochs=1)
    assert few.rewriting.top_share == 0.1
    assert few.series("area")[0] <= everywhere.series("area")[0]
    assert few.series("median_linf") != everywhere.series("median_linf")


def test_a_model_without_maps_has_every_number_but_their_shift(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    mine = WatchedRewriting(draws=True, steps=4)
    run = fit(mine, module=bright, max_epochs=1)
    undefined = {name for name, value in mine.scalars.items() if math.isnan(value)}
    assert not undefined
    assert mine.scalars.keys() == SCALARS - {"map_shift"}
    assert mine.scalars["health/never_rewritten"] == 0
    assert 0 < mine.scalars["median_linf"] < 1
    assert beside_the_line_on_maps(run.messages) == []
    assert [names_of(figures) for _, figures in drawn] == [FIGURES] * 2
    for _, figures in drawn:
        texts = words(figures["attngrad/rewrite/rewrites"])
        assert "original" in texts
        assert not [text for text in texts if "map" in text or "patch grid" in text]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_precisions(precision: Any) -> None:
    mine = WatchedRewriting(steps=4)
    fit(mine, module=bright, precision=precision, max_epochs=1)
    assert mine.labels == ["start", "epoch 1"]
    assert mine.scalars["health/never_rewritten"] == 0
    assert math.isfinite(mine.scalars["median_linf"])


def test_all_targets_fill_the_matrix_from_class_to_class(monkeypatch: Any) -> None:
    captured_figures(monkeypatch)
    matrices: list[Tensor] = []
    monkeypatch.setattr(
        "lightning_attngrad.measure.rewrite_figures.class_matrix",
        lambda matrix, *_, **__: matrices.append(matrix) or Figure(),
    )
    mine = WatchedRewriting(draws=True, target="all", num_images=3, steps=4)
    fit(mine, module=bright, max_epochs=1)
    assert mine._frozen is not None
    own, targets = mine._frozen.own.tolist(), mine._frozen.targets.tolist()
    assert sorted(own) == [0, 1, 2]  # as many images of each class
    assert all(sorted([mine, *others]) == [0, 1, 2] for mine, others in zip(own, targets, strict=True))
    assert torch.equal(matrices[-1].isnan(), torch.eye(3, dtype=torch.bool))


def test_many_classes_have_no_matrix(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    said = {"task": "multiclass"}  # 41 outputs for three labels are asked about otherwise
    fit(WatchedRewriting(draws=True, **said), module=lambda: Classifier(tiny_vit(num_classes=41)), max_epochs=1)
    assert names_of(drawn[-1][1]) == {"success", "rewrites"}


def test_curves_are_those_of_the_first_evaluation_the_one_before_and_now(monkeypatch: Any) -> None:
    curves: list[dict[str, list[float]]] = []

    def rewrite_figures(*arguments: Any) -> dict[str, Any]:
        curves.append(dict(arguments[4]))
        return {}

    monkeypatch.setattr(rewrite_robustness_monitor, "rewrite_figures", rewrite_figures)
    fit(WatchedRewriting(draws=True), max_epochs=3)
    assert [list(drawn) for drawn in curves] == [
        ["start (now)"],
        ["start", "epoch 1 (now)"],
        ["start", "epoch 1", "epoch 2 (now)"],
        ["start", "epoch 2", "epoch 3 (now)"],
    ]
    for before, after in itertools.pairwise(curves):
        (now,) = (label for label in before if label.endswith("(now)"))
        assert after[now.removesuffix(" (now)")] == before[now]


# The reference --------------------------------------------------------------------------------------------------


class Distances(WatchedRewriting):
    """Finds distances that the test has made up, one list an evaluation."""

    made_up = ([0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.8, 0.8, 0.8], [0.4, 0.4, 0.4], [0.4, 0.4, math.inf])

    def evaluate(self, evaluation: Evaluation) -> Findings:
        place = len(self.evaluations)
        real = rewrite_robustness_monitor.rewrite_images

        def made_up(*arguments: Any, **options: Any) -> Any:
            pairs, shown = real(*arguments, **options)
            object.__setattr__(pairs, "distance", torch.tensor(self.made_up[place]))
            return pairs, shown

        rewrite_robustness_monitor.rewrite_images = made_up
        try:
            return super().evaluate(evaluation)
        finally:
            rewrite_robustness_monitor.rewrite_images = real


@pytest.mark.parametrize(
    ("reference", "ratios"),
    [
        ("start", [1, 2, 8, 4]),
        ("first_epoch", [math.nan, 1, 4, 2]),
        ("previous", [math.nan, 2, 4, 0.5]),
    ],
)
def test_each_image_is_compared_with_itself_at_the_reference(reference: Any, ratios: list[float]) -> None:
    mine = Distances(reference=reference)
    fit(mine, max_epochs=3)
    expected = [math.log(ratio) for ratio in ratios]
    for name in ("log_ratio", "log_ratio_low", "log_ratio_high"):  # all pairs alike: no spread
        assert mine.series(name) == pytest.approx(expected, nan_ok=True)


def test_the_ratio_is_that_of_the_metric_with_failures_in_it() -> None:
    mine = Distances(reference="start")
    fit(mine, max_epochs=4)
    ratio = paired_log_ratio(*(torch.tensor(mine.made_up[place]) for place in (-1, 0)))
    found = [mine.scalars[name] for name in ("log_ratio", "log_ratio_low", "log_ratio_high")]
    assert found == pytest.approx([float(ratio.median), float(ratio.low), float(ratio.high)])
    assert found[2] == math.inf


def test_a_validation_of_its_own_is_compared_and_changes_no_history() -> None:
    mine = Distances()
    run = fit(mine, max_epochs=1)
    kept = mine.saved_state()
    run.trainer.validate(run.module, loader(Squares(9, seed=1)), verbose=False)
    assert mine.labels == ["start", "epoch 1", "validate"]
    assert mine.scalars["log_ratio"] == pytest.approx(math.log(4))
    after = mine.saved_state()
    assert after["conditions"] == kept["conditions"]
    for name in ("first", "before", "compared", "evaluations"):
        assert after["history"][name] == kept["history"][name]
    assert mine.hashes[-1] == mine.hashes[0]


# The long search ------------------------------------------------------------------------------------------------


def long_searches(monkeypatch: Any) -> list[int]:
    """The steps of every search."""
    steps: list[int] = []
    real = rewrite_robustness_monitor.rewrite_images

    def counted(evaluation: Evaluation, settings: Any, *arguments: Any, **options: Any) -> Any:
        steps.append(settings.steps)
        return real(evaluation, settings, *arguments, **options)

    monkeypatch.setattr(rewrite_robustness_monitor, "rewrite_images", counted)
    monkeypatch.setattr(rewrite_robustness_monitor, "_LONG_STEPS", 12)
    return steps


@pytest.mark.parametrize(
    ("long_every", "searches"),
    [
        (None, [2, 2, 2, 2, 2]),
        (1, [2, 2, 12, 2, 12, 2, 12, 2, 12]),
        (3, [2, 2, 12, 2, 2, 2, 12]),  # the first evaluation of training, and every third after it; never the start
        (10, [2, 2, 12, 2, 2, 2]),
    ],
)
def test_every_so_many_evaluations_a_long_search(long_every: int | None, searches: list[int], monkeypatch: Any) -> None:
    steps = long_searches(monkeypatch)
    mine = WatchedRewriting(long_every=long_every, num_images=2)
    fit(mine, module=bright, max_epochs=4)
    assert steps == searches
    measured = ["short_over_long" in findings.scalars for _, findings in mine.evaluations]
    assert sum(measured) == searches.count(12)
    assert not measured[0]
    assert ("short_over_long" in mine.scalars) == any(measured)  # what is not measured again stays


def test_how_far_the_short_search_is_off(monkeypatch: Any) -> None:
    real = rewrite_robustness_monitor.rewrite_images

    def made_up(evaluation: Evaluation, settings: Any, *arguments: Any, **options: Any) -> Any:
        pairs, shown = real(evaluation, settings, *arguments, **options)
        short, long = [0.2, 0.3, 0.9, math.inf, 0.1, 0.0], [0.1, 0.1, 0.1, 0.1, math.inf, 0.0]
        object.__setattr__(
            pairs, "distance", torch.tensor((short if settings.steps == 2 else long)[: len(pairs.distance)])
        )
        return pairs, shown

    monkeypatch.setattr(rewrite_robustness_monitor, "rewrite_images", made_up)
    monkeypatch.setattr(rewrite_robustness_monitor, "_LONG_STEPS", 3)
    mine = WatchedRewriting(long_every=1, num_images=6)
    fit(mine, module=bright, max_epochs=1)
    assert mine.scalars["short_over_long"] == pytest.approx(
        3
    )  # of 2, 3 and 9, of a quarter of the pairs or four: the last of these has no ratio
    assert mine.scalars["q75_linf"] == pytest.approx(0.75)  # the numbers are those of the short one


def test_a_long_search_that_finds_nothing_has_no_ratio() -> None:
    nothing = rewrite_robustness_monitor._median_ratio(torch.tensor([0.1, math.inf]), torch.tensor([math.inf, 0.1]))
    assert math.isnan(nothing)


# When it evaluates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "trainer", "labels"),
    [
        ({}, {"max_epochs": 2}, ["start", "epoch 1", "epoch 2"]),
        ({"every_n_epochs": 3}, {"max_epochs": 4}, ["start", "epoch 3", "epoch 4"]),
        ({"every_n_steps": 2}, {"max_epochs": 1}, ["start", "step 2", "step 3"]),
        ({"every_n_steps": 2}, {"max_epochs": 1, "limit_val_batches": 0}, ["start", "step 2", "step 3"]),
        ({}, {"fast_dev_run": True}, ["start", "epoch 1"]),
    ],
)
def test_cadence(monitor: dict[str, Any], trainer: dict[str, Any], labels: list[str]) -> None:
    mine = WatchedRewriting(**monitor)
    fit(mine, module=bright, **trainer)
    assert mine.labels == labels


def test_failures_are_numbers_and_no_reason_to_evaluate_again() -> None:
    """The monitor of maps evaluates again where a number is missing; here ∞ is one."""

    class Deaf(Bright):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.detach().round() * 0)

    mine = WatchedRewriting(every_n_epochs=4)
    fit(mine, module=lambda: Classifier(Deaf()), max_epochs=4)
    assert mine.labels == ["start", "epoch 4"]
    assert mine.scalars["health/zero_gradient"] == 1
    assert mine.scalars["median_linf"] == math.inf


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test_of_their_own(stage: str) -> None:
    mine = WatchedRewriting(steps=4)
    (results,) = getattr(make_trainer(mine), stage)(bright(), loader(Squares(9, seed=1)), verbose=False)
    assert mine.labels == [stage]
    assert results[MEDIAN] == pytest.approx(mine.evaluations[0][1].scalars["median_linf"])
    assert math.isnan(results["attngrad/rewrite/log_ratio"])  # there is nothing to compare with


def test_images_and_targets_are_frozen_over_epochs_whatever_the_model_learns() -> None:
    mine = WatchedRewriting(target="runner_up", num_images=6)
    fit(mine, module=Unlabelled, val=loader([image for image, _ in Squares(9, seed=1)]), max_epochs=3)
    assert len(mine.hashes) == 4
    assert len(set(mine.hashes)) == 1
    assert all(torch.equal(probe.images, mine.evaluations[0][0].images) for probe, _ in mine.evaluations)
    first = WatchedRewriting(target="runner_up", num_images=6)
    fit(first, module=Unlabelled, val=loader([image for image, _ in Squares(9, seed=1)]), max_epochs=0)
    assert first.labels == []  # nothing was trained, nothing was asked
    start = WatchedRewriting(target="runner_up", num_images=6)
    fit(start, module=Unlabelled, val=loader([image for image, _ in Squares(9, seed=1)]), max_epochs=1)
    assert start.rewrite_hash == mine.rewrite_hash
    assert mine._frozen is not None
    predicted = [probe.model(probe.images).argmax(1) for probe, _ in mine.evaluations[-1:]]
    assert mine._frozen.own.tolist() != predicted[0].tolist(), "the model has learned nothing: this test cannot fail"


class Unlabelled(Classifier):
    """Its validation batches are images alone, so that classes are those predicted at the first evaluation."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch)


def test_a_stream_gives_its_images_as_it_goes_by() -> None:
    mine = WatchedRewriting(num_images=8)
    fit(mine, module=bright, val=loader(Stream()), num_sanity_val_steps=0)
    assert mine.labels == ["epoch 1", "epoch 2"]
    assert mine.series("log_ratio")[0] == 0  # the first evaluation is the reference


# Others that wait for a number ----------------------------------------------------------------------------------


class Scripted(WatchedRewriting):
    """Medians that the test has made up."""

    medians = (0.1, 0.2, math.inf, 0.4, 0.3, 0.2)

    def evaluate(self, evaluation: Evaluation) -> Findings:
        findings = super().evaluate(evaluation)
        findings.scalars["median_linf"] = self.medians[len(self.evaluations) - 1]
        return findings


def test_the_best_checkpoint_is_the_one_that_takes_most_also_where_it_takes_infinity(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor=MEDIAN, mode="max", save_top_k=1, filename="{epoch}")
    fit_and_save(Scripted(), best, module=bright, max_epochs=4)
    assert Path(best.best_model_path).name == "epoch=1.ckpt"
    assert float(best.best_model_score) == math.inf  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=1.ckpt"]


def test_the_easiest_checkpoint_is_kept_in_the_presence_of_infinity(tmp_path: Path) -> None:
    class FromInfinity(Scripted):
        medians = (math.inf, math.inf, 0.5, math.inf)

    lowest = ModelCheckpoint(tmp_path, monitor=MEDIAN, mode="min", save_top_k=1, filename="{epoch}")
    fit_and_save(FromInfinity(), lowest, module=bright, max_epochs=3)
    assert Path(lowest.best_model_path).name == "epoch=1.ckpt"
    assert float(lowest.best_model_score) == 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize("monitor_first", [True, False])
def test_early_stopping_waits_for_the_median(monitor_first: bool) -> None:
    mine = Scripted()
    stopping = EarlyStopping(MEDIAN, mode="max", patience=2, check_finite=False)
    callbacks = [mine, stopping] if monitor_first else [stopping, mine]
    run = fit(*callbacks, module=bright, max_epochs=9)
    assert run.trainer.current_epoch == 4  # after the infinity of the second epoch nothing was better
    assert mine.labels == ["start", "epoch 1", "epoch 2", "epoch 3", "epoch 4"]


def test_checkpoints_wait_for_no_evaluation_on_epochs_without_one(tmp_path: Path) -> None:
    checkpoint = saving(tmp_path, monitor=MEDIAN)
    mine = WatchedRewriting(every_n_epochs=3, steps=4)
    fit_and_save(mine, checkpoint, module=bright, max_epochs=4)
    scores = [float(score) for score in checkpoint.best_k_models.values()]
    start, third, fourth = mine.series("median_linf")
    assert scores == pytest.approx([start, start, third, fourth])


# What cannot work -----------------------------------------------------------------------------------------------


class Regression(Classifier):
    """One number an image."""

    def loss(self, batch: Any) -> Tensor:
        return self(batch[0]).float().pow(2).mean()


class OneNumber(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).squeeze(1)  # type: ignore[no-any-return]


class Configured(Classifier):
    """A timm model that says how its images are normalised; these are not."""

    def __init__(self) -> None:
        super().__init__(tiny_vit())
        self.net.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (lambda: Regression(tiny_vit(num_classes=1)), {}, "2 or more classes"),
        (lambda: Regression(tiny_vit(num_classes=1)), {"target": 0}, "2 or more classes"),
        (
            lambda: Regression(OneNumber(tiny_vit(num_classes=1))),
            {},
            "has 1 number an image, not one row of logits",
        ),
        (Classifier, {"target": 3}, "target: got 3; the model's classes are 0 to 2"),
        (Configured, {"mean": None, "std": None}, "Pass mean=0, std=1 if the model takes pixels in [0, 1]"),
        (Classifier, {"mean": 10.0, "std": 1.0}, "which no pixels in [0, 1] give"),
        (bright, {"norm": "l0_patches"}, "NoAttentionError"),
        (bright, {"top_share": 0.5}, "NoAttentionError"),
    ],
    ids=["one output", "one output by number", "a number", "no such class", "doubt", "wrong", "patches", "share"],
)
def test_what_cannot_be_measured_is_said_once_and_training_goes_on(
    module: Any, options: dict[str, Any], words: str
) -> None:
    run = fit(
        attngrad.RewriteRobustnessMonitor(**with_probe({"num_images": 2, "steps": 2, **PIXELS, **options})),
        module=module,
    )
    (message,) = run.messages
    assert words in message
    assert "is switched off for the remainder of this run, training goes on" in message
    assert run.losses == fit(module=module).losses
    assert len(run.losses) == 6
    with pytest.raises((ValueError, RuntimeError)):
        fit(WatchedRewriting(**options), module=module)


@pytest.mark.parametrize("output", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_no_measurement(output: float) -> None:
    class Broken(Bright):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits * output if not self.training else logits

    monitor = attngrad.RewriteRobustnessMonitor(**with_probe({**PIXELS, "num_images": 2, "steps": 2}))
    run = fit(monitor, module=lambda: Classifier(Broken()))
    (message,) = run.messages
    assert "NonFiniteOutputError" in message


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("reference", "last", "'first_epoch', 'start' or 'previous'"),
        ("reference", None, "'first_epoch', 'start' or 'previous'"),
        ("long_every", 0, "a positive number of evaluations, or None"),
        ("long_every", True, "a positive number of evaluations, or None"),
        ("long_every", 1.5, "a positive number of evaluations, or None"),
        ("norm", "l1", "linf, l2, l0, l0_patches"),
        ("steps", 0, "number of gradients"),
        ("target", "likely", "random, runner_up"),
        ("radii", (0.1,), "two or more"),
        ("radii", 0.1, "positive numbers"),
        ("radii", (0.1, math.inf), "positive numbers"),
        ("top_share", 2, "at most 1"),
        ("num_images", 0, "int of at least 1"),
        ("every_n_epochs", 0, "positive int"),
        ("std", (0.5,), "expected both"),
        ("name", "two words", "a word"),
        ("seed", -1, "from 0"),
        ("on_error", "ignore", "'log' or 'raise'"),
    ],
)
def test_a_wrong_argument_is_named_at_construction(argument: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match="got ") as caught:
        attngrad.RewriteRobustnessMonitor(**with_probe({argument: value}))
    assert argument in str(caught.value)
    assert expected in str(caught.value)


# Resuming -------------------------------------------------------------------------------------------------------


def resumed(folder: Path, before: WatchedRewriting, after: WatchedRewriting, **options: Any) -> Any:
    """Two epochs with one instance, two more from its last checkpoint with another."""
    fit_and_save(before, saving(folder), module=bright, train=in_order())
    return fit(after, module=bright, train=in_order(), ckpt_path=folder / "step=6.ckpt", max_epochs=4, **options)


def in_order() -> Any:
    """Not shuffled: a resumed run sees what one that was never interrupted sees."""
    return loader(Squares())


def test_a_resumed_run_goes_on_with_its_images_targets_reference_and_curves(tmp_path: Path) -> None:
    before, after, through = (WatchedRewriting(steps=4, target="runner_up", reference="first_epoch") for _ in range(3))
    run = resumed(tmp_path, before, after)
    fit(through, module=bright, train=in_order(), max_epochs=4)
    assert beside_the_line_on_maps(run.messages) == []
    assert after.labels == ["epoch 3", "epoch 4"]
    assert before.rewrite_hash == after.rewrite_hash == through.rewrite_hash
    for name in ("median_linf", "area", "log_ratio", "log_ratio_low", "log_ratio_high", "psnr"):
        assert after.series(name) == through.series(name)[3:], name
    assert after.history()["first"] == through.history()["first"]
    assert after.history()["evaluations"] == through.history()["evaluations"] == 4


def test_the_long_search_keeps_its_turn_over_a_resume(tmp_path: Path, monkeypatch: Any) -> None:
    steps = long_searches(monkeypatch)
    before, after = (WatchedRewriting(long_every=3, num_images=2) for _ in range(2))
    resumed(tmp_path, before, after)
    assert steps == [2, 2, 12, 2, 2, 2, 12]  # epochs 1 and 4
    kept = torch.load(tmp_path / "step=6.ckpt", weights_only=True)["callbacks"][before.state_key]["scalars"]
    assert kept["short_over_long"] == before.scalars["short_over_long"]


def test_the_state_is_plain_enough_for_a_safe_load(tmp_path: Path) -> None:
    mine = WatchedRewriting()
    fit_and_save(mine, saving(tmp_path), module=bright, max_epochs=1)
    state = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["callbacks"][mine.state_key]
    assert state["conditions"]["images"] == mine.probe_set.hash
    assert {"part of the model": None, "precision": "32-true", "mean": [0.0], "std": [1.0]}.items() <= state[
        "conditions"
    ].items()
    assert state["settings"] == mine.rewriting.plain()
    assert state["settings"].items() <= state["conditions"].items()
    assert state["history"]["frozen"]["targets"].shape == (3, 1)
    assert state["history"]["evaluations"] == 1
    assert state["history"]["first"][0] == "start"


@pytest.mark.parametrize(
    "changed", [{"steps": 3}, {"norm": "l2"}, {"target": "runner_up"}, {"radii": (0.1, 0.2)}], ids=str
)
def test_other_settings_say_so_once_and_start_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    before, after = WatchedRewriting(), WatchedRewriting(**changed)
    run = resumed(tmp_path, before, after)
    assert sum("its settings are not those of the run that is resumed" in message for message in run.messages) == 1
    assert len(beside_the_line_on_maps(run.messages)) == 1
    assert after.rewrite_hash != before.rewrite_hash
    # the weights that it goes on with are the new reference, and no number of before is logged again
    assert after.labels == ["step 6", "epoch 3", "epoch 4"]
    assert after.series("log_ratio")[0] == 0
    assert after.history()["first"][0] == "step 6"
    assert after.history()["evaluations"] == 3


@pytest.mark.parametrize(("changed", "since"), [({"std": 0.5}, "epoch 3"), ({"model": "net"}, "step 6")], ids=str)
def test_another_unit_or_part_of_the_model_is_not_compared(tmp_path: Path, changed: dict[str, Any], since: str) -> None:
    """With another std every distance is another number, whatever the model has learnt."""
    before, after = WatchedRewriting(), WatchedRewriting(**changed)
    run = resumed(tmp_path, before, after)
    assert sum("nothing is compared with the old one" in message for message in run.messages) == 1
    assert after.rewrite_hash != before.rewrite_hash
    assert after.series("log_ratio")[0] == 0
    assert after.history()["first"][0] == since


def test_another_reference_is_taken_from_what_is_remembered(tmp_path: Path) -> None:
    before, after = WatchedRewriting(steps=4), WatchedRewriting(steps=4, reference="start")
    through = WatchedRewriting(steps=4, reference="start")
    resumed(tmp_path, before, after)
    fit(through, module=bright, train=in_order(), max_epochs=4)
    assert after.series("log_ratio") == through.series("log_ratio")[3:]


@pytest.mark.parametrize("every_n_epochs", [1, 9])
def test_other_images_say_so_once_and_nothing_of_the_old_ones_is_logged_again(
    tmp_path: Path, every_n_epochs: int
) -> None:
    seen: list[float] = []

    class Seen(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append(float(trainer.callback_metrics["attngrad/rewrite/area"]))

    before, after = WatchedRewriting(steps=4), WatchedRewriting(steps=4, every_n_epochs=every_n_epochs)
    fit_and_save(before, saving(tmp_path), module=bright)
    run = fit(
        Seen(),
        after,
        module=bright,
        ckpt_path=tmp_path / "step=6.ckpt",
        max_epochs=4,
        val=loader(Squares(7, seed=9)),
    )
    assert sum("not those of the run that is resumed" in message for message in run.messages) == 1
    assert after.rewrite_hash != before.rewrite_hash
    assert after.labels[0] == "step 6"
    assert after.series("log_ratio")[0] == 0
    assert after.history()["first"][0] == "step 6"
    areas = after.series("area")
    assert seen == pytest.approx(areas[1:] if every_n_epochs == 1 else [areas[0], areas[1]])


def test_another_run_starts_anew(tmp_path: Path) -> None:
    mine = WatchedRewriting()
    fit(mine, module=bright, max_epochs=1)
    first = mine.rewrite_hash
    fit(mine, module=bright, max_epochs=1, val=loader(Squares(9, seed=99)))
    assert mine.rewrite_hash != first
    assert mine.history()["evaluations"] == 1
    assert math.isnan(mine.series("log_ratio")[2])


def test_a_run_without_an_evaluation_has_a_state_that_can_be_resumed(tmp_path: Path) -> None:
    never = attngrad.RewriteRobustnessMonitor(probe=attngrad.ProbeImages(num_images=2, mean=10.0, std=1.0))
    fit_and_save(never, saving(tmp_path), max_epochs=1)
    mine = WatchedRewriting()
    fit(mine, ckpt_path=tmp_path / "step=3.ckpt")
    assert mine.labels == ["step 3", "epoch 2"]
