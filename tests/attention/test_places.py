from __future__ import annotations

import pytest
import torch

from lightning_attngrad.attention import ImagePlaces, carry


@pytest.mark.parametrize("to", [(4, 6), (2, 3), (8, 12), (3, 5), (1, 1), (7, 2)])
def test_carrying_keeps_the_sum(to: tuple[int, int]) -> None:
    values = torch.rand(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    carried = carry(values, to)
    assert carried.shape == (2, 3, *to)
    torch.testing.assert_close(carried.sum((-2, -1)), values.sum((-2, -1)))


def test_carrying_shares_by_area() -> None:
    """By counting pixels: every cell gives each of its pixels the same, and every cell takes what its pixels have."""
    values = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pixels = values.repeat_interleave(10, 0).repeat_interleave(15, 1) / 150  # 30 × 60
    expected = torch.stack([row.sum() for rows in pixels.split(6, 0) for row in rows.split(12, 1)]).view(5, 5)
    torch.testing.assert_close(carry(values, (5, 5)), expected)


def test_to_a_finer_grid_and_back_is_where_it_was() -> None:
    values = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(carry(carry(values, (8, 12)), (4, 6)), values)


def test_tokens_of_a_map() -> None:
    assert ImagePlaces((), 2, (3, 4), None, (0, 0, 8, 8), 1).tokens == 14
    assert ImagePlaces((), 2, None, None, (0, 0, 8, 8), 1).tokens == 2
