"""The function that is climbed: from pixels to the margin by which the target class leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.explain import UNSAID, Task, after, find_logits
from lightning_attngrad.rewrite.pixels import Normalisation

#: A success has to lead by this share of the largest logit: the rounding of another batch size must not undo it.
_LEAD = 1e-5
#: And by so many roundings of the logits' own type. In bfloat16 each logit is off by up to two of them where a model
#: runs on another kernel with gradients than without, as ``nn.MultiheadAttention`` does.
_ROUNDINGS = 4


@dataclass(frozen=True, eq=False)
class TargetMargin:
    """``z_t − max_{j≠t} z_j`` of pixels, with the model's own normalisation inside (METHODS: rewriting).

    Attributes:
        forward: from images to the output of a model that the caller holds still.
        normalisation: from pixels to images.
        target: (M,) int64.
        task: what the output means.
    """

    forward: Callable[[Tensor], Any]
    normalisation: Normalisation
    target: Tensor
    task: Task = UNSAID
    _classes: tuple[int, int] = field(init=False)  # the smallest and the largest: asked of the device once

    def __post_init__(self) -> None:
        smallest, largest = torch.stack(torch.aminmax(self.target)).cpu().tolist()
        object.__setattr__(self, "_classes", (smallest, largest))

    def logits(self, pixels: Tensor) -> Tensor:
        """Class scores (M, K), in the type in which the model gives them."""
        return class_scores(self.forward, self.normalisation, pixels, self.task)

    def check(self, classes: int) -> None:
        """Refuse target classes that the model does not have.

        Raises:
            ValueError: naming them.
        """
        if self._classes[0] < 0 or self._classes[1] >= classes:
            raise ValueError(f"target: got {self.target.unique().tolist()}; the model's classes are 0 to {classes - 1}")

    def of(self, logits: Tensor) -> Tensor:
        """The margin (M,) of logits (M, K), float32 or wider."""
        return self.task.margin(_wide(logits), self.target)

    def rewritten(self, logits: Tensor) -> Tensor:
        """(M,) bool: the target leads, and by more than rounding."""
        share = max(_LEAD, _ROUNDINGS * torch.finfo(logits.dtype).eps)
        return self.of(logits) > share * _wide(logits).abs().amax(dim=1)

    def attempt(self, pixels: Tensor) -> Tensor:
        """Logits (M, K), without a graph."""
        with torch.no_grad():
            return self.logits(pixels)

    def climb(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (M, K), and the gradient (M, C, H, W) of the target's log-odds ``log p_t / (1 − p_t)``.

        Of classes that exclude each other these are ``z_t − logsumexp_{j≠t} z_j``: the margin with a soft maximum. On
        the way two rivals often take turns as the largest, and the margin's own gradient then jumps between them. What
        is not finite in the gradient is 0. Rows do not depend on each other, so one backward pass of the sum serves
        them all.
        """
        with torch.enable_grad():
            pixels = pixels.detach().requires_grad_()
            logits = self.logits(pixels)
            self.check(logits.shape[1])
            # A model that rounds its input away, or detaches it, has a gradient of zero: no error, but ill health.
            if not logits.requires_grad:
                return logits.detach(), torch.zeros_like(pixels)
            log_odds = self.task.log_odds(_wide(logits), self.target)
            gradient = torch.autograd.grad(log_odds.sum(), pixels, allow_unused=True)[0]
        if gradient is None:
            gradient = torch.zeros_like(pixels)
        return logits.detach(), torch.nan_to_num(gradient.detach(), nan=0.0, posinf=0.0, neginf=0.0)


def in_type(forward: Callable[[Tensor], Any], dtype: torch.dtype) -> Callable[[Tensor], Any]:
    """``forward`` of images in the floating type in which the user gave them, that of the model's weights."""
    return after(lambda images: images.to(dtype), forward)


def class_scores(
    forward: Callable[[Tensor], Any], normalisation: Normalisation, pixels: Tensor, task: Task = UNSAID
) -> Tensor:
    """The scores of the classes (M, K), in the model's own type, of pixels (M, C, H, W).

    Raises:
        ValueError: if the output holds no row of two or more classes an image.
    """
    output = forward(normalisation.to_images(pixels))
    if not task.has_classes:
        raise ValueError(f"task: got {task.name!r}, which has no classes to rewrite to")
    scores = task.scores(output, len(pixels))
    if scores.shape[1] < 2:
        raise ValueError(
            f"model: its output (shape {tuple(scores.shape)}) is not one row of logits an image, ({len(pixels)}, 2 or "
            "more classes); say task='binary' or 'multilabel' if its one output is a class, or rewrite a model, or a "
            "part of one, that ends in a classifier"
        )
    found = find_logits(output)
    return scores if found is None else scores.to(found.dtype)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
