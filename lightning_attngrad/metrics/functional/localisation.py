"""Whether a map lies on the object, where a mask says where that is.

An image whose mask is empty, or full, says nothing about its map, and neither does a map without a largest patch:
their numbers are NaN, and means leave them out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.metrics.functional.precision import full_precision

#: The part of a patch that the mask must cover for the patch to be on the object.
COVERED = 0.5
_ROUNDING = 1e-5  # of a coverage in float32, where patches cut through pixels


def mask_on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Part of each patch's area that a mask covers. Exact, also where patches cut through pixels.

    Args:
        mask: (B, H, W), bool, or numbers in [0, 1] such as an alpha channel.
        grid: h and w, rows and columns of patches.

    Returns:
        (B, h, w), between 0 and 1; float64 for a float64 mask, else float32.

    Raises:
        ValueError: for a mask of another shape, or values outside [0, 1].

    Example:
        >>> mask_on_grid(torch.tensor([[[True, True, False]]]), (1, 2))
        tensor([[[1.0000, 0.3333]]])
    """
    if mask.ndim != 3 or 0 in mask.shape[1:]:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}; expected (B, H, W), one mask an image")
    coverage = mask if mask.dtype == torch.float64 else mask.float()
    if not bool(((coverage >= 0) & (coverage <= 1)).all()):
        raise ValueError(
            f"mask: got values of {mask.dtype} outside [0, 1]; expected bool, or the part of each pixel that is covered"
        )
    rows, columns = (_overlap(pixels, patches, coverage) for pixels, patches in zip(mask.shape[1:], grid, strict=True))
    with full_precision(mask.device):
        return (rows @ coverage @ columns.mT).clamp(0, 1)


def energy_in_mask(heatmap: Tensor, mask: Tensor) -> Tensor:
    """Share of the positive part of each map that lies inside the mask; patches count by the part that is covered.

    The energy-based pointing game (Wang et al., arXiv 1910.01279) and relevance mass accuracy (Arras et al., arXiv
    2003.07258). A flat map has the mask's share of the image.

    Args:
        heatmap: (B, h, w). Negative patches speak against the class and are counted nowhere.
        mask: (B, H, W), bool or in [0, 1], of any size: see :func:`mask_on_grid`.

    Returns:
        (B,), between 0 and 1; NaN where the mask is empty or full, or the map is not finite or has no positive patch.

    Raises:
        ValueError: for shapes that do not fit, or values of the mask outside [0, 1].

    Example:
        >>> energy_in_mask(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        tensor([0.7500])
    """
    coverage = _coverage(heatmap, mask)
    inside = (_positive_density(heatmap) * coverage).sum(dim=(-2, -1)).clamp(max=1)
    return torch.where(_partial(coverage), inside, torch.nan)


def pointing_game(heatmap: Tensor, mask: Tensor) -> Tensor:
    """Whether the largest patch of each map is on the object (Zhang et al., arXiv 1608.00507).

    On the object is a patch that the mask covers by half or more. Where several patches are the largest, the share of
    them that are on it: the chance that one of them drawn by lot is a hit.

    Args:
        heatmap: (B, h, w).
        mask: (B, H, W), bool or in [0, 1], of any size: see :func:`mask_on_grid`.

    Returns:
        (B,), 0 or 1, or between for a tie; NaN where no patch, or every patch, is on the object, or the map is
        constant or not finite.

    Raises:
        ValueError: for shapes that do not fit, or values of the mask outside [0, 1].

    Example:
        >>> mask = torch.tensor([[[True, False]]])
        >>> pointing_game(torch.tensor([[[3.0, 1.0]]]), mask), pointing_game(torch.tensor([[[1.0, 3.0]]]), mask)
        (tensor([1.]), tensor([0.]))
    """
    patches, on_object = heatmap.flatten(1), _coverage(heatmap, mask).flatten(1) >= COVERED
    largest = patches == patches.amax(dim=1, keepdim=True)
    hit = (largest & on_object).sum(dim=1) / largest.sum(dim=1)
    return torch.where(_ranks_an_object(patches, on_object), hit, torch.nan)


