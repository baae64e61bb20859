"""Gradient-guided attention where tokens lie in windows, on several grids, side by side: matrices over all tokens.

A *token* is a slot or a cell of one of the grids that occur; all of them together are the rows and columns of every
matrix, for each image. With E_c the corrected attention of call c between tokens, mean over heads, and P_g the matrix
that spreads every cell by area over the cells of grid g,

    F_c = E_c · (P_map + Σ_b P_{q_b} F_b)        over the calls b that c reads,
    map = Σ_c w_c · P_{q_c} · F_c

with q_b the grid of b's queries and w_c the mean of the pooling weights of the last calls that read c or are c. For one
chain of calls on one grid this is the recursion of `guided.py`: R − 1 = Π(1 + E_l) − 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.places import Grid, ImagePlaces, TokenPlaces
from tests.references.guided import CORRECTIONS


@dataclass(frozen=True)
class Placed:
    """Calls and their places.

    Attributes:
        places: of all calls.
        attention: A of each call, (R, H, N, M).
        gradients: G of each call, (R, H, N, M).
        pooled: for each last call, which of its query tokens are pooled, as (image, place) pairs, all alike.
        unreached: numbers of the calls that the prediction does not depend on.
    """

    places: ImagePlaces
    attention: list[Tensor]
    gradients: list[Tensor]
    pooled: dict[int, list[tuple[int, int]]]
    unreached: frozenset[int] = frozenset()

    @property
    def counting(self) -> list[int]:
        """Numbers of the calls that take part."""
        return [n for n, c in enumerate(self.places.calls) if c.kind == "tokens" and n not in self.unreached]

    @property
    def grids(self) -> list[Grid]:
        """All grids that occur."""
        tokens = [tokens for call in self.places.calls for tokens in (call.queries, call.keys)]
        return sorted({*(one.grid for one in tokens if one.grid is not None), self.map_grid})

    @property
    def map_grid(self) -> Grid:
        """The grid of the map."""
        assert self.places.grid is not None
        return self.places.grid

    @property
    def tokens(self) -> int:
        """Slots, and cells of all grids."""
        return self.places.slots + sum(h * w for h, w in self.grids)

    def begin(self, grid: Grid) -> int:
        """Number of the first cell of a grid among all tokens."""
        earlier = self.grids[: self.grids.index(grid)]
        return self.places.slots + sum(h * w for h, w in earlier)

    def number(self, place: int, grid: Grid | None) -> int:
        """Number of a token among all, from its place."""
        if place < self.places.slots:
            return place
        assert grid is not None
        return self.begin(grid) + place - self.places.slots

    def on_map(self, rows: Tensor) -> Tensor:
        """(…, tokens) to (…, S + h·w)."""
        first = self.begin(self.map_grid)
        cells = self.map_grid[0] * self.map_grid[1]
        return torch.cat([rows[..., : self.places.slots], rows[..., first : first + cells]], dim=-1)


def spread(placed: Placed, to: Grid | None) -> Tensor:
    """P: every cell of every grid by area over the cells of one, slots to themselves."""
    matrix = torch.zeros(placed.tokens, placed.tokens, dtype=torch.float64)
    for slot in range(placed.places.slots):
        matrix[slot, slot] = 1
    if to is None:
        return matrix
    for grid in placed.grids:
        for row in range(grid[0]):
            for column in range(grid[1]):
                for to_row in range(to[0]):
                    for to_column in range(to[1]):
                        height = min((row + 1) / grid[0], (to_row + 1) / to[0]) - max(row / grid[0], to_row / to[0])
                        width = min((column + 1) / grid[1], (to_column + 1) / to[1]) - max(
                            column / grid[1], to_column / to[1]
                        )
                        if height > 1e-12 and width > 1e-12:
                            here = placed.begin(grid) + row * grid[1] + column
                            there = placed.begin(to) + to_row * to[1] + to_column
                            matrix[here, there] = height * width * grid[0] * grid[1]
    return matrix


def _at(tokens: TokenPlaces, row: int, head: int, token: int) -> tuple[int, int]:
    group = head if tokens.place.shape[1] > 1 else 0
    return int(tokens.image[row, group, token]), int(tokens.place[row, group, token])


def between_tokens(placed: Placed, number: int, matrices: Tensor) -> Tensor:
    """E: matrices (R, H, N, M) of a call between tokens, mean over heads, for each image (B, tokens, tokens)."""
    call = placed.places.calls[number]
    found = torch.zeros(placed.places.batch, placed.tokens, placed.tokens, dtype=torch.float64)
    rows, heads, queries, keys = call.shape
    for row in range(rows):
        for head in range(heads):
            for n in range(queries):
                image, query = _at(call.queries, row, head, n)
                for m in range(keys):
                    of_key, key = _at(call.keys, row, head, m)
                    if query >= 0 and key >= 0:
                        assert image == of_key
                        here = placed.number(query, call.queries.grid)
                        there = placed.number(key, call.keys.grid)
                        found[image, here, there] += float(matrices[row, head, n, m]) / call.heads
    return found


def weights(placed: Placed, number: int) -> Tensor:
    """w: mean pooling weights of the last calls that read this one or are it, (B, tokens)."""
    calls = placed.places.calls
    last = [t for t in placed.pooled if t == number or number in calls[t].reads]
    found = torch.zeros(placed.places.batch, placed.tokens, dtype=torch.float64)
    for t in last:
        for image in range(placed.places.batch):
            pooled = [place for of_image, place in placed.pooled[t] if of_image == image]
            for place in pooled:
                found[image, placed.number(place, calls[t].queries.grid)] += 1 / len(pooled) / len(last)
    return found


def guided_map(placed: Placed, correction: str, key_weights: Mapping[int, Tensor] | None = None) -> Tensor:
    """The map, (B, S + h·w).

    Args:
        placed: the calls.
        correction: of `guided.py`.
        key_weights: by call, by what the columns of E_c are multiplied, (B, tokens).
    """
    calls, rule = placed.places.calls, CORRECTIONS[correction]
    to_map = spread(placed, placed.map_grid)
    whole: dict[int, Tensor] = {}
    total = torch.zeros(placed.places.batch, placed.tokens, dtype=torch.float64)
    for c in placed.counting:
        corrected = between_tokens(placed, c, rule(placed.attention[c].double(), placed.gradients[c].double()))
        if key_weights is not None:
            corrected = corrected * key_weights[c].unsqueeze(1)
        below = sum((spread(placed, calls[b].queries.grid) @ whole[b] for b in calls[c].reads if b in whole), to_map)
        whole[c] = corrected @ below
        from_prediction = weights(placed, c) @ spread(placed, calls[c].queries.grid)
        total += torch.einsum("bt,btu->bu", from_prediction, whole[c])
    return placed.on_map(total)


def increments(placed: Placed, correction: str) -> Tensor:
    """What each call adds to the map, first call first, (B, L, S + h·w), by rows from the last call to the first."""
    calls, rule = placed.places.calls, CORRECTIONS[correction]
    added: dict[int, Tensor] = {}
    for c in reversed(placed.counting):
        corrected = between_tokens(placed, c, rule(placed.attention[c].double(), placed.gradients[c].double()))
        row = sum((added[d] for d in added if c in calls[d].reads), weights(placed, c))
        added[c] = torch.einsum("bt,btu->bu", row @ spread(placed, calls[c].queries.grid), corrected)
    to_map = spread(placed, placed.map_grid)
    return torch.stack([placed.on_map(added[c] @ to_map) for c in placed.counting], dim=1)


def raw_attention(placed: Placed) -> Tensor:
    """The pooled rows of the last calls, mean over heads, and mean of these calls: (B, S + h·w)."""
    read = [
        torch.einsum("bt,btu->bu", _alone(placed, t), between_tokens(placed, t, placed.attention[t]))
        for t in placed.pooled
    ]
    return placed.on_map(torch.stack(read).mean(0) @ spread(placed, placed.map_grid))


def rollout(placed: Placed) -> Tensor:
    """r ← r + q(Ā − 1)/(p + 1) with q the part of r at the queries, of p calls side by side; (B, S + h·w).

    For one chain of calls that ask for all tokens that is ½(r + r·Ā). At a query that nothing before knows the residual
    is not there: r ← r + q(Ā − 1). The mean over the last calls.
    """
    return placed.on_map(torch.stack([_rolled_out(placed, t) for t in placed.pooled]).mean(0))


def _alone(placed: Placed, last: int) -> Tensor:
    return weights(replace(placed, pooled={last: placed.pooled[last]}), last)


def _rolled_out(placed: Placed, last: int) -> Tensor:
    calls = placed.places.calls
    moved: dict[int, Tensor] = {}
    start = _alone(placed, last)
    for c in [c for c in reversed(placed.counting) if c == last or c in calls[last].reads]:
        row = sum((moved[d] for d in moved if c in calls[d].reads), start) @ spread(placed, calls[c].queries.grid)
        alike = [
            d
            for d in placed.counting
            if calls[d].reads == calls[c].reads
            and [e for e in placed.counting if d in calls[e].reads]
            == [e for e in placed.counting if c in calls[e].reads]
            and calls[d].queries.grid == calls[c].queries.grid
        ]
        alike = [c] if c == last else alike
        known = {
            number for b in calls[c].reads for number in _numbers(placed, b, "queries") | _numbers(placed, b, "keys")
        }
        known |= _numbers(placed, c, "keys")
        given = torch.zeros_like(row)
        for number in _numbers(placed, c, "queries"):
            has_residual = number in known or number >= placed.places.slots
            given[:, number] = row[:, number] / (len(alike) + has_residual)
        read = torch.einsum("bt,btu->bu", given, between_tokens(placed, c, placed.attention[c]))
        moved[c] = read - given
    return sum(moved.values(), start) @ spread(placed, placed.map_grid)


def _numbers(placed: Placed, call: int, side: Literal["queries", "keys"]) -> set[int]:
    tokens: TokenPlaces = getattr(placed.places.calls[call], side)
    return {placed.number(place, tokens.grid) for place in tokens.place.flatten().tolist() if place >= 0}


def drawn(tokens: Tensor, places: ImagePlaces) -> Tensor:
    """What a map (…, h, w) shows of tokens: quarter of a pixel by quarter of a pixel, each in the cell of its token."""
    grid = (tokens.shape[-2], tokens.shape[-1])
    rows, columns = _token_of_quarters(grid, places)
    fine = tokens[..., rows, :][..., columns]
    return F.adaptive_avg_pool2d(fine.flatten(0, -3).unsqueeze(1), grid)[:, 0].unflatten(0, tokens.shape[:-2])


def means_of_tokens(mask: Tensor, grid: Grid, places: ImagePlaces) -> Tensor:
    """Mean of a mask (B, H, W) over the cell of each token of a grid, (B, h, w)."""
    rows, columns = _token_of_quarters(grid, places)
    fine = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return torch.stack(
        [
            torch.stack(
                [fine[:, rows == row][:, :, columns == column].mean(dim=(1, 2)) for column in range(grid[1])], 1
            )
            for row in range(grid[0])
        ],
        dim=1,
    )


def _token_of_quarters(grid: Grid, places: ImagePlaces) -> tuple[Tensor, Tensor]:
    """In whose row, and in whose column, each quarter of a pixel lies, of an image that is seen as a whole."""
    found = []
    for axis, count in enumerate(grid):
        length = places.area[2 + axis]
        edges = places.edges[grid][axis] if grid in places.edges else torch.linspace(0, length, count + 1)
        middles = (torch.arange(4 * length) + 0.5) / 4
        found.append((middles[:, None] > edges[1:-1]).sum(dim=1))
    return found[0], found[1]
