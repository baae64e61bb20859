"""Maps to compare with: raw attention, rollout, grad-CAM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention import AttentionCall
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.propagation import pooling_weights
from lightning_attngrad.explain.registry import TokenScores, register_method


@register_method("raw_attention", source="none: the last layer's attention, mean over heads")
def raw_attention(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """The row of the last attention call that feeds the prediction, mean over heads."""
    weights, zero_gradient = _pooled_rows(forward, seeds)
    row = _row_times_attention(forward.tap.calls[-1], weights, forward.memory_budget)
    row = F.pad(row, (forward.layout.tokens - row.shape[1], 0))  # a pooling call may leave prefix tokens out
    return TokenScores(row.unsqueeze(1), zero_gradient)


@register_method("rollout", source="Abnar & Zuidema, arXiv 2005.00928")
def rollout(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """``r ← ½(r + r·mean_h A)`` from the last attention call to the first; a pooling call is read without the half."""
    row, zero_gradient = _pooled_rows(forward, seeds)
    for call in reversed(forward.tap.calls):
        read = _row_times_attention(call, row, forward.memory_budget)
        row = (row + read) / 2 if call.is_self_attention else F.pad(read, (forward.layout.tokens - read.shape[1], 0))
    return TokenScores(row.unsqueeze(1), zero_gradient)


@register_method("grad_cam", source="Selvaraju et al., arXiv 1610.02391", start="embedding", class_sensitive=True)
def grad_cam(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """Channels of the normalised tokens in front of the last self-attention, weighted by their mean gradient, ReLU.

    Behind the last attention a class-token model has no gradient at the patches, so this is the last place at which
    grad-CAM says anything.
    """
    tokens = forward.tap.last_normalised
    if tokens is None or tokens.shape[1] != forward.layout.tokens:
        raise ValueError(
            "model: no normalisation of the tokens was seen in front of its last attention, and grad_cam is read from "
            "its output. Use method='gradient_guided', or register the function that normalises with "
            "attention.backward_rule(function, normalisation=True)"
        )
    gradient = seeds.gradient_at(tokens)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    channel_weights = gradient[:, forward.layout.prefix :].to(dtype).mean(dim=1, keepdim=True)  # (B, 1, D)
    scores = (tokens.detach().to(dtype) * channel_weights).sum(dim=-1).relu()
    return TokenScores(scores.unsqueeze(1), zero_gradient=~gradient.flatten(1).ne(0).any(dim=1))


def _pooled_rows(forward: ForwardPass, seeds: Seeds) -> tuple[Tensor, Tensor]:
    """Pooling weights (B, N) of the last attention call, and which images have no gradient there at all."""
    call = forward.tap.calls[-1]
    gradient = seeds.gradient_at(call.tensor)
    norms = call.query_gradient_norms(gradient if gradient.dim() == 4 else gradient.unsqueeze(1))
    return pooling_weights(call, norms, forward.layout.prefix), ~norms.any(dim=1)


def _row_times_attention(call: AttentionCall, weights: Tensor, memory_budget: int) -> Tensor:
    """``weights · mean_h A``: (B, N) → (B, M)."""
    result = torch.zeros(call.shape[0], call.shape[3], device=weights.device, dtype=weights.dtype)
    for rows in call.blocks(memory_budget):
        mean = call.attention(rows).mean(dim=1)  # (B, rows, M)
        result += (weights[:, None, rows] @ mean).squeeze(1)
    return result
