"""Reads the places of one pass off the ids of its tensors: cells of grids over the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_attngrad.attention.place_table import PlaceTable
from lightning_attngrad.attention.places import Area, Edges, Grid, TokenPlaces

#: Edges that are off by less than so much of a cell leave it where it is, as boxes do in the table: no maximum moves to
#: another cell by it, and means by area would blur the map for nothing.
_EQUAL = 0.3


class NotPlacedError(Exception):
    """Tokens that lie on no grid; the message says why."""


@dataclass(frozen=True, eq=False)
class _Lattice:
    """The cells of one family of places.

    Attributes:
        grid: rows and columns.
        cells: (E,) cell of each line of the table; −1 for lines of other families.
        area: that they cover, in pixels.
        middles: of what each row of cells reads, and each column, in pixels.
    """

    grid: Grid
    cells: Tensor
    area: Area
    middles: tuple[Tensor, Tensor]


class PlaceReader:
    """Reads places off ids.

    Args:
        table: of the pass.

    Attributes:
        areas: what part of the image, in pixels, each grid that was read covers.
        edges: where the cells of a grid begin and end, of those whose cells are not equal parts of their area.
    """

    def __init__(self, table: PlaceTable) -> None:
        self.areas: dict[Grid, Area] = {}
        self.edges: dict[Grid, Edges] = {}
        self._table = table
        self._lattices: dict[int, _Lattice] = {}

    def tokens(self, ids: Tensor) -> TokenPlaces:
        """Places of ids (R, G, N)."""
        table, lines = self._table, ids.long()
        image = table.images_of(ids).long()
        slot = torch.where(ids > 0, table.slot[lines], -1).long()
        boxed = (ids > 0) & (slot < 0)
        if not bool(boxed.any()):
            place = torch.where(slot >= 0, slot, -1)
            return TokenPlaces(image, place, None)
        families = torch.unique(table.family[lines[boxed]]).cpu().tolist()
        lattices = [self._lattice(family) for family in families]
        grids = {lattice.grid for lattice in lattices}
        if len(grids) > 1:
            sizes = " and ".join(f"{height}×{width}" for height, width in sorted(grids))
            raise NotPlacedError(f"reads tokens of several grids in one sequence ({sizes})")
        grid = lattices[0].grid
        cells = torch.stack([lattice.cells[lines] for lattice in lattices]).amax(0)
        cells, grid, middles = _every_other(cells, boxed, grid, lattices[0].middles)
        if grid not in self.areas:
            self.areas[grid] = lattices[0].area
            edges = _edges(middles, lattices[0].area)
            if edges is not None:
                self.edges[grid] = edges
        place = torch.where(boxed, table.slots + cells, torch.where(slot >= 0, slot, -1))
        rows = torch.arange(len(place), device=place.device)[:, None, None]
        order = torch.arange(place.shape[-1], device=place.device)
        in_order = (
            place.shape[1] == 1
            and place.shape[-1] == table.slots + math.prod(grid)
            and bool((place == order).all())
            and bool((image == rows).all())
        )
        return TokenPlaces(image, place, grid, in_order)

    def _lattice(self, family: int) -> _Lattice:
        if family not in self._lattices:
            self._lattices[family] = self._read_lattice(family)
        return self._lattices[family]

    def _read_lattice(self, family: int) -> _Lattice:
        table = self._table
        of_family = (table.family == family) & (table.slot < 0)
        of_family[0] = False
        boxes, images = table.boxes[of_family], table.image[of_family]
        middle = torch.stack([boxes[:, 0] + boxes[:, 1], boxes[:, 2] + boxes[:, 3]], dim=1) / 2
        sizes = torch.stack([boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]], dim=1)
        first = images == images.min()
        rows, height = _levels(middle[:, 0], sizes[:, 0])
        columns, width = _levels(middle[:, 1], sizes[:, 1])
        cells = rows * width + columns
        several = torch.unique(cells[first])
        if len(several) != height * width or int(first.sum()) != height * width:
            raise NotPlacedError(
                f"reads {int(first.sum())} tokens an image that form no grid ({height} different rows and {width} "
                "different columns): patches were mixed, or cut unevenly, before it"
            )
        if bool(table.covers_image(boxes).all()) and height * width == 1 and bool(table.mixed[of_family].any()):
            raise NotPlacedError("reads tokens that are each made of the whole image")
        everywhere = torch.full_like(table.family, -1, dtype=torch.long)
        everywhere[of_family] = cells
        begins = boxes[:, 0].min(), boxes[:, 2].min()
        ends = _end(boxes[:, :2], rows, table.size[0]), _end(boxes[:, 2:], columns, table.size[1])
        top, left, bottom, right = (round(edge) for edge in torch.stack([*begins, *ends]).cpu().tolist())
        read = table.middles[of_family]
        middles = _mean_by(rows, read[:, 0], height), _mean_by(columns, read[:, 1], width)
        return _Lattice((height, width), everywhere, (top, left, bottom, right), middles)


def _every_other(
    cells: Tensor, boxed: Tensor, grid: Grid, middles: tuple[Tensor, Tensor]
) -> tuple[Tensor, Grid, tuple[Tensor, Tensor]]:
    """Where only every s-th row and column of a grid is left (queries that are every other token): the coarser grid."""
    rows, columns = torch.unique(cells[boxed] // grid[1]), torch.unique(cells[boxed] % grid[1])
    steps, coarse = [], []
    for kept, length in ((rows, grid[0]), (columns, grid[1])):
        between = torch.unique(kept.diff()).cpu().tolist()
        step = between[0] if len(between) == 1 and len(kept) == -(-length // between[0]) else 1
        steps.append(step)
        coarse.append(len(kept) if step > 1 else length)
    if steps == [1, 1] or len(torch.unique(cells[boxed])) != len(rows) * len(columns):
        return cells, grid, middles
    row, column = cells // grid[1] // steps[0], cells % grid[1] // steps[1]
    left = tuple(
        of_axis[kept] if step > 1 else of_axis
        for of_axis, kept, step in zip(middles, (rows, columns), steps, strict=True)
    )
    return torch.where(boxed, row * coarse[1] + column, -1), (coarse[0], coarse[1]), (left[0], left[1])


def _edges(middles: tuple[Tensor, Tensor], area: Area) -> Edges | None:
    """Edges half-way between the middles of neighbours, the outer ones the area's; None for cells as good as equal.

    Middles that are no rising sequence say nothing about the cells, which are then taken to be equal.
    """
    found, apart = [], 0.0
    for of_axis, begin, end in zip(middles, area[:2], area[2:], strict=True):
        equal = torch.linspace(begin, end, len(of_axis) + 1, device=of_axis.device)
        edges = torch.cat([equal[:1], (of_axis[:-1] + of_axis[1:]) / 2, equal[-1:]])
        edges = edges if bool((edges.diff() > 0).all()) else equal
        apart = max(apart, float((edges - equal).abs().max()) * len(of_axis) / (end - begin))
        found.append(edges)
    return None if apart <= _EQUAL else (found[0], found[1])


def _end(spans: Tensor, levels: Tensor, size: int) -> Tensor:
    """Where the last of spans (E, 2) ends; of spans with gaps behind them, where the gap behind the last does."""
    begins = spans[levels == 0][:, 0].min(), spans[levels == min(1, int(levels.max()))][:, 0].min()
    return torch.maximum(spans[:, 1].max(), spans[:, 0].max() + (begins[1] - begins[0])).clamp_max(size)


def _mean_by(numbers: Tensor, values: Tensor, count: int) -> Tensor:
    """Mean of the values of each number, (count,)."""
    total = values.new_zeros(count).index_add_(0, numbers, values)
    return total / values.new_zeros(count).index_add_(0, numbers, torch.ones_like(values))


def _levels(middles: Tensor, sizes: Tensor) -> tuple[Tensor, int]:
    """Number of each value among the different ones, in rising order, and how many there are."""
    ordered, order = middles.sort()
    rises = ordered.diff() > 0.05 * sizes.amin()
    levels = torch.cat([rises.new_zeros(1), rises]).long()
    number = torch.zeros_like(levels)
    number[order] = levels.cumsum(0)
    return number, int(levels.sum()) + 1
