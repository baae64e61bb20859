"""What the attention heads of each layer do: how widely and how far they look."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import DEFAULT_MEMORY_BUDGET, AttentionCall, TokenLayout
from lightning_attngrad.explain.forward_pass import forward_pass


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics of the self-attention of a batch: B images, L layers, H heads.

    Attributes:
        layer_names: the model's own names for the layers.
        entropy: (B, L, H), mean over queries of ``−Σ_j A log A / log N``: 0 looks at one token, 1 at all alike.
        distance: (B, L, H), mean distance in patches between a patch and the patches it attends to, weighted by the
            attention (Dosovitskiy et al., arXiv 2010.11929, figure 7).
    """

    layer_names: tuple[str, ...]
    entropy: Tensor
    distance: Tensor


@torch.no_grad()
def head_statistics(
    model: nn.Module,
    images: Tensor,
    *,
    forward: Callable[[Tensor], Any] | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> HeadStatistics:
    """Entropy and distance of every attention head, from one forward pass without a graph.

    Args:
        model: as for :func:`lightning_attngrad.explain`.
        images: (B, C, H, W), normalised as the model takes them.
        forward: called instead of ``model(images)``.
        memory_budget: bytes for the temporaries of a block of attention rows.

    Raises:
        UnsupportedModelError: for a model without readable attention.

    Example:
        >>> import timm
        >>> statistics = head_statistics(timm.create_model("test_vit"), torch.rand(2, 3, 160, 160))
        >>> statistics.entropy.shape, bool(statistics.entropy.max() <= 1)
        (torch.Size([2, 6, 2]), True)
    """
    with forward_pass(model, images, forward=forward, start=None) as ran:
        calls = [call for call in ran.tap.calls if call.is_self_attention]
        distances = patch_distances(ran.layout, calls[0].tensor.device)
        entropy, distance = zip(
            *(_of_call(call, ran.layout.prefix, distances, memory_budget) for call in calls), strict=True
        )
    return HeadStatistics(
        layer_names=tuple(call.name for call in calls),
        entropy=torch.stack(entropy, dim=1),
        distance=torch.stack(distance, dim=1),
    )


def patch_distances(layout: TokenLayout, device: torch.device) -> Tensor:
    """Euclidean distance between the centres of any two patches, in patches: (h·w, h·w)."""
    rows, columns = layout.grid
    places = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device)).float()
    return torch.cdist(places, places)


def _of_call(call: AttentionCall, prefix: int, distances: Tensor, memory_budget: int) -> tuple[Tensor, Tensor]:
    """Entropy and distance of one call, (B, H) each."""
    batch, heads, queries, keys = call.shape
    entropy = torch.zeros(batch, heads, device=distances.device)
    distance = torch.zeros(batch, heads, device=distances.device)
    for rows in call.blocks(memory_budget):
        attention = call.attention(rows).float()  # (B, H, rows, N)
        entropy += torch.special.entr(attention).sum(dim=(-2, -1))
        first = max(prefix - rows.start, 0)  # only patches have a place
        between_patches = attention[:, :, first:, prefix:]
        if between_patches.shape[2]:
            of_rows = distances[rows.start + first - prefix : rows.stop - prefix]
            travelled = (between_patches * of_rows).sum(dim=-1)
            distance += (travelled / between_patches.sum(dim=-1).clamp_min(1e-12)).sum(dim=-1)
    return entropy / (queries * math.log(max(keys, 2))), distance / (queries - prefix)
