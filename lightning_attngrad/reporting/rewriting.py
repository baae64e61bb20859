"""Figures of class rewriting: what was changed in an image, and what the model then said.

The figures of many pairs of an image and a target, `success_curves` and `class_matrix`, lie in files of their own and
are named here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from lightning_attngrad.reporting.arrays import (
    Array,
    ArrayLike,
    as_array,
    check_count,
    checked_images,
    checked_maps,
)
from lightning_attngrad.reporting.canvas import Canvas, tile_size
from lightning_attngrad.reporting.captions import counted, grid_note, probability_text
from lightning_attngrad.reporting.class_matrix import class_matrix
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.curves import success_curves
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

__all__ = ["RewriteCaption", "amplification", "class_matrix", "rewrite_panels", "success_curves"]

_SHARE = ColourScale("share")
_MOST_ROWS = 16
_GAP, _GROUP_GAP, _ROW_GAP = 0.06, 0.14, 0.14
_LINE = 0.175
_MOST_LINES = 7  # of a caption
_LABEL_ROOM, _CAPTION_ROOM = 0.58, 2.95
# A half as well: differences go up to 1, and only then do all of them fit around the middle grey.
_FACTORS = (0.5, *(float(step * 10**power) for power in range(4) for step in (1, 2, 5)))
_SLACK = 1e-4  # of a grey value, far below 1/255: 0.05 in float32 is a little more than 0.05


@dataclass(frozen=True)
class RewriteCaption:
    """What the model said of an image before and after it was rewritten.

    Attributes:
        before: Name of the class predicted for the original.
        before_probability: Of that class, in [0, 1]; None for several labels.
        after: Name of the class predicted for the rewritten image.
        after_probability: Of that class, in [0, 1]; None for several labels.
        target: Name of the class that was asked for.
        success: Whether the rewritten image is predicted as the target.
        distance: Ready to read, such as "L∞ 2.3/255".
        psnr: In decibels, ∞ for equal images; None where it is not given.
        note: What a reader must know before the pair is believed, such as "unconverged"; else empty.
    """

    before: str
    before_probability: float | None
    after: str
    after_probability: float | None
    target: str
    success: bool
    distance: str
    psnr: float | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Success in a word and in a sign of its own shape, so that colour is not needed."""
        return "✓ rewritten" if self.success else "✗ not rewritten"


def amplification(largest: float) -> float:
    """The factor that makes a difference visible: the largest of a fixed ladder with which it still fits.

    Differences are drawn as ``0.5 + factor · difference``. The ladder is 0.5, 1, 2, 5, 10, … 5000, so that
    equal factors are met again with other images and in other epochs.

    Args:
        largest: Largest absolute difference of an image, in [0, 1]; 0 gives the end of the ladder.

    Returns:
        The factor.

    Example:
        >>> [amplification(value) for value in (1.0, 0.3, 8 / 255, 0.01, 0.0)]
        [0.5, 1.0, 10.0, 50.0, 5000.0]
    """
    return max(factor for factor in _FACTORS if factor * largest <= 0.5 + _SLACK)


