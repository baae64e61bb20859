from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_attngrad.reporting.distances import distance_unit


@given(st.floats(0.0, 255.0))
def test_a_number_is_short_and_close(value: float) -> None:
    text = distance_unit("l2").number(value)
    assert len(text) <= 4
    if text == "<.01":
        assert 0 < value < 0.01
    else:
        assert abs(float(text) - value) <= max(0.005, 0.05 * value) * (1 + 1e-9)
        assert (float(text) == 0) == (value == 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l0", "l0_patches"])
def test_ticks_rise_and_are_written_as_distances(norm: str) -> None:
    unit = distance_unit(norm)
    assert list(unit.ticks) == sorted(set(unit.ticks))
    assert [unit.text(tick / unit.factor) for tick in unit.ticks] == [f"{tick:g}{unit.suffix}" for tick in unit.ticks]


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="norm: got 'linfinity'; expected one of 'linf', 'l2', 'l0', 'l0_patches'"):
        distance_unit("linfinity")
