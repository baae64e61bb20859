"""Streaming row propagation: attention maps rolled through the layers while the backward pass runs.

The published recursion ``R ← R + Ā R`` needs an N×N matrix and a product of two of them a layer. Only the row that
feeds the prediction is wanted, so a row is carried instead, last layer first: with ``r_L`` the weights by which the
tokens are pooled, ``r ← r + r·mean_h C_l`` (METHODS §2). The increments are kept apart from ``r_L``: added to it,
1e-9 beside 1/N is lost in float32. Where the tokens of a call lie, and which calls read which, is told by the places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_attngrad.attention import AttentionCall, BlockReader, Cut, outside_autocast
from lightning_attngrad.attention.places import CallPlaces, ImagePlaces, TokenPlaces
from lightning_attngrad.explain.corrections import CORRECTIONS
from lightning_attngrad.explain.flow import TokenFlow, sum_of
from lightning_attngrad.explain.placing import gather_queries, scatter_tokens
from lightning_attngrad.explain.pooling import read_pooling


class RowPropagation:
    """Takes the attention calls of one backward pass, last first, and carries rows of relevance through them.

    Calls whose tokens are channels, or nothing of the image, are passed by.

    Args:
        places: of the calls' tokens.
        corrections: names of K corrections, carried side by side from the same ``A`` and ``G``.
        memory_budget: bytes for the temporaries of a block of rows.
        pooled: pooling weights of last calls, by number, where they are known; others are read off the gradient.
        key_weights: by the number of a call, what its key tokens count, a state (B, 1, S + h·w) on their grid; those
            of other calls count 1.

    Attributes:
        zero_gradient: (B,) bool: no gradient arrived at the last attention. None before the first call.
    """

    def __init__(
        self,
        places: ImagePlaces,
        corrections: tuple[str, ...],
        memory_budget: int,
        pooled: Mapping[int, Tensor] = MappingProxyType({}),
        key_weights: Mapping[int, Tensor] = MappingProxyType({}),
    ) -> None:
        self.zero_gradient: Tensor | None = None
        self._places = places
        self._numbers = {call.name: number for number, call in enumerate(places.calls)}
        self._flow = TokenFlow(places)
        self.memory_budget = memory_budget
        self._corrections = corrections
        self._pooled = pooled
        self._key_weights = key_weights

    @property
    def names(self) -> tuple[str, ...]:
        """Of the calls that were taken, first call first."""
        return tuple(self._places.calls[number].name for number in self._flow.visited)

    @property
    def increments(self) -> Tensor:
        """What each call added, first call first, (B, K, L, S + h·w) on the grid of the map; their sum is the map."""
        return self._flow.layers()

    @torch.no_grad()
    def __call__(self, call: AttentionCall, gradient: Tensor) -> None:
        """Carry the rows through ``call``, given the gradient at its ``tensor``."""
        if self._carrying(call).kind != "tokens":
            return
        with outside_autocast(gradient.device):
            rows = self._begin(call, gradient)
            # A class token's last layer has a single row that counts; blocks of rows span only those that do. Asked
            # only there: it makes the host wait for the device, and behind the last layer nearly every row counts.
            counting = _span(rows.weights) if rows.are_last else (0, call.shape[2])

            def terms(part: AttentionCall, cut: Cut) -> Terms:
                attention = part.attention(cut.block)  # (r, h, n, M)
                product = part.attention_gradient(cut.block, gradient[cut.rows, cut.heads]).mul_(attention)
                yield from rows.terms(cut, attention, product, product)

            places = self._carrying(call)
            self._end(call, weighted_rows(call, places.keys, rows.weights, terms, self.memory_budget, counting))

    def blocks_of(self, call: AttentionCall, gradient: Tensor) -> BlockReader | None:
        """Carry the rows through ``call`` while its backward pass goes by in blocks; at once, where few rows count."""
        places = self._carrying(call)
        if places.kind != "tokens" or self._flow.is_last(self._numbers[call.name]):
            self(call, gradient)
            return None
        with torch.no_grad(), outside_autocast(gradient.device):
            return _CarriedByBlocks(self, call, places.keys, self._begin(call, gradient))

    def _carrying(self, call: AttentionCall) -> CallPlaces:
        return self._places.calls[self._numbers[call.name]]

    def _begin(self, call: AttentionCall, gradient: Tensor) -> _Rows:
        """The rows of relevance that arrive at the query tokens of a call."""
        number, places = self._numbers[call.name], self._carrying(call)
        is_last = self._flow.is_last(number)
        if is_last:
            weights, untouched = read_pooling(places, gradient, self._places.slots, self._places.batch)
            self.zero_gradient = untouched if self.zero_gradient is None else self.zero_gradient & untouched
            self._flow.start(number, self._pooled.get(number, weights))
        started, received = self._flow.started(number), self._flow.received(number)
        state = sum_of(started) / len(started) if len(started) > 1 else started[0]
        rows = gather_queries(state if received is None else state + received, places, self._places.slots)
        factors = [CORRECTIONS[name] for name in self._corrections]
        rows = rows.expand(-1, len(factors), -1, -1) / places.heads
        of_positive, of_product, of_row_sum = (_times(rows, column) for column in zip(*factors, strict=True))
        return _Rows(rows, of_positive, of_product, of_row_sum, is_last)

    def _end(self, call: AttentionCall, increment: Tensor) -> None:
        """Keep ``rows · mean_h C_k`` of every correction k, (R, K, G, M), which a call has added."""
        number, keys = self._numbers[call.name], self._carrying(call).keys
        state = scatter_tokens(increment, keys, self._places.slots, self._places.batch)
        if number in self._key_weights:
            state = state * self._key_weights[number]
        self._flow.add(number, state, keys)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of relevance at the query tokens of a call, (R, K, G, N), shared out over its heads.

    Attributes:
        weights: the rows.
        of_positive: what multiplies ``(A ⊙ G)₊`` in each correction; None where none has it.
        of_product: likewise ``A ⊙ G``.
        of_row_sum: likewise ``A ⊙ rowsum(A ⊙ G)``.
        are_last: whether the prediction reads them directly.
    """

    weights: Tensor
    of_positive: Tensor | None
    of_product: Tensor | None
    of_row_sum: Tensor | None
    are_last: bool

    def terms(self, cut: Cut, attention: Tensor, product: Tensor, room: Tensor) -> Terms:
        """What a block adds; ``room`` is for the positive part, last, and may be the product itself."""
        if self.of_row_sum is not None:
            yield cut.of(self.of_row_sum) * product.sum(dim=-1).unsqueeze(1), attention
        if self.of_product is not None:
            yield cut.of(self.of_product), product
        if self.of_positive is not None:
            yield cut.of(self.of_positive), torch.clamp_min(product, 0, out=room)


