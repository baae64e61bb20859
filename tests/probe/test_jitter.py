"""Jittered copies: how far, which way, and always the same ones."""

from __future__ import annotations

import pytest
import torch

from lightning_attngrad.probe import jittered_copies
from lightning_attngrad.probe.jitter import NOISE


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_the_shift_is_one_pixel_each_way_in_turn_with_the_border_repeated(images: torch.Tensor) -> None:
    shifted, _ = jittered_copies(images, grid=(2, 3))  # patches of 8 pixels
    right, down, left, up, again = shifted
    assert torch.equal(right[:, :, 1:], images[0, :, :, :-1])
    assert torch.equal(right[:, :, 0], images[0, :, :, 0])
    assert torch.equal(down[:, 1:], images[1, :, :-1])
    assert torch.equal(down[:, 0], images[1, :, 0])
    assert torch.equal(left[:, :, :-1], images[2, :, :, 1:])
    assert torch.equal(left[:, :, -1], images[2, :, :, -1])
    assert torch.equal(up[:, :-1], images[3, :, 1:])
    assert torch.equal(up[:, -1], images[3, :, -1])
    assert torch.equal(again[:, :, 1:], images[4, :, :, :-1])


@pytest.mark.parametrize(("grid", "across", "down"), [((8, 12), 1 / 4, 1 / 4), ((4, 12), 1 / 4, 1 / 2), ((1, 1), 1, 1)])
def test_the_shift_is_at_most_an_eighth_of_a_patch(
    images: torch.Tensor, grid: tuple[int, int], across: float, down: float
) -> None:
    whole, _ = jittered_copies(images, grid=(1, 1))
    shifted, _ = jittered_copies(images, grid)
    for index, share in enumerate((across, down, across, down, across)):
        expected = (1 - share) * images[index] + share * whole[index]
        torch.testing.assert_close(shifted[index], expected)


def test_the_noise_is_one_percent_of_each_images_own_range(images: torch.Tensor) -> None:
    large = torch.cat([images, 10 * images])
    _, noisy = jittered_copies(large, grid=(2, 3))
    spread = (noisy - large).flatten(1).std(dim=1) / (large.flatten(1).amax(1) - large.flatten(1).amin(1))
    torch.testing.assert_close(spread, torch.full((10,), NOISE), rtol=0.1, atol=0)


def test_copies_are_the_same_whenever_and_move_no_global_random_number(images: torch.Tensor) -> None:
    state = torch.get_rng_state()
    first = jittered_copies(images, (2, 3), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = jittered_copies(images, (2, 3), seed=1)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(jittered_copies(images, (2, 3), seed=2)[1], first[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_copies_keep_the_type_of_the_images(images: torch.Tensor, dtype: torch.dtype) -> None:
    for copy in jittered_copies(images.to(dtype), grid=(8, 12)):
        assert copy.dtype == dtype
        assert copy.shape == images.shape


def test_an_image_of_one_value_has_copies_like_itself() -> None:
    flat = torch.full((2, 1, 1, 1), 0.5)
    assert all(torch.equal(copy, flat) for copy in jittered_copies(flat, grid=(1, 1)))
