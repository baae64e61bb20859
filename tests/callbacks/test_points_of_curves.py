"""What loggers are given: only what has been measured, at the step it was measured at, under names that read well."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lightning_attngrad as attngrad
from lightning_attngrad.probe import Evaluation, Findings
from lightning_attngrad.reporting.board import Names
from tests.callbacks.small_runs import WatchedMonitor, events, fit, scalar_points, tensorboard
from tests.callbacks.test_logging_of_monitors import Recorder
from tests.callbacks.test_together import counted
from tests.reporting.test_layout import shown

KEY = "attngrad/maps/entropy"
PIXELS = attngrad.ProbeImages(num_images=3, mean=0.0, std=1.0)


class Seen(pl.Callback):
    """What is there for whatever waits for it, after each validation."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.values.append(float(trainer.callback_metrics[KEY]))


class StepRecorder(Recorder):
    """A sink as that of a server, which gets numbers with a step; it keeps both."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        for name in metrics:
            self.given.setdefault(f"steps of {name}", []).append(step)
        super().log_metrics(metrics, step)


def monitors(**options: Any) -> list[Any]:
    """One of each."""
    given: dict[str, Any] = {"probe": PIXELS, "on_error": "raise", **options}
    return [
        attngrad.AttentionMapMonitor(**given),
        attngrad.AttentionDriftMonitor(alarm=3.0, **given),
        attngrad.RewriteRobustnessMonitor(steps=2, long_every=None, **given),
        attngrad.FaithfulnessMonitor(every_n_epochs=1, steps=2, **given),
    ]


def groups(tags: list[str]) -> dict[str, set[str]]:
    """As TensorBoard makes them: by what stands before the first slash, sorted."""
    found: dict[str, set[str]] = defaultdict(set)
    for tag in sorted(tags):
        group, _, name = tag.partition("/")
        if group.startswith("attngrad"):
            found[group].add(name)
    return found


# Nothing is drawn that was not measured -------------------------------------------------------------------------


def test_no_logger_gets_a_value_again_and_what_waits_for_it_has_it_in_every_epoch(tmp_path: Path) -> None:
    """Evaluations at the start and in epochs 2 and 4 of four, of three steps each."""
    mine = WatchedMonitor(every_n_epochs=2, on_error="raise")
    stopping, seen = EarlyStopping(KEY, patience=50, strict=True), Seen()
    saving = ModelCheckpoint(tmp_path / "saved", monitor=KEY, save_top_k=-1, every_n_epochs=1)
    lines, sink, board = (
        CSVLogger(tmp_path, name="csv"),
        StepRecorder(tmp_path / "sink"),
        tensorboard(tmp_path / "board"),
    )
    run = fit(mine, stopping, saving, seen, logger=[lines, sink, board], max_epochs=4, enable_checkpointing=True)
    start, second, fourth = (findings.scalars["entropy"] for _, findings in mine.evaluations)

    for name in ("entropy", "border_mass", "head_entropy/net.blocks.0.attn"):
        measured = [findings.scalars[name] for _, findings in mine.evaluations]
        key = f"attngrad/maps/{name}"
        written = scalar_points(events(tmp_path / "board"), key)
        with (Path(lines.log_dir) / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row[key]]
        in_csv = [(int(row["step"]), float(row[key])) for row in rows]
        in_sink = list(zip(sink.given[f"steps of {key}"], sink.given[key], strict=True))
        for points in (written, in_csv, in_sink):
            assert [step for step, _ in points] == [0, 5, 11]
            assert [value for _, value in points] == pytest.approx(measured)

    assert seen.values == pytest.approx([start, second, second, fourth])
    assert stopping.wait_count < stopping.patience
    assert float(stopping.best_score) == pytest.approx(min(seen.values))
    kept = sorted(float(score) for score in saving.best_k_models.values())
    assert kept == pytest.approx(sorted(seen.values))
    assert run.trainer.current_epoch == 4


def test_what_is_restored_from_a_checkpoint_is_not_drawn_as_if_it_had_been_measured(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", save_last=True)
    fit(WatchedMonitor(), saving, max_epochs=1, enable_checkpointing=True)
    mine, seen = WatchedMonitor(every_n_epochs=3, on_error="raise"), Seen()
    fit(mine, seen, logger=tensorboard(tmp_path), ckpt_path=tmp_path / "saved" / "last.ckpt", max_epochs=3)
    assert mine.labels == ["epoch 3"]
    assert [step for step, _ in scalar_points(events(tmp_path), KEY)] == [8]
    assert len(seen.values) == 2
    assert all(torch.tensor(seen.values).isfinite())


class Sometimes(attngrad.Monitor):
    """Measures one of its numbers at every other evaluation."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.times = getattr(self, "times", 0) + 1
        rare = {"rare": float(self.times)} if self.times % 2 else {}
        return Findings({"often": float(self.times), **rare})


