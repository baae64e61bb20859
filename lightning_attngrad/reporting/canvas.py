"""A page measured in inches, on which figures are laid out exactly.

Everything of a figure but its colour bar lies in one matplotlib axes whose unit is the inch and whose origin
is the top left corner. Tiles then align to the pixel whatever the text beside them, and a figure of a hundred
tiles is drawn in a fraction of the time that a hundred axes would take.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextToPath

from lightning_attngrad.reporting.colour_scale import ColourScale

Array = npt.NDArray[np.float32]

DOTS_PER_INCH = 120
MARGIN = 0.16
HEADER_HEIGHT = 0.82
INK, SOFT_INK, WRONG_INK = "#1a1a1a", "#5f5f5f", "#b23a00"
TITLE_SIZE, TEXT_SIZE, NOTE_SIZE = 11.5, 8.5, 8.0

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_COLOUR_BAR_WIDTH = 2.7
_OVERLAY_OPACITY = 0.62
_DARKEST, _GREY_RANGE = 0.22, 0.7  # of the grey image below a map
_COVERED = 0.5  # of a pixel, for it to be inside an outline
_OUTLINE = (1.5, 0.6)  # points: the dark line, and the light one in it
# Faces that hold scripts which matplotlib's own face lacks; only those present on the machine are asked for.
_NOT_STYLE = ("backend", "interactive", "toolbar", "webagg", "figure.hooks", "animation", "_")
_FURTHER_FACES = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
)


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's own defaults within the block, whatever style the user's session has chosen."""
    with mpl.rc_context(_style()), _missing_glyphs_unmentioned():
        yield


@functools.cache
def _style() -> dict[Any, Any]:  # the names of all settings are a type of their own in matplotlib
    style: dict[Any, Any] = dict(mpl.rcParamsDefault)
    kept = {key: value for key, value in style.items() if not key.startswith(_NOT_STYLE)}
    return {**kept, "font.family": list(_faces())}


@contextmanager
def _missing_glyphs_unmentioned() -> Iterator[None]:
    """Letters that no installed face holds are drawn as boxes; a warning for each helps nobody."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


@functools.cache
def _faces() -> tuple[str, ...]:
    present = set(fontManager.get_font_names())
    return ("DejaVu Sans", *(face for face in _FURTHER_FACES if face in present))


def figure_to_array(figure: Figure) -> npt.NDArray[np.uint8]:
    """Draw a figure as a picture.

    Args:
        figure: Any figure of ``matplotlib.figure.Figure``; pyplot is not involved.

    Returns:
        (H, W, 3) red, green and blue in 0…255.

    Example:
        >>> figure_to_array(Figure(figsize=(2, 1), dpi=50)).shape
        (50, 100, 3)
    """
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib's own class has no annotations
    with house_style():
        canvas.draw()
    picture: npt.NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return picture


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of a line of text in inches.

    Args:
        text: One line.
        size: In points.
        bold: Whether it is set in bold.

    Returns:
        Inches.
    """
    return _text_width(text, size, "bold" if bold else "normal")


@functools.lru_cache(maxsize=4096)
def _text_width(text: str, size: float, weight: str) -> float:
    with _missing_glyphs_unmentioned():
        face = FontProperties(family=list(_faces()), size=size, weight=weight)
        width, _, _ = TextToPath().get_text_width_height_descent(text, face, ismath=False)
    return float(width) / 72.0


