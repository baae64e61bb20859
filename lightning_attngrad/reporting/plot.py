"""Areas of curves on a page: grid, ticks, lines and bands, each in the numbers that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.scale import LogTransform
from matplotlib.transforms import Affine2D, IdentityTransform, Transform, blended_transform_factory

from lightning_attngrad.reporting.page import NOTE_SIZE, Page
from lightning_attngrad.reporting.style import SOFT_INK, Colour

Values = Sequence[float] | npt.NDArray[Any]

_SPINE: Colour = (140, 140, 140)
_GRID: Colour = (228, 228, 228)
_TICKS: Colour = (95, 95, 95)
_TICK = 0.035  # length, in inches


class Place(NamedTuple):
    """A rectangle on a page, in inches from its top left corner."""

    left: float
    top: float
    width: float
    height: float


class Plot:
    """An area of curves.

    Args:
        page: That it lies on; it is added to `Page.plots`.
        place: Where it lies.
        xlim: Numbers at its left and right edge.
        ylim: Numbers at its lower and upper edge.
        log: Whether equal ratios of x are equally far apart.

    Attributes:
        xlim: Likewise.
        ylim: Likewise.
        xticks: Number and words of each tick, in their order.
        yticks: Likewise.
        lines: The curves, in their order.
        bands: The areas, in their order.
        numbers: From numbers to the pixels of whoever draws.
    """

    def __init__(
        self, page: Page, place: Place, xlim: tuple[float, float], ylim: tuple[float, float], *, log: bool = False
    ) -> None:
        self.page, self.xlim, self.ylim = page, xlim, ylim
        left, top, width, height = (page.style.on_pixel(length) for length in place)
        self.place, self._pixel = Place(left, top, width, height), 1 / page.style.dpi
        self.xticks: list[tuple[float, str]] = []
        self.yticks: list[tuple[float, str]] = []
        self.lines: list[Line2D] = []
        self.bands: list[Polygon] = []
        scale: Transform = (
            blended_transform_factory(LogTransform(10), IdentityTransform()) if log else IdentityTransform()
        )
        (first, low), (last, high) = scale.transform([(xlim[0], ylim[0]), (xlim[1], ylim[1])])
        across, down = self.place.width / (last - first), -self.place.height / (high - low)
        to_inches = Affine2D().translate(-first, -low).scale(across, down).translate(left, top + self.place.height)
        self._to_inches: Transform = scale + to_inches
        self.numbers: Transform = self._to_inches + page.inches
        page.plots.append(self)
        page.fill(left - self._pixel, top, self._pixel, self.place.height, _SPINE)
        page.fill(left - self._pixel, top + self.place.height, self.place.width + self._pixel, self._pixel, _SPINE)

    def in_inches(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies on the page."""
        across, down = self._to_inches.transform((x, y))
        return float(across), float(down)

    def tick_x(self, ticks: Sequence[tuple[float, str]], *, grid: bool = True, size: float = NOTE_SIZE) -> None:
        """Mark numbers along the lower edge; an empty word leaves its tick."""
        bottom = self.place.top + self.place.height
        for number, words in ticks:
            x, _ = self.in_inches(number, self.ylim[0])
            if grid and self.place.left < x < self.place.left + self.place.width:
                self.page.fill(x, self.place.top, self._pixel, self.place.height, _GRID)
            self.page.fill(x, bottom, self._pixel, _TICK, _TICKS)
            self.page.write(x, bottom + 0.115, words, width=2, size=size, colour=SOFT_INK, align="center")
        self.xticks += ticks

    def tick_y(self, ticks: Sequence[tuple[float, str]], *, size: float = NOTE_SIZE) -> None:
        """Mark numbers along the left edge."""
        left = self.place.left
        for number, words in ticks:
            _, y = self.in_inches(self.xlim[0], number)
            if self.place.top < y + self._pixel < self.place.top + self.place.height:
                self.page.fill(left, y, self.place.width, self._pixel, _GRID)
            self.page.fill(left - self._pixel - _TICK, y, _TICK, self._pixel, _TICKS)
            self.page.write(left - _TICK - 0.05, y, words, width=1, size=size, colour=SOFT_INK, align="right")
        self.yticks += ticks

    def name_axes(self, x: str, y: str) -> None:
        """Say below and at the left what the numbers are."""
        across, down = self.place.left + self.place.width / 2, self.place.top + self.place.height / 2
        below = self.place.top + self.place.height + 0.32
        self.page.write(across, below, x, width=self.place.width, size=NOTE_SIZE, colour=SOFT_INK, align="center")
        beside = self.place.left - 0.54
        wide = self.place.height
        self.page.write(beside, down, y, width=wide, size=NOTE_SIZE, colour=SOFT_INK, align="center", upwards=True)

    def curve(self, x: Values, y: Values, **style: Any) -> None:
        """Draw a curve through points; NaN is a gap."""
        line = Line2D(x, y, transform=self.numbers, **self.page.in_style(style))
        self.lines.append(line)
        self.page.add_artist(line, clip=False)

    def band(self, x: Values, low: Values, high: Values, **style: Any) -> None:
        """Fill what lies between two curves; NaN is a gap."""
        places, lower, upper = (np.asarray(values, dtype=np.float64) for values in (x, low, high))
        known = np.isfinite(lower) & np.isfinite(upper)
        starts = np.flatnonzero(np.diff(known, prepend=False, append=False))
        for first, end in zip(starts[::2], starts[1::2], strict=True):
            part = slice(first, end)
            there = np.stack([places[part], lower[part]], axis=1)
            back = np.stack([places[part], upper[part]], axis=1)[::-1]
            area = Polygon(
                np.concatenate([there, back]), transform=self.numbers, linewidth=0, **self.page.in_style(style)
            )
            self.bands.append(area)
            self.page.add_artist(area, clip=False)
