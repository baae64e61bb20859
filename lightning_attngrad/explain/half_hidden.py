"""Maps of more than one backward pass: averaged over copies of each image of which half is hidden.

One backward pass says what a patch gives to the output beside all others. A patch whose content stands elsewhere in the
image as well, or that an attention has saturated on, then looks worth little. Among copies that each lack another half
of the image, it is asked what it gives beside fewer of them: the mean over the copies in which it is there is close to
a Shapley value (the mean over all orders in which patches may be put in), for the price of a few backward passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention import Area
from lightning_attngrad.explain.explanation import Explanation

#: Half of the image is hidden in one copy of a pair, and the other half in the other.
PAIRS = 4
#: Rows and columns that are hidden in one piece, at most: smaller pieces would be told from their neighbours.
MOST_ROWS = 16


def over_half_hidden(ask: Callable[[Tensor], Explanation], images: Tensor, whole: Explanation) -> Explanation:
    """The explanation of whole images with maps averaged over copies of them, of which half is hidden each.

    What is hidden is shown in the image's mean colour. The halves are drawn once and for all: they are the same for
    every image, at any time, on any device. Of each patch the maps count in which it is there, half of them.

    Args:
        ask: from images (B, C, H, W) to their explanation, about the classes of ``whole``.
        images: (B, C, H, W).
        whole: their own explanation; it goes on to say what the model makes of them.

    Returns:
        The explanation, without ``completeness_error``: its maps account for the output of no one image.

    Example:
        >>> import timm, lightning_attngrad as attngrad
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> attngrad.explain(model, torch.rand(1, 3, 160, 160), quality="best")
        Explanation(1 image, attn_lrp, 10 × 10 maps)
    """
    grid = whole.heatmap.shape[-2], whole.heatmap.shape[-1]
    colour = images.mean(dim=(-2, -1), keepdim=True)
    heatmap, tokens = torch.zeros_like(whole.heatmap), torch.zeros_like(whole.token_scores)
    layers = None if whole.layers is None else torch.zeros_like(whole.layers)
    slots = tokens.shape[-1] - math.prod(grid)
    for there in halves(grid, whole.area, images):
        found = ask(torch.where(there, images, colour))
        share = F.adaptive_avg_pool2d(cut(there, whole.area).to(heatmap.dtype)[None], grid)[0] / PAIRS
        heatmap += found.heatmap * share
        everywhere = torch.cat([share.new_full((slots,), 0.5 / PAIRS), share.flatten()])
        tokens += found.token_scores * everywhere
        if layers is not None and found.layers is not None:
            layers += found.layers * share
    return replace(whole, heatmap=heatmap, token_scores=tokens, layers=layers, completeness_error=None)


def halves(grid: tuple[int, int], area: Area, images: Tensor) -> Iterator[Tensor]:
    """Which pixels are there in each copy, (H, W) bool; each pixel in one of each pair, beside ``area`` in both.

    Args:
        grid: rows and columns of the map.
        area: that the map covers.
        images: (…, H, W) for their size and device.
    """
    height, width = images.shape[-2:]
    top, left, bottom, right = area
    rows, columns = (math.ceil(number / math.ceil(number / MOST_ROWS)) for number in grid)
    generator = torch.Generator().manual_seed(0)
    for _ in range(PAIRS):
        drawn = torch.rand(rows * columns, generator=generator).argsort() < rows * columns // 2
        pieces = drawn.view(1, 1, rows, columns).to(images.device, torch.float32)
        inside = F.interpolate(pieces, (bottom - top, right - left), mode="nearest-exact")[0, 0] > 0
        for there in (inside, ~inside):
            whole = torch.ones(height, width, dtype=torch.bool, device=images.device)
            whole[top:bottom, left:right] = there
            yield whole


def cut(pixels: Tensor, area: Area) -> Tensor:
    """(H, W) to the part that a map covers."""
    top, left, bottom, right = area
    return pixels[top:bottom, left:right]
