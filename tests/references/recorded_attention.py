"""Every attention call of a forward pass, with the probabilities kept as tensors of the autograd graph.

    A = softmax(Q Kᵀ·s + M),   O = A V,   G = ∂Φ/∂A

Functions are patched for the duration of the context: in a test that is the simplest thing that works, and it
shares nothing with the interception of the package.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class RecordedCall:
    """One attention call; `value` and `output` are None where only a softmax was seen.

    Attributes:
        probabilities: A, (B, H, N, N), in the graph.
        value: V, (B, H, N, d).
        output: O, (B, H, N, d), in the graph.
    """

    probabilities: Tensor
    value: Tensor | None = None
    output: Tensor | None = None


def plain_softmax(scores: Tensor) -> Tensor:
    """exp(s − max) / Σ exp(s − max) over the last axis, in the precision of the scores."""
    exponentials = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def plain_scores(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """S = Q Kᵀ·s + M, (B, H, N, N); a boolean mask is True where a pair takes part."""
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores


@contextlib.contextmanager
def patched(*replacements: tuple[object, str, object]) -> Iterator[None]:
    """Replace attributes (owner, name, value) and put the old ones back, also after an error."""
    missing = object()
    saved = [(owner, name, vars(owner).get(name, missing)) for owner, name, _ in replacements]
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(saved):
            if value is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


@contextlib.contextmanager
def record_attention(nudge: dict[int, Tensor] | None = None) -> Iterator[list[RecordedCall]]:
    """Record every attention call made inside the context, in order.

    Args:
        nudge: Call number → tensor added to that call's A: for finite differences.

    Yields:
        The list that fills while the model runs.
    """
    calls: list[RecordedCall] = []

    def kept(probabilities: Tensor) -> Tensor:
        if nudge is not None and len(calls) in nudge:
            probabilities = probabilities + nudge[len(calls)]
        calls.append(RecordedCall(probabilities))
        return probabilities

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        assert dropout_p == 0, "references are taken in evaluation mode"
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        probabilities = kept(plain_softmax(plain_scores(query, key, attn_mask, is_causal=is_causal, scale=scale)))
        output = probabilities @ value
        calls[-1].value, calls[-1].output = value, output
        return output

    def softmax(scores: Tensor, dim: int = -1, *unused: object, **options: object) -> Tensor:
        # A `dtype=float32` asked for by the caller is passed over: the reference runs in float64.
        assert dim in (-1, scores.ndim - 1)
        return kept(plain_softmax(scores))

    with patched(
        (F, "scaled_dot_product_attention", attention),
        (F, "softmax", softmax),
        (torch, "softmax", softmax),
        (torch.Tensor, "softmax", softmax),
    ):
        yield calls
