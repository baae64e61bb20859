"""How far the map of an image has moved: distances to a reference, and what part of them is noise.

All are 0 for identical maps, exactly: they are written so that equal terms cancel before anything is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_attngrad.metrics.functional.maps import map_centroid, map_density
from lightning_attngrad.metrics.functional.similarity import (
    as_patches,
    centred_ranks,
    map_ssim,
    top_share_iou,
    unit_vectors,
)

#: Names of the distances of :func:`map_drift`.
DRIFT_MEASURES = ("spearman", "cosine", "ssim", "top_iou", "jensen_shannon", "centroid")


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """Jensen–Shannon divergence in bits of each pair of maps, as shares: ``½ KL(p‖m) + ½ KL(q‖m)``, ``m = ½(p + q)``.

    The divergence itself; its square root is a metric (Endres and Schindelin, 2003), and what scipy returns.

    Args:
        a: (…, h, w), for a batch (B, h, w).
        b: the maps to compare with, of the same shape.

    Returns:
        (…), between 0 (the same shares) and 1 (no patch in common); NaN where one of the two maps is zero everywhere
        or not finite.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> jensen_shannon(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(1.)
    """
    shape = a.shape[-2:]
    p, q = (map_density(patches.unflatten(-1, shape)).flatten(-2) for patches in as_patches(a, b))
    middle = (p + q) / 2
    terms = _bits(p, middle) + _bits(q, middle)
    return (terms.sum(dim=-1) / 2).clamp(0, 1)


def centroid_shift(a: Tensor, b: Tensor) -> Tensor:
    """Distance between the centres of mass of each pair of maps, as a fraction of the image's diagonal.

    Args:
        a: (…, h, w), for a batch (B, h, w). Patches are taken to be square.
        b: the maps to compare with, of the same shape.

    Returns:
        (…), between 0 and 1; NaN where one of the two maps is zero everywhere or not finite.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> left, right = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> centroid_shift(left, right)  # half a side
        tensor(0.3536)
    """
    sides = a.shape[-2:]
    first, second = (map_centroid(patches.unflatten(-1, sides)) for patches in as_patches(a, b))
    moved = (first - second) * first.new_tensor(sides)  # (…, 2) in patches
    shift: Tensor = torch.linalg.vector_norm(moved, dim=-1) / math.hypot(*sides)
    return shift


def spearman_drift(reference: Tensor, now: Tensor) -> Tensor:
    """The first distance of :func:`map_drift` alone, where the others would be computed for nothing.

    Args:
        reference: (…, h, w), for a batch (B, h, w).
        now: the maps to compare with, of the same shape.

    Returns:
        (…), between 0 and 2: exactly 0 for identical maps, NaN where one of the two is constant or not finite.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> before = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> spearman_drift(before, before.flip(-1))
        tensor(0.4000)
    """
    first, second = as_patches(reference, now)
    ranks = (unit_vectors(centred_ranks(patches).to(first.dtype)) for patches in (first, second))
    return torch.where(_has_order(first) & _has_order(second), _half_squared(*ranks), torch.nan)


def map_drift(reference: Tensor, now: Tensor) -> dict[str, Tensor]:
    """How far each map has moved from the reference, by six distances.

    - ``spearman``: 1 − rank correlation, 0 … 2, as ``½‖u − v‖²`` of the ranks, centred and of unit length;
    - ``cosine``: 1 − cosine, 0 … 2, as ``½‖u − v‖²`` of the maps of unit length;
    - ``ssim``: 1 − :func:`~.map_ssim`, 0 … 2;
    - ``top_iou``: 1 − :func:`~.top_share_iou` of the tenth of the patches that hold the most, 0 … 1;
    - ``jensen_shannon``: :func:`jensen_shannon`, 0 … 1;
    - ``centroid``: :func:`centroid_shift`, 0 … 1.

    A distance means nothing without what noise alone gives: see :func:`drift_ratio`.

    Args:
        reference: (B, h, w), maps of the images at an earlier moment.
        now: (B, h, w), maps of the same images.

    Returns:
        (B,) by name: exactly 0 for identical maps, and NaN in all of them where one of the two maps is constant or
        not finite, so that all speak of the same images.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> before = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> drift = map_drift(before, before.flip(-1))
        >>> drift["spearman"], drift["centroid"]
        (tensor([0.4000]), tensor([0.0707]))
    """
    first, second = as_patches(reference, now)
    shape = reference.shape[-2:]
    a, b = first.unflatten(-1, shape), second.unflatten(-1, shape)
    distances = {
        "spearman": spearman_drift(reference, now),
        "cosine": _half_squared(unit_vectors(first), unit_vectors(second)),
        "ssim": 1 - map_ssim(a, b),
        "top_iou": 1 - top_share_iou(a, b),
        "jensen_shannon": jensen_shannon(a, b),
        "centroid": centroid_shift(a, b),
    }
    defined = _has_order(first) & _has_order(second)
    return {name: torch.where(defined, distances[name], torch.nan) for name in DRIFT_MEASURES}


def drift_ratio(drift: Mapping[str, Tensor], floor: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean drift over the mean drift that noise alone gives, for each distance: about 1 is nothing but noise.

    Args:
        drift: (B,) by name, from :func:`map_drift` of the reference and now.
        floor: (M,) by name, from :func:`map_drift` of maps of one model on images and on slightly jittered copies.

    Returns:
        () by name. Images that are NaN are left out of the means. Where the floor is 0 the ratio is ∞, or NaN where
        the drift is 0 as well; it is NaN where no image is left.

    Raises:
        ValueError: where the two have different names.

    Example:
        >>> drift_ratio({"cosine": torch.tensor([0.2, 0.4])}, {"cosine": torch.tensor([0.1, 0.1])})
        {'cosine': tensor(3.)}
    """
    if drift.keys() != floor.keys():
        raise ValueError(f"drift, floor: got {sorted(drift)} and {sorted(floor)}; expected the same names in both")
    return {name: drift[name].nanmean() / floor[name].nanmean() for name in drift}


def _half_squared(u: Tensor, v: Tensor) -> Tensor:
    """``½‖u − v‖²``, which is 1 − their product for vectors of unit length."""
    return ((u - v).square().sum(dim=-1) / 2).clamp(max=2)


def _bits(p: Tensor, middle: Tensor) -> Tensor:
    """``p log₂(p / m)``, 0 where p is."""
    return torch.where(p == 0, 0, p * (p / middle).log2())


def _has_order(patches: Tensor) -> Tensor:
    """Whether a map is finite and not constant, (…)."""
    return patches.isfinite().all(dim=-1) & (patches != patches[..., :1]).any(dim=-1)
