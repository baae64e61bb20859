"""Images of one bright square on black, and a model that is trained to tell its colour: it has to look at the square.

One class more is nothing but black: no colour can be told by what is not there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import logits_of

#: Class → red, green and blue of its square; the last is black.
COLOURS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])


@dataclass(frozen=True)
class Scenes:
    """A batch.

    Attributes:
        images: (B, 3, H, W), black but for a square.
        classes: (B,), which colour.
        top: (B,) of the square, in pixels.
        left: (B,).
        side: of the square.
    """

    images: Tensor
    classes: Tensor
    top: Tensor
    left: Tensor
    side: int

    def holds(self, heatmaps: Tensor) -> Tensor:
        """Whether the cell where each map (B, h, w) is largest overlaps the square: (B,) bool."""
        height, width = self.images.shape[-2:]
        rows, columns = heatmaps.shape[-2:]
        place = heatmaps.flatten(1).argmax(1)
        row, column = place // columns, place % columns
        above = (row + 1) * height / rows > self.top
        below = row * height / rows < self.top + self.side
        left = (column + 1) * width / columns > self.left
        right = column * width / columns < self.left + self.side
        return above & below & left & right


def scenes(number: int, size: tuple[int, int], side: int, seed: int, *, black: bool = False) -> Scenes:
    """Squares of ``side`` pixels anywhere on images of ``size``, of any colour; with ``black`` some are not there."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(len(COLOURS) if black else len(COLOURS) - 1, (number,), generator=generator)
    top = torch.randint(size[0] - side + 1, (number,), generator=generator)
    left = torch.randint(size[1] - side + 1, (number,), generator=generator)
    images = torch.zeros(number, 3, *size)
    for i in range(number):
        square = (slice(int(top[i]), int(top[i]) + side), slice(int(left[i]), int(left[i]) + side))
        images[i][:, square[0], square[1]] = COLOURS[classes[i]].view(3, 1, 1)
    return Scenes(images, classes, top, left, side)


def trained(
    model: nn.Module, size: tuple[int, int], side: int, steps: int, batch: int = 16, rate: float = 2e-3
) -> nn.Module:
    """Train until the loss of three batches in a row is small, for so many steps at most.

    Raises:
        RuntimeError: if it does not get so far.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5  # few steps: the statistics are those of the last
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    right = 0
    for step in range(steps):
        scene = scenes(batch, size, side, seed=1000 + step, black=True)
        logits = logits_of(model(scene.images))
        loss = F.cross_entropy(logits, scene.classes)
        right = right + 1 if loss.item() < 0.1 else 0
        if right == 3:
            return model.eval()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise RuntimeError(f"not learnt in {steps} steps")
