"""The words in figures: what a model said of an image, and short names of layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NUMBERED = re.compile(r"(?:\w*(?:layer|block|stage)s?_?)?(\d+)")  # "3", "encoder_layer_3", "layer3"; not "vit_b_16"


@dataclass(frozen=True)
class Caption:
    """What the model said of an image.

    Attributes:
        predicted: Name of the predicted class; of several labels those that are predicted to be there.
        probability: Of the predicted class, in [0, 1], or of each label; None where the model's output is no
            probability.
        true: Name of the true class, or of all true labels, where they are known.
        true_probability: The model's probability of the true class, or of each label, where it is known.
        mapped: Name of the class that the map is of, where the true class does not say it.
        what: What ``predicted`` is, where it is a number of something else than a class of the image.

    Example:
        >>> Caption("cat", 0.9, "cat", 0.9).verdict
        '✓ cat (0.90)'
        >>> Caption(("0",), (0.9,), ("0", "1"), (0.9, 0.59)).lines
        [('predicted: 1 of 2, p = 0.90', '◐ label 0'), ('true', 'label 0 (0.90), label 1 (0.59)')]
    """

    predicted: str | Sequence[str]
    probability: float | Sequence[float] | None
    true: str | Sequence[str] | None = None
    true_probability: float | Sequence[float] | None = None
    mapped: str = ""
    what: str = "predicted"

    @property
    def correct(self) -> bool | None:
        """Whether the prediction is right; None where the true class is not known."""
        return None if self.true is None else set(_names(self.predicted)) == set(_names(self.true))

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What is to be said, the prediction first: what it is, with the probability of one class, and the names."""
        said = [self._line(f"{self.what}{self._found}", self.predicted, self.probability, self.mark)]
        if self.true is not None:
            said.append(self._line("true", self.true, self.true_probability))
        return [*said, ("the map is of", self.mapped)] if self.mapped else said

    @property
    def subject(self) -> str:
        """What the map is of, where that has to be said."""
        return self.mapped or (self.what if self.what != "predicted" else "")

    @property
    def true_names(self) -> str:
        """The true class or labels in one line."""
        return "" if self.true is None else ", ".join(_names(self.true))

    @property
    def mark(self) -> str:
        """A sign of its own shape for right, wrong and in part right, so that colour is not needed; else empty."""
        if self.correct is False and set(_names(self.predicted)) & set(_names(self.true)):
            return "◐"
        return {True: "✓", False: "✗", None: ""}[self.correct]

    @property
    def _found(self) -> str:
        """Of several labels, how many are right: one that is there may be missed, and another be predicted beside."""
        predicted, true = ({*_names(names)} - {"none"} for names in (self.predicted, self.true))
        if self.correct is not False or (len(predicted) < 2 and len(true) < 2):
            return ""
        wrong = len(predicted - true)
        return f": {len(predicted & true)} of {len(true)}" + (f", {wrong} wrong" if wrong else "")

    @property
    def verdict(self) -> str:
        """One short line; what is too long is cut in its middle, so that the number at its end is read."""
        names, numbers = self._called(self.predicted), _numbers(self.probability)
        if len(names) == len(numbers):
            names = tuple(map(_with_number, names, numbers))
        return f"{self.mark} {', '.join(names)}".strip()

    def _called(self, given: str | Sequence[str] | None) -> tuple[str, ...]:
        """Names; a label that is a number has a word before it where there are several, or it looks like a count."""
        several = max(len(_names(self.predicted)), len(_names(self.true))) > 1
        return tuple(f"label {name}" if several and name.isdigit() else name for name in _names(given))

    def _line(
        self, what: str, given: str | Sequence[str] | None, probability: float | Sequence[float] | None, mark: str = ""
    ) -> tuple[str, str]:
        """One class has its probability beside what it is, of several labels each has its own behind its name."""
        names, numbers = self._called(given), _numbers(probability)
        if len(names) == len(numbers) == 1:
            return f"{what}, {probability_text(numbers[0])}", f"{mark} {names[0]}".strip()
        if numbers:
            names = tuple(map(_with_number, names, numbers))
        return what, f"{mark} {', '.join(names)}".strip()


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One or several as several."""
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def _numbers(given: float | Sequence[float] | None) -> tuple[float, ...]:
    """Likewise."""
    return () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)


def _with_number(name: str, probability: float) -> str:
    return f"{name} ({probability_text(probability).removeprefix('p = ')})"


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
