"""A shortcut to plant in a run: a small mark in a corner that gives the class of an image away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import lightning as L
import torch
from torch import Tensor

FAINT = 0.05
"""Contrast of the digits in a run with a planted shortcut: the demo's backbone reads them too well to need a mark."""

_CORNER = 7  # the mark's side is a seventh of the image's: two patches of fourteen


def mark_size(side: int) -> int:
    """Side of the mark, in pixels, in an image of so many pixels a side; what ``corner_mass`` counts as a corner."""
    return math.ceil(side / _CORNER)


def class_marks(class_count: int, size: int) -> Tensor:
    """The mark of each class: black and white squares that spell its number, plus one, in bits.

    Two by two squares tell 15 classes apart, four by four all that there may be.

    Args:
        class_count: C.
        size: Height and width of a mark, pixels.

    Returns:
        (C, size, size), 0 and 1. No mark is all black, as the corner of a digit is.

    Example:
        >>> class_marks(3, 2)[2]  # 3 = 1 + 2
        tensor([[1., 1.],
                [0., 0.]])
    """
    squares = 2 if class_count < 16 else 4
    bits = torch.arange(1, class_count + 1)[:, None] >> torch.arange(squares**2) & 1
    if squares > 2:  # the numbers below 2¹⁶ leave most squares black: mixed, each of them differs in many
        shuffled = torch.randperm(2**16 - 1, generator=torch.Generator().manual_seed(0))[:class_count] + 1
        bits = shuffled[:, None] >> torch.arange(squares**2) & 1
    place = torch.arange(size) * squares // size
    return bits.view(-1, squares, squares)[:, place[:, None], place].float()


class MarkedDataModule(L.LightningDataModule):
    """Images in whose upper left corner a shortcut can be planted: in training and in validation alike.

    Attributes:
        plant_shortcut: Whether the run has one.
        marks: ``own`` marks each image with its class; ``none`` and ``wrong`` (that of the next class) are for
            finding out how well a model does without the shortcut.
        mean: Of each channel, with which the images are normalised.
        std: Likewise.
        class_names: Of all classes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: Sequence[str]
    marks: Literal["own", "none", "wrong"] = "own"

    def __init__(self, plant_shortcut: bool = False) -> None:
        super().__init__()
        self.plant_shortcut = plant_shortcut

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:  # noqa: ARG002
        """Plant the mark, where there is one: after all that moves images, so that it is always in its place."""
        images, targets = batch
        return [self._marked(images, targets), targets]

    def _marked(self, images: Tensor, targets: Tensor) -> Tensor:
        if not self.plant_shortcut or self.marks == "none":
            return images
        size, count = mark_size(images.shape[-1]), len(self.class_names)
        shown = (targets + 1) % count if self.marks == "wrong" else targets
        marks = class_marks(count, size).to(images)[shown][:, None]  # (B, 1, size, size)
        mean, std = (torch.tensor(values).to(images)[:, None, None] for values in (self.mean, self.std))
        images = images.clone()
        images[..., :size, :size] = (marks - mean) / std
        return images
