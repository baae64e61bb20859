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
from lightning_attngrad.reporting.page import MARGIN, NOTE_SIZE, TEXT_SIZE, house_style, least_width
from lightning_attngrad.reporting.style import INK, PLAIN, SOFT_INK, WRONG_INK, FigureStyle
from lightning_attngrad.reporting.text import text_width, with_minus, wrapped

__all__ = ["RewriteCaption", "amplification", "class_matrix", "rewrite_panels", "success_curves"]

_SHARE = ColourScale("share")
_MOST_ROWS = 16
_GAP, _GROUP_GAP, _ROW_GAP = 0.06, 0.14, 0.14
_LINE = 0.175
_LABEL_LINE = 0.16
_LEAST_WORDS, _MOST_WORDS = 1.45, 2.2  # room for a caption
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
    style: FigureStyle = PLAIN,
) -> Figure:
    """One row an image and target: original, difference, rewritten, the maps before and after, and the words.

    On a page that is too narrow for it the maps and the words are a second line of the row.

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
        style: How it looks.

    Returns:
        The figure; draw it with `reporting.canvas.figure_to_array`.

    Raises:
        ValueError: Where shapes or counts do not fit each other.

    Example:
        >>> caption = RewriteCaption("cat", 0.9, "dog", 0.6, "dog", True, "L∞ 2.3/255", 41.2)
        >>> images, maps = np.zeros((1, 3, 8, 8)), np.ones((1, 2, 2))
        >>> figure = rewrite_panels(images, images + 0.01, maps, maps, [caption], title="epoch 1")
        >>> [round(float(inches), 1) for inches in figure.get_size_inches()]
        [5.0, 4.6]
    """
    images, changed = _checked_pairs(original, rewritten)
    maps = _checked_maps_of_pairs(maps_before, maps_after, images)
    check_count("captions", captions, len(images))

    seen = [_stretched(pictures, limits) for pictures in (images, changed)]
    shown = min(len(images), _MOST_ROWS)
    if maps:
        of_pairs, scale = scale.in_style(np.stack(maps, axis=1), style)
        maps = (of_pairs[:, 0], of_pairs[:, 1])
    amplified = [_amplified(images[row], changed[row]) for row in range(shown)]
    place = _placed(images[:shown], [label for _, label in amplified], captions[:shown], maps=bool(maps), style=style)
    notes = [counted(shown, len(images), "image–target pair"), *([grid_note(maps[0])] if maps else [])]
    heads = ["original", "", "rewritten", *(["map before", "map after"] if maps else [])]
    with house_style():
        canvas = Canvas(
            place.page,
            shown * (place.height + _ROW_GAP) + MARGIN / 2,
            title=title,
            notes=" · ".join(notes),
            scale=scale if maps else None,
            blended=True,
            shown_as=shown_as,
            style=style,
        )
        for row in range(shown):
            top = canvas.top + row * (place.height + _ROW_GAP)
            tiles = [(left, top + below, *place.tile) for left, below in place.corners]
            difference, label = amplified[row]
            canvas.image(seen[0][row], *tiles[0])
            _draw_difference(canvas, images[row], difference, tiles[1])
            canvas.image(seen[1][row], *tiles[2])
            for picture, heatmap, tile in zip(seen, maps, tiles[3:], strict=False):
                canvas.map(picture[row], heatmap[row], *tile)
            # Where a row is one line, the heads of the first one are those of all.
            said = (
                [heads[0], label, *heads[2:]]
                if row == 0 or not place.in_one_line
                else ["", label, *[""] * (len(heads) - 2)]
            )
            for (left, above, width, _), head in zip(tiles, said, strict=True):
                canvas.write(left + width / 2, above - _LINE / 2, head, width=place.column, align="center")
            words, first = place.words
            high = _height(captions[row], place.room) if place.below else place.height - first
            _write_caption(canvas, captions[row], words, top + first + high / 2, place.room)
    return canvas


@dataclass(frozen=True)
class _Placed:
    """Where the parts of a row lie, in inches from its top left corner of the page.

    Attributes:
        page: Width of the page.
        tile: Width and height of a picture.
        column: Room for its head.
        corners: Left and top of each picture.
        words: Left and top of the room for words.
        below: Whether they stand below the pictures, from the top; else in the middle of the room.
        room: Their width.
        height: Of the row.
        in_one_line: Whether all of a row stand beside each other.
    """

    page: float
    tile: tuple[float, float]
    column: float
    corners: list[tuple[float, float]]
    words: tuple[float, float]
    below: bool
    room: float
    height: float
    in_one_line: bool