def test_a_number_that_an_evaluation_does_not_measure_stays_and_is_not_drawn(tmp_path: Path) -> None:
    run = fit(Sometimes(name="some", on_error="raise"), logger=tensorboard(tmp_path), max_epochs=3)
    written = events(tmp_path)
    assert scalar_points(written, "attngrad/some/often") == [(0, 1), (2, 2), (5, 3), (8, 4)]
    assert scalar_points(written, "attngrad/some/rare") == [(0, 1), (5, 3)]
    assert float(run.trainer.callback_metrics["attngrad/some/rare"]) == 3


def test_costs_are_measured_all_the_time(tmp_path: Path) -> None:
    fit(WatchedMonitor(every_n_epochs=2, on_error="raise"), logger=tensorboard(tmp_path), max_epochs=2)
    written = events(tmp_path)
    for key in ("attngrad/maps/seconds", "attngrad/maps/overhead", "attngrad/probe/seconds"):
        assert [step for step, _ in scalar_points(written, key)] == [0, 2, 5]


# Steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "steps"),
    [
        ({}, [2, 5]),
        ({"save_on_train_epoch_end": True}, [2, 5]),
        ({"save_on_train_epoch_end": False}, [2, 5]),
        ({"every_n_train_steps": 2}, [1, 3, 5]),
    ],
    ids=["by default", "at the end of an epoch", "at the end of a validation", "after steps"],
)
def test_the_audit_logs_on_the_steps_of_monitors_and_batches(
    tmp_path: Path, saved: dict[str, Any], steps: list[int]
) -> None:
    audit = attngrad.CheckpointAudit(probe=PIXELS, steps=2, on_error="raise")
    saving = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, **saved)
    options: dict[str, Any] = {"logger": tensorboard(tmp_path), "enable_checkpointing": True}
    fit(WatchedMonitor(on_error="raise"), audit, saving, max_epochs=2, **options)
    written = events(tmp_path)
    assert [step for step, _ in scalar_points(written, "attngrad/audit/seconds")] == steps
    assert [step for step, _ in scalar_points(written, KEY)] == [0, 2, 5]
    assert [step for step, _ in scalar_points(written, "train_loss")] == [0, 1, 2, 3, 4, 5]


# Names ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["main", "all"])
def everything(request: Any, tmp_path_factory: Any) -> tuple[str, list[Any], pl.Trainer, Any, Path]:
    """One epoch under all monitors, and the audit."""
    folder = tmp_path_factory.mktemp("everything")
    audit = attngrad.CheckpointAudit(probe=PIXELS, steps=2, on_error="raise")
    saving = ModelCheckpoint(folder / "saved")
    lines = CSVLogger(folder, name="csv", version="")
    watching = monitors(scalars=request.param)
    options: dict[str, Any] = {"logger": [tensorboard(folder / "board"), lines], "enable_checkpointing": True}
    run = fit(*watching, audit, saving, max_epochs=1, **options)
    return request.param, watching, run.trainer, events(folder / "board").raw.Tags(), folder


def test_tensorboard_shows_main_numbers_first_and_costs_last(everything: Any) -> None:
    which, watching, _, tags, _ = everything
    found = groups(tags["scalars"] + tags["images"])
    names = [monitor.name for monitor in watching]
    first = sorted(f"attngrad_{name}" for name in names)
    with_more = ("drift", "maps", "rewrite") if which == "all" else ("rewrite",)
    assert list(found) == [*first, *(f"attngrad_secondary_{name}" for name in with_more), "attngrad_time"]
    numbers = groups(tags["scalars"])
    for monitor in watching:
        here = numbers[f"attngrad_{monitor.name}"]
        assert here == set(monitor.main_scalars) - {"mass_in_mask"}, "which there is none without a mask"
        assert found[f"attngrad_{monitor.name}"] - here <= set(monitor.drawable)
    costs = {f"{cost}/{name}" for cost in ("seconds", "overhead") for name in names}
    assert found["attngrad_time"] == costs | {"seconds/probe", "seconds/audit"}


def test_numbers_of_single_layers_and_classes_are_among_the_others(everything: Any) -> None:
    which, _, trainer, tags, _ = everything
    found = groups(tags["scalars"])
    edges = {"q25_linf", "q75_linf", "log_ratio_low", "log_ratio_high"}  # a band of the custom scalars needs them
    if which == "main":
        assert found["attngrad_secondary_rewrite"] == edges
    else:
        assert edges < found["attngrad_secondary_rewrite"]
        assert {"per_class/0", "floor/ssim", "ratio/cosine"} < found["attngrad_secondary_drift"]
        assert {f"head_{kind}/net.blocks.0.attn" for kind in ("entropy", "distance")} < found["attngrad_secondary_maps"]
    for name in ("drift/per_class/0", "maps/head_entropy/net.blocks.0.attn", "rewrite/success/4_255"):
        assert f"attngrad/{name}" in trainer.callback_metrics, "whatever is logged, all can be waited for"


