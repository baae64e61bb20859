"""The governor: a share of the fit's time is kept, whatever an evaluation takes, and only the cadence changes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_attngrad.probe.governor import Governor
from tests.still_clock import StillClock


def simulate(
    clock: StillClock, limit: float | None, moments: int, between: float, costs: list[float]
) -> tuple[int, float]:
    """How many evaluations are made, and what they cost: due every ``between`` seconds, the i-th takes ``costs[i]``."""
    governor, spent, taken = Governor(limit), 0.0, 0
    governor.begin()
    for moment in range(moments + 1):
        if governor.allows(spent, is_last=moment == moments):
            governor.takes(spent)
            took = costs[taken % len(costs)]
            spent, taken = spent + took, taken + 1
            clock.wait(took)
        else:
            governor.skips()
        clock.wait(between if moment < moments else 0)
    assert governor.taken == taken
    assert governor.taken + governor.skipped == moments + 1
    assert governor.stretch == (moments + 1) / taken
    return taken, spent


def test_without_a_limit_every_evaluation_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulate(StillClock().take_over(monkeypatch), None, 20, 1.0, [50.0])[0] == 21


def test_evaluations_that_have_the_time_are_all_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at the start is a debt that the first moments have to pay back."""
    taken, _ = simulate(StillClock().take_over(monkeypatch), 0.05, 100, 10.0, [0.1])
    assert taken > 95


@given(
    limit=st.floats(0.01, 0.5),
    between=st.floats(0.1, 10),
    costs=st.lists(st.floats(0.01, 2.0), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_the_share_is_kept_to_within_what_one_evaluation_takes_more_than_the_one_before(
    limit: float, between: float, costs: list[float]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = StillClock().take_over(monkeypatch)
        taken, spent = simulate(clock, limit, 400, between, costs)
        if taken > 1:
            assert spent <= limit * (clock.now - 100) + max(costs) - min(costs)


def test_the_last_evaluation_has_the_time_that_was_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, governor = StillClock().take_over(monkeypatch), Governor(0.1)
    governor.begin()
    governor.takes(0.0)  # takes one second of ten
    clock.wait(25.0)
    assert not governor.allows(1.0, is_last=False)  # 1 spent, 1 for this one, 1 for the end: 3 of 2.5
    assert governor.allows(1.0, is_last=True)  # 2 of 2.5
    clock.wait(5.0)
    assert governor.allows(1.0, is_last=False)


def test_the_overhead_is_a_share() -> None:
    governor = Governor(None)
    governor.begin()
    assert governor.overhead(0.0) == 0.0
    assert 0 < governor.overhead(1e-9) <= 1.0
    assert governor.overhead(1e9) == 1.0
