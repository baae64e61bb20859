"""How much guidance counts at each step of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

#: A weight, or a function from the number of the optimizer step to it.
Weight = float | Callable[[int], float]


@dataclass(frozen=True)
class LinearWarmup:
    """A weight that grows from 0 over the first steps, and then stays.

    Attributes:
        weight: from then on.
        steps: how many steps it takes.

    Example:
        >>> warm_up = LinearWarmup(0.5, steps=100)
        >>> warm_up(0), warm_up(50), warm_up(1000)
        (0.0, 0.25, 0.5)
    """

    weight: float
    steps: int

    def __post_init__(self) -> None:
        weight_at(self.weight, 0)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: got {self.steps!r}; expected an int of at least 1")

    def __call__(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        return self.weight * min(1.0, step / self.steps)


def weight_at(weight: Weight, step: int) -> float:
    """The weight at a step.

    Raises:
        ValueError: if it is no finite number of at least 0.
    """
    value = weight(step) if callable(weight) else weight
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"weight: got {value!r}{f' at step {step}' if callable(weight) else ''}; expected a number of at least 0, "
            "or a function from the step to one, such as LinearWarmup(0.5, steps=100)"
        )
    return float(value)