def _placed(
    images: Array, labels: Sequence[str], captions: Sequence[RewriteCaption], *, maps: bool, style: FigureStyle
) -> _Placed:
    """All in one line where the page is wide enough, else three pictures in the first line and the rest below."""
    heads = max(text_width(label, TEXT_SIZE) for label in ("map before", *labels)) + 0.02  # a factor is never cut
    count = 5 if maps else 3
    largest = style.image_size or (1.5 if len(images) <= 5 else 1.05)
    taken = 2 * MARGIN + (count - 1) * _GAP + 2 * _GROUP_GAP + _LEAST_WORDS
    in_one_line = style.width >= taken + count * max(largest, heads)
    in_line = count if in_one_line else 3
    if not (in_one_line or style.image_size):
        largest = min(largest, (style.width - 2 * MARGIN - 2 * _GAP - 0.2) / 3)  # room beside two maps for the words
    width, height = tile_size(images, largest, largest, style=style)
    column = max(width, heads)
    line = height + _LINE + _GAP
    corners = []
    for index in range(count):
        left = MARGIN + index % in_line * (column + _GAP) + (_GROUP_GAP - _GAP) * (in_one_line and index > 2)
        corners.append((left + (column - width) / 2, _LINE + index // in_line * line))
    if in_one_line:
        words, first = corners[-1][0] + (column + width) / 2 + _GROUP_GAP, _LINE
    elif maps:
        words, first = MARGIN + 2 * (column + _GAP) + 0.04, _LINE + line
    else:
        words, first = MARGIN, line
    room = max(_LEAST_WORDS, min(_MOST_WORDS, style.width - words - MARGIN))
    page = max(least_width(style), words + room + MARGIN, corners[2][0] + width + MARGIN)
    room = page - words - MARGIN
    said = max(_height(caption, room) for caption in captions)
    row = first + (said if words == MARGIN else max(height, said))
    if in_one_line:
        corners = [(left, _LINE + (row - _LINE - height) / 2) for left, _ in corners]
    return _Placed(
        page=page,
        tile=(width, height),
        column=column,
        corners=corners,
        words=(words, first),
        below=not (in_one_line or maps),
        room=room,
        height=row,
        in_one_line=in_one_line,
    )


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


def _lines(caption: RewriteCaption) -> list[tuple[str, str]]:
    """What is said of both predictions, and of the target where they do not say it: what it is, and the name."""
    lines = [
        (what if number is None else f"{what}, {probability_text(number)}", name)
        for what, name, number in (
            ("before", caption.before, caption.before_probability),
            ("→ after", caption.after, caption.after_probability),
        )
    ]
    return lines if caption.after == caption.target else [*lines, ("target", caption.target)]


def _measured(caption: RewriteCaption) -> list[str]:
    how_far = caption.distance if caption.success else "best attempt shown"
    return [how_far] if caption.psnr is None else [how_far, f"PSNR {_decibels(caption.psnr)}"]


def _height(caption: RewriteCaption, room: float) -> float:
    single = 1 + len(_measured(caption)) + len(_note(caption, room))
    return _LINE * single + (_LINE + _LABEL_LINE) * len(_lines(caption))


def _note(caption: RewriteCaption, room: float) -> list[str]:
    return wrapped(caption.note, room, TEXT_SIZE, bold=True, at=", ") if caption.note else []


def _write_caption(canvas: Canvas, caption: RewriteCaption, x: float, middle: float, room: float) -> None:
    """Beside a row: whether it was rewritten, how far, both predictions, the target, and what to beware of."""
    y = middle - _height(caption, room) / 2 + _LINE / 2
    ink = INK if caption.success else WRONG_INK
    canvas.write(x, y, caption.verdict, width=room, bold=True, colour=ink)
    for said in _measured(caption):
        y += _LINE
        canvas.write(x, y, said, width=room, size=NOTE_SIZE)
    for what, name in _lines(caption):
        y += _LINE
        canvas.write(x, y, what, width=room, size=NOTE_SIZE - 0.5, colour=SOFT_INK)
        y += _LABEL_LINE
        canvas.write(x, y, name, width=room, bold=True)
    for said in _note(caption, room):
        y += _LINE
        canvas.write(x, y, said, width=room, bold=True, colour=WRONG_INK)


def _decibels(psnr: float) -> str:
    if math.isnan(psnr):
        return "not finite"
    return with_minus(f"{psnr:.1f} dB") if math.isfinite(psnr) else "∞ dB"
