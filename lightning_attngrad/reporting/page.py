"""A page measured in inches for figures without maps: their head, their text, and axes put at a place.

`canvas` does the same for figures of maps, which share a colour bar.
"""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_attngrad.reporting.canvas import (
    DOTS_PER_INCH,
    INK,
    MARGIN,
    NOTE_SIZE,
    SOFT_INK,
    TEXT_SIZE,
    TITLE_SIZE,
    fit_text,
)


def new_page(width: float, height: float, *, title: str, notes: str, room: float) -> tuple[Figure, Axes]:
    """A figure with its head, and an axes over all of it whose unit is the inch, from the top left corner.

    Args:
        width: In inches.
        height: In inches.
        title: First line, cut to ``room``.
        notes: Second line, cut to ``room``.
        room: In inches.

    Returns:
        The figure and the axes.
    """
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    page = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    page.set(xlim=(0, width), ylim=(height, 0))
    page.set_axis_off()
    page.set_autoscale_on(False)
    write(page, MARGIN, 0.24, title, width=room, size=TITLE_SIZE, bold=True)
    write(page, MARGIN, 0.48, notes, width=room, size=NOTE_SIZE, colour=SOFT_INK)
    return figure, page


def inset(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """An axes at a place in inches from the top left corner."""
    across, down = (float(size) for size in figure.get_size_inches())
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write(
    page: Axes,
    x: float,
    y: float,
    text: str,
    *,
    width: float,
    size: float = TEXT_SIZE,
    bold: bool = False,
    colour: str = INK,
    align: Literal["left", "center", "right"] = "left",
    upwards: bool = False,
) -> None:
    """Write one line, centred across its direction on the point, cut to ``width`` inches."""
    page.text(
        x,
        y,
        fit_text(text, width, size, bold=bold),
        fontsize=size,
        fontweight="bold" if bold else "normal",
        color=colour,
        ha=align,
        va="center_baseline",
        rotation=90 if upwards else 0,
        rotation_mode="anchor",
        parse_math=False,  # a class may be called "$5 bill"
    )


def on_pixel(inches: float) -> float:
    """The nearest length that is a whole number of pixels."""
    return round(inches * DOTS_PER_INCH) / DOTS_PER_INCH
