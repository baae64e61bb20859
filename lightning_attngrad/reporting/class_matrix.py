"""The figure of how far class rewriting had to go from each class to each other."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lightning_attngrad.reporting.arrays import Array, ArrayLike, as_array
from lightning_attngrad.reporting.canvas import (
    HEADER_HEIGHT,
    INK,
    MARGIN,
    NOTE_SIZE,
    SOFT_INK,
    TEXT_SIZE,
    TITLE_SIZE,
    fit_text,
    house_style,
    text_width,
)
from lightning_attngrad.reporting.distances import DistanceUnit, Norm, distance_unit
from lightning_attngrad.reporting.page import inset, new_page, on_pixel, write

_MOST_CLASSES = 40
_MOST_WRITTEN = 12  # classes whose cells hold numbers
_NARROWEST = 7.6  # figure, in inches
_NAME_ROOM = 1.7
_LINE, _GAP = 0.19, 0.08
_BAR_WIDTH, _BAR_TOP, _BAR_THICKNESS = 2.7, 0.36, 0.11  # where the other figures have theirs
_COLOURS = "viridis"  # safe for colour-blind readers, and has neither white nor grey, which have a meaning here
_WHITE, _GREY = 1.0, 0.88
_MIDDLE_LUMINANCE = 0.27  # below it white is read more easily, above it ink; either has a contrast of 3 at least


def class_matrix(matrix: ArrayLike, class_names: Sequence[str], *, norm: Norm, title: str) -> Figure:
    """How far it is from each class to each other: one row a source, one column a target.

    The colours are those of a logarithmic scale that the norm alone fixes, so that figures of different
    epochs compare: L∞ 0.25/255 … 32/255, L2 0.05 … 10, patches 1 % … 100 %; what lies beyond keeps the last
    colour. Up to 12 classes the numbers stand in the cells, in the unit of the colour bar. Of more than 40
    classes the first 40 are shown, and the figure says so.

    Args:
        matrix: (C, C) distances in pixel units, sources by targets; NaN where there are no rows, which stays
            blank, and ∞ where rows were not rewritten, which is marked.
        class_names: C names.
        norm: ``"linf"``, ``"l2"`` or ``"l0_patches"``.
        title: Head of the figure.

    Returns:
        The figure; draw it with `reporting.canvas.figure_to_array`.

    Raises:
        ValueError: For an unknown norm, a matrix that is not square or holds negative numbers, and another
            number of names.

    Example:
        >>> matrix = np.array([[np.nan, 2 / 255], [np.inf, np.nan]])
        >>> figure = class_matrix(matrix, ["cat", "dog"], norm="linf", title="From class to class")
        >>> [text.get_text() for text in figure.axes[0].texts if text.get_text() in ("2.0", "∞")]
        ['2.0', '∞']
    """
    unit = distance_unit(norm)
    values = _checked_matrix(matrix)
    total = len(values)
    if len(class_names) != total:
        raise ValueError(f"class_names: got {len(class_names)}; expected {total}, one for each row of the matrix")
    count = min(total, _MOST_CLASSES)
    values = values[:count, :count]

    cell = on_pixel(min(1.0, max(5.4 / count, 0.56)) if count <= _MOST_WRITTEN else min(0.45, 9.0 / count))
    names = [fit_text(name, _NAME_ROOM, TEXT_SIZE) for name in class_names[:count]]
    widest = max(text_width(name, TEXT_SIZE) for name in names)
    upwards = widest > cell - 0.06  # names of columns, where they are too long to lie above their cells
    left = on_pixel(MARGIN + _LINE + _GAP + widest + _GAP)
    top = on_pixel(HEADER_HEIGHT + _LINE + _GAP + (widest if upwards else _LINE) + _GAP)
    side = count * cell
    width = max(_NARROWEST, left + side + MARGIN)
    with house_style():
        figure, page = new_page(
            width,
            top + side + MARGIN,
            title=title,
            notes=" · ".join(_notes(values, total)),
            room=width - 3 * MARGIN - _BAR_WIDTH,
        )
        scale = LogNorm(unit.ticks[0], unit.ticks[-1], clip=True)
        _draw_bar(figure, page, unit, scale)
        _draw_cells(page, values, unit, scale, (left, top), cell)
        write(page, left + side / 2, HEADER_HEIGHT + _LINE / 2, "target", width=1, colour=SOFT_INK, align="center")
        write(
            page,
            MARGIN + _LINE / 2,
            top + side / 2,
            "source",
            width=1,
            colour=SOFT_INK,
            align="center",
            upwards=True,
        )
        for index, name in enumerate(names):
            along = (index + 0.5) * cell
            write(page, left - _GAP, top + along, name, width=_NAME_ROOM, align="right")
            if upwards:
                write(page, left + along, top - _GAP, name, width=_NAME_ROOM, upwards=True)
            else:
                write(page, left + along, top - _GAP - _LINE / 2, name, width=cell, align="center")
    return figure


def _checked_matrix(matrix: ArrayLike) -> Array:
    values = as_array(matrix)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not len(values):
        raise ValueError(f"matrix: got shape {values.shape}; expected (C, C), sources by targets, with C ≥ 1")
    if (values < 0).any():
        wrong = values[values < 0][0]
        raise ValueError(f"matrix: got {wrong}; expected 0 or more, inf, or NaN where there are no rows")
    return values


def _notes(values: Array, total: int) -> list[str]:
    """How many classes there are, and what the cells without a colour mean."""
    shown = len(values)
    notes = [f"the first {shown} of {total} classes" if shown < total else f"{total} class" + "es" * (total > 1)]
    if np.isnan(values).any():
        notes.append("blank: no rows")
    if np.isinf(values).any():
        notes.append("∞: not rewritten")
    return notes


def _draw_cells(
    page: Axes, values: Array, unit: DistanceUnit, scale: LogNorm, corner: tuple[float, float], cell: float
) -> None:
    """Colours, marks and, where there is room, numbers of a matrix with its top left corner at a place."""
    (left, top), count = corner, len(values)
    # Zero has no logarithm; it takes the first colour, as all that lies below the scale does.
    numbers = np.clip(np.nan_to_num(values * unit.factor), unit.ticks[0], unit.ticks[-1])
    picture = mpl.colormaps[_COLOURS](scale(numbers))[..., :3]  # (C, C, 3)
    picture[np.isnan(values)] = _WHITE
    picture[np.isinf(values)] = _GREY
    end = count * cell
    page.imshow(picture, extent=(left, left + end, top + end, top), aspect="auto", interpolation="nearest")
    for line in np.arange(1, count) * cell:
        page.plot([left + line] * 2, [top, top + end], color="white", linewidth=0.6)
        page.plot([left, left + end], [top + line] * 2, color="white", linewidth=0.6)
    page.add_patch(Rectangle((left, top), end, end, fill=False, edgecolor="#8c8c8c", linewidth=0.5))
    for row, column in np.argwhere(~np.isnan(values)):
        x, y = left + (column + 0.5) * cell, top + (row + 0.5) * cell
        if np.isinf(values[row, column]):
            size = TITLE_SIZE if count <= _MOST_WRITTEN else TEXT_SIZE
            write(page, x, y, "∞", width=cell, size=size, align="center")
        elif count <= _MOST_WRITTEN:
            text = unit.number(float(values[row, column]))
            write(page, x, y, text, width=cell, colour=_ink_on(picture[row, column]), align="center")


def _ink_on(colour: npt.NDArray[np.float64]) -> str:
    """White or ink, whichever is read more easily on a colour."""
    luminance = float(colour**2.2 @ np.array([0.2126, 0.7152, 0.0722]))
    return "white" if luminance < _MIDDLE_LUMINANCE else INK


def _draw_bar(figure: Figure, page: Axes, unit: DistanceUnit, scale: LogNorm) -> None:
    left = float(figure.get_size_inches()[0]) - MARGIN - 0.1 - _BAR_WIDTH
    axes = inset(figure, left, _BAR_TOP, _BAR_WIDTH, _BAR_THICKNESS)
    mappable = ScalarMappable(norm=scale, cmap=mpl.colormaps[_COLOURS])
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal", extend="both", extendfrac=0.04)
    bar.outline.set_linewidth(0.4)
    bar.minorticks_off()
    bar.set_ticks(unit.ticks, labels=[f"{tick:g}" for tick in unit.ticks])
    axes.tick_params(labelsize=NOTE_SIZE - 0.5, length=2, width=0.5, pad=1.5, colors=SOFT_INK)
    suffix = f"n{unit.suffix}" if unit.suffix.startswith("/") else unit.suffix.strip()
    name = ", ".join(part for part in (unit.name, suffix) if part)
    write(page, left + _BAR_WIDTH / 2, 0.24, name, width=_BAR_WIDTH, size=NOTE_SIZE, align="center")
