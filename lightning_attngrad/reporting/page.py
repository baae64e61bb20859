"""A figure measured in inches from its top left corner, with what lies on it painted at once.

Pictures, cells, frames and grids are painted as pixels on one sheet, and a line of text, a curve or an area is one
artist on top of it. So a figure has no matplotlib axes, which would cost more than all that they hold.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Mapping, Sequence
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

from lightning_attngrad.reporting.style import INK, PLAIN, SOFT_INK, WHITE, Colour, FigureStyle
from lightning_attngrad.reporting.text import Line, faces, fit_text, missing_glyphs_unmentioned, wrapped

Picture = npt.NDArray[np.uint8]
_Kind = TypeVar("_Kind", bound=np.generic)

MARGIN = 0.16
TITLE_SIZE, SUBTITLE_SIZE, TEXT_SIZE, NOTE_SIZE = 11.5, 9.5, 8.5, 8.0
FRAME: Colour = (140, 140, 140)
_NARROWEST = 7.6  # figure, in inches, where the style has room
_TITLE_LINE, _SUBTITLE_LINE, _NOTE_LINE = 0.24, 0.21, 0.19  # in the head of a figure
_BELOW_HEAD = 0.14

BAR_WIDTH, BAR_TOP, BAR_THICKNESS = 2.7, 0.36, 0.11  # of the colour bar, in the head of a figure
_BESIDE_TITLE = 7.0  # from this width on there is room for the bar at the right of the title; else it is below
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


class _HeadLine(NamedTuple):
    words: str
    y: float
    size: float


class _Head(NamedTuple):
    """The lines at the top of a page, where its colour bar begins, and its height; in inches."""

    lines: list[_HeadLine]
    bar_top: float
    height: float

    @classmethod
    def of(cls, title: str, notes: str, shown_as: str, width: float, *, bar: bool) -> _Head:
        """Break the words to the width of a page; beside the bar, where it stands at the right, there is less."""
        beside = bar and width >= _BESIDE_TITLE
        whole = width - 2 * MARGIN
        room = whole - MARGIN - BAR_WIDTH if beside else whole
        lines, y = [], 0.0
        # On a narrow page the parts behind the first have a line of their own, whether or not they would fit: so a
        # figure has the same size in all epochs.
        first, _, rest = (title, "", "") if width >= _BESIDE_TITLE else title.partition(" · ")
        for said, size, line in ((first, TITLE_SIZE, _TITLE_LINE), (rest, SUBTITLE_SIZE, _SUBTITLE_LINE)):
            for words in wrapped(said, room, size, bold=True) if said else ():
                y += line
                lines.append(_HeadLine(words, y, size))
        y += _TITLE_LINE - _NOTE_LINE
        for words in wrapped(notes, room, NOTE_SIZE) if notes else ():
            y += _NOTE_LINE
            lines.append(_HeadLine(words, y, NOTE_SIZE))
        bar_top = BAR_TOP
        if beside:
            y = max(y, BAR_TOP + BAR_THICKNESS + _TICK_WORDS)
        for words in wrapped(shown_as, whole, NOTE_SIZE) if shown_as else ():
            y += _NOTE_LINE
            lines.append(_HeadLine(words, y, NOTE_SIZE))
        if bar and not beside:
            bar_top = y + _NOTE_LINE / 2 + 0.05
            y = bar_top + BAR_THICKNESS + _TICK_WORDS
        return cls(lines, bar_top, y + _NOTE_LINE / 2 + _BELOW_HEAD)


class Page(Figure):
    """A figure with a head; places and lengths are inches from the top left corner.

    Args:
        width: In inches.
        body: Height below the head, in inches.
        title: First lines.
        notes: The lines below, smaller.
        shown_as: What was done to the images so that they can be seen, in lines of its own; empty where nothing was.
        bar: Whether the head has room for a colour bar, see `colour_bar`.
        style: How it looks.

    Attributes:
        style: Likewise.
        top: Where the head ends and the body begins, in inches.
        sheet: (H, W, 4) red, green, blue and opacity of what is painted, in 0…255.
        tiles: The pictures that were painted, in their order.
        plots: The areas of curves, in their order: see `reporting.plot`.
        bar: The colour bar; None where there is none.
        inches: From inches to the pixels of whoever draws.
    """

    def __init__(
        self,
        width: float,
        body: float,
        *,
        title: str,
        notes: str,
        shown_as: str = "",
        bar: bool = False,
        style: FigureStyle = PLAIN,
    ) -> None:
        self.style = style
        head = _Head.of(title, notes, shown_as, width, bar=bar)
        self._bar_top, self.top = head.bar_top, style.on_pixel(head.height)
        down, across = style.pixels(self.top + body), style.pixels(width)
        # A little more than whole pixels: matplotlib rounds down.
        super().__init__(figsize=((across + 0.01) / style.dpi, (down + 0.01) / style.dpi), dpi=style.dpi)
        self.patch.set_visible(False)
        self.sheet: Picture = np.full((down, across, 4), 255, dtype=np.uint8)
        if style.dark:
            self.sheet[..., :3] = style.fill(WHITE)
        self.add_artist(_Sheet(self), clip=False)
        self.tiles: list[Tile] = []
        self.plots: list[Any] = []
        self.bar: Bar | None = None
        self.inches: Transform = Affine2D().scale(1, -1).translate(0, down / style.dpi) + self.dpi_scale_trans
        for line in head.lines:
            bold = line.size >= SUBTITLE_SIZE
            colour = INK if bold else SOFT_INK
            self.write(MARGIN, line.y, line.words, width=width, size=line.size, bold=bold, colour=colour)

    def _repr_png_(self) -> bytes:
        """As a notebook shows the last line of a cell; matplotlib does so only where pyplot is in use."""
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()

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
            color=self.style.colour(colour),
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
        """Paint cells of one size (rows, columns, 3) with thin lines between them and a frame around all."""
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
        tile = Tile(*(self.style.pixels(side) for side in (left, top, left + width, top + height)))
        self.tiles.append(tile)
        return tile

    def region(self, tile: Tile) -> Picture:
        """Red, green and blue of a tile, (h, w, 3), to be painted."""
        return self.sheet[tile.top : tile.bottom, tile.left : tile.right, :3]

    def framed(self, tile: Tile) -> None:
        """Paint a line along the edges of a tile, inside it."""
        region = self.region(tile)
        colour = self.style.fill(FRAME)
        region[[0, -1]] = colour
        region[:, [0, -1]] = colour

    def fill(self, left: float, top: float, width: float, height: float, colour: Colour) -> None:
        """Paint a rectangle, at least a pixel wide and high."""
        pixels = self.style.pixels
        across, down = pixels(left), pixels(top)
        right, bottom = max(pixels(left + width), across + 1), max(pixels(top + height), down + 1)
        self.sheet[down:bottom, across:right, :3] = self.style.fill(colour)

    def curve(self, x: Sequence[float] | npt.NDArray[Any], y: Sequence[float] | npt.NDArray[Any], **style: Any) -> None:
        """Draw a line through points; in inches, unless another ``transform`` is given."""
        self.add_artist(Line2D(x, y, **{"transform": self.inches, **self.in_style(style)}), clip=False)

    def area(self, corners: npt.NDArray[Any], **style: Any) -> None:
        """Fill the area between corners (n, 2); in inches, unless another ``transform`` is given."""
        self.add_artist(
            Polygon(corners, **{"transform": self.inches, "linewidth": 0, **self.in_style(style)}), clip=False
        )

    def in_style(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a line or an area with the colours of this page; those that are numbers are kept."""
        coloured = ("color", "facecolor", "edgecolor")
        return {
            name: self.style.colour(value) if name in coloured and isinstance(value, str) else value
            for name, value in options.items()
        }

    def colour_bar(
        self,
        colours: Picture,
        ticks: Sequence[tuple[float, str]],
        name: str,
        *,
        lower: bool = False,
        upper: bool = True,
    ) -> None:
        """The scale of a figure, at the right of its head, or below it on a narrow page.

        Args:
            colours: (n, 3) from one end of the scale to the other.
            ticks: Place along the bar in [0, 1] and what is written there.
            name: Of what is shown.
            lower: Whether the lower end is pointed, as values beyond it are drawn in its colour.
            upper: Whether the upper end is.
        """
        width = self.sheet.shape[1] / self.style.dpi
        beside = width >= _BESIDE_TITLE
        left = width - MARGIN - 0.1 - BAR_WIDTH if beside else MARGIN + 0.05
        point = BAR_WIDTH * _BAR_POINT
        start, length = left + point * lower, BAR_WIDTH - point * (lower + upper)
        sides = (start, self._bar_top, start + length, self._bar_top + BAR_THICKNESS)
        bar = Tile(*(self.style.pixels(side) for side in sides))
        self.bar = Bar(bar, tuple(ticks))
        self.region(bar)[:] = repeated(colours[None], bar)
        first, low, last, high = (side / self.style.dpi for side in bar)
        middle = (low + high) / 2
        ends = [(first, high), *[(first - point, middle)] * lower, (first, low)]
        ends += [(last, low), *[(last + point, middle)] * upper, (last, high)]
        if upper:
            self.area(np.array(ends[-3:]), facecolor=colours[-1] / 255)
        if lower:
            self.area(np.array(ends[:3]), facecolor=colours[0] / 255)
        self.area(np.array(ends), facecolor="none", edgecolor=INK, linewidth=0.4)
        for place, words in ticks:
            x = start + place * length
            self.fill(x - 0.5 / self.style.dpi, high, 1 / self.style.dpi, _TICK, (95, 95, 95))
            self.write(x, high + _TICK_WORDS, words, width=1, size=NOTE_SIZE - 0.5, colour=SOFT_INK, align="center")
        if beside:
            self.write(left + BAR_WIDTH / 2, 0.24, name, width=BAR_WIDTH, size=NOTE_SIZE, align="center")
        else:
            behind = left + BAR_WIDTH + 0.1
            self.write(behind, middle, name, width=width - behind - 0.05, size=NOTE_SIZE)


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


def least_width(style: FigureStyle) -> float:
    """What a page is wide at least, in inches, so that its head has room."""
    return min(_NARROWEST, style.width)


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
