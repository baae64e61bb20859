"""Statistics of a heatmap: how spread out it is, and how much of it lies where.

All of them read a map as a share: ``p = |m| / Σ|m|``. A map that is zero everywhere says nothing, so its numbers
are NaN rather than a plausible value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def map_density(heatmap: Tensor) -> Tensor:
    """Share of each patch in its map, ``|m| / Σ|m|``.

    Args:
        heatmap: (…, h, w).

    Returns:
        (…, h, w), each map sums to 1; NaN where a map is zero everywhere or not finite.

    Example:
        >>> map_density(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
        tensor([[0.2500, 0.2500],
                [0.5000, 0.0000]])
    """
    size = _at_least_float32(heatmap).abs()
    size = size / size.amax(dim=(-2, -1), keepdim=True)  # the sum of very large patches would be infinite
    return size / size.sum(dim=(-2, -1), keepdim=True)


def times_uniform_share(heatmap: Tensor) -> Tensor:
    """Signed share of each patch times the number of patches, so that a flat map is 1 everywhere.

    The unit in which maps of other epochs, images and grids can be drawn on one colour scale. A map that is zero
    everywhere gives NaN.

    Args:
        heatmap: (…, h, w).

    Example:
        >>> times_uniform_share(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
        tensor([[ 1., -1.],
                [ 2.,  0.]])
    """
    signed: Tensor = map_density(heatmap) * heatmap.sign()
    return signed * (heatmap.shape[-2] * heatmap.shape[-1])


def map_entropy(heatmap: Tensor) -> Tensor:
    """Entropy of a map's shares over that of a flat map, ``−Σ p log p / log(h·w)``: 0 is one patch, 1 is flat.

    Args:
        heatmap: (…, h, w).

    Returns:
        (…), between 0 and 1; 0 for a map of a single patch.

    Example:
        >>> map_entropy(torch.eye(2))
        tensor(0.5000)
    """
    patches = heatmap.shape[-2] * heatmap.shape[-1]
    entropy: Tensor = torch.special.entr(map_density(heatmap)).sum(dim=(-2, -1))
    return entropy / math.log(patches) if patches > 1 else entropy


def border_mass(heatmap: Tensor) -> Tensor:
    """Share of a map on the outermost ring of patches. A flat 14×14 map has 52/196 = 0.265 there.

    Args:
        heatmap: (…, h, w).

    Returns:
        (…), between 0 and 1.

    Example:
        >>> border_mass(torch.ones(4, 4))  # 12 of 16 patches
        tensor(0.7500)
    """
    density = map_density(heatmap)
    inner = density[..., 1:-1, 1:-1].sum(dim=(-2, -1))
    return 1 - inner


def corner_mass(heatmap: Tensor) -> Tensor:
    """Share of a map in the four corners: blocks of ⌈h/7⌉ × ⌈w/7⌉ patches, each patch counted once.

    What a mark in a corner of the images (a logo, a date, a label) would draw to it. A flat 14×14 map has
    16/196 = 0.082 there.

    Args:
        heatmap: (…, h, w).

    Returns:
        (…), between 0 and 1.

    Example:
        >>> corner_mass(torch.ones(7, 7))  # 4 of 49 patches
        tensor(0.0816)
    """
    rows, columns = heatmap.shape[-2:]
    near_row = _near_an_end(rows, math.ceil(rows / 7), heatmap.device)
    near_column = _near_an_end(columns, math.ceil(columns / 7), heatmap.device)
    return (map_density(heatmap) * (near_row[:, None] & near_column)).sum(dim=(-2, -1))


def map_centroid(heatmap: Tensor) -> Tensor:
    """Centre of mass of a map's shares, as a place in the image: 0 is its upper (left) edge, 1 its lower (right) one.

    A patch lies at its middle: the centroid of a map of one patch in the first of 4 rows has the row 1/8.

    Args:
        heatmap: (…, h, w).

    Returns:
        (…, 2): row and column, between 0 and 1.

    Example:
        >>> map_centroid(torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]))
        tensor([0.5000, 0.8750])
    """
    density = map_density(heatmap)
    places = [
        (torch.arange(side, device=density.device, dtype=density.dtype) + 0.5) / side for side in density.shape[-2:]
    ]
    row = (density.sum(dim=-1) * places[0]).sum(dim=-1)
    column = (density.sum(dim=-2) * places[1]).sum(dim=-1)
    return torch.stack([row, column], dim=-1)


def top_decile_mass(heatmap: Tensor) -> Tensor:
    """Share of a map in the tenth of its patches that hold the most, rounded up. A flat map has 0.1 there.

    Args:
        heatmap: (…, h, w).

    Returns:
        (…), between 0 and 1.

    Example:
        >>> top_decile_mass(torch.eye(4))  # 2 of 16 patches, one quarter each
        tensor(0.5000)
    """
    density = map_density(heatmap).flatten(-2)
    top, _ = density.topk(math.ceil(density.shape[-1] / 10), dim=-1)
    return top.sum(dim=-1)


#: The statistics of a map that are followed in training, by name.
MAP_STATISTICS = {
    "entropy": map_entropy,
    "border_mass": border_mass,
    "corner_mass": corner_mass,
    "top_decile_mass": top_decile_mass,
}


def map_statistics(heatmap: Tensor) -> dict[str, float]:
    """Means over the images of ``entropy``, ``border_mass``, ``corner_mass`` and ``top_decile_mass``.

    Args:
        heatmap: (B, h, w); one that is zero everywhere counts in none of them.

    Returns:
        The four numbers by name; NaN where no image counts.
    """
    return {name: float(statistic(heatmap).nanmean()) for name, statistic in MAP_STATISTICS.items()}


def _near_an_end(side: int, reach: int, device: torch.device) -> Tensor:
    """Which of the places along a side lie within reach of one of its ends, (side,) bool."""
    place = torch.arange(side, device=device)
    return (place < reach) | (place >= side - reach)


def _at_least_float32(heatmap: Tensor) -> Tensor:
    return heatmap if heatmap.dtype == torch.float64 else heatmap.float()
