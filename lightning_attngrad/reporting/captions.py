"""The words in figures: what a model said of an image, and short names of layers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NUMBERED = re.compile(r"(?:\w*(?:layer|block|stage)s?_?)?(\d+)")  # "3", "encoder_layer_3", "layer3"; not "vit_b_16"


@dataclass(frozen=True)
class Caption:
    """What the model said of an image.

    Attributes:
        predicted: Name of the predicted class.
        probability: Of the predicted class, in [0, 1]; None where the model's output is no probability.
        true: Name of the true class, where it is known.
        true_probability: The model's probability of the true class, where it is known.
    """

    predicted: str
    probability: float | None
    true: str | None = None
    true_probability: float | None = None

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is right; None where the true class is not known."""
        return None if self.true is None else self.predicted == self.true

    @property
    def mark(self) -> str:
        """A sign of its own shape for right and for wrong, so that colour is not needed; else empty."""
        return {True: "✓", False: "✗", None: ""}[self.correct]

    @property
    def verdict(self) -> str:
        """One short line; the number stands first because a long name is cut at its end."""
        number = "" if self.probability is None else probability_text(self.probability).removeprefix("p = ")
        return " ".join(part for part in (self.mark, number, self.predicted) if part)


def short_layer_name(name: str) -> str:
    """A name for the head of a column: the block's number where the name has one.

    Args:
        name: Path of an attention module inside its model.

    Returns:
        ``"block 3"`` for the fourth block of any of the usual models, ``"stage 2.5"`` where a model has
        stages, and otherwise the last telling part of the name.

    Example:
        >>> [short_layer_name(n) for n in ("blocks.3.attn", "vit.encoder.layer.3.attention.attention")]
        ['block 3', 'block 3']
        >>> short_layer_name("encoder.layers.encoder_layer_3.self_attention"), short_layer_name("attn_pool")
        ('block 3', 'attn_pool')
        >>> short_layer_name("stages.2.blocks.5.attn")
        'stage 2.5'
    """
    parts = name.split(".")
    numbers = [match.group(1) for part in parts if (match := _NUMBERED.fullmatch(part))]
    if not numbers:
        telling = [part for part in parts if part not in ("attn", "attention", "self_attention", "self")]
        return (telling or parts)[-1]
    return f"block {numbers[0]}" if len(numbers) == 1 else "stage " + ".".join(numbers)


def probability_text(probability: float) -> str:
    """Two decimals, and never a rounded 0 or 1 for what is neither."""
    if not math.isfinite(probability):
        return "p not finite"
    if 0 < probability < 0.005:
        return "p < 0.01"
    if 0.995 <= probability < 1:
        return "p > 0.99"
    return f"p = {probability:.2f}"


def counted(shown: int, total: int, what: str) -> str:
    """How many there are, and how many of them are shown.

    Example:
        >>> counted(1, 1, "image"), counted(8, 8, "image"), counted(16, 101, "frame")
        ('1 image', '8 images', '16 of 101 frames')
    """
    number = str(total) if shown == total else f"{shown} of {total}"
    return f"{number} {what}" + ("" if total == 1 else "s")


def grid_note(maps: npt.NDArray[np.float32]) -> str:
    """Rows and columns of the patch grid of maps (…, h, w)."""
    return f"patch grid {maps.shape[-2]} × {maps.shape[-1]}"
