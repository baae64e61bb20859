"""Streaming row propagation: attention maps rolled through the layers while the backward pass runs.

The published recursion ``R ← R + Ā R`` needs an N×N matrix and a product of two of them a layer. Only the row that
feeds the prediction is wanted, so a row is carried instead, last layer first: with ``r_L`` the weights by which the
tokens are pooled, ``r ← r + r·mean_h C_l`` (METHODS §2). The increment ``D = r − r_L`` is kept apart: added to ``r``
itself, 1e-9 beside 1/N is lost in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention import AttentionCall, TokenLayout, outside_autocast
from lightning_attngrad.explain.corrections import CORRECTIONS


def pooling_weights(call: AttentionCall, norms: Tensor, prefix: int) -> Tensor:
    """Weights with which the query tokens of the last attention call feed the prediction, (B, N), each row sum 1.

    Read off the gradient: behind the last attention nothing mixes tokens any more, so it is zero at all tokens but
    the pooled ones. A class token gives a one-hot row; mean pooling equal weights; class and distillation token one
    half each; attention pooling its query. Where prefix tokens *and* patches are pooled, it is either a mean over all
    of them, with gradients of like size everywhere: equal weights; or the class token beside the mean of the patches
    (Hugging Face's DINOv2 classifier), where it outweighs a single patch by their number: one half each. Without any
    gradient the first prefix token is taken, else all tokens alike; a gradient that is not finite gives NaN.

    Args:
        call: the last attention call.
        norms: (B, N), how much gradient arrived at each query token.
        prefix: number of prefix tokens.
    """
    touched = (norms > 0).to(norms.dtype)
    broken = (norms * 0).sum(dim=1, keepdim=True)  # NaN where a norm is not finite
    if not call.is_self_attention:
        return _normalised(torch.where(touched.any(dim=1, keepdim=True), touched, 1.0)) + broken
    if prefix:
        untouched = torch.zeros_like(touched)
        untouched[:, 0] = 1.0
    else:
        untouched = torch.ones_like(touched)
    touched = torch.where(touched.any(dim=1, keepdim=True), touched, untouched)
    in_front, patches = _normalised(touched[:, :prefix]), _normalised(touched[:, prefix:])
    by_group = _normalised(torch.cat([in_front, patches], dim=1))
    # Halfway, on a logarithmic scale, between equal size and as many times as large as there are patches.
    apart = (norms[:, :prefix] * in_front).sum(dim=1) > (norms[:, prefix:] * patches).sum(dim=1) * (
        patches.shape[1] ** 0.5
    )
    return torch.where(apart.unsqueeze(1), by_group, _normalised(touched)) + broken


def _normalised(weights: Tensor) -> Tensor:
    """Each row divided by its sum, where that is not zero."""
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0)


class RowPropagation:
    """Takes the attention calls of one backward pass, last first, and carries ``D`` (B, K, N) through them.

    Args:
        layout: of the tokens.
        corrections: names of K corrections, carried side by side from the same ``A`` and ``G``.
        memory_budget: bytes for the temporaries of a block of rows.

    Attributes:
        scores: ``D``, (B, K, N): the map so far. None before the first call.
        increments: what each call added, (B, K, N) each, last call first.
        zero_gradient: (B,) bool: no gradient arrived at the last attention call.
    """

    def __init__(self, layout: TokenLayout, corrections: tuple[str, ...], memory_budget: int) -> None:
        self.scores: Tensor | None = None
        self.increments: list[Tensor] = []
        self.zero_gradient: Tensor | None = None
        self._prefix, self._tokens = layout.prefix, layout.tokens
        self._memory_budget = memory_budget
        self._corrections = corrections
        self._base: Tensor | None = None  # r_L, (B, 1, N)

    @torch.no_grad()
    def __call__(self, call: AttentionCall, gradient: Tensor) -> None:
        """Carry the row through ``call``, given the gradient at its ``tensor``."""
        queries, keys = call.shape[2:]
        counting = (0, queries)
        if self._base is None:
            norms = call.query_gradient_norms(gradient)
            self.zero_gradient = ~norms.any(dim=1)
            self._base = pooling_weights(call, norms, self._prefix).unsqueeze(1)
            # A class token's last layer has a single row that counts; blocks of rows span only those that do. Asked
            # once: it makes the host wait for the device, and behind the last layer nearly every row counts.
            counting = _span(self._base)
        rows = self._base if self.scores is None else self._base + self.scores  # (B, K or 1, N)
        with outside_autocast(gradient.device):
            increment = self._row_times_corrections(call, gradient, rows, counting)  # (B, K, M)
        if not call.is_self_attention:
            # A pooling call: its query is no token of the image, nothing is carried over but what it read. It may
            # leave prefix tokens out.
            increment = F.pad(increment, (self._tokens - keys, 0))
            self._base = torch.zeros_like(increment[:, :1])
            self.scores = increment
        else:
            self.scores = increment if self.scores is None else self.scores + increment
        self.increments.append(increment)

    def _row_times_corrections(
        self, call: AttentionCall, gradient: Tensor, rows: Tensor, counting: tuple[int, int]
    ) -> Tensor:
        """``rows · mean_h C_k`` for every correction k, rebuilt in blocks of the rows that count: (B, K, M)."""
        batch, heads, queries, keys = call.shape
        factors = [CORRECTIONS[name] for name in self._corrections]
        weights = rows.expand(batch, len(factors), queries) / heads
        of_positive, of_product, of_row_sum = (_times(weights, column) for column in zip(*factors, strict=True))
        increment = torch.zeros(batch, len(factors), keys, device=gradient.device, dtype=weights.dtype)
        first, last = counting
        for images, of_heads in call.parts(self._memory_budget, last - first):
            part, at_part = call.part(images, of_heads), gradient[images, of_heads]
            for block in part.blocks(self._memory_budget, first, last):
                attention = part.attention(block)  # (images, heads, rows, M)
                product = part.attention_gradient(block, at_part).mul_(attention)
                if of_row_sum is not None:
                    row_sums = product.sum(dim=-1).unsqueeze(1)  # (images, 1, heads, rows)
                    increment[images] += _weighted_rows(of_row_sum[images, :, None, block] * row_sums, attention)
                if of_product is not None:
                    increment[images] += _weighted_rows(of_product[images, :, None, block], product)
                if of_positive is not None:
                    increment[images] += _weighted_rows(of_positive[images, :, None, block], product.relu_())
        return increment


def _span(weights: Tensor) -> tuple[int, int]:
    """From the first row that counts for any image to behind the last; weights (B, 1, N)."""
    counts = weights.ne(0).any(dim=0).any(dim=0)
    places = torch.arange(len(counts), device=counts.device)
    ends = torch.stack([torch.where(counts, places, len(counts)).amin(), torch.where(counts, places, -1).amax()])
    first, last = ends.cpu().tolist()
    return first, last + 1


def _times(weights: Tensor, factors: tuple[float, ...]) -> Tensor | None:
    """Row weights (B, K, N) times a factor for each correction; None where every factor is 0."""
    if not any(factors):
        return None
    if set(factors) == {1}:
        return weights
    return torch.stack([weights[:, index] * factor for index, factor in enumerate(factors)], dim=1)


def _weighted_rows(weights: Tensor, matrices: Tensor) -> Tensor:
    """Sum over heads and rows: (images, K, heads or 1, rows) · (images, heads, rows, M) → (images, K, M)."""
    weights = weights.expand(-1, -1, matrices.shape[1], -1)
    return weights.flatten(2, 3) @ matrices.flatten(1, 2)
