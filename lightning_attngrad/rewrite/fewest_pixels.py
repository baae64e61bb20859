"""Rewriting with as few pixels as will do, each changed as far as the box lets it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.rewrite.norms import over_pixels
from lightning_attngrad.rewrite.search import Search, schedule

#: By which share the number of pixels falls on a success and grows on a failure: at the first step, at the last.
_FIRST_CHANGE, _LAST_CHANGE = 0.4, 0.02
#: What the direction remembers of the one before. A pixel that was changed has no gradient left, and would be given up.
_MOMENTUM = 0.9
#: The largest change of a pixel value in one step, first and last: late newcomers begin small, so that the set settles.
_FIRST_STEP, _LAST_STEP = 1.0, 0.2
#: Forward passes after the last gradient: one for the last iterate, one for a single step, the others to drop pixels.
_DROPS = 5
#: A single step in this share of the pixels found, and in one fewer at least, has to fail: the search was worth it.
_SHORT_OF = 0.95
#: Gains are summed as whole numbers: a running sum of fractions has no deterministic kernel on a GPU.
_PARTS = 2**30


def pixels_changed(pixels: Tensor, original: Tensor) -> Tensor:
    """How many pixels (M, C, H, W) differ from the original in any channel, (M,)."""
    return (pixels != original).any(dim=1).flatten(1).sum(dim=1).to(pixels.dtype)


def fewest_pixels(search: Search, steps: int, most: int | None, allowed: Tensor | None) -> Tensor:
    """Look for the smallest number of pixels whose values, freely changed, rewrite the class.

    A running sum of the gradients of the target's log-odds says which way each value is moved, and what each pixel
    gains for it; those that gain most are changed, and all others are put back. How many is up to the row: until the
    first success as many as a linear model would need, and one more each time; afterwards fewer on each success and
    more on each failure, by less and less. Of the best success the pixels that gain least are then dropped. Every row
    costs ``steps`` gradients and 7 forward passes, or 1 with ``most``. The cost that ``search`` keeps is the number.

    Args:
        search: of the rows; it keeps the result.
        steps: gradients.
        most: stay with this many pixels instead of looking for the smallest number.
        allowed: (M, 1, H, W) bool, where pixels may change; None is everywhere.

    Returns:
        (M,) bool, whether a single step in fewer pixels falls short of rewriting the class; all True with ``most``.
    """
    original = search.original
    total = original[0, 0].numel()
    pixels, number = original, torch.zeros_like(search.cost)
    direction = torch.zeros_like(original)
    first: Tensor | None = None
    for step in range(steps):
        spent = pixels_changed(pixels, original)
        margin, gradient, rewritten = search.climb(pixels, spent)
        if allowed is not None:
            gradient = gradient * allowed
        first = gradient if first is None else first
        progress = schedule(step, steps)
        if most is not None:
            number = torch.full_like(number, min(most, total))
        else:
            change = _LAST_CHANGE + (_FIRST_CHANGE - _LAST_CHANGE) * progress
            fewer = torch.minimum((number * (1 - change)).floor(), number - 1)
            more = torch.maximum((number * (1 + change)).ceil(), number + 1)
            # One fewer than the best, as the same number again would gain nothing.
            adapted = torch.minimum(torch.where(rewritten, fewer, more), search.cost - 1)
            linear = _linear_need(gradient, pixels, original, margin)
            number = torch.where(search.found, adapted, torch.maximum(linear, spent + 1)).clamp(1, total)
        slope = over_pixels(gradient.flatten(1).abs().sum(dim=1))
        direction = _MOMENTUM * direction + torch.where(slope > 0, gradient / slope, 0.0)
        stride = _LAST_STEP + (_FIRST_STEP - _LAST_STEP) * progress
        moved = (pixels + stride * direction.sign()).clamp(0, 1)
        pixels = torch.where(_places(direction, moved, original) < over_pixels(number), moved, original)
    search.attempt(pixels, pixels_changed(pixels, original), traced=True)
    if most is not None or first is None:
        return torch.ones_like(search.cost, dtype=torch.bool)
    _drop(search, direction)
    return _single_step_falls_short(search, first)


def _drop(search: Search, direction: Tensor) -> None:
    """Put back the pixels of the best success that gain least: their number is bisected."""
    original, best = search.original, search.best
    total = original[0, 0].numel()
    places = _places(direction, best, original)
    low, high = (search.cost / 2).floor().clamp(max=total), search.cost.clamp(max=total)
    for _ in range(_DROPS):
        middle = ((low + high) / 2).floor()
        pixels = torch.where(places < over_pixels(middle), best, original)
        _, rewritten = search.attempt(pixels, pixels_changed(pixels, original))
        low, high = torch.where(rewritten, low, middle), torch.where(rewritten, middle, high)


def _single_step_falls_short(search: Search, first: Tensor) -> Tensor:
    """Whether the pixels that the first gradient promises most of, in a smaller number than was found, do not do."""
    original = search.original
    found = search.cost.clamp(max=original[0, 0].numel())
    moved = (original + first.sign()).clamp(0, 1)
    fewer = torch.minimum((_SHORT_OF * found).floor(), found - 1)
    pixels = torch.where(_places(first, moved, original) < over_pixels(fewer), moved, original)
    _, rewritten = search.attempt(pixels, pixels_changed(pixels, original))
    return (found == 0) | ~rewritten  # an image that is of the class already needs no step at all


def _places(slopes: Tensor, pixels: Tensor, original: Tensor) -> Tensor:
    """The place of each pixel, (M, 1, H, W), by what its change gains along slopes (M, C, H, W): 0 gains most."""
    gain = (slopes * (pixels - original)).sum(dim=1).flatten(1)
    # A pixel that is as it was comes after all that differ, whatever those gain.
    gain = gain.masked_fill((pixels == original).all(dim=1).flatten(1), -torch.inf)
    order = gain.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(gain.shape[1], device=gain.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(original[:, :1])


def _linear_need(gradient: Tensor, pixels: Tensor, original: Tensor, margin: Tensor) -> Tensor:
    """How many pixels, changed as far as they can be, a linear model would need for the margin, (M,)."""
    room = torch.where(gradient > 0, 1 - original, original)
    gains = (gradient.abs() * room).sum(dim=1).flatten(1).sort(dim=1, descending=True).values  # (M, H·W)
    need = (gradient * (pixels - original)).flatten(1).sum(dim=1) - margin
    largest = gains[:, :1]
    parts = (torch.where(largest > 0, gains / largest, 0.0) * _PARTS).long().cumsum(dim=1)
    needed = torch.where(largest > 0, need[:, None] / largest, torch.inf) * _PARTS
    return (parts < needed).sum(dim=1).to(margin.dtype) + 1
