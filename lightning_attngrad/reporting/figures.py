"""Figures of where a model looks: pure functions from arrays to ``matplotlib.figure.Figure``.

Maps arrive in one unit, *times the uniform share*: a map whose patches all hold an equal share is 1
everywhere. The colour scale is therefore fixed before a map is seen, and figures of different images, layers
and epochs compare. Maps are drawn patch by patch, without smoothing: a figure shows no detail that the patch
grid does not have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from lightning_attngrad.reporting.canvas import Canvas, figure_to_array, tile_size
from lightning_attngrad.reporting.captions import (
    Caption,
    counted,
    grid_note,
    probability_text,
    short_layer_name,
)
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.grid import map_grid
from lightning_attngrad.reporting.page import MARGIN, NOTE_SIZE, TEXT_SIZE, house_style, least_width
from lightning_attngrad.reporting.style import PLAIN, SOFT_INK, WRONG_INK, FigureStyle
from lightning_attngrad.reporting.text import text_width

__all__ = [
    "Caption",
    "ColourScale",
    "FigureStyle",
    "class_panels",
    "figure_to_array",
    "film_strip",
    "layer_strip",
    "map_grid",
    "short_layer_name",
]

_SHARE = ColourScale("share")
_MOST_ROWS = 16  # of a strip
_MOST_FRAMES = 16  # of a film strip
_LARGEST_TILE, _SMALL_TILE = 1.5, 1.05  # in inches
_LEAST_TILE, _LEAST_OF_MANY = 0.74, 0.52  # of a strip, before its tiles go on in a further line; of more than 12
_FEW = 12  # tiles of a strip
_WIDE = 1.8  # width of an image over its height, from which on fewer stand beside each other
_GAP, _ROW_GAP, _LINE, _BESIDE = 0.06, 0.14, 0.19, 0.12


def layer_strip(
    pixels: ArrayLike,
    layers: ArrayLike,
    layer_names: Sequence[str],
    *,
    title: str,
    scale: ColourScale = _SHARE,
    shown_as: str = "",
    style: FigureStyle = PLAIN,
) -> Figure:
    """One row an image, one column a part of its map: what each layer, or whatever else has a name, adds to it.

    Args:
        pixels: (N, 3, H, W) or (N, 1, H, W) images in [0, 1]; at most the first 16 are shown.
        layers: (N, L, h, w) in times the uniform share.
        layer_names: L names of any kind; those of layers are shortened by `short_layer_name` where that keeps them
            apart.
        title: Head of the figure.
        scale: The colour scale, the same for every figure that is to be compared.
        shown_as: What was done to the images so that they can be seen, for the head; empty where nothing was.
        style: How it looks.

    Returns:
        The figure.

    Raises:
        ValueError: Where shapes or counts do not fit each other.
    """
    images = checked_images(pixels)
    maps = checked_maps("layers", layers, images, dimensions=4)
    check_count("layer_names", layer_names, maps.shape[1])
    short = [short_layer_name(name) for name in layer_names]
    names = short if len(set(short)) == len(short) else list(layer_names)
    return _strips(
        images,
        maps,
        [names] * len(images),
        columns=len(names),
        blended=False,
        title=title,
        notes=[],
        scale=scale,
        shown_as=shown_as,
        style=style,
    )


def class_panels(
    pixels: ArrayLike,
    heatmaps: ArrayLike,
    names: Sequence[Sequence[str]],
    probabilities: ArrayLike | Sequence[Sequence[float]],
    *,
    title: str,
    scale: ColourScale = _SHARE,
    shown_as: str = "",
    style: FigureStyle = PLAIN,
) -> Figure:
    """Detail reading: the maps of several classes of an image side by side.

    Args:
        pixels: (N, 3, H, W) or (N, 1, H, W) images in [0, 1]; at most the first 16 are shown.
        heatmaps: (N, K, h, w) in times the uniform share.
        names: N times K class names.
        probabilities: (N, K) the model's probabilities.
        title: Head of the figure.
        scale: The colour scale, the same for every figure that is to be compared.
        shown_as: What was done to the images so that they can be seen, for the head; empty where nothing was.
        style: How it looks.

    Returns:
        The figure.

    Raises:
        ValueError: Where shapes or counts do not fit each other.
    """
    images = checked_images(pixels)
    maps = checked_maps("heatmaps", heatmaps, images, dimensions=4)
    check_count("names", names, len(images))
    for row in names:
        check_count("names", row, maps.shape[1])
    values = as_array(probabilities)
    if values.shape != maps.shape[:2]:
        raise ValueError(f"probabilities: got shape {values.shape}; expected (N, K) = {maps.shape[:2]}")
    return _strips(
        images,
        maps,
        names,
        below=[[probability_text(float(value)) for value in row] for row in values],
        columns=min(maps.shape[1], 6),
        blended=True,
        title=title,
        notes=[],
        scale=scale,
        shown_as=shown_as,
        style=style,
    )


def film_strip(
    pixels: ArrayLike,
    heatmaps: ArrayLike,
    labels: Sequence[str],
    captions: Sequence[Caption],
    *,
    title: str,
    scale: ColourScale = _SHARE,
    columns: int = 8,
    shown_as: str = "",
    style: FigureStyle = PLAIN,
) -> Figure:
    """One image across training: a frame an evaluation, the starting weights first.

    Of more than 16 frames an even selection is shown, the first and the last always among them, and the
    figure says how many there are.

    Args:
        pixels: (3, H, W) or (1, H, W) image in [0, 1].
        heatmaps: (E, h, w) in times the uniform share.
        labels: E labels, such as "start", "epoch 1".
        captions: E captions.
        title: Head of the figure.
        scale: The colour scale, the same for every figure that is to be compared.
        columns: Frames a line, at most.
        shown_as: What was done to the images so that they can be seen, for the head; empty where nothing was.
        style: How it looks.

    Returns:
        The figure.

    Raises:
        ValueError: Where shapes or counts do not fit each other, or ``columns`` is below 1.
    """
    picture = as_array(pixels)
    if picture.ndim != 3:
        raise ValueError(f"pixels: got shape {picture.shape}; expected one image, (3 or 1, H, W)")
    images = checked_images(picture[None])
    maps = checked_maps("heatmaps", as_array(heatmaps)[None], images, dimensions=4)
    total = maps.shape[1]
    check_count("labels", labels, total)
    check_count("captions", captions, total)
    if columns < 1:
        raise ValueError(f"columns: got {columns!r}; expected 1 or more")
    chosen = np.unique(np.linspace(0, total - 1, min(total, _MOST_FRAMES)).round().astype(int))
    last = captions[-1]
    shown = counted(len(chosen), total, "frame") + (", evenly spaced" if len(chosen) < total else "")
    notes = [shown]
    if last.true is not None:
        notes.append(f"true class: {last.true_names}")
    if last.subject:
        notes.append(f"maps of {last.subject}")
    return _strips(
        images,
        maps[:, chosen],
        [[labels[index] for index in chosen]],
        below=[[captions[index].verdict for index in chosen]],
        columns=columns,
        blended=True,
        title=title,
        notes=notes,
        scale=scale,
        shown_as=shown_as,
        style=style,
    )


def _strips(
    images: Array,
    maps: Array,
    above: Sequence[Sequence[str]],
    *,
    columns: int,
    blended: bool,
    title: str,
    notes: Sequence[str],
    scale: ColourScale,
    shown_as: str,
    style: FigureStyle,
    below: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Rows of an image and its T maps (N, T, h, w), in lines of ``columns`` tiles at most, named above and below."""
    shown, tiles = min(len(images), _MOST_ROWS), maps.shape[1]
    maps, scale = scale.in_style(maps, style)
    named = max(text_width(name, TEXT_SIZE) for row in above for name in row)
    columns, (width, height) = _tiles_in_line(images, (shown, tiles), columns, named, style)
    lines = math.ceil(tiles / columns)
    # Names that are the same in every row stand once, at the top, where a row is one line.
    repeated = lines > 1 or any(list(row) != list(above[0]) for row in above)
    under = [[_in_lines(words, width) for words in row] for row in below or ()]
    most_under = max((len(words) for row in under for words in row), default=0)
    line_height = height + (_LINE if repeated else 0) + most_under * _LINE + _GAP
    row_height = lines * line_height + (_ROW_GAP - _GAP if repeated or below else 0)
    head = 0.0 if repeated else _LINE
    page = max(least_width(style), (columns + 1) * width + columns * _GAP + _BESIDE + 2 * MARGIN)
    count = notes[0] if notes else counted(shown, len(images), "image")
    heading = " · ".join([count, grid_note(maps), *notes[1:]])
    with house_style():
        canvas = Canvas(
            page,
            head + shown * row_height + MARGIN / 2,
            title=title,
            notes=heading,
            scale=scale,
            blended=blended,
            shown_as=shown_as,
            style=style,
        )
        for row in range(shown):
            top = canvas.top + head + row * row_height
            first = top + (_LINE if repeated else 0)
            canvas.image(images[row], MARGIN, first, width, height)
            for tile in range(tiles):
                x = MARGIN + width + _BESIDE + (tile % columns) * (width + _GAP)
                y = first + (tile // columns) * line_height
                canvas.map(images[row], maps[row, tile], x, y, width, height)
                if repeated or row == 0:
                    canvas.write(x + width / 2, y - _LINE / 2, above[row][tile], width=width, align="center")
                for line, words in enumerate(under[row][tile] if below else ()):
                    canvas.write(
                        x + width / 2,
                        y + height + (line + 0.5) * _LINE,
                        words,
                        width=width,
                        size=NOTE_SIZE,
                        colour=WRONG_INK if under[row][tile][0].startswith(("✗", "◐")) else SOFT_INK,
                        align="center",
                    )
    return canvas


def _in_lines(verdict: str, width: float) -> tuple[str, ...]:
    """A name and its number as a line each where both do not fit into one: else the number would cut the name."""
    name, bracket, number = verdict.partition(" (")
    if text_width(verdict, NOTE_SIZE) <= width or number.count(")") != 1 or not number.endswith(")"):
        return (verdict,)
    return name, f"{bracket[1:]}{number}"


def _tiles_in_line(
    images: Array, counts: tuple[int, int], most: int, named: float, style: FigureStyle
) -> tuple[int, tuple[float, float]]:
    """How many tiles of a strip stand beside each other, the image not counted, and the size of each.

    Args:
        images: (N, C, H, W).
        counts: Of the images that are shown, and of the tiles of each.
        most: Tiles of a line.
        named: Width of the longest name of a tile, in inches.
        style: Of the page.
    """
    (shown, tiles), (down, across) = counts, images.shape[2:]
    room = style.width - 2 * MARGIN - _BESIDE
    small = _LEAST_TILE if tiles <= _FEW else min(max(_LEAST_OF_MANY, named), _LEAST_TILE)
    least = style.image_size or small
    if across >= _WIDE * down and not style.image_size:
        least *= 1.5  # or it would be low
    fit = max(1, int((room + _GAP) / (least + _GAP) - 1 + 1e-6))
    lines = math.ceil(tiles / min(most, fit))
    columns = math.ceil(tiles / lines)  # lines of equal length look better than a last line of one tile
    if style.image_size:
        return columns, tile_size(images, style.image_size, style.image_size, style=style)
    largest = _LARGEST_TILE if shown * lines <= 5 else _SMALL_TILE
    widest = (room - columns * _GAP) / (columns + 1)
    width, height = tile_size(images, min(widest, max(largest, least)), largest, widest, style=style)
    if width < min(named, widest):  # a whole number of pixels is worth less than the names
        width, height = widest, widest * height / width
    return columns, (width, height)
