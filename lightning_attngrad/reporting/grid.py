"""The figure of where a model looks on each of some images, and what it predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lightning_attngrad.reporting.arrays import (
    Array,
    ArrayLike,
    check_count,
    checked_images,
    checked_maps,
    checked_masks,
)
from lightning_attngrad.reporting.canvas import Canvas, tile_size
from lightning_attngrad.reporting.captions import Caption, counted, grid_note
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.page import MARGIN, NOTE_SIZE, TEXT_SIZE, house_style, least_width
from lightning_attngrad.reporting.style import INK, PLAIN, SOFT_INK, WRONG_INK, FigureStyle
from lightning_attngrad.reporting.text import wrapped

_SHARE = ColourScale("share")
_MOST_IMAGES = 64  # beyond it the figure says how many it shows
_MOST_BESIDE = 12  # images with words beside them; of more, they stand below
_LARGEST_TILE, _LARGEST_OF_FEW = 1.5, 2.1  # in inches
_PAIR_OF_MANY = 1.42
_WIDE = 1.8  # width of an image over its height, from which on its map lies below it
_LEAST_WORDS, _MOST_WORDS = 1.29, 3.0  # room beside an image
_GAP, _ROW_GAP, _LINE, _BESIDE = 0.06, 0.14, 0.19, 0.12


def map_grid(
    pixels: ArrayLike,
    heatmaps: ArrayLike,
    captions: Sequence[Caption],
    *,
    title: str,
    scale: ColourScale = _SHARE,
    masks: ArrayLike | None = None,
    shown_as: str = "",
    style: FigureStyle = PLAIN,
) -> Figure:
    """Images, their maps on them, and what was predicted.

    The words stand beside an image and its map, and the map below an image that is much wider than high. Of more than
    12 images they are short, below smaller tiles. Of more than 64 images the first 64 are shown, and the figure says
    so.

    Args:
        pixels: (N, 3, H, W) or (N, 1, H, W) images in [0, 1].
        heatmaps: (N, h, w) in times the uniform share.
        captions: N captions.
        title: Head of the figure.
        scale: The colour scale, the same for every figure that is to be compared.
        masks: (N, H, W) in [0, 1], 1 on the object; its outline is drawn over the map.
        shown_as: What was done to the images so that they can be seen, for the head; empty where nothing was.
        style: How it looks.

    Returns:
        The figure; draw it with `figure_to_array`.

    Raises:
        ValueError: Where shapes or counts do not fit each other.

    Example:
        >>> import numpy as np
        >>> from lightning_attngrad.reporting.canvas import figure_to_array
        >>> captions = [Caption("cat", 0.9, "cat", 0.9)]
        >>> figure = map_grid(np.zeros((1, 3, 8, 8)), np.ones((1, 2, 2)), captions, title="epoch 1")
        >>> figure_to_array(figure).shape[-1]
        3
    """
    images = checked_images(pixels)
    maps = checked_maps("heatmaps", heatmaps, images, dimensions=3)
    check_count("captions", captions, len(images))
    objects = None if masks is None else checked_masks(masks, images)
    shown = min(len(images), _MOST_IMAGES)
    maps, scale = scale.in_style(maps, style)
    notes = [counted(shown, len(images), "image"), grid_note(maps), *["outline: the mask"] * (objects is not None)]
    plan = _beside(images, captions[:shown], style) if shown <= _MOST_BESIDE else _below(images, style)
    columns = min(plan.columns, shown)
    rows = math.ceil(shown / columns)
    with house_style():
        canvas = Canvas(
            max(least_width(style), plan.columns * plan.pitch + 2 * MARGIN - 0.1),
            rows * (plan.height + _ROW_GAP),
            title=title,
            notes=" · ".join(notes),
            scale=scale,
            blended=True,
            shown_as=shown_as,
            style=style,
        )
        for index in range(shown):
            # A column after the other, or a line after the other where the words stand below.
            row, column = divmod(index, columns) if plan.words_below else (index % rows, index // rows)
            x, y = MARGIN + column * plan.pitch, canvas.top + row * (plan.height + _ROW_GAP)
            above = y if plan.words_below else y + (plan.height - plan.pair_height) / 2
            place = plan.of_map(x, above)
            canvas.image(images[index], x, above, *plan.tile)
            canvas.map(images[index], maps[index], *place, *plan.tile)
            if objects is not None:
                canvas.outline(objects[index], *place, *plan.tile)
            if plan.words_below:
                _write_below(canvas, captions[index], x, y + plan.pair_height, plan.words)
            else:
                words = x + plan.pair_width + _BESIDE
                _write_caption(canvas, captions[index], words, y + plan.height / 2, plan.words)
    return canvas


@dataclass(frozen=True)
class _Plan:
    """Where the parts of an image's cell lie in a grid, in inches.

    Attributes:
        tile: Width and height of the image, and of its map.
        stacked: Whether the map lies below the image.
        words: Room for the words.
        words_below: Whether they stand below the tiles.
        height: Of the cell.
        columns: Cells beside each other.
    """

    tile: tuple[float, float]
    stacked: bool
    words: float
    words_below: bool
    height: float
    columns: int

    @property
    def pair_width(self) -> float:
        return self.tile[0] if self.stacked else 2 * self.tile[0] + _GAP

    @property
    def pair_height(self) -> float:
        return 2 * self.tile[1] + _GAP if self.stacked else self.tile[1]

    @property
    def pitch(self) -> float:
        """From a cell to the next one."""
        if self.words_below:
            return max(self.pair_width, self.words) + 0.1
        return self.pair_width + _BESIDE + self.words + 0.1

    def of_map(self, x: float, y: float) -> tuple[float, float]:
        """The corner of the map of an image with this corner."""
        return (x, y + self.tile[1] + _GAP) if self.stacked else (x + self.tile[0] + _GAP, y)


def _beside(images: Array, captions: Sequence[Caption], style: FigureStyle) -> _Plan:
    """Words beside the tiles; two cells beside each other where the page is wide enough."""
    count, (down, across) = len(captions), images.shape[2:]
    stacked = across >= _WIDE * down
    largest = style.image_size or (_LARGEST_OF_FEW if count <= 3 else _LARGEST_TILE)
    two_columns = 2 * (2 * largest + _GAP + _BESIDE + _LEAST_WORDS) + 2 * MARGIN + 0.1
    columns = 2 if count > 3 and style.width >= two_columns else 1
    room = (style.width - 2 * MARGIN - 0.1 * (columns - 1)) / columns - _BESIDE
    most = room - _LEAST_WORDS if stacked else (room - _LEAST_WORDS - _GAP) / 2  # of the width of a tile
    if style.image_size:
        tile = tile_size(images, largest, largest, style=style)
    else:
        tile = tile_size(images, min(largest * (2 if stacked else 1), most), largest, most, style=style)
    pair = tile[0] if stacked else 2 * tile[0] + _GAP
    words = max(_LEAST_WORDS, min(_MOST_WORDS, room - pair))
    said = max(_height(caption, words) for caption in captions)
    height = max(2 * tile[1] + _GAP if stacked else tile[1], 4 * _LINE, said)
    return _Plan(tile, stacked, words, words_below=False, height=height, columns=columns)


def _below(images: Array, style: FigureStyle) -> _Plan:
    """Words below smaller tiles, as many cells beside each other as the page has room for."""
    down, across = images.shape[2:]
    stacked = across >= _WIDE * down
    most = style.image_size or (_PAIR_OF_MANY if stacked else (_PAIR_OF_MANY - _GAP) / 2)
    tile = tile_size(images, most, most, style=style)
    pair = tile[0] if stacked else 2 * tile[0] + _GAP
    words = max(pair, _PAIR_OF_MANY)
    columns = max(1, int((style.width - 2 * MARGIN + 0.11) / (words + 0.1)))
    height = (2 * tile[1] + _GAP if stacked else tile[1]) + 2 * _LINE
    return _Plan(tile, stacked, words, words_below=True, height=height, columns=columns)


def _write_below(canvas: Canvas, caption: Caption, x: float, y: float, room: float) -> None:
    """What was predicted, and of what is not right also what is true, in two short lines below the tiles."""
    ink = WRONG_INK if caption.correct is False else INK
    first = caption.verdict if caption.what == "predicted" else f"{caption.what}: {caption.verdict}"
    canvas.write(x, y + _LINE / 2, first, width=room, size=NOTE_SIZE - 0.5, colour=ink)
    second = f"true: {caption.true_names}" if caption.correct is False else ""
    if caption.mapped:
        second = f"{second} · map: {caption.mapped}".removeprefix(" · ")
    canvas.write(x, y + 1.4 * _LINE, second, width=room, size=NOTE_SIZE - 0.5, colour=SOFT_INK)


def _said(caption: Caption, room: float) -> list[tuple[list[str], list[str], bool]]:
    """Parts of a caption: what it is and the names, both in lines, and whether the names are bold."""
    return [
        (
            wrapped(what, room, NOTE_SIZE - 0.5, at=", "),
            wrapped(names, room, TEXT_SIZE, bold=number == 0, at=", "),
            number == 0,
        )
        for number, (what, names) in enumerate(caption.lines)
    ]


def _height(caption: Caption, room: float) -> float:
    return _LINE * sum(len(what) + len(names) for what, names, _ in _said(caption, room)) - _LINE * 0.15


def _write_caption(canvas: Canvas, caption: Caption, x: float, middle: float, room: float) -> None:
    """Predicted and true class beside a row; a mark, not only a colour, says whether they agree."""
    y = middle - _height(caption, room) / 2 + _LINE / 2
    for what, names, bold in _said(caption, room):
        colour = WRONG_INK if bold and caption.correct is False else INK
        for line in what:
            canvas.write(x, y, line, width=room, size=NOTE_SIZE - 0.5, colour=SOFT_INK)
            y += 0.85 * _LINE
        for name in names:
            canvas.write(x, y, name, width=room, bold=bold, colour=colour)
            y += 0.85 * _LINE
        y += 0.3 * _LINE
