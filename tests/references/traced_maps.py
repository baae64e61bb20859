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

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.references.attention_products import AttentionProduct, attention_products, rows_of
from tests.references.guided import CORRECTIONS
from tests.references.occlusion import Grid, ProductPlaces, Token, Undecided, places
from tests.zoo import logits_of

#: (image, "cell", row, column) or (image, "slot", name, number) → how much.
Row = dict[tuple[Any, ...], float]


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
    """

    grid: Grid
    attention: list[Tensor]
    gradients: list[Tensor | None]
    norms: list[Tensor]
    places: list[ProductPlaces]
    reads: list[set[int]]
    logits: Tensor
    @functools.cached_property
    def live(self) -> list[int]:
        """Products of tokens with a gradient."""
        return [
            number
            for number, gradient in enumerate(self.gradients)
            if gradient is not None and self.places[number].kind == "tokens"
        ]

    @functools.cached_property
    def state(self) -> State:
        return State(self)

    @property
    def batch(self) -> int:
        return len(self.logits)

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
    increments: dict[int, Tensor] = {}
    for call in reversed(reading.live):
        r = _pooled(reading, call)
        for later, added in increments.items():
            if call in reading.reads[later]:
                r = r + added
        gradient = reading.gradients[call]
        assert gradient is not None
        increments[call] = _read(reading, call, r, CORRECTIONS[correction](reading.attention[call], gradient))
    return reading.state.cells(torch.stack(list(increments.values())).sum(0))


def rollout(reading: TracedReading) -> Tensor:
    """The map of attention rollout, (B, h, w): where several calls are last, the mean of what comes of each."""
    maps = []
    for last in reading.last:
        start = _pooled_of(reading, last)
        changes: dict[int, Tensor] = {}
        for call in [last, *sorted(reading.reads[last] & set(reading.live), reverse=True)]:
            r = start
            for later, change in changes.items():
                if call in reading.reads[later]:
                    r = r + change
            change = _read(reading, call, r, reading.attention[call]) - _asked(reading, call, r)
            changes[call] = change / (_beside(reading, call) + _keeps(reading, call))
        maps.append(start + torch.stack(list(changes.values())).sum(0))
    return reading.state.cells(torch.stack(maps).mean(0))


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


def raw_attention(reading: TracedReading) -> Tensor:
    """What the last calls read, (B, h, w)."""
    rows = [_read(reading, t, _pooled_of(reading, t), reading.attention[t]) for t in reading.last]
    return reading.state.cells(torch.stack(rows).mean(0))


# The row of relevance -------------------------------------------------------------------------------------------


class State:
    """Rows (B, S + h·w): the tokens that lie nowhere, then the cells of the map's grid."""

    def __init__(self, reading: TracedReading) -> None:
        names = {
            token[2:]
            for where in reading.places
            for rows in (*where.queries, *where.keys)
            for token in rows
            if token is not None and token[0] == "slot"
        }
        self.slots = {name: number for number, name in enumerate(sorted(names))}
        self.grid, self.batch = reading.grid, reading.batch

    def empty(self) -> Tensor:
        return torch.zeros(self.batch, len(self.slots) + self.grid[0] * self.grid[1], dtype=torch.float64)

    def cells(self, row: Tensor) -> Tensor:
        return row[:, len(self.slots) :].unflatten(1, self.grid)

    def shares(self, token: Token, owner: int, grid: Grid | None) -> tuple[int, list[tuple[int, float, float]]]:
        """The image of a token; and the entries that it lies on: which, their part in it, its share of theirs."""
        assert token is not None
        if token[0] == "slot":
            return owner, [(self.slots[token[2:]], 1.0, 1.0)]
        assert grid is not None
        found = []
        for row, of_row, in_row in _overlaps(token[2], grid[0], self.grid[0]):
            for column, of_column, in_column in _overlaps(token[3], grid[1], self.grid[1]):
                entry = len(self.slots) + row * self.grid[1] + column
                found.append((entry, of_row * of_column, in_row * in_column))
        return token[1], found


@functools.cache
def _overlaps(number: int, parts: int, others: int) -> list[tuple[int, float, float]]:
    """Of a length in equal parts, part ``number`` of ``parts``: which of ``others`` parts it meets, what share of the
    part that is, and what share of the other."""
    found = []
    for other in range(others):
        shared = min((number + 1) / parts, (other + 1) / others) - max(number / parts, other / others)
        if shared > 1e-12:
            found.append((other, shared * parts, shared * others))
    return found


