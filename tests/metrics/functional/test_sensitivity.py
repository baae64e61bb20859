"""Class sensitivity and the share on the right object against scipy and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from lightning_attngrad.metrics.functional import class_sensitivity, sanity_correlation, two_object_share
from tests.references import map_metrics


def _maps(seed: int, rows: int = 5, columns: int = 6, batch: int = 4) -> Tensor:
    return torch.randn(batch, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_rank_correlations_equal_scipy(seed: int) -> None:
    a, b = _maps(seed), _maps(seed + 1)
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert sanity_correlation(a, b).tolist() == pytest.approx(expected)
    assert class_sensitivity(a, b).tolist() == pytest.approx([1 - rho for rho in expected])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_share_on_the_right_object_equals_loops(seed: int, factor: float) -> None:
    maps = _maps(seed)
    right, wrong = (torch.rand(2, 4, 11, 13, generator=torch.Generator().manual_seed(seed)) < 0.3).unbind()
    found = two_object_share(maps * factor, right, wrong)
    for index, heatmap in enumerate(maps.numpy()):
        positive = np.maximum(heatmap, 0)
        on_right, on_wrong = (
            (positive * map_metrics.coverage(mask[index].double().numpy(), (5, 6))).sum() for mask in (right, wrong)
        )
        assert float(found[index]) == pytest.approx(on_right / (on_right + on_wrong), abs=1e-5)
    torch.testing.assert_close(found + two_object_share(maps, wrong, right), torch.ones_like(found), atol=1e-5, rtol=0)


def test_nothing_on_either_object_gives_no_number() -> None:
    left, right = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    left[:, :, 0], right[:, :, 3] = True, True
    maps = torch.zeros(4, 1, 4, 4)
    maps[0, 0, 1, 1] = 1  # between the objects
    maps[1, 0, :, 0] = -1  # speaks against
    maps[2, 0, 0, 0] = math.nan
    maps[3, 0, 0, 0] = 1
    assert [float(two_object_share(one, left, right)) for one in maps] == pytest.approx(
        [math.nan, math.nan, math.nan, 1], nan_ok=True
    )
    nothing = torch.zeros_like(left)
    assert float(two_object_share(maps[3], left, nothing)) == 1
    with pytest.raises(ValueError, match="heatmap, mask: got shapes"):
        two_object_share(maps[3], left, torch.ones(2, 4, 4))
