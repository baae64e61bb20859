"""A limit on a monitor's share of the time, in real runs: fewer evaluations, each of them as it was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import lightning_attngrad as attngrad
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.small_runs import Squares, WatchedMonitor, events, fit, loader, scalar_points, tensorboard
from tests.still_clock import StillClock

CLOCK = StillClock()


@pytest.fixture(autouse=True)
def only_what_is_asked_for_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    CLOCK.take_over(monkeypatch)


@pytest.mark.parametrize("limit", [0, -0.1, math.nan, math.inf, True, "5%"])
def test_what_is_no_share_is_refused_at_construction(limit: Any) -> None:
    for monitor in (attngrad.AttentionMapMonitor, attngrad.RewriteRobustnessMonitor):
        with pytest.raises(ValueError, match=r"max_overhead: got .*expected the share of the fit's time"):
            monitor(max_overhead=limit)


class SlowMonitor(WatchedMonitor):
    """Evaluations that take far longer than an epoch."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        CLOCK.wait(0.3)
        return super().evaluate(evaluation)


def test_a_run_too_short_for_a_second_evaluation_gets_the_first_and_keeps_its_keys(tmp_path: Path) -> None:
    monitor = SlowMonitor(max_overhead=0.01, on_error="raise")
    run = fit(monitor, max_epochs=3, logger=tensorboard(tmp_path))
    assert monitor.labels == ["start"]
    written = events(tmp_path)
    stretch = [value for _, value in scalar_points(written, "attngrad/maps/stretch")]
    assert stretch == [1.0, 2.0, 3.0, 4.0]  # the start, and three validations that were due
    overhead = [value for _, value in scalar_points(written, "attngrad/maps/overhead")]
    assert all(0 < share <= 1 for share in overhead)
    assert overhead == sorted(overhead, reverse=True), "nothing was spent, so the share falls"
    assert [step for step, _ in scalar_points(written, "attngrad/maps/entropy")] == [0]  # and not as if measured again
    assert "attngrad/maps/entropy" in run.trainer.callback_metrics


def test_an_ample_limit_changes_nothing() -> None:
    governed, free = WatchedMonitor(max_overhead=1.0, on_error="raise"), WatchedMonitor(on_error="raise")
    fit(governed, max_epochs=12)
    fit(free, max_epochs=12)
    # The first evaluation reads the images, traces the tokens and warms up: its debt takes some epochs to pay back.
    assert set(governed.labels) >= {"start", "epoch 12"}
    assert free.labels == ["start", *(f"epoch {epoch}" for epoch in range(1, 13))]
    for label in governed.labels:
        one, other = (
            next(findings.scalars for evaluation, findings in monitor.evaluations if evaluation.label == label)
            for monitor in (governed, free)
        )
        assert one == other, "an evaluation under a limit asks the same"


def test_steps_are_skipped_as_well() -> None:
    monitor = SlowMonitor(max_overhead=0.01, every_n_steps=1, on_error="raise")
    fit(monitor, max_epochs=2)
    assert monitor.labels == ["start"]
    assert monitor.governor.skipped == 6 + 1  # six steps, and the end of the fit


def test_a_validation_of_its_own_is_always_evaluated() -> None:
    monitor = SlowMonitor(max_overhead=0.01, on_error="raise")
    run = fit(monitor, max_epochs=1)
    run.trainer.validate(run.module, loader(Squares(9, seed=1)), verbose=False)
    assert monitor.labels == ["start", "validate"]
