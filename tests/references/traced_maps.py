"""The maps of attention on any layout, naively: token by token, everything of size N×N kept, in float64.

    r ← r + r·mean_h C(A, G)          gradient_guided    (Chefer et al., arXiv 2103.15679; arXiv 2605.11392)
    r ← ½ (r + r·mean_h A)            rollout            (Abnar & Zuidema, arXiv 2005.00928)
    w·mean_h A of the last call       raw_attention

r is a row over the cells of a grid and over tokens that lie nowhere. It starts as the weights by which the queries of a
last call (one that no other call reads) feed the output, read off the gradient at its output; each call asks with the r
that lies where its queries lie, and adds what it reads where its keys lie. Between grids r is shared by area. A call
sees the r of the last calls that depend on it, and of the calls that read it; which those are the autograd graph says.
In a rollout p calls side by side and the residual around them count 1/(p + 1) each. Places come from
`tests.references.occlusion`.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tests.references.attention_products import AttentionProduct, attention_products, rows_of
from tests.references.guided import CORRECTIONS
from tests.references.occlusion import Grid, ProductPlaces, Token, Undecided, places
from tests.zoo import logits_of

#: A row is a sum of parts, each on a grid: (B, S + h·w), the tokens that lie nowhere in front.
Row = list[tuple[Grid, Tensor]]
#: Of tokens that are no padding: row, number in the row, image, place in a row of relevance.
Entries = tuple[Tensor, Tensor, Tensor, Tensor]
#: Of what lies nowhere on the image.
_NO_GRID: Grid = (1, 1)


@dataclass(eq=False)
class TracedReading:
    """What a naive forward and backward pass found.

    Attributes:
        grid: the finest grid of keys: the maps lie on it.
        attention: A of each product, (R, N, M).
        gradients: G, (R, N, M); None where no gradient arrived.
        norms: of the gradient at the output, (R, N).
        places: of each product.
        reads: numbers of the earlier products that each depends on.
        logits: (B, C).
        slots: number of each token that lies nowhere, once they are counted.
        entries: of the queries and keys of each product, once they are looked up.
    """

    grid: Grid
    attention: list[Tensor]
    gradients: list[Tensor | None]
    norms: list[Tensor]
    places: list[ProductPlaces]
    reads: list[set[int]]
    logits: Tensor
    slots: dict[Any, int] = field(default_factory=dict)
    entries: dict[tuple[int, str], Entries] = field(default_factory=dict)

    @functools.cached_property
    def live(self) -> list[int]:
        """Products of tokens with a gradient."""
        return [
            number
            for number, gradient in enumerate(self.gradients)
            if gradient is not None and self.places[number].kind == "tokens"
        ]

    @functools.cached_property
    def last(self) -> list[int]:
        """Products with a gradient that no other such product reads."""
        return [t for t in self.live if not any(t in self.reads[other] for other in self.live)]


def read(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    forward: Callable[[nn.Module, Tensor], Any] | None = None,
) -> TracedReading:
    """One pass of the float64 ``model`` with all of A and G kept, for the logits of ``target`` (B,).

    Raises:
        Undecided: if the places of the tokens cannot be seen.
    """
    run = forward or (lambda module, pixels: module(pixels))
    where = places(model, images, forward)
    with torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        torch.manual_seed(0)
        with attention_products() as products:
            logits = logits_of(run(model, images))
        if not products:
            raise Undecided("no product of attention with values")
        phi = logits[torch.arange(len(logits)), target].sum()
        asked = [p.probabilities for p in products] + [p.output for p in products]
        found = torch.autograd.grad(phi, asked, allow_unused=True, retain_graph=True)
        reads = [_dependencies(p, products[:number]) for number, p in enumerate(products)]
    gradients, at_outputs = found[: len(products)], found[len(products) :]
    shapes = [rows_of(p.probabilities).shape for p in products]
    grids = [p.key_grid for p in where if p.kind == "tokens" and p.key_grid is not None]
    if not grids:
        raise Undecided("no product reads tokens that lie on the image")
    return TracedReading(
        max(grids, key=lambda grid: grid[0] * grid[1]),
        [rows_of(p.probabilities).detach() for p in products],
        [None if g is None or not g.any() else g.reshape(shape) for g, shape in zip(gradients, shapes, strict=True)],
        [
            torch.zeros(shape[:2]) if g is None else rows_of(g).norm(dim=-1)
            for g, shape in zip(at_outputs, shapes, strict=True)
        ],
        where,
        reads,
        logits.detach(),
    )


def _dependencies(product: AttentionProduct, earlier: list[AttentionProduct]) -> set[int]:
    """Numbers of the products whose outputs this one is computed from."""
    if not earlier:
        return set()
    of = [product.probabilities.sum() + product.value.sum()]
    found = torch.autograd.grad(of, [p.output for p in earlier], allow_unused=True, retain_graph=True)
    return {number for number, gradient in enumerate(found) if gradient is not None}


def guided(reading: TracedReading, correction: str) -> Tensor:
    """The map of gradient-guided attention, (B, h, w)."""
    increments: dict[int, Row] = {}
    for call in reversed(reading.live):
        r = [*_pooled(reading, call), *_added(reading, call, increments)]
        gradient = reading.gradients[call]
        assert gradient is not None
        increments[call] = _read(reading, call, r, CORRECTIONS[correction](reading.attention[call], gradient))
    return _cells(reading, [part for row in increments.values() for part in row])


def rollout(reading: TracedReading) -> Tensor:
    """The map of attention rollout, (B, h, w): where several calls are last, the mean of what comes of each."""
    maps = []
    for last in reading.last:
        start = _pooled_of(reading, last)
        changes: dict[int, Row] = {}
        for call in [last, *sorted(reading.reads[last] & set(reading.live), reverse=True)]:
            r = [*start, *_added(reading, call, changes)]
            share = 1 / (_beside(reading, call) + _keeps(reading, call))
            read_row, asked = _read(reading, call, r, reading.attention[call]), _asked(reading, call, r)
            changes[call] = _times(read_row, share) + _times(asked, -share)
        maps.append(_cells(reading, [*start, *(part for row in changes.values() for part in row)]))
    return torch.stack(maps).mean(0)


def raw_attention(reading: TracedReading) -> Tensor:
    """What the last calls read, (B, h, w)."""
    rows = [_read(reading, t, _pooled_of(reading, t), reading.attention[t]) for t in reading.last]
    return torch.stack([_cells(reading, row) for row in rows]).mean(0)


def _added(reading: TracedReading, call: int, by: dict[int, Row]) -> Row:
    """What the later calls that read this one have added."""
    return [part for later, row in by.items() if call in reading.reads[later] for part in row]


def _keeps(reading: TracedReading, call: int) -> int:
    """1 where a residual goes around the call: what asks is also read, by it or before it; else 0."""
    known = {_name(t) for c in (call, *reading.reads[call]) for row in reading.places[c].keys for t in row}
    return int(any(token[0] == "cell" or _name(token) in known for token in reading.places[call].queries[0] if token))


def _name(token: Token) -> Any:
    """Of a token that lies nowhere, whatever image it belongs to."""
    return token if token is None or token[0] == "cell" else token[2:]


def _beside(reading: TracedReading, call: int) -> int:
    """How many calls stand at one place of the model: they read the same and are read by the same."""

    def place(number: int) -> Any:
        readers = frozenset(other for other in reading.live if number in reading.reads[other])
        return frozenset(reading.reads[number]) & set(reading.live), readers, reading.places[number].queries

    return 1 if call in reading.last else sum(place(other) == place(call) for other in reading.live)


# Rows of relevance ----------------------------------------------------------------------------------------------


def _slots(reading: TracedReading) -> dict[Any, int]:
    """Number of each token that lies nowhere."""
    if not reading.slots:
        names = {
            _name(token)
            for where in reading.places
            for rows in (*where.queries, *where.keys)
            for token in rows
            if token is not None and token[0] == "slot"
        }
        reading.slots.update({name: number for number, name in enumerate(sorted(names))})
    return reading.slots


def _empty(reading: TracedReading, grid: Grid) -> Tensor:
    return torch.zeros(len(reading.logits), len(_slots(reading)) + grid[0] * grid[1], dtype=torch.float64)


def _entry(reading: TracedReading, token: Token, grid: Grid) -> int:
    """Where a token stands in the rows of its own grid."""
    assert token is not None
    slots = _slots(reading)
    return slots[_name(token)] if token[0] == "slot" else len(slots) + token[2] * grid[1] + token[3]


def _cells(reading: TracedReading, row: Row) -> Tensor:
    """The sum of parts of a row on the map's grid, (B, h, w)."""
    number = len(_slots(reading))
    parts = [carried(part[:, number:].unflatten(1, grid), reading.grid) for grid, part in row]
    return torch.stack(parts).sum(0)