def mask_average_precision(heatmap: Tensor, mask: Tensor) -> Tensor:
    """Average precision of each map as a ranking of its patches, those on the object to be first.

    ``Σ_n (R_n − R_{n−1}) P_n`` over the thresholds of the map, as in scikit-learn: equal patches enter together, and
    nothing is interpolated. On the object is a patch that the mask covers by half or more. A map that knows nothing
    has about the share of such patches.

    Args:
        heatmap: (B, h, w).
        mask: (B, H, W), bool or in [0, 1], of any size: see :func:`mask_on_grid`.

    Returns:
        (B,), above 0 and at most 1; NaN where no patch, or every patch, is on the object, or the map is constant or
        not finite.

    Raises:
        ValueError: for shapes that do not fit, or values of the mask outside [0, 1].

    Example:
        >>> mask = torch.tensor([[[True, False], [True, False]]])
        >>> mask_average_precision(torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]), mask)  # (1/1 + 2/3) / 2
        tensor([0.8333])
    """
    patches, on_object = heatmap.flatten(1), _coverage(heatmap, mask).flatten(1) >= COVERED
    precision = _not_smaller(torch.where(on_object, patches, -torch.inf), patches) / _not_smaller(patches, patches)
    # Each patch on the object is a step in recall of the same size, at the precision of its own threshold.
    average = (precision * on_object).sum(dim=1) / on_object.sum(dim=1)
    return torch.where(_ranks_an_object(patches, on_object), average, torch.nan)


def positive_mass(heatmap: Tensor, mask: Tensor) -> Tensor:
    """Share of the positive part of each map inside the mask, as :func:`energy_in_mask`, for any mask: 0 if empty."""
    return (_positive_density(heatmap) * _coverage(heatmap, mask)).sum(dim=(-2, -1))


def _overlap(pixels: int, patches: int, like: Tensor) -> Tensor:
    """Part of each patch that each pixel fills along one side of an image, (patches, pixels); rows sum to 1."""
    pixel = torch.arange(pixels, device=like.device, dtype=like.dtype)
    patch = torch.arange(patches, device=like.device, dtype=like.dtype)[:, None] * (pixels / patches)
    shared = torch.minimum(pixel + 1, patch + pixels / patches) - torch.maximum(pixel, patch)
    return shared.clamp_min(0) * (patches / pixels)


def _coverage(heatmap: Tensor, mask: Tensor) -> Tensor:
    """The mask on the map's own grid, (B, h, w)."""
    if heatmap.ndim != 3 or 0 in heatmap.shape[1:] or mask.ndim != 3 or len(mask) != len(heatmap):
        raise ValueError(
            f"heatmap, mask: got shapes {tuple(heatmap.shape)} and {tuple(mask.shape)}; expected (B, h, w) and "
            "(B, H, W): one map and one mask an image"
        )
    return mask_on_grid(mask.to(heatmap.device), (heatmap.shape[1], heatmap.shape[2]))


def _positive_density(heatmap: Tensor) -> Tensor:
    """Share of each patch in the positive part of its map, (B, h, w); NaN where there is none."""
    positive = (heatmap if heatmap.dtype == torch.float64 else heatmap.float()).clamp_min(0)
    positive = positive / positive.amax(dim=(-2, -1), keepdim=True)  # the sum of very large patches would be infinite
    return positive / positive.sum(dim=(-2, -1), keepdim=True)


def _partial(coverage: Tensor) -> Tensor:
    """Whether a mask covers anything, and not all, (B,)."""
    return (coverage > _ROUNDING).flatten(1).any(dim=1) & (coverage < 1 - _ROUNDING).flatten(1).any(dim=1)


def _ranks_an_object(patches: Tensor, on_object: Tensor) -> Tensor:
    """Whether a map has an order, and an object that lies in some of its patches, (B,)."""
    has_order = patches.isfinite().all(dim=1) & (patches != patches[:, :1]).any(dim=1)
    return has_order & on_object.any(dim=1) & ~on_object.all(dim=1)


def _not_smaller(patches: Tensor, thresholds: Tensor) -> Tensor:
    """How many patches of an image are not smaller than each threshold, (B, n)."""
    return patches.shape[1] - torch.searchsorted(patches.sort(dim=1).values, thresholds.contiguous())