class _CarriedByBlocks:
    """Takes the blocks of one call."""

    def __init__(self, propagation: RowPropagation, call: AttentionCall, keys: TokenPlaces, rows: _Rows) -> None:
        self.memory_budget = propagation.memory_budget
        self._propagation, self._call, self._rows = propagation, call, rows
        self._increment = Increment(call, keys, rows.weights)

    def read(self, cut: Cut, attention: Tensor, product: Tensor, spare: Tensor) -> None:
        for weights, matrices in self._rows.terms(cut, attention, product, spare):
            self._increment.add(cut, weights, matrices)

    def finish(self) -> None:
        self._propagation._end(self._call, self._increment.total)


#: Weights (r, K, g, n) and the matrices (r, h, n, M) whose rows they weigh, for one block.
Terms = Iterator[tuple[Tensor, Tensor]]


def weighted_rows(
    call: AttentionCall,
    keys: TokenPlaces,
    like: Tensor,
    terms: Callable[[AttentionCall, Cut], Terms],
    memory_budget: int,
    counting: tuple[int, int],
) -> Tensor:
    """Weighted rows of matrices that are rebuilt a block at a time, summed over query tokens and heads: (R, K, G, M).

    Args:
        call: the attention call.
        keys: places of its keys; where each head has its own, there is a sum for each head.
        like: (R, K, ·, ·), of the type and on the device of the result.
        terms: from the part of the call that a block lies in, and the block, to what is added.
        memory_budget: bytes for the temporaries of a block.
        counting: the first query token with a weight, and the one behind the last.
    """
    first, last = counting
    increment = Increment(call, keys, like)
    for rows, heads in call.parts(memory_budget, max(1, last - first)):
        part = call.part(rows, heads)
        for block in part.blocks(memory_budget, first, last):
            cut = Cut(rows, heads, block)
            for weights, matrices in terms(part, cut):
                increment.add(cut, weights, matrices)
    return increment.total


class Increment:
    """A sum of weighted rows over query tokens and heads, block by block.

    Attributes:
        total: (R, K, G, M), see :func:`weighted_rows`.
    """

    def __init__(self, call: AttentionCall, keys: TokenPlaces, like: Tensor) -> None:
        self._groups = keys.place.shape[1]
        self.total = like.new_zeros(*like.shape[:2], self._groups, call.shape[3])

    def add(self, cut: Cut, weights: Tensor, matrices: Tensor) -> None:
        """Add rows of matrices (r, h, n, M), weighted by (r, K, g, n)."""
        of_heads = cut.heads if self._groups > 1 else slice(None)
        self.total[cut.rows, :, of_heads] += _weighted_sum(weights, matrices, by_head=self._groups > 1)


def _weighted_sum(weights: Tensor, matrices: Tensor, *, by_head: bool) -> Tensor:
    """(r, K, h or 1, n) · (r, h, n, M) → (r, K, 1, M), or (r, K, h, M) where heads are kept apart."""
    weights = weights.expand(-1, -1, matrices.shape[1], -1)
    if by_head:
        return (weights.transpose(1, 2) @ matrices).transpose(1, 2)
    return (weights.flatten(2, 3) @ matrices.flatten(1, 2)).unsqueeze(2)


def _span(weights: Tensor) -> tuple[int, int]:
    """From the first query token that counts in any row to behind the last; weights (R, K, G, N)."""
    counts = weights.ne(0).flatten(0, 2).any(dim=0)
    places = torch.arange(len(counts), device=counts.device)
    ends = torch.stack([torch.where(counts, places, len(counts)).amin(), torch.where(counts, places, -1).amax()])
    first, last = ends.cpu().tolist()
    return min(first, last + 1), last + 1


def _times(weights: Tensor, factors: tuple[float, ...]) -> Tensor | None:
    """Row weights (R, K, G, N) times a factor for each correction; None where every factor is 0."""
    if not any(factors):
        return None
    if set(factors) == {1}:
        return weights
    return torch.stack([weights[:, index] * factor for index, factor in enumerate(factors)], dim=1)
