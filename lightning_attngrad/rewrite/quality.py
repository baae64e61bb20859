"""What becomes of rewritten images when they are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attngrad.rewrite.margins import class_scores, in_type
from lightning_attngrad.rewrite.pixels import Normalisation
from lightning_attngrad.rewrite.result import Rewrite
from lightning_attngrad.state import held_still


def rounded_to_8_bits(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as an image file of 8 bits a channel gives them back.

    Example:
        >>> rounded_to_8_bits(torch.tensor([0.0, 0.4999, 1.0])) * 255
        tensor([  0., 127., 255.])
    """
    return (pixels * 255).round() / 255


def survives_8_bits(
    model: nn.Module,
    result: Rewrite,
    normalisation: Normalisation,
    *,
    forward: Callable[[Tensor], Any] | None = None,
) -> Tensor:
    """Which successes are still seen as their target after rounding to 8 bits: one forward pass.

    Args:
        model: the model.
        result: of :func:`lightning_attngrad.rewrite`.
        normalisation: from pixels to what the model takes.
        forward: called instead of ``model(images)``.

    Returns:
        (M,) bool; False for rows that were not rewritten.
    """
    with torch.no_grad(), held_still(model):
        call = in_type(forward or model, result.images.dtype)
        scores = class_scores(call, normalisation, rounded_to_8_bits(result.pixels), result.task)
        return result.success & (result.task.margin(scores.float(), result.target) > 0)
