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
    checked_masks,
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
from lightning_attngrad.reporting.page import (
    HEADER_HEIGHT,
    INK,
    MARGIN,
    NARROWEST,
    NOTE_SIZE,
    SOFT_INK,
    WRONG_INK,
    house_style,
)

__all__ = [
    "Caption",
    "ColourScale",
    "class_panels",
    "figure_to_array",
    "film_strip",
    "layer_strip",
    "map_grid",
    "short_layer_name",
]

_SHARE = ColourScale("share")
_MOST_IMAGES = 48  # of a grid: beyond it the figure says how many it shows
_MOST_ROWS = 16  # of a strip
_MOST_FRAMES = 16  # of a film strip
_LARGEST_TILE = 1.5
_WIDEST = 11.4  # figure, in inches
_GAP, _ROW_GAP, _LINE = 0.06, 0.14, 0.19


def map_grid(
    pixels: ArrayLike,
    heatmaps: ArrayLike,
    captions: Sequence[Caption],
    *,
    title: str,
    scale: ColourScale = _SHARE,
    masks: ArrayLike | None = None,
    shown_as: str = "",
) -> Figure:
    """One row an image: the image, its map on it, and what was predicted.

    Up to 3 images stand below each other, up to 12 in two groups of columns, more in three. Of more than 48
    images the first 48 are shown, and the figure says so.

    Args:
        pixels: (N, 3, H, W) or (N, 1, H, W) images in [0, 1].
        heatmaps: (N, h, w) in times the uniform share.
        captions: N captions.
        title: Head of the figure.
        scale: The colour scale, the same for every figure that is to be compared.
        masks: (N, H, W) in [0, 1], 1 on the object; its outline is drawn over the map.
        shown_as: What was done to the images so that they can be seen, for the head; empty where nothing was.

    Returns:
        The figure; draw it with `figure_to_array`.

    Raises:
        ValueError: Where shapes or counts do not fit each other.

    Example:
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
    groups = 1 if shown <= 3 else 2 if shown <= 12 else 3
    rows = math.ceil(shown / groups)
    widest = {1: 2.1, 2: _LARGEST_TILE, 3: 1.05}[groups]
    width, height = tile_size(images, widest, widest)
    text_room = {1: 3.0, 2: 1.8, 3: 1.35}[groups]
    group_width = 2 * width + _GAP + 0.12 + text_room + 0.1
    lines = 2 * max(2, *(len(caption.lines) for caption in captions[:shown]))
    middle = max(height, lines * _LINE) / 2  # of a row: four lines of text may be higher than a wide image
    row_height = 2 * middle + _ROW_GAP

    page = max(NARROWEST, groups * group_width + 2 * MARGIN)
    notes = [counted(shown, len(images), "image"), grid_note(maps)]
    if objects is not None:
        notes.append("outline: the mask")
    with house_style():
        canvas = Canvas(
            page,
            HEADER_HEIGHT + rows * row_height,
            title=title,
            notes=" · ".join(notes),
            scale=scale,
            blended=True,
            shown_as=shown_as,
        )
        for index in range(shown):
            x = MARGIN + (index // rows) * (page - 2 * MARGIN + 0.1) / groups
            y = HEADER_HEIGHT + (index % rows) * row_height + middle
            canvas.image(images[index], x, y - height / 2, width, height)
            canvas.map(images[index], maps[index], x + width + _GAP, y - height / 2, width, height)
            if objects is not None:
                canvas.outline(objects[index], x + width + _GAP, y - height / 2, width, height)
            _write_caption(canvas, captions[index], x + 2 * width + _GAP + 0.12, y, text_room)
    return canvas


def layer_strip(
    pixels: ArrayLike,
    layers: ArrayLike,
    layer_names: Sequence[str],
    *,
    title: str,
    scale: ColourScale = _SHARE,
    shown_as: str = "",
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
    lines = math.ceil(len(names) / 13)
    columns = math.ceil(len(names) / lines)
    return _strips(
        images,
        maps,
        [names] * len(images),
        columns=columns,
        blended=False,
        title=title,
        notes=[],
        scale=scale,
        shown_as=shown_as,
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
        columns: Frames a line.
        shown_as: What was done to the images so that they can be seen, for the head; empty where nothing was.

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
    # Lines of equal length look better than a last line of one frame.
    lines = math.ceil(len(chosen) / columns)
    return _strips(
        images,
        maps[:, chosen],
        [[labels[index] for index in chosen]],
        below=[[captions[index].verdict for index in chosen]],
        columns=math.ceil(len(chosen) / lines),
        blended=True,
        title=title,
        notes=notes,
        scale=scale,
        shown_as=shown_as,
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
    below: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Rows of an image and its T maps (N, T, h, w), in lines of ``columns`` tiles, named above and below."""
    shown, tiles = min(len(images), _MOST_ROWS), maps.shape[1]
    lines = math.ceil(tiles / columns)
    largest = _LARGEST_TILE if shown * lines <= 5 else 1.05
    room = (_WIDEST - 2 * MARGIN - 0.12 - columns * _GAP) / (columns + 1)
    width, height = tile_size(images, min(room, largest), largest, widest=room)
    # Names that are the same in every row stand once, at the top, where a row is one line.
    repeated = lines > 1 or any(list(row) != list(above[0]) for row in above)
    line_height = height + (_LINE if repeated else 0) + (_LINE if below else 0) + _GAP
    row_height = lines * line_height + (_ROW_GAP - _GAP if repeated or below else 0)
    head = 0.0 if repeated else _LINE
    page = max(NARROWEST, (columns + 1) * width + columns * _GAP + 0.12 + 2 * MARGIN)
    count = notes[0] if notes else counted(shown, len(images), "image")
    heading = " · ".join([count, grid_note(maps), *notes[1:]])
    with house_style():
        canvas = Canvas(
            page,
            HEADER_HEIGHT + head + shown * row_height + MARGIN / 2,
            title=title,
            notes=heading,
            scale=scale,
            blended=blended,
            shown_as=shown_as,
        )
        for row in range(shown):
            top = HEADER_HEIGHT + head + row * row_height
            first = top + (_LINE if repeated else 0)
            canvas.image(images[row], MARGIN, first, width, height)
            for tile in range(tiles):
                x = MARGIN + width + 0.12 + (tile % columns) * (width + _GAP)
                y = first + (tile // columns) * line_height
                canvas.map(images[row], maps[row, tile], x, y, width, height)
                if repeated or row == 0:
                    canvas.write(x + width / 2, y - _LINE / 2, above[row][tile], width=width, align="center")
                if below:
                    canvas.write(
                        x + width / 2,
                        y + height + _LINE / 2,
                        below[row][tile],
                        width=width,
                        size=NOTE_SIZE,
                        colour=WRONG_INK if below[row][tile].startswith("✗") else SOFT_INK,
                        align="center",
                    )
    return canvas


def _write_caption(canvas: Canvas, caption: Caption, x: float, middle: float, room: float) -> None:
    """Predicted and true class beside a row; a mark, not only a colour, says whether they agree."""
    top = middle - (len(caption.lines) - 0.5) * _LINE
    for number, (said, name) in enumerate(caption.lines):
        y, first = top + 2 * number * _LINE, number == 0
        colour = WRONG_INK if first and caption.correct is False else INK
        canvas.write(x, y, said, width=room, size=NOTE_SIZE - 0.5, colour=SOFT_INK)
        canvas.write(x, y + 0.85 * _LINE, name, width=room, bold=first, colour=colour)
