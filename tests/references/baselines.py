"""The maps that gradient-guided attention is compared with, from their definitions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.references import guided
from tests.zoo import ZooModel, logits_of


def _start(model: ZooModel, calls: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The pooled row in front of the calls that are left, (B, 1, N)."""
    means = [attention.mean(1) for attention in calls]
    if model.pooling == "attention":
        return means[-1], means[:-1]
    return model.pooling_weights(means[0].dtype).expand(len(means[0]), 1, -1), means


def raw_attention(model: ZooModel, reading: guided.Reading) -> Tensor:
    """The pooled row of the last call's attention, mean over heads: (B, N)."""
    row, means = _start(model, reading.attention)
    return (row if model.pooling == "attention" else row @ means[-1])[:, 0]


def rollout(model: ZooModel, reading: guided.Reading) -> Tensor:
    """r ← ½(r + r·mean_h A) from the last call to the first (arXiv 2005.00928): (B, N)."""
    row, means = _start(model, reading.attention)
    for attention in reversed(means):
        row = 0.5 * (row + row @ attention)
    return row[:, 0]


def grad_cam(model: ZooModel, module: nn.Module, images: Tensor, objective: guided.Objective) -> Tensor:
    """ReLU(Σ_c α_c a_c) with α_c = mean over patches of ∂Φ/∂a_c (arXiv 1610.02391): (B, h, w).

    a is the output of the LayerNorm in front of the last self-attention.
    """
    kept: list[Tensor] = []
    norm = module.get_submodule(model.last_norm)
    handle = norm.register_forward_hook(lambda layer, inputs, output: kept.append(output))
    try:
        with torch.enable_grad():
            phi = objective(logits_of(module(images.clone().requires_grad_())), [])
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(phi.sum(), kept)
    activation, gradient = kept[0].detach()[:, model.prefix :], gradient[:, model.prefix :]
    weights = gradient.mean(1, keepdim=True)  # (B, 1, D)
    return (weights * activation).sum(-1).clamp(min=0).unflatten(-1, model.grid)