def fit_text(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """One line of text cut with an ellipsis so that it is no wider than asked.

    Args:
        text: Any text; line breaks and repeated blanks become one blank.
        width: In inches.
        size: In points.
        bold: Whether it is set in bold.

    Returns:
        The text itself where it fits, else its longest beginning that does, with an ellipsis.

    Example:
        >>> fit_text("tench", 2.0, 8.0)
        'tench'
        >>> fit_text("great white shark, man-eater, Carcharodon carcharias", 1.0, 8.0)
        'great white sha…'
    """
    text = " ".join(text.split())
    if text_width(text, size, bold=bold) <= width:
        return text
    shortest, longest = 0, len(text)
    while shortest < longest:  # by halves: width grows with every letter
        middle = (shortest + longest + 1) // 2
        if text_width(text[:middle].rstrip(" ,;") + "…", size, bold=bold) <= width:
            shortest = middle
        else:
            longest = middle - 1
    return text[:shortest].rstrip(" ,;") + "…"


def tile_size(aspect: float, width: float, height: float) -> tuple[float, float]:
    """The largest tile of an aspect inside a box.

    Args:
        aspect: Width over height of the image.
        width: Of the box, in inches.
        height: Of the box, in inches.

    Returns:
        Width and height in inches.

    Example:
        >>> tile_size(2.0, 1.0, 1.0)
        (1.0, 0.5)
    """
    return (width, width / aspect) if width / aspect <= height else (height * aspect, height)


class Canvas:
    """A figure of given size with its title and colour bar; positions are inches from the top left corner.

    Attributes:
        figure: The figure that is drawn on.
    """

    def __init__(
        self, width: float, height: float, *, title: str, notes: str, scale: ColourScale, blended: bool
    ) -> None:
        self.scale = scale
        self._opacity = _OVERLAY_OPACITY if blended else 1.0
        self.figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
        self._axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set(xlim=(0, width), ylim=(height, 0))
        self._axes.set_axis_off()
        self._axes.set_autoscale_on(False)
        text_room = width - 3 * MARGIN - _COLOUR_BAR_WIDTH
        self.text(MARGIN, 0.24, title, width=text_room, size=TITLE_SIZE, bold=True)
        self.text(MARGIN, 0.48, notes, width=text_room, size=NOTE_SIZE, colour=SOFT_INK)
        self._colour_bar(width, height)

    def text(
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
    ) -> None:
        """Write one line, centred on ``y``, cut to ``width`` inches."""
        self._axes.text(
            x,
            y,
            fit_text(text, width, size, bold=bold),
            fontsize=size,
            fontweight="bold" if bold else "normal",
            color=colour,
            ha=align,
            va="center_baseline",
            parse_math=False,  # a class may be called "$5 bill"
        )

    def image(self, picture: Array, x: float, y: float, width: float, height: float) -> None:
        """Show an image (3 or 1, H, W) in [0, 1]."""
        self._show(_colour_picture(picture), x, y, width, height, interpolation="auto")
        self._frame(x, y, width, height)

    def map(self, picture: Array, heatmap: Array, x: float, y: float, width: float, height: float) -> None:
        """Show a map (h, w); on a blended canvas, on the grey version of its image (3 or 1, H, W)."""
        if self._opacity < 1:
            # Softened greys leave the map's own lightness readable on dark and on light images alike.
            grey = np.repeat(_DARKEST + _GREY_RANGE * _grey(picture)[..., None], 3, axis=-1)
            self._show(grey, x, y, width, height, interpolation="auto")
        if np.isfinite(heatmap).all():
            colours = self.scale.colours(self.scale.normalisation(heatmap))
            self._show(colours[..., :3], x, y, width, height, interpolation="nearest", alpha=self._opacity)
        else:
            self._not_finite(x, y, width, height)
        self._frame(x, y, width, height)

    def outline(self, mask: Array, x: float, y: float, width: float, height: float) -> None:
        """Draw the edge of a mask (H, W) over a tile, along the sides of its pixels: those of at least 0.5."""
        left, right, top, bottom = (_on_pixel(value) for value in (x, x + width, y, y + height))
        scale = np.array([(right - left) / mask.shape[1], (bottom - top) / mask.shape[0]])
        lines = np.array([left, top]) + _edges(mask >= _COVERED) * scale
        # A light line in a dark one is seen on every colour of a map.
        for colour, thickness in (("black", _OUTLINE[0]), ("white", _OUTLINE[1])):
            self._axes.add_collection(
                LineCollection(list(lines), colors=colour, linewidths=thickness, capstyle="projecting"),
                autolim=False,
            )

    def _show(self, picture: npt.NDArray[Any], x: float, y: float, width: float, height: float, **options: Any) -> None:
        left, right, top, bottom = (_on_pixel(value) for value in (x, x + width, y, y + height))
        self._axes.imshow(picture, extent=(left, right, bottom, top), aspect="auto", **options)

    def _frame(self, x: float, y: float, width: float, height: float) -> None:
        left, top = _on_pixel(x), _on_pixel(y)
        self._axes.add_patch(
            Rectangle(
                (left, top),
                _on_pixel(x + width) - left,
                _on_pixel(y + height) - top,
                fill=False,
                edgecolor="#8c8c8c",
                linewidth=0.5,
            )
        )

    def _not_finite(self, x: float, y: float, width: float, height: float) -> None:
        self._axes.add_patch(
            Rectangle((x, y), width, height, facecolor="#d9d9d9", edgecolor="#a8a8a8", hatch="////", linewidth=0)
        )
        size = min(TEXT_SIZE, TEXT_SIZE * 0.9 * width / text_width("not finite", TEXT_SIZE))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
        self._axes.text(
            x + width / 2,
            y + height / 2,
            "not finite",
            fontsize=size,
            color=INK,
            ha="center",
            va="center",
            bbox=box,
        )

    def _colour_bar(self, width: float, height: float) -> None:
        left, top, thickness = width - MARGIN - 0.1 - _COLOUR_BAR_WIDTH, 0.36, 0.11
        axes = self.figure.add_axes(
            (left / width, 1 - (top + thickness) / height, _COLOUR_BAR_WIDTH / width, thickness / height)
        )
        # On overlays the bar shows what the eye meets there: the colours on a grey of middle lightness.
        colours = self.scale.colours(np.linspace(0, 1, 256))[:, :3]
        middle = _DARKEST + _GREY_RANGE / 2
        seen = ListedColormap(list(self._opacity * colours + (1 - self._opacity) * middle))
        mappable = ScalarMappable(norm=self.scale.normalisation, cmap=seen)
        signed = self.scale.kind == "signed"
        bar = self.figure.colorbar(
            mappable, cax=axes, orientation="horizontal", extend="both" if signed else "max", extendfrac=0.04
        )
        bar.outline.set_linewidth(0.4)
        ticks = self.scale.ticks
        bar.set_ticks(ticks, labels=[f"{tick:g}".replace("-", "−") for tick in ticks])
        axes.tick_params(labelsize=NOTE_SIZE - 0.5, length=2, width=0.5, pad=1.5, colors=SOFT_INK)
        label = "signed, times the uniform share" if signed else "times the uniform share"
        self.text(left + _COLOUR_BAR_WIDTH / 2, 0.24, label, width=_COLOUR_BAR_WIDTH, size=NOTE_SIZE, align="center")


def _edges(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Sides of pixels between inside and outside of a mask (H, W), (n, 2 ends, x and y in pixels)."""
    padded = np.pad(inside, 1)
    row, column = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])  # upright, left of column
    upright = np.stack([np.stack([column, row], -1), np.stack([column, row + 1], -1)], 1)
    row, column = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])  # level, above row
    level = np.stack([np.stack([column, row], -1), np.stack([column + 1, row], -1)], 1)
    return np.concatenate([upright, level]).astype(np.float64)


def _on_pixel(inches: float) -> float:
    return round(inches * DOTS_PER_INCH) / DOTS_PER_INCH


def _colour_picture(picture: Array) -> Array:
    """(3 or 1, H, W) → (H, W, 3) in [0, 1]."""
    clean = np.clip(np.nan_to_num(picture), 0.0, 1.0).transpose(1, 2, 0)
    return np.repeat(clean, 3, axis=-1) if clean.shape[-1] == 1 else clean


def _grey(picture: Array) -> Array:
    """(3 or 1, H, W) → luminance (H, W) in [0, 1]."""
    return np.asarray(_colour_picture(picture) @ _LUMINANCE, dtype=np.float32)
