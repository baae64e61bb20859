"""The figure of how far class rewriting had to go from each class to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lightning_attngrad.reporting.arrays import Array, ArrayLike, as_array
from lightning_attngrad.reporting.colour_scale import colours_at, ink_on, palette
from lightning_attngrad.reporting.distances import DistanceUnit, Norm, distance_unit
from lightning_attngrad.reporting.page import MARGIN, TEXT_SIZE, TITLE_SIZE, Page, house_style, least_width
from lightning_attngrad.reporting.style import PLAIN, SOFT_INK, WHITE, FigureStyle
from lightning_attngrad.reporting.text import fit_text, text_width

_MOST_CLASSES = 40
_MOST_WRITTEN = 12  # classes whose cells hold numbers
_NAME_ROOM, _NAME_SHARE = 1.7, 0.36  # in inches, and of the page
_LINE, _GAP = 0.19, 0.08
_COLOURS = "viridis"  # safe for colour-blind readers, and has neither white nor grey, which have a meaning here
_GREY = (224, 224, 224)


def class_matrix(
    matrix: ArrayLike, class_names: Sequence[str], *, norm: Norm, title: str, style: FigureStyle = PLAIN
) -> Figure:
    """How far it is from each class to each other: one row a source, one column a target.

    The colours are those of a logarithmic scale that the norm alone fixes, so that figures of different
    epochs compare: L∞ 0.25/255 … 32/255, L2 0.05 … 10, 1 … 1000 pixels, patches 1 % … 100 %; what lies
    beyond keeps the last colour. Up to 12 classes the numbers stand in the cells, in the unit of the colour
    bar. Of more than 40 classes the first 40 are shown, and the figure says so; it is as wide as their names need.

    Args:
        matrix: (C, C) distances in pixel units, sources by targets; NaN where there is no image–target pair, which
            stays blank, and ∞ where pairs were not rewritten, which is marked.
        class_names: C names.
        norm: ``"linf"``, ``"l2"``, ``"l0"`` or ``"l0_patches"``.
        title: Head of the figure.
        style: How it looks.

    Returns:
        The figure, a `reporting.page.Page`; draw it with `reporting.canvas.figure_to_array`.

    Raises:
        ValueError: For an unknown norm, a matrix that is not square or holds negative numbers, and another
            number of names.

    Example:
        >>> matrix = np.array([[np.nan, 2 / 255], [np.inf, np.nan]])
        >>> figure = class_matrix(matrix, ["cat", "dog"], norm="linf", title="From class to class")
        >>> [text.get_text() for text in figure.texts if text.get_text() in ("2.0", "∞")]
        ['2.0', '∞']
    """
    unit = distance_unit(norm)
    values = _checked_matrix(matrix)
    total = len(values)
    if len(class_names) != total:
        raise ValueError(f"class_names: got {len(class_names)}; expected {total}, one for each row of the matrix")
    count = min(total, _MOST_CLASSES)
    values = values[:count, :count]

    most = min(_NAME_ROOM, _NAME_SHARE * style.width)
    names = [fit_text(name, most, TEXT_SIZE) for name in class_names[:count]]
    widest = max(text_width(name, TEXT_SIZE) for name in names)
    left = style.on_pixel(MARGIN + _LINE + _GAP + widest + _GAP)
    room = style.width - left - MARGIN
    if count <= _MOST_WRITTEN:
        cell = min(1.0, max(5.4 / count, 0.56), max(room / count, 0.36))
    else:
        cell = min(0.45, max(min(9.0, room) / count, 0.19))
    cell = style.on_pixel(cell)
    upwards = widest > cell - 0.06  # names of columns, where they are too long to lie above their cells
    above = style.on_pixel(_LINE + _GAP + (widest if upwards else _LINE) + _GAP)
    side = count * cell
    width = max(least_width(style), left + side + MARGIN)
    with house_style():
        page = Page(
            width, above + side + MARGIN, title=title, notes=" · ".join(_notes(values, total)), bar=True, style=style
        )
        top = page.top + above
        colours = palette(_COLOURS)
        ticks = [(_place(unit, tick), f"{tick:g}") for tick in unit.ticks]
        page.colour_bar(colours, ticks, _bar_name(unit), lower=True)
        _draw_cells(page, values, unit, (left, top), cell)
        page.write(left + side / 2, page.top + _LINE / 2, "target", width=1, colour=SOFT_INK, align="center")
        page.write(MARGIN + _LINE / 2, top + side / 2, "source", width=1, colour=SOFT_INK, align="center", upwards=True)
        for index, name in enumerate(names):
            along = (index + 0.5) * cell
            page.write(left - _GAP, top + along, name, width=_NAME_ROOM, align="right")
            if upwards:
                page.write(left + along, top - _GAP, name, width=_NAME_ROOM, upwards=True)
            else:
                page.write(left + along, top - _GAP - _LINE / 2, name, width=cell, align="center")
    return page


def _checked_matrix(matrix: ArrayLike) -> Array:
    values = as_array(matrix)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not len(values):
        raise ValueError(f"matrix: got shape {values.shape}; expected (C, C), sources by targets, with C ≥ 1")
    if (values < 0).any():
        wrong = values[values < 0][0]
        raise ValueError(f"matrix: got {wrong}; expected 0 or more, inf, or NaN where there is no pair")
    return values


def _notes(values: Array, total: int) -> list[str]:
    """How many classes there are, and what the cells without a colour mean."""
    shown = len(values)
    notes = [f"the first {shown} of {total} classes" if shown < total else f"{total} class" + "es" * (total > 1)]
    if np.isnan(values).any():
        notes.append("blank: no image–target pair")
    if np.isinf(values).any():
        notes.append("∞: not rewritten")
    return notes


def _place(unit: DistanceUnit, numbers: Any) -> Any:
    """Where numbers lie on the logarithmic scale of a unit: 0 is its lower end, 1 its upper one."""
    low, high = unit.ticks[0], unit.ticks[-1]
    # Zero has no logarithm; it takes the first colour, as all that lies below the scale does.
    return np.log(np.clip(numbers, low, high) / low) / np.log(high / low)


def _draw_cells(page: Page, values: Array, unit: DistanceUnit, corner: tuple[float, float], cell: float) -> None:
    """Colours, marks and, where there is room, numbers of a matrix with its top left corner at a place."""
    (left, top), count = corner, len(values)
    picture = colours_at(palette(_COLOURS), _place(unit, np.nan_to_num(values * unit.factor)))  # (C, C, 3)
    picture[np.isnan(values)] = page.style.fill(WHITE)
    picture[np.isinf(values)] = page.style.fill(_GREY)
    page.cells(picture, left, top, cell, cell)
    for row, column in np.argwhere(~np.isnan(values)):
        x, y = left + (column + 0.5) * cell, top + (row + 0.5) * cell
        if np.isinf(values[row, column]):
            size = TITLE_SIZE if count <= _MOST_WRITTEN else TEXT_SIZE
            page.write(x, y, "∞", width=cell, size=size, align="center")
        elif count <= _MOST_WRITTEN:
            text = unit.number(float(values[row, column]))
            page.write(x, y, text, width=cell, colour=ink_on(picture[row, column]), align="center")


def _bar_name(unit: DistanceUnit) -> str:
    suffix = f"n{unit.suffix}" if unit.suffix.startswith("/") else unit.suffix.strip()
    return ", ".join(part for part in (unit.name, suffix) if part)
