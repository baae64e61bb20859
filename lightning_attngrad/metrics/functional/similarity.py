"""How alike two heatmaps of the same image are: before and after a rewrite, or at two moments of training."""

from __future__ import annotations

import torch
from torch import Tensor


def map_spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation over the patches of each pair of maps; equal patches share their average rank.

    Args:
        a: (…, h, w), for a batch (B, h, w).
        b: the maps to compare with, of the same shape.

    Returns:
        (…), between −1 and 1; NaN where one of the two maps is constant or not finite: it has no order.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> before = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> map_spearman(before, before**2), map_spearman(before, -before)
        (tensor([1.]), tensor([-1.]))
    """
    first, second = _patches(a, b)
    defined = first.isfinite().all(dim=-1) & second.isfinite().all(dim=-1)
    rank_a, rank_b = _centred_ranks(first), _centred_ranks(second)
    products = [(rank_a * rank_b).sum(dim=-1), (rank_a * rank_a).sum(dim=-1), (rank_b * rank_b).sum(dim=-1)]
    covariance, variance_a, variance_b = (product.to(first.dtype) for product in products)
    correlation = (covariance / (variance_a.sqrt() * variance_b.sqrt())).clamp(-1, 1)  # constant: 0 / 0 stays NaN
    return torch.where(defined, correlation, torch.nan)


def map_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between each pair of maps, ``Σ ab / √(Σ a² · Σ b²)``.

    Unlike the rank correlation it heeds how large a patch is, and it is not centred: two flat maps have cosine 1.

    Args:
        a: (…, h, w), for a batch (B, h, w).
        b: the maps to compare with, of the same shape.

    Returns:
        (…), between −1 and 1; NaN where one of the two maps is zero everywhere or not finite: it has no direction.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> map_cosine(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[3.0, 4.0]]]))
        tensor([0.6000])
    """
    first, second = (_unit(patches) for patches in _patches(a, b))
    return (first * second).sum(dim=-1).clamp(-1, 1)


def _patches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps as (…, h·w), at least float32, in one type."""
    if a.shape != b.shape or a.ndim < 2 or 0 in a.shape[-2:]:
        raise ValueError(
            f"a, b: got shapes {tuple(a.shape)} and {tuple(b.shape)}; expected two maps (…, h, w) of the same shape; "
            "explain both with the same model and image size"
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype).flatten(-2), b.to(dtype).flatten(-2)


def _centred_ranks(patches: Tensor) -> Tensor:
    """Twice the average rank less its mean, (…, n) int64: whole numbers, so that sums of their products are exact.

    With s values smaller and e values equal, itself included, a patch has the average rank ``s + (e + 1) / 2``.
    Twice that, less the mean ``n + 1``, is ``s + (s + e) − n``.
    """
    ordered = patches.sort(dim=-1).values
    smaller = torch.searchsorted(ordered, patches.contiguous())
    not_larger = torch.searchsorted(ordered, patches.contiguous(), right=True)
    return smaller + not_larger - patches.shape[-1]


def _unit(patches: Tensor) -> Tensor:
    """Each map over its length; over its largest value first, since squares of small relevances vanish in float32."""
    scaled = patches / patches.abs().amax(dim=-1, keepdim=True)
    return scaled / scaled.square().sum(dim=-1, keepdim=True).sqrt()
