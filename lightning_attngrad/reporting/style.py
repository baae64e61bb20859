"""How figures look: one settings object, given to whatever draws."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Colour: TypeAlias = tuple[int, int, int]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic"]

DOTS_PER_INCH = 120
WHITE: Colour = (255, 255, 255)
INK, SOFT_INK, WRONG_INK = "#1a1a1a", "#5f5f5f", "#b23a00"

_NARROWEST, _WIDEST = 3.5, 40.0
_FEWEST_DOTS, _MOST_DOTS = 60, 600
_SMALLEST_IMAGE = 0.4
#: What stands for each colour of a light page on a dark one. Text keeps a contrast of 4.5 and lines one of 3 at least,
#: and the colours of curves stay those of Okabe and Ito, or lighter ones of the same hue.
_ON_DARK: dict[str, str] = {
    INK: "#ececec",
    SOFT_INK: "#a9a9a9",
    WRONG_INK: "#ff9a5c",
    "#0072b2": "#56b4e9",
    "#d55e00": "#ff8c42",
    "#009e73": "#2fd1a2",
    "#cc79a7": "#e8a0c8",
    "#8a6d00": "#e0c044",
    "#8c8c8c": "#9a9a9a",
    "#ececec": "#2c2c2c",
    "white": "#161616",
    "black": "#ececec",
}
_FILLS_ON_DARK: dict[Colour, Colour] = {
    WHITE: (22, 22, 22),
    (140, 140, 140): (110, 110, 110),
    (228, 228, 228): (52, 52, 52),
    (224, 224, 224): (72, 72, 72),
    (95, 95, 95): (169, 169, 169),
}


@dataclass(frozen=True)
class FigureStyle:
    """How figures look; what they say is the same in every style.

    Attributes:
        width: How wide a figure may become, in inches, before its rows are broken; one that could not be read then, as
            a matrix of forty classes, is wider. At 5, the default, text is legible where the figure is shown
            350 pixels wide, as on a card of TensorBoard; 11 suits a page or a slide.
        image_size: The longer side of an image, in inches; None follows the number of images.
        dpi: Pixels an inch, of the picture and of what is no line or letter in a PDF or SVG.
        dark: Whether the page is dark.
        cmap: Name of a colour map of matplotlib's, for maps from 0 upwards.
        signed_cmap: Likewise for maps with negative parts; best one whose middle is pale, for zero.
        alpha: Opacity of a map on its image, above 0, and 1 for the map alone.
        interpolation: ``"nearest"`` shows each patch as it is. ``"bilinear"`` and ``"bicubic"`` smooth what lies
            between the patches' middles, which is nothing that was measured: the figure says so.
        limit: End of the colour scale in times an equal share. None is the figure's own, 4, the same for all images
            and epochs; ``"image"`` is the largest value of each image, so that faint maps are seen, and then only
            colours within an image compare.

    Raises:
        ValueError: For a value that does not fit; the message says what would.

    Example:
        >>> FigureStyle(dark=True, width=11).colour("#1a1a1a")
        '#ececec'
        >>> FigureStyle(cmap="virids")
        Traceback (most recent call last):
            ...
        ValueError: cmap: got 'virids'; expected the name of a colour map of matplotlib's, such as 'viridis'
    """

    width: float = 5.0
    image_size: float | None = None
    dpi: int = DOTS_PER_INCH
    dark: bool = False
    cmap: str = "inferno"
    signed_cmap: str = "PuOr_r"
    alpha: float = 0.62
    interpolation: Interpolation = "nearest"
    limit: float | Literal["image"] | None = None

    def __post_init__(self) -> None:
        _check_number("width", self.width, _NARROWEST, _WIDEST, "inches")
        if self.image_size is not None:
            _check_number("image_size", self.image_size, _SMALLEST_IMAGE, _WIDEST, "inches, or None")
        _check_number("dpi", self.dpi, _FEWEST_DOTS, _MOST_DOTS, "pixels an inch")
        for name in ("cmap", "signed_cmap"):
            _check_colour_map(name, getattr(self, name))
        if not (_is_number(self.alpha) and 0 < self.alpha <= 1):
            raise ValueError(f"alpha: got {self.alpha!r}; expected a number above 0, and at most 1")
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(f"interpolation: got {self.interpolation!r}; expected 'nearest', 'bilinear' or 'bicubic'")
        if self.limit not in (None, "image") and not (_is_number(self.limit) and self.limit > 0):  # type: ignore[operator]
            raise ValueError(f"limit: got {self.limit!r}; expected a positive number, 'image' or None")

    def colour(self, light: str) -> str:
        """What stands for the colour of a line or a letter of light pages."""
        return _ON_DARK.get(light, light) if self.dark else light

    def fill(self, light: Colour) -> Colour:
        """What stands for the colour of an area of light pages, in 0…255."""
        return _FILLS_ON_DARK.get(light, light) if self.dark else light

    def pixels(self, inches: float) -> int:
        """The nearest whole number of pixels."""
        return round(inches * self.dpi)

    def on_pixel(self, inches: float) -> float:
        """The nearest length that is a whole number of pixels."""
        return self.pixels(inches) / self.dpi


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_number(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not (_is_number(value) and low <= value <= high):
        raise ValueError(f"{name}: got {value!r}; expected {low:g} to {high:g} {unit}")


def _check_colour_map(name: str, given: str) -> None:
    if given in ("inferno", "PuOr_r"):  # the defaults, which need no matplotlib to be loaded
        return
    from matplotlib import colormaps  # noqa: PLC0415

    if given not in colormaps:
        near = difflib.get_close_matches(str(given), list(colormaps), 1) or ["viridis"]
        raise ValueError(
            f"{name}: got {given!r}; expected the name of a colour map of matplotlib's, such as {near[0]!r}"
        )


#: The style of whoever asks for none.
PLAIN = FigureStyle()