def _times(row: Row, factor: float) -> Row:
    return [(grid, part * factor) for grid, part in row]


def _owners(where: ProductPlaces, batch: int) -> list[int]:
    """The image of each row of tokens."""
    found = []
    for r, (asked, read_tokens) in enumerate(zip(where.queries, where.keys, strict=True)):
        known = [t[1] for t in (*read_tokens, *asked) if t is not None and t[1] is not None]
        found.append(known[0] if known else r * batch // len(where.queries))
    return found


def _entries(reading: TracedReading, call: int, side: Literal["queries", "keys"]) -> Entries:
    """Where the tokens of a call stand in the rows of their own grid."""
    if (call, side) not in reading.entries:
        where = reading.places[call]
        tokens, grid = (where.queries, where.query_grid) if side == "queries" else (where.keys, where.key_grid)
        found = [
            (r, n, token[1] if token[0] == "cell" else owner, _entry(reading, token, grid or _NO_GRID))
            for r, owner in enumerate(_owners(where, len(reading.logits)))
            for n, token in enumerate(tokens[r])
            if token is not None
        ]
        rows, numbers, images, places_in_row = torch.tensor(found).T
        reading.entries[call, side] = (rows, numbers, images, places_in_row)
    return reading.entries[call, side]


def _at_queries(reading: TracedReading, call: int, row: Row) -> Tensor:
    """r on the grid of the queries of a call, (B, S + h·w)."""
    grid, number = reading.places[call].query_grid or _NO_GRID, len(_slots(reading))
    found = _empty(reading, grid)
    for of_part, part in row:
        found[:, :number] += part[:, :number]
        found[:, number:] += carried(part[:, number:].unflatten(1, of_part), grid).flatten(1)
    return found


def _read(reading: TracedReading, call: int, row: Row, matrix: Tensor) -> Row:
    """r·mean_h C."""
    where = reading.places[call]
    asking = torch.zeros(matrix.shape[:2], dtype=torch.float64)
    windows, n, images, entries = _entries(reading, call, "queries")
    asking[windows, n] = _at_queries(reading, call, row)[images, entries] / _copies(where, windows, images, entries)
    read_row = torch.einsum("rn,rnm->rm", asking / torch.tensor(where.heads).unsqueeze(1), matrix)
    grid = where.key_grid or _NO_GRID
    windows, m, images, entries = _entries(reading, call, "keys")
    return [(grid, _empty(reading, grid).index_put_((images, entries), read_row[windows, m], accumulate=True))]


def _copies(where: ProductPlaces, rows: Tensor, images: Tensor, entries: Tensor) -> Tensor:
    """How many times a token asks, heads aside: r of one that is put into several windows is shared by its copies."""
    tokens = list(zip(images.tolist(), entries.tolist(), strict=True))
    times = collections.Counter(tokens)
    heads = torch.tensor(where.heads)[rows]
    return torch.tensor([times[token] for token in tokens], dtype=torch.float64) / heads


def _asked(reading: TracedReading, call: int, row: Row) -> Row:
    """The part of r that lies at the queries of a call, each token counted once."""
    where = reading.places[call]
    grid, r = where.query_grid or _NO_GRID, _at_queries(reading, call, row)
    _, _, images, entries = _entries(reading, call, "queries")
    return [(grid, _empty(reading, grid).index_put_((images, entries), r[images, entries]))]


def _pooled(reading: TracedReading, call: int) -> Row:
    """Mean of the weights of the last calls that depend on this one."""
    last = [t for t in reading.last if t == call or call in reading.reads[t]]
    return [part for t in last for part in _times(_pooled_of(reading, t), 1 / len(last))]


def _pooled_of(reading: TracedReading, call: int) -> Row:
    """Weights of the queries of a last call in the output; each image's sum is 1.

    Tokens that the gradient reaches share alike; tokens that lie nowhere and image tokens take one half each where the
    former's gradient is more than √n times as large, n the number of the latter.
    """
    where = reading.places[call]
    grid, number = where.query_grid or _NO_GRID, len(_slots(reading))
    windows, n, images, entries = _entries(reading, call, "queries")
    squares = _empty(reading, grid)
    squares.index_put_((images, entries), reading.norms[call][windows, n].double() ** 2, accumulate=True)
    found = _empty(reading, grid)
    for image, norms in enumerate(squares.sqrt()):
        touched = norms > 0
        if not touched.any():
            raise Undecided("no gradient comes to the last attention of an image")
        nowhere, cells = touched.clone(), touched.clone()
        nowhere[number:], cells[:number] = False, False
        apart = nowhere.any() and cells.any() and norms[nowhere].mean() > norms[cells].mean() * int(cells.sum()) ** 0.5
        for group in (nowhere, cells) if apart else (touched,):
            found[image, group] = (0.5 if apart else 1.0) / int(group.sum())
    return [(grid, found)]


def carried(cells: Tensor, grid: Grid) -> Tensor:
    """(B, h, w) on another grid over the same area: each cell's value is shared among those it overlaps."""
    if tuple(cells.shape[1:]) == tuple(grid):
        return cells
    down, across = _overlaps(cells.shape[1], grid[0]), _overlaps(cells.shape[2], grid[1])
    return torch.einsum("ri,bij,cj->brc", down, cells, across)


@functools.cache
def _overlaps(parts: int, others: int) -> Tensor:
    """A length cut in equal parts in two ways: share of each of ``parts`` in each of ``others``, (others, parts)."""
    found = torch.zeros(others, parts, dtype=torch.float64)
    for part in range(parts):
        for other in range(others):
            shared = min((part + 1) / parts, (other + 1) / others) - max(part / parts, other / others)
            found[other, part] = max(shared, 0.0) * parts
    return found