def rewrite_panels(
    original: ArrayLike,
    rewritten: ArrayLike,
    maps_before: ArrayLike | None,
    maps_after: ArrayLike | None,
    captions: Sequence[RewriteCaption],
    *,
    title: str,
    scale: ColourScale = _SHARE,
    limits: ArrayLike | None = None,
    shown_as: str = "",
) -> Figure:
    """One row an image and target: original, difference, rewritten, the maps before and after, and the words.

    The difference is signed and amplified around a middle grey, which is no change; the factor of the row,
    chosen by `amplification`, stands above it. Of more than 16 pairs the first 16 are shown, and the figure
    says so. One that failed shows its best attempt, and says "not rewritten".

    Args:
        original: (N, 3, H, W) or (N, 1, H, W) images in [0, 1].
        rewritten: The same shape; of a failed pair, the best attempt.
        maps_before: (N, h, w) maps of the originals, in times the uniform share; None where there are none, and rows
            end with the rewritten images.
        maps_after: (N, h, w) maps of the rewritten images, in times the uniform share; None likewise.
        captions: N captions.
        title: Head of the figure.
        scale: The colour scale of the maps, the same for every figure that is to be compared.
        limits: (N, 2) the values of each pair that its images show as black and white; None are 0 and 1. Differences
            are of the values themselves.
        shown_as: What was done to the images so that they can be seen, for the head; empty where nothing was.

    Returns:
        The figure; draw it with `reporting.canvas.figure_to_array`.

    Raises:
        ValueError: Where shapes or counts do not fit each other.

    Example:
        >>> caption = RewriteCaption("cat", 0.9, "dog", 0.6, "dog", True, "L∞ 2.3/255", 41.2)
        >>> images, maps = np.zeros((1, 3, 8, 8)), np.ones((1, 2, 2))
        >>> figure = rewrite_panels(images, images + 0.01, maps, maps, [caption], title="epoch 1")
        >>> [round(float(inches), 1) for inches in figure.get_size_inches()]
        [11.1, 2.7]
    """
    images, changed = _checked_pairs(original, rewritten)
    maps = _checked_maps_of_pairs(maps_before, maps_after, images)
    check_count("captions", captions, len(images))

    seen = [_stretched(pictures, limits) for pictures in (images, changed)]
    shown = min(len(images), _MOST_ROWS)
    amplified = [_amplified(images[row], changed[row]) for row in range(shown)]
    largest = 1.5 if shown <= 5 else 1.05
    width, height = tile_size(images, largest, largest)
    labels = ("map before", *(label for _, label in amplified))
    column = max(width, *(text_width(label, TEXT_SIZE) + 0.02 for label in labels))  # a factor is never cut
    pitch = max(height + _LINE, _MOST_LINES * _LINE) + _ROW_GAP
    heads = ["original", "", "rewritten", *(["map before", "map after"] if maps else [])]
    lefts = [MARGIN + index * (column + _GAP) + (_GROUP_GAP - _GAP) * (index > 2) for index in range(len(heads))]
    words = lefts[-1] + column + _GROUP_GAP
    notes = [counted(shown, len(images), "image–target pair"), *([grid_note(maps[0])] if maps else [])]
    with house_style():
        canvas = Canvas(
            max(NARROWEST, words + _CAPTION_ROOM + MARGIN),
            HEADER_HEIGHT + shown * pitch + MARGIN / 2,
            title=title,
            notes=" · ".join(notes),
            scale=scale if maps else None,
            blended=True,
            shown_as=shown_as,
        )
        for row in range(shown):
            # The head of a row's difference stands in the room above its tiles.
            middle = HEADER_HEIGHT + row * pitch + (pitch - _ROW_GAP + _LINE) / 2
            top = middle - height / 2
            tiles = [(left + (column - width) / 2, top, width, height) for left in lefts]
            difference, label = amplified[row]
            canvas.image(seen[0][row], *tiles[0])
            _draw_difference(canvas, images[row], difference, tiles[1])
            canvas.image(seen[1][row], *tiles[2])
            for picture, heatmap, tile in zip(seen, maps, tiles[3:], strict=False):
                canvas.map(picture[row], heatmap[row], *tile)
            for index, head in enumerate([heads[0], label, *heads[2:]] if row == 0 else ["", label]):
                canvas.write(lefts[index] + column / 2, top - _LINE / 2, head, width=column, align="center")
            _write_caption(canvas, captions[row], words, middle)
    return canvas


def _checked_pairs(original: ArrayLike, rewritten: ArrayLike) -> tuple[Array, Array]:
    """Images before and after, as arrays of one shape, or a ValueError."""
    images, changed = checked_images(original), as_array(rewritten)
    if changed.shape != images.shape:
        raise ValueError(f"rewritten: got shape {changed.shape}; expected {images.shape}, the shape of original")
    return images, changed


def _checked_maps_of_pairs(before: ArrayLike | None, after: ArrayLike | None, images: Array) -> tuple[Array, ...]:
    """The maps of both, as arrays of one shape; () without any; or a ValueError."""
    if before is None and after is None:
        return ()
    if before is None or after is None:
        name = "maps_before" if before is None else "maps_after"
        raise ValueError(f"{name}: got None; expected maps (N, h, w), or None for both")
    first = checked_maps("maps_before", before, images, dimensions=3)
    second = checked_maps("maps_after", after, images, dimensions=3)
    if first.shape != second.shape:
        raise ValueError(f"maps_after: got shape {second.shape}; expected {first.shape}, the shape of maps_before")
    return first, second


