"""How alike two heatmaps of the same image are: before and after a rewrite, or at two moments of training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_attngrad.metrics.functional.maps import times_uniform_share
from lightning_attngrad.metrics.functional.precision import device_of_float64
from lightning_attngrad.metrics.functional.structural import structural_similarity


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
    first, second = as_patches(a, b)
    defined = first.isfinite().all(dim=-1) & second.isfinite().all(dim=-1)
    rank_a, rank_b = centred_ranks(first), centred_ranks(second)
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
    first, second = (unit_vectors(patches) for patches in as_patches(a, b))
    return (first * second).sum(dim=-1).clamp(-1, 1)


def map_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of maps (Wang et al., 2004), as shares times the number of patches.

    The unit of :func:`~.times_uniform_share` takes the size of a map out of it; the dynamic range of a pair is the
    largest less the smallest value of the two together. The window is 11 patches wide (Gaussian, σ 1.5) and shrinks to
    the grid: see :func:`~.structural_similarity`. Beyond its edge a map is mirrored, as torchmetrics does.

    Args:
        a: (…, h, w), for a batch (B, h, w).
        b: the maps to compare with, of the same shape.

    Returns:
        (…), between −1 and 1, exactly 1 for identical maps; NaN where one of the two maps is zero everywhere or not
        finite.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> before = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> map_ssim(before, 2 * before)
        tensor([1.])
    """
    patches = as_patches(a, b)
    leading, device, dtype = patches[0].shape[:-1], patches[0].device, patches[0].dtype
    if patches[0].numel() == 0:
        return patches[0].new_zeros(leading)
    # In float64, (M, 1, h, w): the variance of a nearly flat map is a small difference of large numbers.
    wide = device_of_float64(device)
    first, second = (times_uniform_share(maps.to(wide, torch.float64).view(-1, 1, *a.shape[-2:])) for maps in patches)
    both = torch.cat([first, second], dim=1)
    span = both.amax(dim=(1, 2, 3), keepdim=True) - both.amin(dim=(1, 2, 3), keepdim=True)
    span = torch.where(span > 0, span, 1)  # two flat maps
    similarity = structural_similarity(first / span, second / span).clamp(-1, 1)
    identical = (first == second).flatten(1).all(dim=1)  # in nearly flat maps the variances are all rounding
    result: Tensor = torch.where(identical, 1, similarity).view(leading).to(dtype).to(device)
    return result


def top_share_iou(a: Tensor, b: Tensor, share: float = 0.1) -> Tensor:
    """Intersection over union of the patches in which each pair of maps is largest.

    Each map chooses ⌈share·n⌉ of its n patches. Where equal patches compete for the last places, each is chosen in
    equal part: the numbers of patches in intersection and union are then sums of the smaller and the larger part.

    Args:
        a: (…, h, w), for a batch (B, h, w).
        b: the maps to compare with, of the same shape.
        share: of the patches, above 0 and at most 1.

    Returns:
        (…), between 0 and 1, exactly 1 for identical maps; NaN where one of the two maps is not finite.

    Raises:
        ValueError: where the shapes differ, or for a share out of range.

    Example:
        >>> a = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
        >>> top_share_iou(a, a.flip(0), share=0.5), top_share_iou(a, a.flip(1), share=0.5)
        (tensor(0.), tensor(1.))
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: got {share!r}; expected a number above 0 and at most 1, such as 0.1")
    first, second = as_patches(a, b)
    defined = first.isfinite().all(dim=-1) & second.isfinite().all(dim=-1)
    count = math.ceil(share * first.shape[-1])
    chosen_a, chosen_b = _chosen(first, count), _chosen(second, count)
    overlap = torch.minimum(chosen_a, chosen_b).sum(dim=-1) / torch.maximum(chosen_a, chosen_b).sum(dim=-1)
    return torch.where(defined, overlap, torch.nan)


def as_patches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps as (…, h·w), at least float32, in one type and one order of memory, so that sums are taken alike."""
    if a.shape != b.shape or a.ndim < 2 or 0 in a.shape[-2:]:
        raise ValueError(
            f"a, b: got shapes {tuple(a.shape)} and {tuple(b.shape)}; expected two maps (…, h, w) of the same shape; "
            "explain both with the same model and image size"
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype).flatten(-2).contiguous(), b.to(dtype).flatten(-2).contiguous()


def centred_ranks(patches: Tensor) -> Tensor:
    """Twice the average rank less its mean, (…, n) int64: whole numbers, so that sums of their products are exact.

    With s values smaller and e values equal, itself included, a patch has the average rank ``s + (e + 1) / 2``.
    Twice that, less the mean ``n + 1``, is ``s + (s + e) − n``.
    """
    ordered = patches.sort(dim=-1).values
    smaller = torch.searchsorted(ordered, patches.contiguous())
    not_larger = torch.searchsorted(ordered, patches.contiguous(), right=True)
    return smaller + not_larger - patches.shape[-1]


def _chosen(patches: Tensor, count: int) -> Tensor:
    """In what part each patch is among the ``count`` largest, (…, n): 1, 0, or between where equal ones compete."""
    last = patches.topk(count, dim=-1).values[..., -1:]
    above, tied = patches > last, patches == last
    places = (count - above.sum(dim=-1, keepdim=True)).to(patches.dtype) / tied.sum(dim=-1, keepdim=True)
    return above + tied * places


def unit_vectors(patches: Tensor) -> Tensor:
    """Each map over its length; over its largest value first, since squares of small relevances vanish in float32."""
    scaled = patches / patches.abs().amax(dim=-1, keepdim=True)
    return scaled / scaled.square().sum(dim=-1, keepdim=True).sqrt()
