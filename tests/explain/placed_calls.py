"""Attention calls made by hand, with their places: one of each layout that models have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F

from lightning_attngrad.attention import AttentionCall, ExplicitAttentionCall
from lightning_attngrad.attention.places import CallPlaces, Grid, ImagePlaces, TokenPlaces
from tests.references.placed import Placed

BATCH = 2
Kind = Literal["tokens", "channels", "elsewhere"]


def tokens(grid: Grid | None, *places: Iterable[int], in_order: bool = False) -> TokenPlaces:
    """Rows of tokens, every image with the same; −1 is padding. Rows of an image stand together."""
    rows = torch.tensor([list(row) for row in places])
    place = rows.repeat(BATCH, 1).unsqueeze(1)
    image = torch.arange(BATCH).repeat_interleave(len(rows)).view(-1, 1, 1).expand_as(place)
    return TokenPlaces(torch.where(place < 0, -1, image), place, grid, in_order)


def cells(grid: Grid, slots: int = 0) -> range:
    """Places of all cells in reading order."""
    return range(slots, slots + grid[0] * grid[1])


def windows(grid: Grid, size: Grid, shift: Grid = (0, 0), slots: int = 0) -> list[list[int]]:
    """Places in the windows of a padded and rolled grid."""
    places = torch.arange(slots, slots + grid[0] * grid[1]).view(grid)
    padded = F.pad(places, (0, -grid[1] % size[1], 0, -grid[0] % size[0]), value=-1)
    rolled = torch.roll(padded, (-shift[0], -shift[1]), (0, 1))
    return rolled.unfold(0, size[0], size[0]).unfold(1, size[1], size[1]).flatten(2).flatten(0, 1).tolist()


def made(
    *calls: tuple[TokenPlaces, TokenPlaces, Iterable[int]],
    slots: int,
    grid: Grid,
    pooled: dict[int, list[int]],
    heads: int = 2,
    folded: int = 1,
    kinds: dict[int, Kind] | None = None,
    unreached: frozenset[int] = frozenset(),
) -> Placed:
    """Calls from (queries, keys, reads), with random attention and gradients that are zero at what is not pooled."""
    generator = torch.Generator().manual_seed(7)
    placed, attention, gradients = [], [], []
    for number, (queries, keys, reads) in enumerate(calls):
        shape = (queries.place.shape[0], heads, queries.place.shape[2], keys.place.shape[2])
        name, kind = f"layer.{number}", (kinds or {}).get(number, "tokens")
        placed.append(CallPlaces(name, shape, queries, keys, heads * folded, kind, frozenset(reads)))
        attention.append(torch.randn(shape, generator=generator).softmax(-1))
        gradient = torch.randn(shape, generator=generator)
        if number in pooled:
            counts = torch.isin(queries.place, torch.tensor(pooled[number]))  # (R, G, N)
            gradient = gradient * counts.unsqueeze(-1)
        gradients.append(gradient)
    every = {number: [(image, place) for image in range(BATCH) for place in pooled[number]] for number in pooled}
    whole = ImagePlaces(tuple(placed), slots, grid, None, (0, 0, 64, 64), BATCH)
    return Placed(whole, attention, gradients, every, unreached)


def calls_of(placed: Placed) -> list[AttentionCall]:
    """The calls, whose tensor is their probabilities."""
    named = zip(placed.places.calls, placed.attention, strict=True)
    return [ExplicitAttentionCall(name=call.name, tensor=matrix, probabilities=matrix) for call, matrix in named]


def plain() -> Placed:
    """A class token in front."""
    grid, slots = (2, 3), 1
    everything = tokens(grid, range(7), in_order=True)
    calls = [(everything, everything, range(number)) for number in range(3)]
    return made(*calls, slots=slots, grid=grid, pooled={2: [0]})


def mean_pooled_behind_the_patches() -> Placed:
    """Two registers behind the patches, in another order than the slots."""
    grid = (2, 3)
    everything = tokens(grid, [*cells(grid, 2), 1, 0])
    calls = [(everything, everything, range(number)) for number in range(2)]
    return made(*calls, slots=2, grid=grid, pooled={1: list(cells(grid, 2))})


def shifted_windows() -> Placed:
    """Windows, shifted and padded, then everything at once, on a grid that is not square."""
    grid = (3, 5)
    first, second = (tokens(grid, *windows(grid, (2, 3), shift)) for shift in ((0, 0), (1, 2)))
    last = tokens(grid, cells(grid), in_order=True)
    calls = [(first, first, ()), (second, second, (0,)), (last, last, (0, 1))]
    return made(*calls, slots=0, grid=grid, pooled={2: list(cells(grid))})


def stages() -> Placed:
    """Windows on a fine grid, and then a coarse one that does not divide it, as padding before merging leaves it."""
    fine, coarse = (3, 5), (2, 3)
    first, second = tokens(fine, *windows(fine, (2, 3))), tokens(fine, *windows(fine, (2, 3), (1, 1)))
    last = tokens(coarse, cells(coarse))
    calls = [(first, first, ()), (second, second, (0,)), (last, last, (0, 1)), (last, last, (0, 1, 2))]
    return made(*calls, slots=0, grid=fine, pooled={3: list(cells(coarse))})


def coarser_keys() -> Placed:
    """Queries on a fine grid that read keys of a coarse one, and below them a finer grid still (PVT)."""
    fine, middle, coarse = (4, 4), (2, 4), (1, 2)
    calls = [
        (tokens(fine, cells(fine)), tokens(coarse, cells(coarse)), ()),
        (tokens(fine, cells(fine)), tokens(coarse, cells(coarse)), (0,)),
        (tokens(middle, cells(middle)), tokens(coarse, cells(coarse)), (0, 1)),
        (tokens(middle, cells(middle)), tokens(middle, cells(middle)), (0, 1, 2)),
    ]
    return made(*calls, slots=0, grid=middle, pooled={3: list(cells(middle))})


def coarser_queries() -> Placed:
    """Queries pooled between two stages, which read keys of the finer (Hiera, MViT), in units of four tokens."""
    fine, coarse = (4, 4), (2, 2)
    units = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    calls = [
        (tokens(fine, *units), tokens(fine, *units), ()),
        (tokens(coarse, [0], [1], [2], [3]), tokens(fine, *units), (0,)),
        (tokens(coarse, cells(coarse), in_order=True), tokens(coarse, cells(coarse), in_order=True), (0, 1)),
    ]
    return made(*calls, slots=0, grid=fine, pooled={2: list(cells(coarse))})


def side_by_side() -> Placed:
    """Two calls in each block: they read the block before and not each other."""
    grid = (2, 3)
    everything = tokens(grid, range(7), in_order=True)
    calls = [(everything, everything, reads) for reads in ((), (), (0, 1), (0, 1), range(4), range(4))]
    return made(*calls, slots=1, grid=grid, pooled={4: [0], 5: [0]})


def two_towers() -> Placed:
    """Towers of different grids that only the classifier joins, and above them a teacher that nothing comes from."""
    fine, coarse = (4, 4), (2, 3)
    first, second = tokens(fine, [0, *cells(fine, 2)]), tokens(coarse, [1, *cells(coarse, 2)])
    calls = [(first, first, ()), (second, second, ()), (first, first, (0,)), (second, second, (1,)), (first, first, ())]
    return made(*calls, slots=2, grid=fine, pooled={2: [0], 3: list(cells(coarse, 2))}, unreached=frozenset({4}))


def class_attention() -> Placed:
    """Patches alone at first, then a class token that reads them and itself (CaiT)."""
    grid = (2, 3)
    patches, query = tokens(grid, cells(grid, 1)), tokens(None, [0])
    everything = tokens(grid, range(7), in_order=True)
    calls = [(patches, patches, ()), (patches, patches, (0,))]
    calls += [(query, everything, (0, 1)), (query, everything, (0, 1, 2))]
    return made(*calls, slots=1, grid=grid, pooled={3: [0]})


def learned_query() -> Placed:
    """A class token, and a query of its own that reads all at the end (attention pooling)."""
    grid = (2, 3)
    everything, query = tokens(grid, [0, *cells(grid, 2)]), tokens(None, [1])
    calls = [(everything, everything, ()), (everything, everything, (0,)), (query, everything, (0, 1))]
    return made(*calls, slots=2, grid=grid, pooled={2: [1]})


def heads_in_the_rows() -> Placed:
    """Three heads folded into the batch, as SAM's are."""
    grid = (2, 3)
    everything = tokens(grid, *[list(range(7))] * 3)
    calls = [(everything, everything, range(number)) for number in range(2)]
    return made(*calls, slots=1, grid=grid, pooled={1: [0]}, heads=1, folded=3)