def _stretched(images: Array, limits: ArrayLike | None) -> Array:
    """Images (N, C, H, W) with the first limit of each as black and the second as white."""
    if limits is None:
        return images
    ends = as_array(limits)
    if ends.shape != (len(images), 2):
        raise ValueError(f"limits: got shape {ends.shape}; expected {(len(images), 2)}, black and white of each pair")
    low, high = (ends[:, end, None, None, None] for end in (0, 1))
    return np.clip((images - low) / (high - low), 0.0, 1.0)


def _amplified(original: Array, rewritten: Array) -> tuple[Array, str]:
    """The picture of a difference (C, H, W) and its label; the picture is not finite where an image is not."""
    difference = np.clip(rewritten, 0.0, 1.0) - np.clip(original, 0.0, 1.0)  # as far as the tiles beside it show it
    largest = float(np.abs(difference).max())
    if not math.isfinite(largest):
        return difference, "difference"
    factor = amplification(largest)
    return 0.5 + factor * difference, "no difference" if largest == 0 else f"difference ×{factor:g}"


def _draw_difference(
    canvas: Canvas, original: Array, difference: Array, tile: tuple[float, float, float, float]
) -> None:
    if np.isfinite(difference).all():
        canvas.image(difference, *tile)
    else:  # hatched, as a map is
        canvas.map(original, difference[0], *tile)


def _write_caption(canvas: Canvas, caption: RewriteCaption, x: float, middle: float) -> None:
    """Beside a row: whether it was rewritten, both predictions, the target, how far, and what to beware of."""
    lines = [("before", caption.before, caption.before_probability)]
    lines.append(("→ after", caption.after, caption.after_probability))
    values = [("target", caption.target), ("distance", caption.distance)]
    if caption.psnr is not None:
        values.append(("PSNR", _decibels(caption.psnr)))
    count = 1 + len(lines) + len(values) + bool(caption.note)
    y = middle - (count - 1) / 2 * _LINE

    ink = INK if caption.success else WRONG_INK
    canvas.write(x, y, caption.verdict, width=_CAPTION_ROOM, bold=True, colour=ink)
    if not caption.success:
        beside = text_width(caption.verdict, TEXT_SIZE, bold=True) + 0.1
        room = _CAPTION_ROOM - beside
        canvas.write(x + beside, y, "best attempt shown", width=room, size=NOTE_SIZE, colour=SOFT_INK)
    for what, name, probability in lines:
        y += _LINE
        number = "" if probability is None else probability_text(probability)
        # The name is cut, never the number behind it.
        room = _CAPTION_ROOM - _LABEL_ROOM - text_width(number, NOTE_SIZE) - 0.08
        shown = fit_text(name, room, TEXT_SIZE, bold=True)
        behind = x + _LABEL_ROOM + (text_width(shown, TEXT_SIZE, bold=True) + 0.08 if shown else 0.0)
        _write_label(canvas, what, x, y)
        canvas.write(x + _LABEL_ROOM, y, shown, width=room, bold=True)
        canvas.write(behind, y, number, width=_CAPTION_ROOM, size=NOTE_SIZE, colour=SOFT_INK)
    for what, value in values:
        y += _LINE
        _write_label(canvas, what, x, y)
        canvas.write(x + _LABEL_ROOM, y, value, width=_CAPTION_ROOM - _LABEL_ROOM)
    if caption.note:
        canvas.write(x, y + _LINE, caption.note, width=_CAPTION_ROOM, bold=True, colour=WRONG_INK)


def _write_label(canvas: Canvas, what: str, x: float, y: float) -> None:
    canvas.write(x, y, what, width=_LABEL_ROOM, size=NOTE_SIZE - 0.5, colour=SOFT_INK)


def _decibels(psnr: float) -> str:
    if math.isnan(psnr):
        return "not finite"
    return f"{psnr:.1f} dB" if math.isfinite(psnr) else "∞ dB"
