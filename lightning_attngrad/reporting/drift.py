"""Figures of drift over training: which layers moved, and every measure against what noise alone gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
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
    fit_text,
    house_style,
    text_width,
)
from lightning_attngrad.reporting.captions import counted, short_layer_name
from lightning_attngrad.reporting.page import inset, new_page, on_pixel, write

_NARROWEST = 7.6  # figure, in inches
_LINE, _GAP = 0.19, 0.08
# Layers × looks
_MOST_LOOKS, _MOST_LAYERS = 24, 64
_MOST_WRITTEN = 12  # looks whose cells hold numbers
_NAME_ROOM = 1.9
_BAR_WIDTH, _BAR_TOP, _BAR_THICKNESS = 2.7, 0.36, 0.11  # where the other figures have theirs
_COLOURS = "viridis"  # safe for colour-blind readers, and has no white, which is no number here
_MIDDLE_LUMINANCE = 0.27  # below it white is read more easily, above it ink
# Curves
_COLUMNS = 3
_PANEL_HEIGHT, _PANEL_HEAD, _PANEL_FOOT, _PANEL_LEFT = 1.15, 0.42, 0.3, 0.46
_ASIDE = 0.04  # of an axes, left and right of its looks
_NOW, _FLOOR = "#0072b2", "#8c8c8c"
_TOPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # ends of the axes, so that figures compare


def layer_drift(
    drift: ArrayLike, floor: ArrayLike, layer_names: Sequence[str], labels: Sequence[str], *, title: str
) -> Figure:
    """How far the map of each layer has moved: one row a layer, one column a look, and one for noise.

    The colours run from 0 to 1 in every figure, so that figures of different epochs compare; what lies beyond,
    up to 2, keeps the last colour. Up to 12 looks the numbers stand in the cells. Of more than 24 looks an even
    selection is shown, the first and the last always among them, and of more than 64 layers the first 64; the
    figure says so.

    Args:
        drift: (L, E) Spearman distances, layers by looks; NaN where a layer's maps have no order, which stays
            blank.
        floor: (L,) what noise alone gives at the last look.
        layer_names: L names, shortened by `short_layer_name` where that keeps them apart.
        labels: E labels, such as "start", "epoch 1".
        title: Head of the figure.

    Returns:
        The figure; draw it with `reporting.canvas.figure_to_array`.

    Raises:
        ValueError: Where shapes or counts do not fit each other.

    Example:
        >>> figure = layer_drift(
        ...     np.array([[0.0, 0.4]]), np.array([0.1]), ["blocks.0.attn"], ["start", "epoch 1"], title="Layers"
        ... )
        >>> [text.get_text() for text in figure.axes[0].texts if text.get_text() in ("0.40", "0.10", "noise")]
        ['noise', '0.40', '0.10']
    """
    values, noise = _checked_layers(drift, floor, layer_names, labels)
    total_layers, total_looks = values.shape
    chosen = _evenly(total_looks, _MOST_LOOKS)
    rows, looks = min(total_layers, _MOST_LAYERS), len(chosen)
    values, noise = values[:rows, chosen], noise[:rows]
    short = [short_layer_name(name) for name in layer_names]
    names = [
        fit_text(name, _NAME_ROOM, TEXT_SIZE) for name in (short if len(set(short)) == len(short) else layer_names)
    ]
    heads = [labels[index] for index in chosen]

    written = looks <= _MOST_WRITTEN
    cell = on_pixel(0.56 if written else 0.34)
    line = on_pixel(0.26 if rows <= 24 else 0.17)
    written = written and rows <= 24
    widest = max(text_width(head, TEXT_SIZE) for head in [*heads, "noise"])
    upwards = widest > cell - 0.04
    name_room = max(text_width(name, TEXT_SIZE) for name in names[:rows])
    left = on_pixel(MARGIN + name_room + _GAP)
    top = on_pixel(HEADER_HEIGHT + (widest if upwards else _LINE) + _GAP)
    aside = on_pixel(left + looks * cell + 0.14)  # the column of noise
    width = max(_NARROWEST, aside + cell + MARGIN)
    notes = [counted(rows, total_layers, "layer"), counted(looks, total_looks, "look")]
    notes += ["evenly spaced"] * (looks < total_looks) + ["blank: no order of patches"] * bool(np.isnan(values).any())
    with house_style():
        figure, page = new_page(
            width,
            top + rows * line + MARGIN,
            title=title,
            notes=" · ".join(notes),
            room=width - 3 * MARGIN - _BAR_WIDTH,
        )
        _draw_bar(figure, page)
        for index, name in enumerate(names[:rows]):
            write(page, left - _GAP, top + (index + 0.5) * line, name, width=_NAME_ROOM, align="right")
        places = [*(left + index * cell for index in range(looks)), aside]
        for place, head in zip(places, [*heads, "noise"], strict=True):
            if upwards:
                write(page, place + cell / 2, top - _GAP / 2, head, width=widest + 0.02, upwards=True)
            else:
                write(page, place + cell / 2, top - _GAP / 2 - _LINE / 2, head, width=cell, align="center")
        _draw_cells(page, values, (left, top), (cell, line), written=written)
        _draw_cells(page, noise[:, None], (aside, top), (cell, line), written=written)
    return figure


def drift_curves(
    drift: Mapping[str, Sequence[float]], floor: Mapping[str, Sequence[float]], labels: Sequence[str], *, title: str
) -> Figure:
    """Every measure over the looks, each on a panel of its own, above the band that noise alone fills.

    The axes start at 0 and end at the lowest of 0.01, 0.02, 0.05, … 2 that holds all of a panel.

    Args:
        drift: From the name of a measure to its values (E,); NaN where there is none.
        floor: Likewise what noise alone gives.
        labels: E labels, such as "start", "epoch 1".
        title: Head of the figure.

    Returns:
        The figure; its second and further axes hold the panels, in the order of the measures.

    Raises:
        ValueError: Where names or counts do not fit each other.

    Example:
        >>> drift, floor = {"1 − cosine": [0.0, 0.3]}, {"1 − cosine": [0.1, 0.1]}
        >>> figure = drift_curves(drift, floor, ["start", "epoch 1"], title="Drift")
        >>> [text.get_text() for text in figure.axes[0].texts][-4:]
        ['1 − cosine', 'now 0.300, 3.0 × noise', 'epoch 1', 'start']
    """
    if not drift or drift.keys() != floor.keys():
        raise ValueError(f"drift, floor: got {list(drift)} and {list(floor)}; expected the same names, one or more")
    for name in drift:
        if not len(drift[name]) == len(floor[name]) == len(labels) > 0:
            raise ValueError(
                f"labels: got {len(labels)} for {len(drift[name])} and {len(floor[name])} values of {name!r}; "
                "expected as many of each, one or more"
            )
    lines = math.ceil(len(drift) / _COLUMNS)
    pitch = _PANEL_HEAD + _PANEL_HEIGHT + _PANEL_FOOT
    column = (_NARROWEST - 2 * MARGIN + 0.2) / _COLUMNS
    panel = column - _PANEL_LEFT - 0.2
    with house_style():
        figure, page = new_page(
            _NARROWEST,
            HEADER_HEIGHT - 0.14 + lines * pitch + MARGIN,
            title=title,
            notes=counted(len(labels), len(labels), "look"),
            room=_NARROWEST - 2 * MARGIN,
        )
        _draw_key(page)
        for index, name in enumerate(drift):
            x = MARGIN + (index % _COLUMNS) * column
            y = HEADER_HEIGHT - 0.14 + index // _COLUMNS * pitch
            left, right = x + _PANEL_LEFT, x + _PANEL_LEFT + panel
            write(page, x, y + _LINE / 2, name, width=right - x, bold=True)
            write(
                page,
                x,
                y + _LINE * 1.45,
                _said_of_now(drift[name][-1], floor[name][-1]),
                width=right - x,
                size=NOTE_SIZE,
                colour=SOFT_INK,
            )
            axes = inset(figure, left, y + _PANEL_HEAD, panel, _PANEL_HEIGHT)
            _draw_panel(axes, as_array(drift[name]), as_array(floor[name]))
            _write_looks(axes, page, labels, (left, y + _PANEL_HEAD + _PANEL_HEIGHT + 0.13), panel)
    return figure


def _checked_layers(
    drift: ArrayLike, floor: ArrayLike, layer_names: Sequence[str], labels: Sequence[str]
) -> tuple[Array, Array]:
    values, noise = as_array(drift), as_array(floor)
    if values.ndim != 2 or 0 in values.shape or noise.shape != values.shape[:1]:
        raise ValueError(
            f"drift, floor: got shapes {values.shape} and {noise.shape}; expected (L, E), layers by looks, and (L,)"
        )
    for name, given, expected in (("layer_names", layer_names, len(values)), ("labels", labels, values.shape[1])):
        if len(given) != expected:
            raise ValueError(f"{name}: got {len(given)}; expected {expected}, for drift of shape {values.shape}")
    return values, noise


def _evenly(total: int, most: int) -> npt.NDArray[np.int64]:
    """Numbers of at most so many of all, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64))


