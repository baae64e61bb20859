"""The best margin that a change of a given length reaches."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.rewrite.norms import Norm, over_pixels
from lightning_attngrad.rewrite.search import Search, schedule


def fixed_radius(search: Search, norm: Norm, steps: int, radius: float, allowed: Tensor | None) -> Tensor:
    """Climb the target's margin inside a ball: projected gradient steps of falling length, from the image itself.

    The first step goes to the edge of the ball along the first gradient (FGSM, arXiv 1412.6572, for L∞); the further
    ones are those of PGD (arXiv 1706.06083) with a cosine schedule in the place of a constant length. Every row costs
    ``steps`` gradients and one forward pass.

    Args:
        search: of the rows; it keeps the result.
        norm: of the change.
        steps: gradients.
        radius: the largest length of a change.
        allowed: (M, 1, H, W) bool, where pixels may change; None is everywhere.

    Returns:
        (M,) bool, whether the last iterate has at least the margin of the first step.
    """
    original = search.original
    # The sum of pixels and change is rounded: without this room a change would be longer than asked by a last digit.
    room = 1e-6 * radius + 2.0**-24 * norm.largest(original)
    limit = original.new_full((len(original),), max(radius - room, 0.0))
    pixels = original
    # All successes are worth the same here: the first is kept, and the search goes on for the others.
    cost = torch.zeros_like(limit)
    for step in range(steps):
        _, gradient, _ = search.climb(pixels, cost)
        if allowed is not None:
            gradient = gradient * allowed
        stride = limit * (0.1 + 0.9 * schedule(step, steps))
        delta = norm.within(pixels - original + over_pixels(stride) * norm.ascent(gradient), limit)
        pixels = (original + delta).clamp(0, 1)
    search.attempt(pixels, cost, traced=True)
    return search.trace[-1] >= search.trace[1]
