"""Rewriting confined to patches: those that a gradient-guided map ranks highest, and as few of them as will do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import Area
from lightning_attngrad.explain import UNSAID, Task, explain
from lightning_attngrad.rewrite.search import Search, schedule

#: Share of the patches with which the search for the fewest begins.
_FIRST_SHARE = 0.5
#: By which share the number of patches falls on a success and grows on a failure: at the first step, at the last.
_FIRST_CHANGE, _LAST_CHANGE = 0.5, 0.1
#: The largest change of a pixel value in one step, first and last.
_FIRST_STEP, _LAST_STEP = 1.0, 0.2
_BISECTIONS = 6


class PatchRanking:
    """Patches of images in an order, and the pixels that belong to them.

    Args:
        ranks: (M, h, w) int64, the place of each patch in the order: 0 for the first.
        size: H and W of the images.
        area: top, left, bottom, right in pixels of the part that the patches cover; None is the whole image.

    Attributes:
        ranks: see above.
        total: number of patches of an image.
    """

    def __init__(self, ranks: Tensor, size: tuple[int, int], area: Area | None = None) -> None:
        self.ranks, self.total = ranks, ranks[0].numel()
        top, left, bottom, right = (0, 0, *size) if area is None else area
        enlarged = F.interpolate(ranks[:, None].float(), size=(bottom - top, right - left), mode="nearest")
        around = (left, size[1] - right, top, size[0] - bottom)
        self._at_pixels = F.pad(enlarged, around, value=float(self.total))  # (M, 1, H, W); outside belongs to no patch

    def top(self, number: Tensor) -> Tensor:
        """The pixels of the first ``number`` patches of each row, (M,): (M, 1, H, W) bool."""
        return self._at_pixels < number.clamp(max=self.total)[:, None, None, None]

    def share_changed(self, pixels: Tensor, original: Tensor) -> Tensor:
        """The share of the patches down to the last one in the order in which a pixel changed, (M,)."""
        changed = (pixels != original).any(dim=1, keepdim=True)
        return torch.where(changed, self._at_pixels + 1, 0.0).flatten(1).amax(dim=1) / self.total


def rank_patches(
    model: nn.Module, images: Tensor, target: Tensor, forward: Callable[[Tensor], Any], task: Task = UNSAID
) -> PatchRanking:
    """Patches in the order in which a gradient-guided map of the target class ranks them.

    Args:
        model: the model.
        images: (M, C, H, W), as it takes them.
        target: (M,) the classes whose maps rank the patches.
        forward: from images to the model's output.
        task: what that means.
    """
    explanation = explain(model, images, target, method="gradient_guided", forward=forward, task=task)
    flat = explanation.heatmap.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places).view_as(explanation.heatmap)
    return PatchRanking(ranks, (images.shape[-2], images.shape[-1]), explanation.area)


def fewest_patches(search: Search, ranking: PatchRanking, steps: int, most: int | None) -> None:
    """Look for the smallest number of top-ranked patches whose pixels, freely changed, rewrite the class.

    Patches are given up from the end of the ranking on each success and taken back on each failure, by less and
    less; then the number is bisected with the best change that was found. Every row costs ``steps`` gradients and
    7 forward passes. The cost that ``search`` keeps is the share of the patches.

    Args:
        search: of the rows; it keeps the result.
        ranking: of the patches of each row.
        steps: gradients.
        most: stay with this many patches instead of looking for the smallest number.
    """
    original, total = search.original, ranking.total
    number = original.new_full((len(original),), most if most is not None else _FIRST_SHARE * total)
    pixels = original
    for step in range(steps):
        _, gradient, rewritten = search.climb(pixels, ranking.share_changed(pixels, original))
        progress = schedule(step, steps)
        if step and most is None:
            change = _LAST_CHANGE + (_FIRST_CHANGE - _LAST_CHANGE) * progress
            number = torch.where(rewritten, number * (1 - change), number * (1 + change))
            # One patch fewer than the best, as the same number again would gain nothing.
            number = torch.minimum(number, search.cost * total - 1).clamp(1, total)
        stride = _LAST_STEP + (_FIRST_STEP - _LAST_STEP) * progress
        moved = (pixels + stride * gradient.sign()).clamp(0, 1)
        pixels = torch.where(ranking.top(number.ceil()), moved, original)
    search.attempt(pixels, ranking.share_changed(pixels, original), traced=True)
    if most is not None:
        return
    best, low, high = search.best, torch.zeros_like(search.cost), search.cost.clamp(max=1.0) * total
    for _ in range(_BISECTIONS):
        middle = ((low + high) / 2).floor()
        pixels = torch.where(ranking.top(middle), best, original)
        _, rewritten = search.attempt(pixels, ranking.share_changed(pixels, original))
        low, high = torch.where(rewritten, low, middle), torch.where(rewritten, middle, high)