def _draw_cells(
    page: Axes, values: Array, corner: tuple[float, float], cell: tuple[float, float], *, written: bool
) -> None:
    """Colours and, where there is room, numbers of (L, E) values with their top left corner at a place."""
    (left, top), (width, height) = corner, cell
    rows, columns = values.shape
    picture = mpl.colormaps[_COLOURS](np.clip(np.nan_to_num(values), 0, 1))[..., :3]  # (L, E, 3)
    picture[np.isnan(values)] = 1.0
    right, bottom = left + columns * width, top + rows * height
    page.imshow(picture, extent=(left, right, bottom, top), aspect="auto", interpolation="nearest")
    for line in range(1, columns):
        page.plot([left + line * width] * 2, [top, bottom], color="white", linewidth=0.6)
    for line in range(1, rows):
        page.plot([left, right], [top + line * height] * 2, color="white", linewidth=0.6)
    page.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#8c8c8c", linewidth=0.5))
    for row, column in np.argwhere(~np.isnan(values)) if written else ():
        x, y = left + (column + 0.5) * width, top + (row + 0.5) * height
        text = f"{values[row, column]:.2f}"
        write(page, x, y, text, width=width, size=NOTE_SIZE, colour=_ink_on(picture[row, column]), align="center")


def _ink_on(colour: npt.NDArray[np.float64]) -> str:
    """White or ink, whichever is read more easily on a colour."""
    luminance = float(colour**2.2 @ np.array([0.2126, 0.7152, 0.0722]))
    return "white" if luminance < _MIDDLE_LUMINANCE else INK