def heads_of_their_own() -> Placed:
    """Each head with windows of its own."""
    grid = (2, 4)
    across, down = tokens(grid, [0, 1, 2, 3], [4, 5, 6, 7]), tokens(grid, [0, 4, 1, 5], [2, 6, 3, 7])
    both = TokenPlaces(torch.cat([across.image, down.image], 1), torch.cat([across.place, down.place], 1), grid)
    calls = [(both, both, range(number)) for number in range(3)]
    return made(*calls, slots=0, grid=grid, pooled={2: list(range(8))})


def channels_between() -> Placed:
    """Channels that attend to channels, between calls of tokens (DaViT)."""
    grid = (2, 3)
    patches, nothing = tokens(grid, cells(grid), in_order=True), tokens(None, [-1] * 4)
    calls: list[tuple[TokenPlaces, TokenPlaces, Iterable[int]]] = [(patches, patches, ()), (nothing, nothing, (0,))]
    calls += [(patches, patches, (0, 1)), (nothing, nothing, (0, 1, 2))]
    return made(*calls, slots=0, grid=grid, pooled={2: list(cells(grid))}, kinds={1: "channels", 3: "elsewhere"})


LAYOUTS: dict[str, Callable[[], Placed]] = {
    layout.__name__: layout
    for layout in (
        plain,
        mean_pooled_behind_the_patches,
        shifted_windows,
        stages,
        coarser_keys,
        coarser_queries,
        side_by_side,
        two_towers,
        class_attention,
        learned_query,
        heads_in_the_rows,
        heads_of_their_own,
        channels_between,
    )
}
