"""Figures of drift over training: which layers moved, and every measure against what noise alone gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from lightning_attngrad.reporting.arrays import Array, ArrayLike, as_array
from lightning_attngrad.reporting.captions import counted, short_layer_name
from lightning_attngrad.reporting.colour_scale import colours_at, ink_on, palette
from lightning_attngrad.reporting.page import MARGIN, NOTE_SIZE, TEXT_SIZE, Page, house_style, least_width
from lightning_attngrad.reporting.plot import Place, Plot
from lightning_attngrad.reporting.style import PLAIN, SOFT_INK, WHITE, FigureStyle
from lightning_attngrad.reporting.text import fit_text, text_width

_LINE, _GAP = 0.19, 0.08
# Layers × evaluations
_MOST_EVALUATIONS, _MOST_LAYERS = 24, 64
_MOST_WRITTEN = 12  # evaluations whose cells hold numbers
_NAME_ROOM = 1.9  # and at most this share of the page
_NAME_SHARE = 0.3
_LEAST_CELL, _MOST_CELL = 0.17, 0.56  # width, in inches
_LARGEST = 2.0  # Spearman distance there is, the end of the colours
_COLOURS = "viridis"  # safe for colour-blind readers, and has no white, which is no number here
# Curves
_COLUMNS, _LEAST_PANEL = 3, 1.6
_KEY_LINE = 0.22
_PANEL_HEIGHT, _PANEL_HEAD, _PANEL_FOOT, _PANEL_LEFT = 1.15, 0.42, 0.3, 0.46
_ASIDE = 0.04  # of a panel, left and right of its evaluations
_NOW, _FLOOR = "#0072b2", "#8c8c8c"
_BAND: dict[str, Any] = {"facecolor": _FLOOR, "alpha": 0.25}
_EDGE: dict[str, Any] = {"color": _FLOOR, "linewidth": 1, "linestyle": (0, (3, 1.5))}
_TOPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # ends of the axes, so that figures compare


def layer_drift(
    drift: ArrayLike,
    floor: ArrayLike,
    layer_names: Sequence[str],
    labels: Sequence[str],
    *,
    title: str,
    style: FigureStyle = PLAIN,
) -> Figure:
    """How far the map of each layer has moved: one row a layer, one column an evaluation, and one for noise.

    The colours run from 0 to 2, which is as far as the measure goes: 1 is no relation, 2 is the opposite order. The
    numbers stand in the cells where there is room. Of more than 24 evaluations an even selection is shown, the first
    and the last always among them, and of more than 64 layers the first 64; the figure says so.

    Args:
        drift: (L, E) Spearman distances, layers by evaluations; NaN where a layer's maps have no order, which stays
            blank.
        floor: (L,) what noise alone gives at the last evaluation.
        layer_names: L names of layers or of other parts of a map, shortened by `short_layer_name` where that keeps them
            apart.
        labels: E labels, such as "start", "epoch 1".
        title: Head of the figure.
        style: How it looks.

    Returns:
        The figure, a `reporting.page.Page`; draw it with `reporting.canvas.figure_to_array`.

    Raises:
        ValueError: Where shapes or counts do not fit each other.

    Example:
        >>> figure = layer_drift(
        ...     np.array([[0.0, 0.4]]), np.array([0.1]), ["blocks.0.attn"], ["start", "epoch 1"], title="Layers"
        ... )
        >>> [text.get_text() for text in figure.texts if text.get_text() in ("0.40", "0.10", "noise")]
        ['noise', '0.40', '0.10']
    """
    values, noise = _checked_layers(drift, floor, layer_names, labels)
    total_layers, total = values.shape
    chosen = _evenly(total, _MOST_EVALUATIONS)
    rows, columns = min(total_layers, _MOST_LAYERS), len(chosen)
    values, noise = values[:rows, chosen], noise[:rows]
    short = [short_layer_name(name) for name in layer_names]
    most = min(_NAME_ROOM, _NAME_SHARE * style.width)
    names = [
        fit_text(name, most, TEXT_SIZE) for name in (short if len(set(short)) == len(short) else layer_names)[:rows]
    ]
    heads = [labels[index] for index in chosen]

    left = style.on_pixel(MARGIN + max(text_width(name, TEXT_SIZE) for name in names) + _GAP)
    room = (style.width - left - 0.14 - MARGIN) / (columns + 1)
    cell = style.on_pixel(min(_MOST_CELL, max(room, _LEAST_CELL)))
    line = style.on_pixel(0.26 if rows <= 24 else 0.17)
    written = columns <= _MOST_WRITTEN and rows <= 24 and text_width("0.00", NOTE_SIZE) < cell - 0.02
    widest = max(text_width(head, TEXT_SIZE) for head in [*heads, "noise"])
    upwards = widest > cell - 0.04
    above = style.on_pixel((widest if upwards else _LINE) + _GAP)
    aside = style.on_pixel(left + columns * cell + 0.14)  # the column of noise
    width = max(least_width(style), aside + cell + MARGIN)
    notes = [counted(rows, total_layers, "part"), counted(columns, total, "evaluation")]
    notes += ["evenly spaced"] * (columns < total) + ["blank: no order of patches"] * bool(np.isnan(values).any())
    with house_style():
        page = Page(width, above + rows * line + MARGIN, title=title, notes=" · ".join(notes), bar=True, style=style)
        top = page.top + above
        ticks = [(tick / 4, f"{tick / 2:g}") for tick in range(5)]
        page.colour_bar(palette(_COLOURS), ticks, "1 − rank correlation", upper=False)
        for index, name in enumerate(names):
            page.write(left - _GAP, top + (index + 0.5) * line, name, width=_NAME_ROOM, align="right")
        places = [*(left + index * cell for index in range(columns)), aside]
        for place, head in zip(places, [*heads, "noise"], strict=True):
            if upwards:
                page.write(place + cell / 2, top - _GAP / 2, head, width=widest + 0.02, upwards=True)
            else:
                page.write(place + cell / 2, top - _GAP / 2 - _LINE / 2, head, width=cell, align="center")
        _draw_cells(page, values, (left, top), (cell, line), written=written)
        _draw_cells(page, noise[:, None], (aside, top), (cell, line), written=written)
    return page


def drift_curves(
    drift: Mapping[str, Sequence[float]],
    floor: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    *,
    title: str,
    style: FigureStyle = PLAIN,
) -> Figure:
    """Every measure over the evaluations, each on a panel of its own, above the band that noise alone fills.

    The axes start at 0 and end at the lowest of 0.01, 0.02, 0.05, … 2 that holds all of a panel.

    Args:
        drift: From the name of a measure to its values (E,); NaN where there is none.
        floor: Likewise what noise alone gives.
        labels: E labels, such as "start", "epoch 1".
        title: Head of the figure.
        style: How it looks.

    Returns:
        The figure, a `reporting.page.Page`; its plots are the panels, in the order of the measures.

    Raises:
        ValueError: Where names or counts do not fit each other.

    Example:
        >>> drift, floor = {"1 − cosine": [0.0, 0.3]}, {"1 − cosine": [0.1, 0.1]}
        >>> figure = drift_curves(drift, floor, ["start", "epoch 1"], title="Drift")
        >>> [text.get_text() for text in figure.texts if text.get_text().startswith("now")]
        ['now 0.300, 3.0 × noise']
    """
    if not drift or drift.keys() != floor.keys():
        raise ValueError(f"drift, floor: got {list(drift)} and {list(floor)}; expected the same names, one or more")
    for name in drift:
        if not len(drift[name]) == len(floor[name]) == len(labels) > 0:
            raise ValueError(
                f"labels: got {len(labels)} for {len(drift[name])} and {len(floor[name])} values of {name!r}; "
                "expected as many of each, one or more"
            )
    width = least_width(style)
    fit = int((width - 2 * MARGIN + 0.2) / (_PANEL_LEFT + _LEAST_PANEL + 0.2))
    columns = max(1, min(_COLUMNS, fit))
    lines = math.ceil(len(drift) / columns)
    pitch = _PANEL_HEAD + _PANEL_HEIGHT + _PANEL_FOOT
    column = (width - 2 * MARGIN + 0.2) / columns
    panel = column - _PANEL_LEFT - 0.2
    with house_style():
        page = Page(
            width,
            _KEY_LINE + lines * pitch + MARGIN / 2,
            title=title,
            notes=counted(len(labels), len(labels), "evaluation"),
            style=style,
        )
        _draw_key(page)
        for index, name in enumerate(drift):
            x = MARGIN + (index % columns) * column
            y = page.top + _KEY_LINE + index // columns * pitch
            place = Place(x + _PANEL_LEFT, y + _PANEL_HEAD, panel, _PANEL_HEIGHT)
            said = _said_of_now(drift[name][-1], floor[name][-1])
            page.write(x, y + _LINE / 2, name, width=_PANEL_LEFT + panel, bold=True)
            page.write(x, y + _LINE * 1.45, said, width=_PANEL_LEFT + panel, size=NOTE_SIZE, colour=SOFT_INK)
            plot = _draw_panel(page, place, as_array(drift[name]), as_array(floor[name]))
            _write_labels(plot, labels)
    return page


def _checked_layers(
    drift: ArrayLike, floor: ArrayLike, layer_names: Sequence[str], labels: Sequence[str]
) -> tuple[Array, Array]:
    values, noise = as_array(drift), as_array(floor)
    if values.ndim != 2 or 0 in values.shape or noise.shape != values.shape[:1]:
        raise ValueError(
            f"drift, floor: got shapes {values.shape} and {noise.shape}; expected (L, E), layers by evaluations, "
            "and (L,)"
        )
    for name, given, expected in (("layer_names", layer_names, len(values)), ("labels", labels, values.shape[1])):
        if len(given) != expected:
            raise ValueError(f"{name}: got {len(given)}; expected {expected}, for drift of shape {values.shape}")
    return values, noise


def _evenly(total: int, most: int) -> npt.NDArray[np.int64]:
    """Numbers of at most so many of all, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64))


