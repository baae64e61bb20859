"""The weight of guidance at each step."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_attngrad.guidance import LinearWarmup, weight_at


def test_a_warm_up_grows_evenly_and_stays() -> None:
    warm_up = LinearWarmup(2.0, steps=4)
    assert [weight_at(warm_up, step) for step in range(6)] == [0, 0.5, 1, 1.5, 2, 2]
    assert weight_at(0.3, 17) == 0.3


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), True, "much", lambda step: -step - 1])
def test_a_weight_is_a_number_of_at_least_zero(weight: Any) -> None:
    with pytest.raises(ValueError, match="weight: got"):
        weight_at(weight, 0)


@pytest.mark.parametrize("steps", [0, True, 1.5])
def test_a_warm_up_takes_steps(steps: Any) -> None:
    with pytest.raises(ValueError, match="steps: got"):
        LinearWarmup(1.0, steps=steps)
