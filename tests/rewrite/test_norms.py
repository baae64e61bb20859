"""Lengths, dual lengths, steps and balls: the inequalities that define them, against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_attngrad.rewrite.norms import NORMS, over_pixels
from tests.references import rewriting as reference

NAMES = list(NORMS)
SEEDS = st.integers(0, 10**6)


def normal(seed: int, scale: float = 1.0) -> Tensor:
    """Rows of rather different length."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, 2, 3, 2, generator=generator) * torch.tensor([1.0, 1e-4, 50.0])[:, None, None, None]
    return rows * scale


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_every_quantity_is_that_of_the_reference(name: str, seed: int) -> None:
    norm, delta = NORMS[name], normal(seed)
    radius = torch.tensor([0.5, 1.0, 20.0])
    rows = [row.double().numpy() for row in delta]
    expected = {
        "length": [reference.length_of(row, name) for row in rows],
        "dual": [reference.dual_length(row, name) for row in rows],
        "ascent": np.stack([reference.unit_step(row, name) for row in rows]),
        "within": np.stack([reference.into_ball(row, name, float(r)) for row, r in zip(rows, radius, strict=True)]),
    }
    found = {
        "length": norm.length(delta),
        "dual": norm.dual_length(delta),
        "ascent": norm.ascent(delta),
        "within": norm.within(delta, radius),
    }
    for key, value in expected.items():
        np.testing.assert_allclose(found[key].numpy(), value, rtol=1e-5, atol=1e-30, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_no_direction_of_length_1_climbs_faster(name: str, seed: int) -> None:
    norm, gradient, other = NORMS[name], normal(seed), normal(seed + 1)
    step, dual = norm.ascent(gradient), norm.dual_length(gradient)
    torch.testing.assert_close(norm.length(step), torch.ones(3))
    torch.testing.assert_close(inner(gradient, step), dual)
    assert (inner(gradient, other / over_pixels(norm.length(other))) <= dual * 1.0001).all()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, radius=st.floats(1e-3, 10))
def test_the_ball_holds_the_nearest_change(name: str, seed: int, radius: float) -> None:
    norm, delta, limit = NORMS[name], normal(seed), torch.full((3,), radius)
    inside = norm.within(delta, limit)
    assert (norm.length(inside) <= limit * (1 + 1e-6)).all()
    stays = norm.length(delta) <= limit
    assert torch.equal(inside[stays], delta[stays])
    other = norm.within(normal(seed + 1), limit)  # somewhere else in the ball
    distance = (delta - inside).flatten(1).norm(dim=1)
    assert (distance <= (delta - other).flatten(1).norm(dim=1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25])
def test_gradients_of_any_size_have_a_direction(name: str, scale: float) -> None:
    """Their squares are 0 or infinite in float32: behind a saturated softmax gradients are of 1e-25."""
    gradient = torch.tensor([3.0, -4.0])[:, None, None].expand(1, 2, 1, 1) * scale
    expected = {"linf": [1.0, -1.0], "l2": [0.6, -0.8]}[name]
    torch.testing.assert_close(NORMS[name].ascent(gradient).flatten(), torch.tensor(expected), rtol=1e-5, atol=0)
    dual = float(NORMS[name].dual_length(gradient)) / scale
    assert dual == pytest.approx({"linf": 7.0, "l2": 5.0}[name], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stays_nothing(name: str) -> None:
    norm, nothing = NORMS[name], torch.zeros(2, 1, 2, 2)
    assert norm.length(nothing).tolist() == norm.dual_length(nothing).tolist() == [0.0, 0.0]
    assert torch.equal(norm.ascent(nothing), nothing)
    for radius in (0.0, 1.0):
        assert torch.equal(norm.within(nothing, torch.full((2,), radius)), nothing)
    assert torch.equal(norm.within(torch.ones(2, 1, 2, 2), torch.zeros(2)), nothing)


@pytest.mark.parametrize("name", NAMES)
def test_the_longest_change_is_from_black_to_white(name: str) -> None:
    white = torch.ones(1, 3, 4, 5)
    assert NORMS[name].largest(white) == pytest.approx(float(NORMS[name].length(white)))
    assert NORMS[name].largest(white) == pytest.approx({"linf": 1.0, "l2": math.sqrt(60)}[name])


def test_norms_know_their_names() -> None:
    assert {name: norm.name for name, norm in NORMS.items()} == {"linf": "linf", "l2": "l2"}
