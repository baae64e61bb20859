"""What the attention heads of each layer do: how widely and how far they look, and what they leave to a few tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import AttentionCall, outside_autocast
from lightning_attngrad.explain.forward_pass import forward_pass

#: How many times the median length makes an outlier. The published cut of 150 is that of one family; this has no unit.
OUTLIER = 4.0


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics of the self-attention of a batch: B images, L layers, H heads.

    Attributes:
        layer_names: the model's own names for the layers.
        entropy: (B, L, H), mean over queries of ``−Σ_j A log A / log N``: 0 looks at one token, 1 at all alike.
        distance: (B, L, H), mean distance in patches between a patch and the patches it attends to, weighted by the
            attention (Dosovitskiy et al., arXiv 2010.11929, figure 7).
        prefix_mass: (B, L, H), share of the attention of the patches (as queries) that goes to class, distillation
            and register tokens; 0 in a model without such tokens.
        high_norm_share: (B, L), share of the patches whose token is longer than `OUTLIER` times the median patch of
            the image, where it enters the last normalisation in front of the layer: in a pre-norm ViT the residual
            stream at the block's input. Such patches hold little of their place and serve as registers (Darcet et
            al., arXiv 2309.16588, who cut at a fixed length of 150). NaN where no normalisation comes before.
    """

    layer_names: tuple[str, ...]
    entropy: Tensor
    distance: Tensor
    prefix_mass: Tensor
    high_norm_share: Tensor


def head_statistics(
    model: nn.Module,
    images: Tensor,
    *,
    forward: Callable[[Tensor], Any] | None = None,
    memory_budget: int | None = None,
) -> HeadStatistics:
    """Statistics of every attention head, from one forward pass that keeps no activations.

    That patches lie where they are taken to lie is checked as :func:`lightning_attngrad.explain` does.

    Args:
        model: as for :func:`lightning_attngrad.explain`.
        images: (B, C, H, W), normalised as the model takes them.
        forward: called instead of ``model(images)``.
        memory_budget: bytes for the temporaries of a block of attention rows; None as for ``explain``.

    Raises:
        UnsupportedModelError: for a model without readable attention, or whose tokens are not one grid of patches in
            order.
        NonFiniteOutputError: if the output is NaN or infinite.

    Example:
        >>> import timm
        >>> statistics = head_statistics(timm.create_model("test_vit"), torch.rand(2, 3, 160, 160))
        >>> statistics.entropy.shape, bool(statistics.entropy.max() <= 1)
        (torch.Size([2, 6, 2]), True)
    """
    with (
        forward_pass(model, images, forward=forward, memory_budget=memory_budget, backward=False) as ran,
        torch.no_grad(),
        outside_autocast(images.device),
    ):
        calls = [call for call in ran.tap.calls if call.is_self_attention]
        distances = patch_distances(ran.layout, calls[0].tensor.device)
        entropy, distance, prefix_mass = zip(
            *(_of_call(call, ran.layout.prefix, distances, ran.memory_budget) for call in calls), strict=True
        )
        high_norm_share = [_high_norm_share(call, ran.layout) for call in calls]
    return HeadStatistics(
        layer_names=tuple(call.name for call in calls),
        entropy=torch.stack(entropy, dim=1),
        distance=torch.stack(distance, dim=1),
        prefix_mass=torch.stack(prefix_mass, dim=1),
        high_norm_share=torch.stack(high_norm_share, dim=1),
    )


def patch_distances(layout: Any, device: torch.device) -> Tensor:
    """Euclidean distance between the centres of any two patches, in patches: (h·w, h·w)."""
    rows, columns = layout.grid
    places = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device)).float()
    return torch.cdist(places, places)


def _of_call(call: AttentionCall, prefix: int, distances: Tensor, memory_budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, distance and prefix mass of one call, (B, H) each."""
    batch, heads, queries, keys = call.shape
    entropy, distance, prefix_mass = torch.zeros(3, batch, heads, device=distances.device, dtype=distances.dtype)
    for rows in call.blocks(memory_budget):
        attention = call.attention(rows).float()  # (B, H, rows, N)
        entropy += torch.special.entr(attention).sum(dim=(-2, -1))
        first = max(prefix - rows.start, 0)  # only patches have a place
        of_patches = attention[:, :, first:]
        if of_patches.shape[2]:
            between_patches = of_patches[..., prefix:]
            of_rows = distances[rows.start + first - prefix : rows.stop - prefix]
            travelled = (between_patches * of_rows).sum(dim=-1)
            distance += (travelled / between_patches.sum(dim=-1).clamp_min(1e-12)).sum(dim=-1)
            prefix_mass += of_patches[..., :prefix].sum(dim=(-2, -1))
    patches = queries - prefix
    return entropy / (queries * math.log(max(keys, 2))), distance / patches, prefix_mass / patches


def _high_norm_share(call: AttentionCall, layout: Any) -> Tensor:
    """Share of outliers among the patches that enter a call, (B,)."""
    norms = call.token_norms
    if norms is None or norms.shape[1] != layout.tokens:
        return torch.full(call.shape[:1], torch.nan, device=call.tensor.device)
    of_patches = norms[:, layout.prefix :]
    middle = (of_patches.shape[1] - 1) // 2  # sorted, as no GPU kernel of the median is deterministic
    median = of_patches.sort(dim=1).values[:, middle : middle + 1]
    return (of_patches > OUTLIER * median).float().mean(dim=1)
