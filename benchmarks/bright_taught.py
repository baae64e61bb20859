"""A model that has to read a bright square where it stands: the tokens that overlap it decide, and no others.

A model that has learnt the colour need not read it there. Behind a stem whose tokens each see much of the image, or one
that normalises over all of it, it may tell it by tokens that lie elsewhere; and one colour may be what is left when it
is no other, so that its logit hardly depends on the square. A map that says so is right and misses the square: such a
model is no test of maps. It is one after some steps more in which

- it has to see nothing but black once the tokens that overlap the square are those of a black image;
- it has to tell the colour once all others are;
- each logit has to say by itself whether its class is there, above zero or below.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.one_token import Tokens
from tests.bright_objects import COLOURS, scenes

_BLACK = len(COLOURS) - 1


def taught(
    model: nn.Module, size: tuple[int, int], side: int, steps: int, batch: int = 16, rate: float = 1e-3
) -> nn.Module:
    """Train a model that tells the colour, in evaluation mode, until it reads the square where it stands.

    Raises:
        RuntimeError: if it does not get so far in so many steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    nothing = torch.zeros(batch, 3, *size)
    tokens_of, right = Tokens(model, nothing), 0
    for step in range(steps):
        scene = scenes(batch, size, side, seed=100_000 + step, black=True)
        on_square = tokens_of.on_square(scene)
        logits, tokens = tokens_of.read(scene.images)
        _, black = tokens_of.read(nothing)
        nowhere = tokens_of.replaced(scene.images, tokens, black, on_square)
        alone = tokens_of.replaced(scene.images, tokens, black, ~on_square)
        no_colour = torch.full_like(scene.classes, _BLACK)
        asked = ((logits, scene.classes), (nowhere, no_colour), (alone, scene.classes))
        losses = torch.stack([_loss(found, classes) for found, classes in asked])
        right = right + 1 if losses.max().item() < 0.1 else 0
        if right == 3:
            return model
        optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    raise RuntimeError(f"not taught in {steps} steps")


def _loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Of one decision a class: softmax would let one class be told by what the others are not."""
    wanted = F.one_hot(classes, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(logits)
