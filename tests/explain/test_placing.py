"""Gathering and scattering by places, on index tensors: what timm's own windowing does, and its exact inverse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor

from lightning_attngrad.attention.places import Grid, TokenPlaces
from lightning_attngrad.explain.placing import (
    carry_tokens,
    gather_tokens,
    row_images,
    scatter_tokens,
    sum_by_image,
)

BATCH, SLOTS, WINDOW, SHIFT = 2, 2, (4, 4), (2, 1)
GRID = (6, 9)


def numbers(batch: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """Image and place of each cell, (B, h, w) each."""
    cells = SLOTS + torch.arange(grid[0] * grid[1]).view(1, *grid).expand(batch, -1, -1)
    return torch.arange(batch).view(-1, 1, 1).expand(-1, *grid), cells


def windows_of(images: Tensor, padding: float) -> Tensor:
    """(B, h, w) padded to whole windows, rolled and cut into (B·windows, tokens) by timm."""
    height, width = images.shape[1:]
    padded = F.pad(images, (0, -width % WINDOW[1], 0, -height % WINDOW[0]), value=padding)
    rolled = torch.roll(padded, (-SHIFT[0], -SHIFT[1]), (1, 2))
    return window_partition(rolled.unsqueeze(-1), WINDOW).flatten(1)


def images_of(windows: Tensor, grid: Grid) -> Tensor:
    """The inverse, by timm."""
    height, width = (side + -side % window for side, window in zip(grid, WINDOW, strict=True))
    cut = window_reverse(windows.view(-1, *WINDOW, 1), WINDOW, height, width)
    return torch.roll(cut, SHIFT, (1, 2))[:, : grid[0], : grid[1], 0]


def window_places(prefix: bool = False) -> TokenPlaces:
    """Shifted windows over a padded grid that is not square; where asked for, all slots in front of each window."""
    image, place = (windows_of(part, -1) for part in numbers(BATCH, GRID))
    if prefix:
        of_row = image.amax(dim=1, keepdim=True)
        image = torch.cat([of_row.expand(-1, SLOTS), image], dim=1)
        place = torch.cat([torch.arange(SLOTS).expand(len(place), -1), place], dim=1)
    return TokenPlaces(image.unsqueeze(1), place.unsqueeze(1), GRID)


def state_of(batch: int = BATCH, maps: int = 3, grid: Grid = GRID) -> Tensor:
    """Different numbers everywhere."""
    return torch.arange(1, 1 + batch * maps * (SLOTS + grid[0] * grid[1])).view(batch, maps, -1).float()


def test_gathering_is_windowing_and_scattering_its_inverse() -> None:
    places, state = window_places(), state_of()
    gathered = gather_tokens(state, places, SLOTS)
    cells = state[:, :, SLOTS:].unflatten(-1, GRID)
    assert gathered.shape == (BATCH * 2 * 3, 3, 1, 16)
    for index in range(3):
        assert torch.equal(gathered[:, index, 0], windows_of(cells[:, index], 0))
    back = scatter_tokens(gathered, places, SLOTS, BATCH)
    assert torch.equal(back[:, :, SLOTS:], state[:, :, SLOTS:])
    assert torch.equal(back[:, :, :SLOTS], torch.zeros(BATCH, 3, SLOTS))


def test_scattering_is_unwindowing_and_gathering_its_inverse() -> None:
    places = window_places()
    values = torch.arange(1.0, 1 + 12 * 3 * 16).view(12, 3, 1, 16)
    scattered = scatter_tokens(values, places, SLOTS, BATCH)
    for index in range(3):
        assert torch.equal(scattered[:, index, SLOTS:].unflatten(-1, GRID), images_of(values[:, index], GRID))
    there_again = gather_tokens(scattered, places, SLOTS)
    placed = (places.place >= 0).unsqueeze(1).expand_as(values)
    assert torch.equal(there_again[placed], values[placed])
    assert bool((there_again[~placed] == 0).all())
    assert 0 < int((~placed).sum()) < placed.numel()


def test_padding_gets_and_gives_nothing() -> None:
    places = window_places()
    values = torch.where((places.place >= 0).unsqueeze(1), 1.0, torch.nan)
    scattered = scatter_tokens(values, places, SLOTS, BATCH)
    assert torch.equal(scattered[:, :, SLOTS:], torch.ones(BATCH, 1, GRID[0] * GRID[1]))
    assert bool((scattered[:, :, :SLOTS] == 0).all())
    nowhere = TokenPlaces(torch.full((2, 1, 3), -1), torch.full((2, 1, 3), -1), GRID)
    assert bool((gather_tokens(torch.full_like(state_of(), torch.nan), nowhere, SLOTS) == 0).all())


def test_prefix_tokens_in_every_window_are_read_in_each_and_add_up() -> None:
    places, state = window_places(prefix=True), state_of()
    gathered = gather_tokens(state, places, SLOTS)
    for row, image in enumerate(row_images(places).tolist()):
        assert torch.equal(gathered[row, :, 0, :SLOTS], state[image, :, :SLOTS])
    back = scatter_tokens(gathered, places, SLOTS, BATCH)
    assert torch.equal(back[:, :, :SLOTS], 6 * state[:, :, :SLOTS])  # six windows an image
    assert torch.equal(back[:, :, SLOTS:], state[:, :, SLOTS:])


def test_halo_keys_that_lie_in_several_windows_add_up() -> None:
    image, place = numbers(BATCH, GRID)

    def with_halo(cells: Tensor) -> Tensor:  # windows of 3×3 that reach one cell beyond, as HaloNet's
        padded = F.pad(cells, (1, 1, 1, 1), value=-1)
        return padded.unfold(1, 5, 3).unfold(2, 5, 3).flatten(3).flatten(0, 2)

    places = TokenPlaces(with_halo(image).unsqueeze(1), with_halo(place).unsqueeze(1), GRID)
    scattered = scatter_tokens(torch.ones(len(places.place), 1, 1, 25), places, SLOTS, BATCH)
    expected = torch.zeros(BATCH, SLOTS + GRID[0] * GRID[1])
    for row in zip(places.image.flatten().tolist(), places.place.flatten().tolist(), strict=True):
        if row[1] >= 0:
            expected[row] += 1
    assert torch.equal(scattered[:, 0], expected)
    assert expected.amax() == 4
    assert float(scattered.sum()) == float((places.place >= 0).sum())


def test_heads_folded_into_the_rows_read_the_same_and_add_up() -> None:
    image, place = (part.flatten(1) for part in numbers(BATCH, GRID))
    heads = 4
    places = TokenPlaces(
        image.repeat_interleave(heads, 0).unsqueeze(1), place.repeat_interleave(heads, 0).unsqueeze(1), GRID
    )
    state = state_of()
    gathered = gather_tokens(state, places, SLOTS)
    assert torch.equal(gathered[:, :, 0], state[:, :, SLOTS:].repeat_interleave(heads, 0))
    assert torch.equal(scatter_tokens(gathered, places, SLOTS, BATCH)[:, :, SLOTS:], heads * state[:, :, SLOTS:])


def test_heads_with_places_of_their_own() -> None:
    first, second = window_places(), window_places()
    second = TokenPlaces(second.image.flip(2), second.place.flip(2), GRID)
    both = TokenPlaces(torch.cat([first.image, second.image], 1), torch.cat([first.place, second.place], 1), GRID)
    state = state_of()
    gathered = gather_tokens(state, both, SLOTS)
    assert torch.equal(gathered[:, :, 0], gather_tokens(state, first, SLOTS)[:, :, 0])
    assert torch.equal(gathered[:, :, 1], gather_tokens(state, second, SLOTS)[:, :, 0])
    assert torch.equal(scatter_tokens(gathered, both, SLOTS, BATCH)[:, :, SLOTS:], 2 * state[:, :, SLOTS:])


@pytest.mark.parametrize("tokens", [SLOTS + GRID[0] * GRID[1], 1])
def test_tokens_in_order_are_not_copied_and_lie_where_the_indices_say(tokens: int) -> None:
    place = torch.arange(tokens).expand(BATCH, 1, -1)
    image = torch.arange(BATCH).view(-1, 1, 1).expand_as(place)
    in_order, by_index = TokenPlaces(image, place, GRID, in_order=True), TokenPlaces(image, place, GRID)
    state = state_of()
    gathered = gather_tokens(state, in_order, SLOTS)
    assert gathered.data_ptr() == state.data_ptr()
    assert torch.equal(gathered, gather_tokens(state, by_index, SLOTS))
    values = torch.rand(BATCH, 3, 1, tokens)
    scattered = scatter_tokens(values, in_order, SLOTS, BATCH)
    assert tokens == 1 or scattered.data_ptr() == values.data_ptr()
    assert torch.equal(scattered, scatter_tokens(values, by_index, SLOTS, BATCH))


def test_tokens_that_lie_nowhere_need_no_grid() -> None:
    places = TokenPlaces(torch.zeros(1, 1, 2, dtype=torch.long), torch.tensor([[[1, 0]]]), None)
    slots_only = carry_tokens(state_of(batch=1), SLOTS, GRID, None)
    assert torch.equal(gather_tokens(slots_only, places, SLOTS)[:, :, 0], slots_only.flip(-1))
    assert torch.equal(scatter_tokens(slots_only.unsqueeze(2), places, SLOTS, 1), slots_only.flip(-1))


def test_carried_to_another_grid_and_back() -> None:
    state = state_of()
    finer = carry_tokens(state, SLOTS, GRID, (12, 18))
    assert torch.equal(finer[..., :SLOTS], state[..., :SLOTS])
    torch.testing.assert_close(carry_tokens(finer, SLOTS, (12, 18), GRID), state)
    assert torch.equal(carry_tokens(state[..., :SLOTS], SLOTS, None, GRID)[..., SLOTS:], torch.zeros(BATCH, 3, 54))


def test_sums_by_image_leave_out_rows_of_padding() -> None:
    places = window_places()
    nowhere = TokenPlaces(
        torch.cat([places.image, torch.full_like(places.image[:1], -1)]),
        torch.cat([places.place, torch.full_like(places.place[:1], -1)]),
        GRID,
    )
    values = torch.arange(13.0).unsqueeze(1)
    assert sum_by_image(values, nowhere, BATCH).tolist() == [[15.0], [51.0]]


def test_deterministic_algorithms_are_enough() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        places = window_places(prefix=True)
        scatter_tokens(gather_tokens(state_of(), places, SLOTS), places, SLOTS, BATCH)
    finally:
        torch.use_deterministic_algorithms(False)
