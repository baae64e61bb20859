"""Story: what a monitor remembers of a run for the summary at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Story:
    """How a run began, and how many evaluations there were.

    Attributes:
        evaluations: how many there were.
        since: label of the first.
        first: first values of some scalars, by name; a number that is NaN at first is waited for.
    """

    evaluations: int = 0
    since: str = ""
    first: dict[str, float] = field(default_factory=dict)

    def goes_on(self, label: str, scalars: Mapping[str, float], names: Iterable[str]) -> None:
        """Record an evaluation.

        Args:
            label: of the evaluation.
            scalars: what it found.
            names: those to remember.
        """
        self.since = self.since if self.evaluations else label
        self.evaluations += 1
        for name in names:
            value = float(scalars.get(name, math.nan))
            if not math.isnan(value):
                self.first.setdefault(name, value)

    def plain(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return {"evaluations": self.evaluations, "since": self.since, "first": dict(self.first)}

    @classmethod
    def of(cls, plain: Mapping[str, Any] | None) -> Story:
        """From a checkpoint; one of an earlier version holds none."""
        return cls() if plain is None else cls(int(plain["evaluations"]), str(plain["since"]), dict(plain["first"]))
