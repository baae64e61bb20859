"""A figure measured in inches from its top left corner, with what lies on it painted at once.

Pictures, cells, frames and grids are painted as pixels on one sheet, and a line of text, a curve or an area is one
artist on top of it. So a figure has no matplotlib axes, which would cost more than all that they hold.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import BboxImage
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.transforms import Affine2D, Transform

from lightning_attngrad.reporting.text import DOTS_PER_INCH, Line, faces, fit_text, missing_glyphs_unmentioned

Colour = tuple[int, int, int]
Picture = npt.NDArray[np.uint8]
_Kind = TypeVar("_Kind", bound=np.generic)

MARGIN = 0.16
HEADER_HEIGHT = 0.82
INK, SOFT_INK, WRONG_INK = "#1a1a1a", "#5f5f5f", "#b23a00"
TITLE_SIZE, TEXT_SIZE, NOTE_SIZE = 11.5, 8.5, 8.0
NARROWEST = 7.6  # figure, in inches
WHITE: Colour = (255, 255, 255)
FRAME: Colour = (140, 140, 140)

BAR_WIDTH, BAR_TOP, BAR_THICKNESS = 2.7, 0.36, 0.11  # of the colour bar, in the head of a figure
_BAR_POINT = 0.04  # length of a pointed end, of the bar
_TICK, _TICK_WORDS = 0.03, 0.1  # length of a tick, and how far below the bar its words have their middle
_NOT_STYLE = ("backend", "interactive", "toolbar", "webagg", "figure.hooks", "animation", "_")


class Tile(NamedTuple):
    """A picture on a page: its edges in pixels from the top left corner."""

    left: int
    top: int
    right: int
    bottom: int


class Bar(NamedTuple):
    """The colour bar of a page.

    Attributes:
        tile: Where its scale lies from end to end, without the points.
        ticks: Place along the scale in [0, 1] and words of each tick.
    """

    tile: Tile
    ticks: tuple[tuple[float, str], ...]


class Page(Figure):
    """A figure with a head; places and lengths are inches from the top left corner.

    Args:
        width: In inches.
        height: In inches.
        title: First line, cut to ``room``.
        notes: Second line, cut to ``room``.
        shown_as: What was done to the images so that they can be seen, in a line of its own; empty where nothing was.
        room: In inches; None is the width without margins.

    Attributes:
        sheet: (H, W, 4) red, green, blue and opacity of what is painted, in 0…255.
        tiles: The pictures that were painted, in their order.
        plots: The areas of curves, in their order: see `reporting.plot`.
        bar: The colour bar; None where there is none.
        inches: From inches to the pixels of whoever draws.
    """

    def __init__(
        self, width: float, height: float, *, title: str, notes: str, shown_as: str = "", room: float | None = None
    ) -> None:
        down, across = pixels(height), pixels(width)
        # A little more than whole pixels: matplotlib rounds down.
        super().__init__(figsize=((across + 0.01) / DOTS_PER_INCH, (down + 0.01) / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
        self.patch.set_visible(False)
        self.sheet: Picture = np.full((down, across, 4), 255, dtype=np.uint8)
        self.add_artist(_Sheet(self), clip=False)
        self.tiles: list[Tile] = []
        self.plots: list[Any] = []
        self.bar: Bar | None = None
        self.inches: Transform = Affine2D().scale(1, -1).translate(0, down / DOTS_PER_INCH) + self.dpi_scale_trans
        room = width - 2 * MARGIN if room is None else room
        self.write(MARGIN, 0.24, title, width=room, size=TITLE_SIZE, bold=True)
        self.write(MARGIN, 0.48, notes, width=room, size=NOTE_SIZE, colour=SOFT_INK)
        self.write(MARGIN, 0.7, shown_as, width=width - 2 * MARGIN, size=NOTE_SIZE, colour=SOFT_INK)

    def write(
        self,
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
        said = fit_text(text, width, size, bold=bold)
        if not said:
            return
        line = Line(
            x,
            y,
            said,
            color=colour,
            horizontalalignment=align,
            verticalalignment="center_baseline",
            rotation=90 if upwards else 0,
            rotation_mode="anchor",
            fontproperties=_letters(size, bold),
            parse_math=False,  # a class may be called "$5 bill"
            transform=self.inches,
        )
        line.set_figure(self)
        self.texts.append(line)

    def cells(self, picture: Picture, left: float, top: float, width: float, height: float) -> None:
        """Paint cells of one size (rows, columns, 3) with thin white lines between them and a frame around all."""
        rows, columns = picture.shape[:2]
        tile = self.place(left, top, columns * width, rows * height)
        self.region(tile)[:] = repeated(picture, tile)
        for column in range(1, columns):
            self.fill(left + column * width, top, 0, rows * height, WHITE)
        for row in range(1, rows):
            self.fill(left, top + row * height, columns * width, 0, WHITE)
        self.framed(tile)

    def place(self, left: float, top: float, width: float, height: float) -> Tile:
        """The pixels of a picture that is about to be painted."""
        tile = Tile(pixels(left), pixels(top), pixels(left + width), pixels(top + height))
        self.tiles.append(tile)
        return tile

    def region(self, tile: Tile) -> Picture:
        """Red, green and blue of a tile, (h, w, 3), to be painted."""
        return self.sheet[tile.top : tile.bottom, tile.left : tile.right, :3]

    def framed(self, tile: Tile) -> None:
        """Paint a line along the edges of a tile, inside it."""
        region = self.region(tile)
        region[[0, -1]] = FRAME
        region[:, [0, -1]] = FRAME

    def fill(self, left: float, top: float, width: float, height: float, colour: Colour) -> None:
        """Paint a rectangle, at least a pixel wide and high."""
        across, down = pixels(left), pixels(top)
        right, bottom = max(pixels(left + width), across + 1), max(pixels(top + height), down + 1)
        self.sheet[down:bottom, across:right, :3] = colour

    def curve(self, x: Sequence[float] | npt.NDArray[Any], y: Sequence[float] | npt.NDArray[Any], **style: Any) -> None:
        """Draw a line through points; in inches, unless another ``transform`` is given."""
        self.add_artist(Line2D(x, y, **{"transform": self.inches, **style}), clip=False)

    def area(self, corners: npt.NDArray[Any], **style: Any) -> None:
        """Fill the area between corners (n, 2); in inches, unless another ``transform`` is given."""
        self.add_artist(Polygon(corners, **{"transform": self.inches, "linewidth": 0, **style}), clip=False)

    def colour_bar(self, colours: Picture, ticks: Sequence[tuple[float, str]], name: str, *, both: bool) -> None:
        """The scale of a figure, at the right of its head.

        Args:
            colours: (n, 3) from one end of the scale to the other.
            ticks: Place along the bar in [0, 1] and what is written there.
            name: Of what is shown.
            both: Whether both ends are pointed, as values beyond either are drawn in its colour; else the upper one.
        """
        left = self.bar_left()
        point = BAR_WIDTH * _BAR_POINT
        start, length = left + point * both, BAR_WIDTH - point * (1 + both)
        bar = Tile(*(pixels(side) for side in (start, BAR_TOP, start + length, BAR_TOP + BAR_THICKNESS)))
        self.bar = Bar(bar, tuple(ticks))
        self.region(bar)[:] = repeated(colours[None], bar)
        low, high = bar.top / DOTS_PER_INCH, bar.bottom / DOTS_PER_INCH
        first, last, middle = bar.left / DOTS_PER_INCH, bar.right / DOTS_PER_INCH, (low + high) / 2
        upper = [(last, low), (last + point, middle), (last, high)]
        lower = [(first, high), (first - point, middle), (first, low)] if both else [(first, high), (first, low)]
        self.area(np.array(upper), facecolor=colours[-1] / 255)
        if both:
            self.area(np.array(lower), facecolor=colours[0] / 255)
        outline = np.array([*upper, *lower])
        self.area(outline, facecolor="none", edgecolor="black", linewidth=0.4)
        for place, words in ticks:
            x = start + place * length
            self.fill(x - 0.5 / DOTS_PER_INCH, high, 1 / DOTS_PER_INCH, _TICK, (95, 95, 95))
            self.write(x, high + _TICK_WORDS, words, width=1, size=NOTE_SIZE - 0.5, colour=SOFT_INK, align="center")
        self.write(left + BAR_WIDTH / 2, 0.24, name, width=BAR_WIDTH, size=NOTE_SIZE, align="center")

    def bar_left(self) -> float:
        """Left edge of the colour bar, in inches."""
        return int(self.sheet.shape[1]) / DOTS_PER_INCH - MARGIN - 0.1 - BAR_WIDTH


class _Sheet(BboxImage):
    """The painted pixels under everything else: copied where the page is drawn in its own size, else resampled."""

    def __init__(self, page: Page) -> None:
        super().__init__(page.bbox, origin="upper", zorder=-1)
        self._page = page

    def draw(self, renderer: Any) -> None:
        """Copy the sheet, or let matplotlib fit it to a page of another size."""
        down, across = self._page.sheet.shape[:2]
        if isinstance(renderer, RendererAgg) and (int(renderer.width), int(renderer.height)) == (across, down):
            renderer.draw_image(renderer.new_gc(), 0, 0, self._page.sheet[::-1])  # from the lowest line up
        else:
            self.set_data(self._page.sheet)
            super().draw(renderer)


def pixels(inches: float) -> int:
    """The nearest whole number of pixels."""
    return round(inches * DOTS_PER_INCH)


def on_pixel(inches: float) -> float:
    """The nearest length that is a whole number of pixels."""
    return pixels(inches) / DOTS_PER_INCH


def repeated(picture: npt.NDArray[_Kind], tile: Tile) -> npt.NDArray[_Kind]:
    """A picture (h, w, …) in the size of a tile, each of its cells a rectangle of one colour."""
    rows = np.arange(tile.bottom - tile.top) * picture.shape[0] // (tile.bottom - tile.top)
    columns = np.arange(tile.right - tile.left) * picture.shape[1] // (tile.right - tile.left)
    enlarged: npt.NDArray[_Kind] = np.take(np.take(picture, columns, axis=1), rows, axis=0)
    return enlarged


@functools.cache
def _letters(size: float, bold: bool) -> FontProperties:
    return FontProperties(family=list(faces()), size=size, weight="bold" if bold else "normal")


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's own defaults within the block, whatever style the user's session has chosen."""
    with mpl.rc_context(_style()), missing_glyphs_unmentioned():
        yield


@functools.cache
def _style() -> dict[Any, Any]:  # the names of all settings are a type of their own in matplotlib
    style: dict[Any, Any] = dict(mpl.rcParamsDefault)
    kept = {key: value for key, value in style.items() if not key.startswith(_NOT_STYLE)}
    return {**kept, "font.family": list(faces())}
