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

from lightning_attngrad.attention import AttentionCall, outside_autocast
from lightning_attngrad.attention.places import CallPlaces, ImagePlaces, TokenPlaces
from lightning_attngrad.explain.corrections import CORRECTIONS
from lightning_attngrad.explain.flow import TokenFlow, sum_of
from lightning_attngrad.explain.placing import gather_tokens, scatter_tokens
from lightning_attngrad.explain.pooling import read_pooling


class RowPropagation:
    """Takes the attention calls of one backward pass, last first, and carries rows of relevance through them.

    Calls whose tokens are channels, or nothing of the image, are passed by.

    Args:
        places: of the calls' tokens.
        corrections: names of K corrections, carried side by side from the same ``A`` and ``G``.
        memory_budget: bytes for the temporaries of a block of rows.
        pooled: pooling weights of last calls, by number, where they are known; others are read off the gradient.

    Attributes:
        zero_gradient: (B,) bool: no gradient arrived at the last attention. None before the first call.
    """

    def __init__(
        self,
        places: ImagePlaces,
        corrections: tuple[str, ...],
        memory_budget: int,
        pooled: Mapping[int, Tensor] = MappingProxyType({}),
    ) -> None:
        self.zero_gradient: Tensor | None = None
        self._places = places
        self._numbers = {call.name: number for number, call in enumerate(places.calls)}
        self._flow = TokenFlow(places)
        self._memory_budget = memory_budget
        self._corrections = corrections
        self._pooled = pooled

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
        number = self._numbers[call.name]
        places, slots, batch = self._places.calls[number], self._places.slots, self._places.batch
        if places.kind != "tokens":
            return
        is_last = self._flow.is_last(number)
        if is_last:
            weights, untouched = read_pooling(places, gradient, slots, batch)
            self.zero_gradient = untouched if self.zero_gradient is None else self.zero_gradient & untouched
            self._flow.start(number, self._pooled.get(number, weights))
        with outside_autocast(gradient.device):
            started, received = self._flow.started(number), self._flow.received(number)
            state = sum_of(started) / len(started) if len(started) > 1 else started[0]
            rows = gather_tokens(state if received is None else state + received, places.queries, slots)
            # A class token's last layer has a single row that counts; blocks of rows span only those that do. Asked
            # only there: it makes the host wait for the device, and behind the last layer nearly every row counts.
            counting = _span(rows) if is_last else (0, call.shape[2])
            increment = self._row_times_corrections(call, gradient, rows, places, counting)  # (R, K, G, M)
            self._flow.add(number, scatter_tokens(increment, places.keys, slots, batch), places.keys)

    def _row_times_corrections(
        self, call: AttentionCall, gradient: Tensor, rows: Tensor, places: CallPlaces, counting: tuple[int, int]
    ) -> Tensor:
        """``rows · mean_h C_k`` for every correction k, (R, K, G, M)."""
        factors = [CORRECTIONS[name] for name in self._corrections]
        weights = rows.expand(-1, len(factors), -1, -1) / places.heads
        of_positive, of_product, of_row_sum = (_times(weights, column) for column in zip(*factors, strict=True))

        def terms(part: AttentionCall, cut: Cut) -> Terms:
            attention = part.attention(cut.block)  # (r, h, n, M)
            product = part.attention_gradient(cut.block, gradient[cut.rows, cut.heads]).mul_(attention)
            if of_row_sum is not None:
                yield cut.of(of_row_sum) * product.sum(dim=-1).unsqueeze(1), attention
            if of_product is not None:
                yield cut.of(of_product), product
            if of_positive is not None:
                yield cut.of(of_positive), product.relu_()

        return weighted_rows(call, places.keys, weights, terms, self._memory_budget, counting)


@dataclass(frozen=True)
class Cut:
    """A block of an attention call: r of its rows, h of its heads, n of its query tokens."""

    rows: slice
    heads: slice
    block: slice

    def of(self, weights: Tensor) -> Tensor:
        """Weights (R, K, G, N) of these, (r, K, g, n)."""
        return weights[self.rows, :, self.heads if weights.shape[2] > 1 else slice(None), self.block]


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
    groups = keys.place.shape[1]
    increment = like.new_zeros(*like.shape[:2], groups, call.shape[3])
    for rows, heads in call.parts(memory_budget, max(1, last - first)):
        part = call.part(rows, heads)
        for block in part.blocks(memory_budget, first, last):
            of_heads = heads if groups > 1 else slice(None)
            for weights, matrices in terms(part, Cut(rows, heads, block)):
                increment[rows, :, of_heads] += _weighted_sum(weights, matrices, by_head=groups > 1)
    return increment


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
