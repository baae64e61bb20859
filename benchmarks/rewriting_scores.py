"""What is made of distances: quantiles with failures among them, and AttackBench's optimality."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def quantile(values: Tensor, share: float = 0.5) -> float:
    """Of (N,) distances with ∞ in them: the smallest that so great a share of the images does not exceed.

    Example:
        >>> quantile(torch.tensor([3.0, 1.0, torch.inf, 2.0]))
        2.0
    """
    rank = max(math.ceil(share * len(values)), 1)
    return values.sort().values[rank - 1].item()


def best_of(distances: Sequence[Tensor]) -> Tensor:
    """(N,) of each image the least distance that any of several attacks (N,) found."""
    return torch.stack(list(distances)).amin(0)


def optimality(distance: Tensor, best: Tensor) -> float:
    """How near an attack comes to the best of all: 1 is as near as all of them together, 0 never near enough to count.

    Local optimality of AttackBench (arXiv 2404.19460, equations 4 and 5), for images that are all classified correctly.
    Up to ε₀, the least radius at which no image is robust against the best of all, it is the area above the attack's
    robust-accuracy curve over that above the curve of the best of all. Of an image the area above is ``ε₀ − distance``,
    and nothing where it was rewritten no nearer than ε₀.

    Args:
        distance: (N,) of the attack, ∞ where it failed.
        best: (N,) of each image the least distance that any attack found; ε₀ is the largest finite one.

    Returns:
        In [0, 1]; NaN if no image was rewritten by any attack, or all at one distance.

    Example:
        >>> optimality(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        1.0
        >>> optimality(torch.tensor([1.5, torch.inf]), torch.tensor([1.0, 2.0]))
        0.5
    """
    found = best[best < math.inf].double()
    if not len(found):
        return math.nan
    end = found.max()
    reached, reachable = ((end - values.double()).clamp(min=0).sum() for values in (distance, best))
    return float(reached / reachable) if reachable > 0 else math.nan
