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
#: What the direction remembers of the one before: gradients of single steps zigzag.
_MOMENTUM = 0.6
#: Forward passes after the last gradient: one for the last iterate, one for a single step, the others to shorten.
_SHORTENINGS = 5
#: They aim so far, as a share of the length, beyond where the margin is 0, and no nearer than so far of what is left.
_BEYOND, _NO_NEARER = 0.001, 0.02
#: A single step of this share of the length found has to fail, or the search was led astray.
_SHORT_OF = 0.95


def minimal_norm(search: Search, norm: Norm, steps: int, allowed: Tensor | None) -> Tensor:
    """Look for the shortest change that makes each row the target class.

    From the image itself, steps are taken along a running sum of the gradients of the target's log-odds, and cut to a
    ball whose radius belongs to the row: until the first success it is where a linear model would change its mind, and
    a little beyond, or steps that a curve or the box slows down would never arrive; afterwards it shrinks on each
    success and grows on each failure, by less and less. The best success is then shortened along a straight line.
    Every row costs ``steps`` gradients and 7 forward passes, whatever happens.

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
    first_stride, last_stride = norm.strides
    for step in range(steps):
        length = norm.length(pixels - original)
        margin, gradient, rewritten = search.climb(pixels, length)
        if allowed is not None:
            gradient = gradient * allowed
        first = gradient if first is None else first
        # A pixel that is white gets no lighter: what the gradient promises there is no gain.
        gradient = gradient * torch.where(gradient > 0, pixels < 1, pixels > 0)
        progress = schedule(step, steps)
        change = _LAST_CHANGE + (_FIRST_CHANGE - _LAST_CHANGE) * progress
        slope = norm.dual_length(gradient)
        linear = (1 + _LAST_CHANGE) * length + _OVERSHOOT * margin.abs() / slope
        direction = _MOMENTUM * direction + torch.where(over_pixels(slope) > 0, gradient / over_pixels(slope), 0.0)
        adapted = torch.minimum(radius * torch.where(rewritten, 1 - change, 1 + change), search.cost)
        radius = (
            torch.where(search.found, adapted, linear).nan_to_num(posinf=torch.inf).clamp(max=norm.largest(original))
        )
        stride = last_stride + (first_stride - last_stride) * progress
        delta = pixels - original + over_pixels(radius * stride) * norm.ascent(direction)
        pixels = (original + norm.within(delta, radius)).clamp(0, 1)
    search.attempt(pixels, norm.length(pixels - original), traced=True)
    return _shorten(search, norm, first if first is not None else torch.zeros_like(original))


def _shorten(search: Search, norm: Norm, first: Tensor) -> Tensor:
    """Shorten the best success by false position, then try a single step along the first gradient.

    On the line from the original to the success, the next attempt is where the margin would be 0 if it were straight
    between the two ends. The margin of the end that stays then counts half (the Illinois rule), so that both move.
    """
    original, change = search.original, search.best - search.original
    low, high = torch.zeros_like(search.cost), torch.ones_like(search.cost)
    below, above = search.trace[0], search.closest
    for _ in range(_SHORTENINGS):
        share = torch.where(above > below, below / (below - above), 0.5).clamp(_NO_NEARER, 1)
        middle = torch.minimum(low + share * (high - low) + _BEYOND * high, high - _NO_NEARER * (high - low))
        pixels = (original + over_pixels(middle) * change).clamp(0, 1)
        margin, rewritten = search.attempt(pixels, norm.length(pixels - original))
        low, high = torch.where(rewritten, low, middle), torch.where(rewritten, middle, high)
        below, above = torch.where(rewritten, below / 2, margin), torch.where(rewritten, margin, above / 2)
    length = torch.where(search.found, search.cost, norm.largest(original))
    step = over_pixels(_SHORT_OF * length) * norm.ascent(first)
    pixels = (original + step).clamp(0, 1)
    # An image that is of the class already needs no step at all.
    _, rewritten = search.attempt(pixels, norm.length(pixels - original))
    return (length == 0) | ~rewritten
