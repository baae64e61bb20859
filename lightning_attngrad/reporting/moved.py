"""The figure of the images whose maps have moved most: where the model looked, and where it looks now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lightning_attngrad.reporting.arrays import ArrayLike, check_count, checked_images, checked_maps
from lightning_attngrad.reporting.canvas import Canvas, tile_size
from lightning_attngrad.reporting.captions import counted, grid_note, probability_text
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.page import (
    HEADER_HEIGHT,
    INK,
    MARGIN,
    NARROWEST,
    NOTE_SIZE,
    SOFT_INK,
    TEXT_SIZE,
    WRONG_INK,
    house_style,
)
from lightning_attngrad.reporting.text import fit_text, text_width

_SHARE = ColourScale("share")
_MOST_ROWS = 16
_GAP, _ROW_GAP = 0.06, 0.14
_LINE = 0.185
_LABEL_ROOM, _CAPTION_ROOM = 0.52, 2.6


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
    largest = 1.5 if shown <= 5 else 1.2
    width, height = tile_size(pictures, largest, largest)
    column = max(width, *(text_width(head, TEXT_SIZE) + 0.02 for head in ("reference", "now")))
    lines = max(_line_count(caption) for caption in captions[:shown])
    pitch = max(height, lines * _LINE) + _ROW_GAP
    lefts = [MARGIN + index * (column + _GAP) for index in range(3)]
    words = lefts[-1] + column + 0.14
    page = max(NARROWEST, words + _CAPTION_ROOM + MARGIN)
    with house_style():
        canvas = Canvas(
            page,
            HEADER_HEIGHT + _LINE + shown * pitch + MARGIN / 2,
            title=title,
            notes=" · ".join([counted(shown, total, "image"), grid_note(then), "drift: 1 − rank correlation"]),
            scale=scale,
            blended=True,
            shown_as=shown_as,
        )
        for left, head in zip(lefts, ("image", "reference", "now"), strict=True):
            canvas.write(left + column / 2, HEADER_HEIGHT + _LINE / 2, head, width=column, align="center")
        for row in range(shown):
            middle = HEADER_HEIGHT + _LINE + row * pitch + (pitch - _ROW_GAP) / 2
            tiles = [(left + (column - width) / 2, middle - height / 2, width, height) for left in lefts]
            canvas.image(pictures[row], *tiles[0])
            canvas.map(pictures[row], then[row], *tiles[1])
            canvas.map(pictures[row], now[row], *tiles[2])
            _write_caption(canvas, captions[row], words, middle, page - words - MARGIN)
    return canvas


def _line_count(caption: MovedCaption) -> int:
    return 1 + bool(caption.in_noise) + 2 * (caption.before is not None) + (caption.true is not None)


def _write_caption(canvas: Canvas, caption: MovedCaption, x: float, middle: float, room: float) -> None:
    """How far, in units of noise, and both predictions; a mark, not only a colour, says that it flipped."""
    y = middle - (_line_count(caption) - 1) / 2 * _LINE
    canvas.write(x, y, caption.verdict, width=room, bold=True)
    if caption.in_noise:
        y += _LINE
        canvas.write(x, y, caption.in_noise, width=room, size=NOTE_SIZE, colour=SOFT_INK)
    rows: list[tuple[str, str | None, float | None, str]] = []
    if caption.before is not None:
        flipped = caption.before != caption.after
        rows.append(("then", caption.before, caption.before_probability, INK))
        rows.append(
            ("⇄ now" if flipped else "now", caption.after, caption.after_probability, WRONG_INK if flipped else INK)
        )
    if caption.true is not None:
        rows.append(("true", caption.true, None, INK))
    for what, name, probability, colour in rows:
        y += _LINE
        number = "" if probability is None else probability_text(probability)
        # The name is cut, never the number behind it.
        place = room - _LABEL_ROOM - text_width(number, NOTE_SIZE) - 0.08
        written = fit_text(name or "", place, TEXT_SIZE, bold=what != "true")
        canvas.write(x, y, what, width=_LABEL_ROOM, size=NOTE_SIZE - 0.5, colour=SOFT_INK)
        canvas.write(x + _LABEL_ROOM, y, written, width=place, bold=what != "true", colour=colour)
        behind = x + _LABEL_ROOM + text_width(written, TEXT_SIZE, bold=True) + 0.08
        canvas.write(behind, y, number, width=room, size=NOTE_SIZE, colour=SOFT_INK)
