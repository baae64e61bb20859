"""Similarity of maps against scipy, and where it has no value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from lightning_attngrad.metrics.functional import map_cosine, map_spearman

SIMILARITIES = [map_spearman, map_cosine]


def _maps(seed: int, rows: int, columns: int, levels: int | None = None, batch: int = 4) -> Tensor:
    """Random maps; with levels, of so many values that most patches are tied."""
    maps = torch.randn(batch, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return maps if levels is None else (maps * levels / 2).round()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(2, 7), st.sampled_from([None, 1, 2, 5]))
def test_equal_scipy_with_and_without_ties(seed: int, rows: int, columns: int, levels: int | None) -> None:
    a, b = _maps(seed, rows, columns, levels), _maps(seed + 1, rows, columns, levels)
    b[0] = a[0] + 0.1 * b[0]
    for index in range(len(a)):
        x, y = a[index].flatten().numpy(), b[index].flatten().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            rank = spearmanr(x, y).statistic if len(set(x)) > 1 and len(set(y)) > 1 else math.nan
            cosine = (x @ y) / math.sqrt((x @ x) * (y @ y)) if x.any() and y.any() else math.nan
        assert float(map_spearman(a, b)[index]) == pytest.approx(rank, abs=1e-12, nan_ok=True)
        assert float(map_cosine(a, b)[index]) == pytest.approx(cosine, abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.sampled_from([None, 3]))
def test_properties(seed: int, factor: float, levels: int | None) -> None:
    a, b = _maps(seed, 5, 6, levels), _maps(seed + 1, 5, 6, levels)
    for similarity in SIMILARITIES:
        value = similarity(a, b)
        assert ((value >= -1) & (value <= 1)).all()
        torch.testing.assert_close(similarity(b, a), value)
        torch.testing.assert_close(similarity(a, a), torch.ones(4, dtype=a.dtype))
        torch.testing.assert_close(similarity(a, -b), -value)
        torch.testing.assert_close(similarity(a * factor, b), value)
    torch.testing.assert_close(map_spearman(a.exp(), b**3), map_spearman(a, b))  # only the order counts


def test_spearman_of_large_float32_maps_is_as_good_as_in_float64() -> None:
    a, b = _maps(0, 64, 64).float(), _maps(1, 64, 64).float()
    expected = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert map_spearman(a, b).tolist() == pytest.approx(expected, abs=2e-7)
    assert (map_spearman(a, a) == 1).all()
    assert (map_spearman(a, -a) == -1).all()


@pytest.mark.parametrize("patches", range(2, 12))
def test_rounding_does_not_go_beyond_1(patches: int) -> None:
    a = _maps(patches, 1, patches, batch=50).float()
    for similarity in SIMILARITIES:
        assert (similarity(a, a) <= 1).all()
        assert (similarity(a, -a) >= -1).all()


def test_cosine_of_tiny_relevances_does_not_vanish() -> None:
    a, b = _maps(0, 4, 4).float(), _maps(1, 4, 4).float()
    torch.testing.assert_close(map_cosine(a * 1e-30, b * 1e30), map_cosine(a, b))


def test_where_there_is_no_value() -> None:
    any_map, flat, zero = _maps(0, 3, 3, batch=1), torch.ones(1, 3, 3), torch.zeros(1, 3, 3)
    broken = any_map.clone()
    broken[0, 1, 1] = math.nan
    infinite = any_map.clone()
    infinite[0, 1, 1] = math.inf
    for other, spearman_is_nan, cosine_is_nan in [
        (flat, True, False),
        (zero, True, True),
        (broken, True, True),
        (infinite, True, True),
    ]:
        for pair in ((any_map, other), (other, any_map)):
            assert map_spearman(*pair).isnan().tolist() == [spearman_is_nan]
            assert map_cosine(*pair).isnan().tolist() == [cosine_is_nan]
    assert map_spearman(flat[:, :1, :1], flat[:, :1, :1]).isnan().all()  # a single patch has no order


def test_one_bad_map_leaves_the_others_alone() -> None:
    a, b = _maps(0, 3, 4), _maps(1, 3, 4)
    expected = [similarity(a, b) for similarity in SIMILARITIES]
    a[2] = math.nan
    for similarity, whole in zip(SIMILARITIES, expected, strict=True):
        found = similarity(a, b)
        assert found.isnan().tolist() == [False, False, True, False]
        assert torch.equal(found[[0, 1, 3]], whole[[0, 1, 3]])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_shapes_and_types(similarity) -> None:
    a, b = _maps(0, 3, 4), _maps(1, 3, 4)
    assert similarity(a[0], b[0]).shape == ()
    assert similarity(a.view(2, 2, 3, 4), b.view(2, 2, 3, 4)).shape == (2, 2)
    assert similarity(a[:0], b[:0]).shape == (0,)
    assert similarity(a.half(), b.bfloat16()).dtype == torch.float32
    assert similarity(a.mT, b.mT).tolist() == pytest.approx(similarity(a, b).tolist())  # not contiguous


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    "shapes", [((2, 3, 3), (2, 3, 4)), ((2, 3, 3), (1, 3, 3)), ((3,), (3,)), ((2, 0, 3), (2, 0, 3))]
)
def test_maps_that_do_not_fit_each_other_are_refused(similarity, shapes) -> None:
    with pytest.raises(ValueError, match=r"a, b: got shapes .* expected two maps"):
        similarity(torch.ones(shapes[0]), torch.ones(shapes[1]))
