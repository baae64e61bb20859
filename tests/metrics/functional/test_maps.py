"""Map statistics against numpy, and at the maps whose numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_attngrad.metrics.functional import (
    border_mass,
    corner_mass,
    map_centroid,
    map_density,
    map_entropy,
    map_statistics,
    times_uniform_share,
    top_decile_mass,
)
from tests.references import map_metrics

STATISTICS = [map_entropy, border_mass, corner_mass, top_decile_mass]


def _maps(seed: int, rows: int, columns: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9))
def test_equal_numpy(seed: int, rows: int, columns: int) -> None:
    maps = _maps(seed, rows, columns)
    for index, single in enumerate(maps.double().numpy()):
        share = np.abs(single) / np.abs(single).sum()
        entropy = -sum(p * math.log(p) for p in share.ravel() if p > 0)
        expected_entropy = entropy / math.log(share.size) if share.size > 1 else 0.0
        on_border = [
            share[i, j] for i in range(rows) for j in range(columns) if i in (0, rows - 1) or j in (0, columns - 1)
        ]
        top = sorted(share.ravel())[::-1][: math.ceil(share.size / 10)]
        assert float(map_entropy(maps)[index]) == pytest.approx(expected_entropy, abs=1e-5)
        assert float(border_mass(maps)[index]) == pytest.approx(sum(on_border), abs=1e-5)
        assert float(top_decile_mass(maps)[index]) == pytest.approx(sum(top), abs=1e-5)
        assert float(corner_mass(maps)[index]) == pytest.approx(map_metrics.corner_mass(single), abs=1e-5)
        assert map_centroid(maps)[index].tolist() == pytest.approx(map_metrics.centroid(single), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_the_size_of_a_map_does_not_matter(seed: int, factor: float) -> None:
    maps = _maps(seed, 5, 7)
    for statistic in STATISTICS:
        torch.testing.assert_close(statistic(maps * factor), statistic(maps), rtol=1e-4, atol=1e-5)


def test_flat_and_single_patch_maps() -> None:
    flat, single = torch.ones(14, 14), torch.zeros(14, 14)
    single[5, 6] = 3.0
    assert [float(s(flat)) for s in STATISTICS] == pytest.approx([1.0, 52 / 196, 16 / 196, 20 / 196])
    assert [float(s(single)) for s in STATISTICS] == pytest.approx([0.0, 0.0, 0.0, 1.0], abs=1e-6)
    assert map_centroid(flat).tolist() == pytest.approx([0.5, 0.5])
    assert map_centroid(single).tolist() == pytest.approx([5.5 / 14, 6.5 / 14])


@pytest.mark.parametrize(("rows", "columns", "patches"), [(7, 7, 4), (14, 14, 16), (16, 16, 36), (8, 7, 8), (1, 3, 2)])
def test_corners_are_blocks_of_a_seventh(rows: int, columns: int, patches: int) -> None:
    flat = torch.ones(rows, columns)
    assert float(corner_mass(flat)) == pytest.approx(patches / (rows * columns))
    for place in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        mark = torch.zeros(rows, columns)
        mark[place] = 1
        assert float(corner_mass(mark)) == 1


def test_a_map_of_nothing_or_of_no_finite_size_gives_no_number() -> None:
    broken = torch.ones(3, 4, 4)
    broken[0], broken[1, 1, 1], broken[2, 2, 2] = 0, math.nan, math.inf
    maps = torch.cat([broken, torch.ones(1, 4, 4)])
    for statistic in STATISTICS:
        assert torch.isnan(statistic(maps)).tolist() == [True, True, True, False]
        assert map_statistics(maps).keys() == {"entropy", "border_mass", "corner_mass", "top_decile_mass"}
        assert not any(math.isnan(value) for value in map_statistics(maps).values())
    assert torch.isnan(times_uniform_share(maps)[0]).all()


def test_shares_keep_the_sign_and_a_flat_map_is_one() -> None:
    maps = _maps(0, 4, 6)
    shares = times_uniform_share(maps)
    assert torch.equal(shares.sign(), maps.sign())
    torch.testing.assert_close(shares.abs().mean(dim=(1, 2)), torch.ones(3))
    torch.testing.assert_close(times_uniform_share(torch.full((2, 3), 7.0)), torch.ones(2, 3))


def test_the_largest_and_the_smallest_numbers_are_shares_too() -> None:
    for size in (3e38, 1e-45):
        torch.testing.assert_close(map_density(torch.full((2, 2), size)), torch.full((2, 2), 0.25))


def test_half_precision_is_widened_and_leading_dimensions_are_kept() -> None:
    maps = _maps(1, 4, 4, batch=6).view(2, 3, 4, 4)
    assert map_density(maps.half()).dtype == torch.float32
    assert all(statistic(maps).shape == (2, 3) for statistic in STATISTICS)
