"""The governor: a share of the fit's time is kept, whatever a look takes, and nothing but the cadence changes."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks import governor as module
from lightning_attngrad.probe import Evaluation, Findings
from lightning_attngrad.probe.governor import Governor
from tests.callbacks.small_runs import Squares, WatchedMonitor, events, fit, loader, scalar_points, tensorboard


class Clock:
    """A clock that stands still unless told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))


def simulate(clock: Any, limit: float | None, moments: int, between: float, looks: list[float]) -> tuple[int, float]:
    """How many looks are taken, and what they take: due every ``between`` seconds, the i-th takes ``looks[i]``."""
    governor, spent, taken = Governor(limit), 0.0, 0
    governor.begin()
    for moment in range(moments + 1):
        if governor.allows(spent, is_last=moment == moments):
            governor.takes(spent)
            took = looks[taken % len(looks)]
            spent, taken = spent + took, taken + 1
            clock.now += took
        else:
            governor.passes()
        clock.now += between if moment < moments else 0
    assert governor.taken == taken
    assert governor.taken + governor.passed == moments + 1
    assert governor.stretch == (moments + 1) / taken
    return taken, spent


def test_without_a_limit_every_look_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulate(Clock(monkeypatch), None, 20, 1.0, [50.0])[0] == 21


def test_looks_that_have_the_time_are_all_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at the start is a debt that the first moments have to pay back."""
    taken, _ = simulate(Clock(monkeypatch), 0.05, 100, 10.0, [0.1])
    assert taken > 95


@given(
    limit=st.floats(0.01, 0.5),
    between=st.floats(0.1, 10),
    looks=st.lists(st.floats(0.01, 2.0), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_the_share_is_kept_to_within_what_one_look_takes_more_than_the_one_before(
    limit: float, between: float, looks: list[float]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock(monkeypatch)
        taken, spent = simulate(clock, limit, 400, between, looks)
        if taken > 1:
            assert spent <= limit * (clock.now - 100) + max(looks) - min(looks)


def test_the_last_look_has_the_time_that_was_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, governor = Clock(monkeypatch), Governor(0.1)
    governor.begin()
    governor.takes(0.0)  # takes one second of ten
    clock.now += 25.0
    assert not governor.allows(1.0, is_last=False)  # 1 spent, 1 for this one, 1 for the end: 3 of 2.5
    assert governor.allows(1.0, is_last=True)  # 2 of 2.5
    clock.now += 5.0
    assert governor.allows(1.0, is_last=False)


def test_the_overhead_is_a_share() -> None:
    governor = Governor(None)
    governor.begin()
    assert governor.overhead(0.0) == 0.0
    assert 0 < governor.overhead(1e-9) <= 1.0
    assert governor.overhead(1e9) == 1.0


@pytest.mark.parametrize("limit", [0, -0.1, math.nan, math.inf, True, "5%"])
def test_what_is_no_share_is_refused_at_construction(limit: Any) -> None:
    for monitor in (attngrad.AttentionMapMonitor, attngrad.RewriteRobustnessMonitor):
        with pytest.raises(ValueError, match=r"max_overhead: got .*expected the share of the fit's time"):
            monitor(max_overhead=limit)


# In a run ------------------------------------------------------------------------------------------------------


class SlowMonitor(WatchedMonitor):
    """Looks that take far longer than an epoch."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        time.sleep(0.3)
        return super().evaluate(evaluation)


def test_a_run_too_short_for_a_second_look_gets_the_first_and_keeps_its_keys(tmp_path: Path) -> None:
    monitor = SlowMonitor(max_overhead=0.01, on_error="raise")
    run = fit(monitor, max_epochs=3, logger=tensorboard(tmp_path))
    assert monitor.labels == ["start"]
    written = events(tmp_path)
    stretch = [value for _, value in scalar_points(written, "attngrad/maps/stretch")]
    assert stretch == [1.0, 2.0, 3.0, 4.0]  # the start, and three validations that were due
    overhead = [value for _, value in scalar_points(written, "attngrad/maps/overhead")]
    assert all(0 < share <= 1 for share in overhead)
    assert overhead == sorted(overhead, reverse=True), "nothing was spent, so the share falls"
    entropy = {value for _, value in scalar_points(written, "attngrad/maps/entropy")}
    assert len(entropy) == 1
    assert "attngrad/maps/entropy" in run.trainer.callback_metrics


def test_an_ample_limit_changes_nothing() -> None:
    governed, free = WatchedMonitor(max_overhead=1.0, on_error="raise"), WatchedMonitor(on_error="raise")
    fit(governed, max_epochs=3)
    fit(free, max_epochs=3)
    # The first look reads the images and warms up: the debt of it may take the first epoch to pay back.
    assert set(governed.labels) >= {"start", "epoch 3"}
    assert free.labels == ["start", "epoch 1", "epoch 2", "epoch 3"]
    for label in governed.labels:
        one, other = (
            next(findings.scalars for probe, findings in monitor.evaluations if probe.label == label)
            for monitor in (governed, free)
        )
        assert one == other, "a look under a limit asks the same"


def test_steps_are_passed_over_as_well() -> None:
    monitor = SlowMonitor(max_overhead=0.01, every_n_steps=1, on_error="raise")
    fit(monitor, max_epochs=2)
    assert monitor.labels == ["start"]
    assert monitor.governor.skipped == 6 + 1  # six steps, and the end of the fit


def test_a_validation_of_its_own_is_always_looked_at() -> None:
    monitor = SlowMonitor(max_overhead=0.01, on_error="raise")
    run = fit(monitor, max_epochs=1)
    run.trainer.validate(run.module, loader(Squares(9, seed=1)), verbose=False)
    assert monitor.labels == ["start", "validate"]
