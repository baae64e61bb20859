"""One line while a fit runs, where its monitors take more of the time than most people would give them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lightning_attngrad.measure.story import Story

#: A larger share of the time is told.
MUCH = 0.2
#: Where the monitors have taken less, in seconds, nobody has waited for them.
WORTH_SAYING = 30.0
#: The limit that the line gives as an example.
_EXAMPLE = 0.05


class Spends(Protocol):
    """What a callback tells of its cost."""

    name: str
    story: Story

    @property
    def spent(self) -> float:
        """Seconds of this fit, with its part of what is shared."""

    @property
    def has_limit(self) -> bool:
        """Whether the user has bounded it."""

    def how_to_spend_less(self, example: float) -> str:
        """What to write, with a share of the time as an example."""


@dataclass
class _Cost:
    """Of one callback since training began."""

    seconds: float
    evaluations: int


class CostAdvice:
    """Watches what the monitors of a fit take, the evaluation of the starting weights left out, and speaks once.

    That evaluation reads the images and warms everything up, and there is no training yet that it could be a share of.
    Monitors with a limit of their own do not count: of these the user has thought.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._before: dict[str, _Cost] = {}
        self._said = False

    def begin(self, callbacks: Sequence[Spends]) -> None:
        """Training begins; further calls change nothing."""
        if self._began is None:
            self._began = time.perf_counter()
            self._before = {one.name: _Cost(one.spent, one.story.evaluations) for one in callbacks}

    def line(self, callbacks: Sequence[Spends]) -> str:
        """What to say now; empty where there is nothing to say, or it has been said.

        Args:
            callbacks: all those of the Trainer.
        """
        if self._began is None or self._said:
            return ""
        passed = max(time.perf_counter() - self._began, 1e-9)
        costs = {one.name: self._cost(one) for one in callbacks if not one.has_limit}
        together = sum(cost.seconds for cost in costs.values())
        if together < WORTH_SAYING or together <= MUCH * passed:
            return ""
        self._said = True
        dearest = max((one for one in callbacks if one.name in costs), key=lambda one: costs[one.name].seconds)
        kind, cost = type(dearest).__name__, costs[dearest.name]
        each = f", {cost.seconds / cost.evaluations:.2g} s an evaluation" if cost.evaluations else ""
        share, most = (_percent(seconds / passed) for seconds in (together, cost.seconds))
        if len(costs) == 1:
            taken = f"{kind} has taken {share} of the time since training began{each}"
        else:
            taken = f"the monitors have taken {share} of the time since training began, {kind} the most ({most}{each})"
        return f"attngrad: {taken}. {dearest.how_to_spend_less(_EXAMPLE)}"

    def _cost(self, callback: Spends) -> _Cost:
        before = self._before.get(callback.name, _Cost(0.0, 0))
        return _Cost(callback.spent - before.seconds, callback.story.evaluations - before.evaluations)


def _percent(share: float) -> str:
    return f"{100 * min(share, 1):.0f} %"