def test_other_loggers_use_the_names_that_are_monitored(everything: Any) -> None:
    which, _, trainer, tags, folder = everything
    with (folder / "csv" / "metrics.csv").open() as file:
        keys = {key for key in next(csv.reader(file)) if key.startswith("attngrad")}
    assert all(key.startswith("attngrad/") for key in keys)
    assert keys - {"attngrad/audit/seconds"} <= set(trainer.callback_metrics)
    assert len(keys) == sum(map(len, groups(tags["scalars"]).values())), "and no number is in TensorBoard twice"
    assert (len(keys) < 45) == (which == "main")


def test_no_chart_of_the_custom_scalars_is_empty(everything: Any) -> None:
    _, _, _, tags, folder = everything
    charts = [chart for category in shown(folder / "board").category for chart in category.chart]
    assert len(charts) > 8
    for chart in charts:
        if chart.HasField("margin"):
            (band,) = chart.margin.series
            assert {band.value, band.lower, band.upper} <= set(tags["scalars"]), chart.title
        else:
            for line in chart.multiline.tag:
                # There is no mask, and no long search.
                if not line.endswith(("mass_in_mask$", "pointing$", "mask_average_precision$", "short_over_long$")):
                    assert any(re.match(line, tag) for tag in tags["scalars"]), (chart.title, line)


def test_a_number_that_is_waited_for_is_logged_whatever_it_is(tmp_path: Path) -> None:
    key = "attngrad/drift/per_class/1"
    drift = attngrad.AttentionDriftMonitor(probe=PIXELS, figures=[], on_error="raise")
    saving = ModelCheckpoint(tmp_path / "saved", monitor=key)
    fit(drift, saving, logger=tensorboard(tmp_path), max_epochs=1, enable_checkpointing=True)
    tags = events(tmp_path).raw.Tags()["scalars"]
    assert groups(tags)["attngrad_secondary_drift"] == {"per_class/1"}


def test_numbers_of_a_further_correction_are_as_main_as_those_of_the_first(tmp_path: Path) -> None:
    both = {"correction": ["positive", "negative"]}
    options: dict[str, Any] = {"method": "gradient_guided", "method_options": both, "figures": [], "on_error": "raise"}
    fit(attngrad.AttentionMapMonitor(probe=PIXELS, **options), logger=tensorboard(tmp_path), max_epochs=1)
    assert {"entropy", "entropy/negative"} < groups(events(tmp_path).raw.Tags()["scalars"])["attngrad_maps"]


def test_all_numbers_of_a_monitor_that_says_nothing_of_them_are_main_ones(tmp_path: Path) -> None:
    fit(Sometimes(name="late/some", on_error="raise"), logger=tensorboard(tmp_path), max_epochs=1)
    found = groups(events(tmp_path).raw.Tags()["scalars"])
    assert found["attngrad_late"] == {"some/often", "some/rare"}
    assert found["attngrad_time"] == {"seconds/late/some", "overhead/late/some", "seconds/probe"}


def test_a_class_that_is_called_as_a_cost_is_none() -> None:
    names = Names("drift", ("spearman",))
    assert names.tag("per_class/seconds") == "attngrad_secondary_drift/per_class/seconds"
    assert names.tag("seconds") == "attngrad_time/seconds/drift"


# Which figures --------------------------------------------------------------------------------------------------


def test_only_the_figures_that_are_asked_for_are_drawn_and_worked_for(tmp_path: Path, monkeypatch: Any) -> None:
    from lightning_attngrad.callbacks import attention_map_monitor

    asked = counted(monkeypatch, attention_map_monitor, "explain_best_classes")
    maps = attngrad.AttentionMapMonitor(probe=PIXELS, figures=["film"], on_error="raise")
    drift = attngrad.AttentionDriftMonitor(probe=PIXELS, figures=[], on_error="raise")
    fit(maps, drift, logger=tensorboard(tmp_path), max_epochs=1)
    assert events(tmp_path).raw.Tags()["images"] == ["attngrad_maps/film"]
    assert not asked, "maps of the most probable classes are for a figure that nobody wants"


@pytest.mark.parametrize("kind", [type(monitor) for monitor in monitors()])
@pytest.mark.parametrize("wrong", [["overlays"], "film", [3], 4])
def test_a_figure_that_there_is_not_is_refused_with_those_that_there_are(kind: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"figures: got .*expected a list of names among .*{kind.drawable[-1]}"):
        kind(figures=wrong)


def test_other_scalars_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scalars: got 'few'; expected 'main' or 'all'"):
        attngrad.AttentionMapMonitor(scalars="few")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [type(monitor) for monitor in monitors()])
def test_the_figures_that_can_be_asked_for_are_those_that_are_drawn(kind: Any, everything: Any) -> None:
    _, watching, _, tags, _ = everything
    (monitor,) = [one for one in watching if type(one) is kind]
    drawn = groups(tags["images"])[f"attngrad_{monitor.name}"]
    assert drawn == set(kind.drawable) - {"corrections"}, "which needs several of them"
    assert kind.__doc__ is not None
    assert all(name in kind.__doc__ for name in kind.drawable)