def _owners(where: ProductPlaces, batch: int) -> list[int]:
    """The image of each row of tokens."""
    found = []
    for r, (asked, read_tokens) in enumerate(zip(where.queries, where.keys, strict=True)):
        known = [t[1] for t in (*read_tokens, *asked) if t is not None and t[1] is not None]
        found.append(known[0] if known else r * batch // len(where.queries))
    return found


def _gather(reading: TracedReading, call: int, row: Tensor) -> Tensor:
    """r at the queries of a call, (R, N)."""
    state, where = reading.state, reading.places[call]
    found = torch.zeros(len(where.queries), len(where.queries[0]), dtype=torch.float64)
    for r, owner in enumerate(_owners(where, reading.batch)):
        for n, token in enumerate(where.queries[r]):
            if token is not None:
                image, entries = state.shares(token, owner, where.query_grid)
                found[r, n] = sum(float(row[image, entry]) * inside for entry, _, inside in entries)
    return found


def _read(reading: TracedReading, call: int, row: Tensor, matrix: Tensor) -> Tensor:
    """r·mean_h C, as a row of the state."""
    state, where = reading.state, reading.places[call]
    heads = torch.tensor(where.heads, dtype=torch.float64).unsqueeze(1)
    read_row = torch.einsum("rn,rnm->rm", _gather(reading, call, row) / heads, matrix)
    found = state.empty()
    for r, owner in enumerate(_owners(where, reading.batch)):
        for m, token in enumerate(where.keys[r]):
            if token is not None:
                image, entries = state.shares(token, owner, where.key_grid)
                for entry, part, _ in entries:
                    found[image, entry] += read_row[r, m] * part
    return found


def _asked(reading: TracedReading, call: int, row: Tensor) -> Tensor:
    """The part of r that lies at the queries of a call, each token counted once."""
    state, where = reading.state, reading.places[call]
    found = state.empty()
    seen = set()
    for r, owner in enumerate(_owners(where, reading.batch)):
        for token in where.queries[r]:
            if token is None or (owner, token) in seen:
                continue
            seen.add((owner, token))
            image, entries = state.shares(token, owner, where.query_grid)
            for entry, _, inside in entries:
                found[image, entry] += row[image, entry] * inside
    return found


def _pooled(reading: TracedReading, call: int) -> Tensor:
    """Mean of the weights of the last calls that depend on this one."""
    last = [t for t in reading.last if t == call or call in reading.reads[t]]
    return torch.stack([_pooled_of(reading, t) for t in last]).mean(0)


def _pooled_of(reading: TracedReading, call: int) -> Tensor:
    """Weights of the queries of a last call in the output, as a row of the state; each image's sum is 1.

    Tokens that the gradient reaches share alike; tokens that lie nowhere and image tokens take one half each where the
    former's gradient is more than √n times as large, n the number of the latter.
    """
    state, where = reading.state, reading.places[call]
    norms: list[dict[Any, float]] = [{} for _ in range(reading.batch)]
    for r, owner in enumerate(_owners(where, reading.batch)):
        for n, token in enumerate(where.queries[r]):
            if token is not None:
                image = token[1] if token[0] == "cell" else owner
                key = token if token[0] == "cell" else ("slot", *token[2:])
                norms[image][key] = norms[image].get(key, 0.0) + float(reading.norms[call][r, n]) ** 2
    found = state.empty()
    for image, of_image in enumerate(norms):
        touched = {key: norm**0.5 for key, norm in of_image.items() if norm > 0}
        nowhere = [key for key in touched if key[0] == "slot"]
        cells = [key for key in touched if key[0] == "cell"]
        weights = dict.fromkeys(touched, 1 / max(len(touched), 1))
        if nowhere and cells:
            first = sum(touched[key] for key in nowhere) / len(nowhere)
            second = sum(touched[key] for key in cells) / len(cells)
            if first > second * len(cells) ** 0.5:
                weights = dict.fromkeys(nowhere, 0.5 / len(nowhere)) | dict.fromkeys(cells, 0.5 / len(cells))
        for key, weight in weights.items():
            token = key if key[0] == "cell" else ("slot", image, *key[1:])
            _, entries = state.shares(token, image, where.query_grid)
            for entry, part, _ in entries:
                found[image, entry] += weight * part
    return found


def carried(cells: Tensor, grid: Grid) -> Tensor:
    """(B, h, w) on another grid over the same area: each cell's value is shared among those it overlaps."""
    found = torch.zeros(len(cells), *grid, dtype=cells.dtype)
    for row in range(cells.shape[1]):
        for other_row, down, _ in _overlaps(row, cells.shape[1], grid[0]):
            for column in range(cells.shape[2]):
                for other_column, across, _ in _overlaps(column, cells.shape[2], grid[1]):
                    found[:, other_row, other_column] += cells[:, row, column] * down * across
    return found
