"""Conditions: what is one, and which values meet it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_attngrad.audit.thresholds import Threshold


@pytest.mark.parametrize(
    ("text", "name", "operator", "limit"),
    [
        ("rewrite/median_linf<2/255", "rewrite/median_linf", "<", 2 / 255),
        (" val_loss >= 1e-3 ", "val_loss", ">=", 1e-3),
        ("rewrite/success/4_255 > .5", "rewrite/success/4_255", ">", 0.5),
        ("val loss/dataloader_idx_0<=-1", "val loss/dataloader_idx_0", "<=", -1),
        ("rewrite/median_linf>=inf", "rewrite/median_linf", ">=", math.inf),
    ],
)
def test_a_condition_is_read(text: str, name: str, operator: str, limit: float) -> None:
    threshold = Threshold.parse(text)
    assert (threshold.name, threshold.operator, threshold.limit) == (name, operator, limit)
    assert threshold.text == text.strip()


@pytest.mark.parametrize(
    "text", ["", "val_loss", "<1", "val_loss<", "a==1", "a=1", "a<b", "a<1/0", "a<nan", "a<1<2", "a<1/2/3", "a<2 /255"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected NAME"):
        Threshold.parse(text)


SIDES = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}


@given(
    value=st.floats(allow_nan=False, width=32), limit=st.floats(allow_nan=False), operator=st.sampled_from(list(SIDES))
)
def test_it_compares_as_numpy_does_in_float32(value: float, limit: float, operator: str) -> None:
    threshold = Threshold("", "x", operator, limit)
    with np.errstate(over="ignore"):
        assert threshold.is_broken_by({"x": value}) == bool(SIDES[operator](np.float32(value), np.float32(limit)))


@pytest.mark.parametrize("operator", SIDES)
def test_not_a_number_and_nothing_at_all_fail(operator: str) -> None:
    threshold = Threshold.parse(f"x{operator}0")
    assert threshold.is_broken_by({"x": math.nan})
    assert threshold.is_broken_by({"y": 1.0})


def test_a_median_of_two_levels_is_not_above_two_levels() -> None:
    median = float(np.float32(2 / 255))
    assert median > 2 / 255  # by the last bit of float32
    assert not Threshold.parse("x>2/255").is_broken_by({"x": median})
    assert Threshold.parse("x>=2/255").is_broken_by({"x": median})
