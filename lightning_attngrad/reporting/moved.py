"""The figure of the images whose maps have moved most: where the model looked, and where it looks now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from lightning_attngrad.reporting.arrays import Array, ArrayLike, check_count, checked_images, checked_maps
from lightning_attngrad.reporting.canvas import Canvas, tile_size
from lightning_attngrad.reporting.captions import counted, grid_note, probability_text
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.page import MARGIN, NOTE_SIZE, TEXT_SIZE, house_style, least_width
from lightning_attngrad.reporting.style import INK, PLAIN, SOFT_INK, WRONG_INK, FigureStyle
from lightning_attngrad.reporting.text import text_width

_SHARE = ColourScale("share")
_MOST_ROWS = 16
_GAP, _ROW_GAP = 0.06, 0.14
_LINE, _LABEL_LINE = 0.185, 0.165
_LEAST_WORDS, _MOST_WORDS, _BESIDE = 1.5, 2.2, 0.14


@dataclass(frozen=True)
class MovedCaption:
    """What is to be said of a map that has moved.

    Attributes:
        drift: Spearman distance of the two maps, 0 … 2; NaN where one of them has no order.
        floor: The same distance of the maps of the image and of its jittered copies.
        before: Name of the class predicted at the reference; None where there are no classes.
        before_probability: Of that class, in [0, 1].
        after: Name of the class predicted now.
        after_probability: Of that class, in [0, 1].
        true: Name of the true class, where it is known.
    """

    drift: float
    floor: float
    before: str | None = None
    before_probability: float | None = None
    after: str | None = None
    after_probability: float | None = None
    true: str | None = None

    @property
    def verdict(self) -> str:
        """How far the map moved."""
        return f"drift {self.drift:.2f}" if math.isfinite(self.drift) else "no map to compare"

    @property
    def in_noise(self) -> str:
        """The same in units of the noise floor; empty where that says nothing."""
        if not (math.isfinite(self.drift) and math.isfinite(self.floor)):
            return ""
        return f"{self.drift / self.floor:.1f} × noise ({self.floor:.2g})" if self.floor > 0 else "noise: 0"


def moved_most(
    pixels: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    captions: Sequence[MovedCaption],
    *,
    title: str,
    images: int | None = None,
    scale: ColourScale = _SHARE,
    shown_as: str = "",
    style: FigureStyle = PLAIN,
) -> Figure:
    """One row an image: the image, its map at the reference, its map now, and what was predicted.

    Of more than 16 images the first 16 are shown.

    Args:
        pixels: (N, 3, H, W) or (N, 1, H, W) images in [0, 1], the one that moved most first.
        before: (N, h, w) maps at the reference, in times the uniform share.
        after: (N, h, w) maps of now.
        captions: N captions.
        title: Head of the figure.
        images: How many images these were chosen from; None if they are all.
        scale: The colour scale, the same for every figure that is to be compared.
        shown_as: What was done to the images so that they can be seen, for the head; empty where nothing was.
        style: How it looks.

    Returns:
        The figure; draw it with `reporting.canvas.figure_to_array`.

    Raises:
        ValueError: Where shapes or counts do not fit each other.

    Example:
        >>> import torch
        >>> caption = MovedCaption(0.42, 0.05, "cat", 0.9, "dog", 0.6, "cat")
        >>> maps = torch.ones(1, 2, 2)
        >>> figure = moved_most(torch.zeros(1, 3, 8, 8), maps, maps, [caption], title="epoch 1")
        >>> caption.verdict, caption.in_noise
        ('drift 0.42', '8.4 × noise (0.05)')
    """
    pictures = checked_images(pixels)
    then = checked_maps("before", before, pictures, dimensions=3)
    now = checked_maps("after", after, pictures, dimensions=3)
    if then.shape != now.shape:
        raise ValueError(f"after: got shape {now.shape}; expected {then.shape}, the shape of before")
    check_count("captions", captions, len(pictures))
    total = len(pictures) if images is None else images

    shown = min(len(pictures), _MOST_ROWS)
    (then, now), scale = _in_style(then, now, scale, style)
    room = (style.width - 2 * MARGIN - 2 * _GAP - _BESIDE - _LEAST_WORDS) / 3
    largest = style.image_size or (1.5 if shown <= 5 else 1.2)
    width, height = tile_size(pictures, largest if style.image_size else min(room, largest), largest, style=style)
    column = max(width, *(text_width(head, TEXT_SIZE) + 0.02 for head in ("reference", "now")))
    pitch = max(height, *(_height(caption) for caption in captions[:shown])) + _ROW_GAP
    lefts = [MARGIN + index * (column + _GAP) for index in range(3)]
    words = lefts[-1] + column + _BESIDE
    page = max(least_width(style), words + min(_MOST_WORDS, max(_LEAST_WORDS, style.width - words - MARGIN)) + MARGIN)
    with house_style():
        canvas = Canvas(
            page,
            _LINE + shown * pitch + MARGIN / 2,
            title=title,
            notes=" · ".join([counted(shown, total, "image"), grid_note(then), "drift: 1 − rank correlation"]),
            scale=scale,
            blended=True,
            shown_as=shown_as,
            style=style,
        )
        for left, head in zip(lefts, ("image", "reference", "now"), strict=True):
            canvas.write(left + column / 2, canvas.top + _LINE / 2, head, width=column, align="center")
        for row in range(shown):
            middle = canvas.top + _LINE + row * pitch + (pitch - _ROW_GAP) / 2
            tiles = [(left + (column - width) / 2, middle - height / 2, width, height) for left in lefts]
            canvas.image(pictures[row], *tiles[0])
            canvas.map(pictures[row], then[row], *tiles[1])
            canvas.map(pictures[row], now[row], *tiles[2])
            _write_caption(canvas, captions[row], words, middle, page - words - MARGIN)
    return canvas


def _in_style(then: Array, now: Array, scale: ColourScale, style: FigureStyle) -> tuple[Array, ColourScale]:
    """Both maps of each image (2, N, h, w) on one scale."""
    maps, scale = scale.in_style(np.stack([then, now], axis=1), style)
    return maps.swapaxes(0, 1), scale


def _lines(caption: MovedCaption) -> list[tuple[str, str, bool, str]]:
    """What is said of both predictions: what it is, the name, whether that is bold, and its colour."""
    lines = []
    if caption.before is not None:
        flipped = caption.before != caption.after
        before, after = (
            "" if number is None else f", {probability_text(number)}"
            for number in (caption.before_probability, caption.after_probability)
        )
        if flipped:
            lines.append((f"then{before}", caption.before, True, INK))
            lines.append((f"⇄ now{after}", caption.after or "", True, WRONG_INK))
        else:
            lines.append((f"then{before}", "", True, INK))
            lines.append((f"now{after}", caption.before, True, INK))
    if caption.true is not None:
        lines.append(("true", caption.true, False, INK))
    return lines


def _height(caption: MovedCaption) -> float:
    said = _lines(caption)
    return (
        _LINE * (1 + bool(caption.in_noise))
        + _LABEL_LINE * len(said)
        + _LINE * sum(bool(name) for _, name, _, _ in said)
    )


def _write_caption(canvas: Canvas, caption: MovedCaption, x: float, middle: float, room: float) -> None:
    """How far, in units of noise, and both predictions; a mark, not only a colour, says that it flipped."""
    y = middle - _height(caption) / 2 + _LINE / 2
    canvas.write(x, y, caption.verdict, width=room, bold=True)
    if caption.in_noise:
        y += _LINE
        canvas.write(x, y, caption.in_noise, width=room, size=NOTE_SIZE, colour=SOFT_INK)
    for what, name, bold, colour in _lines(caption):
        y += _LINE
        canvas.write(x, y, what, width=room, size=NOTE_SIZE - 0.5, colour=SOFT_INK)
        if name:
            y += _LABEL_LINE
            canvas.write(x, y, name, width=room, bold=bold, colour=colour)
