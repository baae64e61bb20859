"""The smallest change that rewrites a class: a search in a few gradients (after arXiv 2605.11392; docs/methods.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.rewrite.norms import Norm, over_pixels
from lightning_attngrad.rewrite.search import Search, schedule

#: How far beyond the point where a linear model would change its mind the first steps go.
_OVERSHOOT = 1.05
#: By which share the radius shrinks on a success and grows on a failure: at the first step, and at the last.
_FIRST_CHANGE, _LAST_CHANGE = 0.4, 0.02
#: Lengths of the first and last step, as shares of the radius.
_FIRST_STEP, _LAST_STEP = 0.5, 0.1
#: What the direction remembers of the one before: gradients of single steps zigzag.
_MOMENTUM = 0.6
#: Forward passes after the last gradient: one for the last iterate, one for a single step, the others to shorten.
_SHORTENINGS = 5
#: A single step of this share of the length found has to fail, or the search was led astray.
_SHORT_OF = 0.95


def minimal_norm(search: Search, norm: Norm, steps: int, allowed: Tensor | None) -> Tensor:
    """Look for the shortest change that makes each row the target class.

    From the image itself, steps are taken along a running sum of the gradients of the target's log-odds, and cut to a
    ball whose radius belongs to the row: until the first success it is where a linear model would change its mind;
    afterwards it shrinks on each success and grows on each failure, by less and less. The best success is then
    shortened along a straight line. Every row costs ``steps`` gradients and 7 forward passes, whatever happens.

    Args:
        search: of the rows; it keeps the result.
        norm: of the change.
        steps: gradients.
        allowed: (M, 1, H, W) bool, where pixels may change; None is everywhere.

    Returns:
        (M,) bool, whether a single step of the length found falls short of rewriting the class.
    """
    original = search.original
    pixels, radius = original, original.new_zeros(len(original))
    direction = torch.zeros_like(original)
    first: Tensor | None = None
    for step in range(steps):
        length = norm.length(pixels - original)
        margin, gradient, rewritten = search.climb(pixels, length)
        if allowed is not None:
            gradient = gradient * allowed
        first = gradient if first is None else first
        progress = schedule(step, steps)
        change = _LAST_CHANGE + (_FIRST_CHANGE - _LAST_CHANGE) * progress
        slope = norm.dual_length(gradient)
        linear = length + _OVERSHOOT * margin.abs() / slope
        direction = _MOMENTUM * direction + torch.where(over_pixels(slope) > 0, gradient / over_pixels(slope), 0.0)
        adapted = torch.minimum(radius * torch.where(rewritten, 1 - change, 1 + change), search.cost)
        radius = (
            torch.where(search.found, adapted, linear).nan_to_num(posinf=torch.inf).clamp(max=norm.largest(original))
        )
        stride = _LAST_STEP + (_FIRST_STEP - _LAST_STEP) * progress
        delta = pixels - original + over_pixels(radius * stride) * norm.ascent(direction)
        pixels = (original + norm.within(delta, radius)).clamp(0, 1)
    search.look(pixels, norm.length(pixels - original), traced=True)
    return _shorten(search, norm, first if first is not None else torch.zeros_like(original))


def _shorten(search: Search, norm: Norm, first: Tensor) -> Tensor:
    """Bisect the length of the best success, then try a single step along the first gradient."""
    original, change = search.original, search.best - search.original
    low, high = torch.zeros_like(search.cost), torch.ones_like(search.cost)
    for _ in range(_SHORTENINGS):
        middle = (low + high) / 2
        pixels = (original + over_pixels(middle) * change).clamp(0, 1)
        rewritten = search.look(pixels, norm.length(pixels - original))
        low, high = torch.where(rewritten, low, middle), torch.where(rewritten, middle, high)
    length = torch.where(search.found, search.cost, norm.largest(original))
    step = over_pixels(_SHORT_OF * length) * norm.ascent(first)
    pixels = (original + step).clamp(0, 1)
    # An image that is of the class already needs no step at all.
    return (length == 0) | ~search.look(pixels, norm.length(pixels - original))