def _draw_bar(figure: Figure, page: Axes) -> None:
    left = float(figure.get_size_inches()[0]) - MARGIN - 0.1 - _BAR_WIDTH
    axes = inset(figure, left, _BAR_TOP, _BAR_WIDTH, _BAR_THICKNESS)
    mappable = ScalarMappable(norm=Normalize(0, 1, clip=True), cmap=mpl.colormaps[_COLOURS])
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal", extend="max", extendfrac=0.04)
    bar.outline.set_linewidth(0.4)
    ticks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.tick_params(labelsize=NOTE_SIZE - 0.5, length=2, width=0.5, pad=1.5, colors=SOFT_INK)
    write(page, left + _BAR_WIDTH / 2, 0.24, "1 − rank correlation", width=_BAR_WIDTH, size=NOTE_SIZE, align="center")


def _draw_key(page: Axes) -> None:
    """What line and band are, at the right of the notes."""
    words = "what noise alone gives"
    right = _NARROWEST - MARGIN - text_width(words, NOTE_SIZE)
    write(page, right, 0.48, words, width=3, size=NOTE_SIZE, colour=SOFT_INK)
    page.add_patch(Rectangle((right - 0.42, 0.43), 0.34, 0.1, facecolor=_FLOOR, alpha=0.25, linewidth=0))
    page.plot([right - 0.42, right - 0.08], [0.43, 0.43], color=_FLOOR, linewidth=1, linestyle=(0, (3, 1.5)))
    end = right - 0.42 - 0.2
    drift = "drift"
    write(page, end - text_width(drift, NOTE_SIZE), 0.48, drift, width=1, size=NOTE_SIZE, colour=SOFT_INK)
    start = end - text_width(drift, NOTE_SIZE) - 0.42
    page.plot([start, start + 0.34], [0.48, 0.48], color=_NOW, linewidth=2)


def _said_of_now(drift: float, floor: float) -> str:
    if not math.isfinite(drift):
        return "now: no number"
    ratio = f", {drift / floor:.1f} × noise" if floor > 0 else ""
    return f"now {drift:.3f}{ratio}"


def _draw_panel(axes: Axes, drift: Array, floor: Array) -> None:
    looks = len(drift)
    finite = [value for value in (*drift, *floor) if math.isfinite(value)]
    top = next((end for end in _TOPS if end >= max(finite, default=0) * 1.04), _TOPS[-1])
    last = max(looks - 1, 1)
    axes.set(xlim=(-_ASIDE * last, (1 + _ASIDE) * last), ylim=(0, top))
    # The band of a single look would have no width.
    places, band = (range(looks), floor) if looks > 1 else (range(2), np.repeat(floor, 2))
    axes.fill_between(places, 0, band, color=_FLOOR, alpha=0.25, linewidth=0)
    axes.plot(places, band, color=_FLOOR, linewidth=1, linestyle=(0, (3, 1.5)))
    marker = "o" if looks <= 30 else ""
    axes.plot(range(looks), drift, color=_NOW, linewidth=2, clip_on=False, marker=marker, markersize=2.6)
    axes.set_yticks([0, top / 2, top], labels=["0", f"{top / 2:g}", f"{top:g}"])
    axes.tick_params(labelsize=NOTE_SIZE - 0.5, length=2.5, width=0.5, colors=SOFT_INK)
    axes.grid(visible=True, axis="y", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set(visible=name in ("left", "bottom"), color="#8c8c8c", linewidth=0.6)


def _write_looks(axes: Axes, page: Axes, labels: Sequence[str], corner: tuple[float, float], width: float) -> None:
    """The names of the last and the first look below an axes, and of some between where there is room."""
    size = NOTE_SIZE - 0.5
    left, y = corner
    last = len(labels) - 1
    taken: list[tuple[float, float]] = []
    marked = []
    for place in [last, 0, *_evenly(len(labels), 4)[1:-1]]:
        wide = text_width(labels[place], size)
        middle = (place / max(last, 1) + _ASIDE) / (1 + 2 * _ASIDE) * width
        # The names of the ends stand inside: the next panel is near.
        start = min(max(middle - wide / 2, -0.1), width + 0.1 - wide)
        if all(start > end + 0.1 or start + wide < begin - 0.1 for begin, end in taken):
            taken.append((start, start + wide))
            marked.append(int(place))
            write(page, left + start, y, labels[place], width=width, size=size, colour=SOFT_INK)
    axes.set_xticks(marked, labels=[""] * len(marked))
