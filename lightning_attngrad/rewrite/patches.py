"""Rewriting confined to patches: those that a gradient-guided map ranks highest, and as few of them as will do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.explain import explain
from lightning_attngrad.rewrite.search import Search, schedule

#: Share of the patches with which the search for the fewest begins.
_FIRST_SHARE = 0.5
#: By which share the number of patches falls on a success and grows on a failure: at the first step, at the last.
_FIRST_CHANGE, _LAST_CHANGE = 0.5, 0.1
#: The largest change of a pixel value in one step, first and last.
_FIRST_STEP, _LAST_STEP = 1.0, 0.2
_BISECTIONS = 6


def patch_ranks(model: nn.Module, images: Tensor, target: Tensor, forward: Callable[[Tensor], Any]) -> Tensor:
    """The place of each patch in the order in which a gradient-guided map of the target class ranks them.

    Args:
        model: the model.
        images: (M, C, H, W), as it takes them.
        target: (M,) the classes whose maps rank the patches.
        forward: from images to the model's output.

    Returns:
        (M, h, w) int64, 0 for the patch with the highest value.
    """
    heatmap = explain(model, images, target, method="gradient_guided", forward=forward).heatmap
    flat = heatmap.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(heatmap)


def top_patches(ranks: Tensor, number: Tensor, size: tuple[int, int]) -> Tensor:
    """Where pixels may change.

    Args:
        ranks: (M, h, w), see :func:`patch_ranks`.
        number: (M,) how many patches of each row.
        size: H and W of the image.

    Returns:
        (M, 1, H, W) bool.
    """
    chosen = ranks < number[:, None, None]
    return F.interpolate(chosen[:, None].float(), size=size, mode="nearest") > 0.5


def fewest_patches(search: Search, ranks: Tensor, steps: int, most: int | None) -> None:
    """Look for the smallest number of top-ranked patches whose pixels, freely changed, rewrite the class.

    Patches are given up from the end of the ranking on each success and taken back on each failure, by less and
    less; then the number is bisected with the best change that was found. Every row costs ``steps`` gradients and
    7 forward passes. The cost that ``search`` keeps is the share of the patches.

    Args:
        search: of the rows; it keeps the result.
        ranks: (M, h, w), see :func:`patch_ranks`.
        steps: gradients.
        most: stay with this many patches instead of looking for the smallest number.
    """
    original, total = search.original, ranks[0].numel()
    size = (original.shape[-2], original.shape[-1])
    number = original.new_full((len(original),), most if most is not None else _FIRST_SHARE * total)
    pixels = original
    for step in range(steps):
        _, gradient, rewritten = search.climb(pixels, _share_changed(pixels, original, ranks))
        progress = schedule(step, steps)
        if step and most is None:
            change = _LAST_CHANGE + (_FIRST_CHANGE - _LAST_CHANGE) * progress
            number = torch.where(rewritten, number * (1 - change), number * (1 + change))
            # One patch fewer than the best, as the same number again would gain nothing.
            number = torch.minimum(number, search.cost * total - 1).clamp(1, total)
        stride = _LAST_STEP + (_FIRST_STEP - _LAST_STEP) * progress
        moved = (pixels + stride * gradient.sign()).clamp(0, 1)
        pixels = torch.where(top_patches(ranks, number.ceil(), size), moved, original)
    search.attempt(pixels, _share_changed(pixels, original, ranks), traced=True)
    if most is not None:
        return
    best, low, high = search.best, torch.zeros_like(search.cost), search.cost.clamp(max=1.0) * total
    for _ in range(_BISECTIONS):
        middle = ((low + high) / 2).floor()
        pixels = torch.where(top_patches(ranks, middle, size), best, original)
        _, rewritten = search.attempt(pixels, _share_changed(pixels, original, ranks))
        low, high = torch.where(rewritten, low, middle), torch.where(rewritten, middle, high)


def _share_changed(pixels: Tensor, original: Tensor, ranks: Tensor) -> Tensor:
    """(M,) the share of the patches down to the last in the ranking that changed."""
    changed = (pixels != original).any(dim=1, keepdim=True)  # (M, 1, H, W)
    places = F.interpolate(ranks[:, None].float() + 1, size=changed.shape[-2:], mode="nearest")
    return torch.where(changed, places, 0.0).flatten(1).amax(dim=1) / ranks[0].numel()
