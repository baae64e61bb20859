"""Reads the places of one pass off the ids of its tensors: cells of grids over the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_attngrad.attention.place_table import PlaceTable
from lightning_attngrad.attention.places import Area, Grid, TokenPlaces


class NotPlacedError(Exception):
    """Tokens that lie on no grid; the message says why."""


@dataclass(frozen=True, eq=False)
class _Lattice:
    """The cells of one family of places.

    Attributes:
        grid: rows and columns.
        cells: (E,) cell of each line of the table; −1 for lines of other families.
        area: that they cover, in pixels.
    """

    grid: Grid
    cells: Tensor
    area: Area


class PlaceReader:
    """Reads places off ids.

    Args:
        table: of the pass.

    Attributes:
        areas: what part of the image, in pixels, each grid that was read covers.
    """

    def __init__(self, table: PlaceTable) -> None:
        self.areas: dict[Grid, Area] = {}
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
        cells, grid = _every_other(cells, boxed, grid)
        self.areas.setdefault(grid, lattices[0].area)
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
        edges = boxes[:, 0].min(), boxes[:, 2].min(), boxes[:, 1].max(), boxes[:, 3].max()
        top, left, bottom, right = (round(edge) for edge in torch.stack(edges).cpu().tolist())
        return _Lattice((height, width), everywhere, (top, left, bottom, right))


def _every_other(cells: Tensor, boxed: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Where only every s-th row and column of a grid is left (queries that are every other token): the coarser grid."""
    rows, columns = torch.unique(cells[boxed] // grid[1]), torch.unique(cells[boxed] % grid[1])
    steps, coarse = [], []
    for kept, length in ((rows, grid[0]), (columns, grid[1])):
        between = torch.unique(kept.diff()).cpu().tolist()
        step = between[0] if len(between) == 1 and len(kept) == -(-length // between[0]) else 1
        steps.append(step)
        coarse.append(len(kept) if step > 1 else length)
    if steps == [1, 1] or len(torch.unique(cells[boxed])) != len(rows) * len(columns):
        return cells, grid
    row, column = cells // grid[1] // steps[0], cells % grid[1] // steps[1]
    return torch.where(boxed, row * coarse[1] + column, -1), (coarse[0], coarse[1])


def _levels(middles: Tensor, sizes: Tensor) -> tuple[Tensor, int]:
    """Number of each value among the different ones, in rising order, and how many there are."""
    ordered, order = middles.sort()
    rises = ordered.diff() > 0.05 * sizes.amin()
    levels = torch.cat([rises.new_zeros(1), rises]).long()
    number = torch.zeros_like(levels)
    number[order] = levels.cumsum(0)
    return number, int(levels.sum()) + 1