def _draw_cells(
    page: Page, values: Array, corner: tuple[float, float], cell: tuple[float, float], *, written: bool
) -> None:
    """Colours and, where there is room, numbers of (L, E) values with their top left corner at a place."""
    (left, top), (width, height) = corner, cell
    picture = colours_at(palette(_COLOURS), np.nan_to_num(values) / _LARGEST)  # (L, E, 3)
    picture[np.isnan(values)] = page.style.fill(WHITE)
    page.cells(picture, left, top, width, height)
    for row, column in np.argwhere(~np.isnan(values)) if written else ():
        x, y = left + (column + 0.5) * width, top + (row + 0.5) * height
        text = f"{values[row, column]:.2f}"
        page.write(x, y, text, width=width, size=NOTE_SIZE, colour=ink_on(picture[row, column]), align="center")


def _draw_key(page: Page) -> None:
    """What line and band are, above the panels."""
    y, x = page.top, MARGIN
    page.curve([x, x + 0.34], [y, y], color=_NOW, linewidth=2)
    page.write(x + 0.42, y, "drift", width=1, size=NOTE_SIZE, colour=SOFT_INK)
    x += 0.42 + text_width("drift", NOTE_SIZE) + 0.2
    band = np.array([(x, y + 0.05), (x, y - 0.05), (x + 0.34, y - 0.05), (x + 0.34, y + 0.05)])
    page.area(band, **_BAND)
    page.curve(band[1:3, 0], band[1:3, 1], **_EDGE)
    words = "noise floor: what noise alone gives"
    page.write(x + 0.42, y, words, width=page.get_figwidth() - x - 0.42, size=NOTE_SIZE, colour=SOFT_INK)


def _said_of_now(drift: float, floor: float) -> str:
    if not math.isfinite(drift):
        return "now: no number"
    ratio = f", {drift / floor:.1f} × noise" if floor > 0 else ""
    return f"now {drift:.3f}{ratio}"


def _draw_panel(page: Page, place: Place, drift: Array, floor: Array) -> Plot:
    count = len(drift)
    finite = [value for value in (*drift, *floor) if math.isfinite(value)]
    top = next((end for end in _TOPS if end >= max(finite, default=0) * 1.04), _TOPS[-1])
    last = max(count - 1, 1)
    plot = Plot(page, place, (-_ASIDE * last, (1 + _ASIDE) * last), (0, top))
    plot.tick_y([(0, "0"), (top / 2, f"{top / 2:g}"), (top, f"{top:g}")], size=NOTE_SIZE - 0.5)
    # The band of a single evaluation would have no width.
    places, band = (range(count), floor) if count > 1 else (range(2), np.repeat(floor, 2))
    plot.band(places, np.zeros(len(band)), band, **_BAND)
    plot.curve(places, band, **_EDGE)
    marker = "o" if count <= 30 else ""
    plot.curve(range(count), drift, color=_NOW, linewidth=2, marker=marker, markersize=2.6)
    return plot


def _write_labels(plot: Plot, labels: Sequence[str]) -> None:
    """The names of the last and the first evaluation below a plot, and of some between where there is room."""
    size = NOTE_SIZE - 0.5
    left, width, y = plot.place.left, plot.place.width, plot.place.top + plot.place.height + 0.13
    last = len(labels) - 1
    taken: list[tuple[float, float]] = []
    for place in [last, 0, *_evenly(len(labels), 4)[1:-1]]:
        wide = text_width(labels[place], size)
        middle = (place / max(last, 1) + _ASIDE) / (1 + 2 * _ASIDE) * width
        # The names of the ends stand inside: the next panel is near.
        start = min(max(middle - wide / 2, -0.1), width + 0.1 - wide)
        if all(start > end + 0.1 or start + wide < begin - 0.1 for begin, end in taken):
            taken.append((start, start + wide))
            plot.page.write(left + start, y, labels[place], width=width, size=size, colour=SOFT_INK)
            plot.tick_x([(float(place), "")], grid=False)
