"""A page of maps: tiles of images and of maps on one colour scale, and the bar that explains it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lightning_attngrad.reporting.arrays import Array
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.page import (
    TEXT_SIZE,
    Page,
    Picture,
    Tile,
    house_style,
    repeated,
)
from lightning_attngrad.reporting.style import PLAIN, WHITE, FigureStyle
from lightning_attngrad.reporting.text import text_width, with_minus

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_DARKEST, _GREY_RANGE = 0.22, 0.7  # of the grey image below a map
_COVERED = 0.5  # of a pixel, for it to be inside an outline
_SMALLEST, _LARGEST = 0.85, 1.07  # of the box that a tile may fill, for whole pixels
_ENLARGED = 3  # an image that is enlarged so much shows its own pixels, unsmoothed
_BLANK, _STRIPE, _STRIPES_APART, _STRIPE_WIDTH = 217, 168, 9, 2  # greys, and pixels


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
    drawn = np.asarray(canvas.buffer_rgba())
    return np.asarray(Image.fromarray(drawn).convert("RGB"))  # sooner than numpy leaves out the fourth


def tile_size(
    images: Array, width: float, height: float, widest: float = math.inf, *, style: FigureStyle = PLAIN
) -> tuple[float, float]:
    """The largest tile for images inside a box.

    Where it costs little room, a pixel of the images becomes a whole number of pixels: so they are sharp, and their
    files a fraction as large. The tile may then be larger than the box by a fifteenth.

    Args:
        images: (N, C, H, W), for their aspect and size.
        width: Of the box, in inches.
        height: Of the box, in inches.
        widest: What the width may never exceed, in inches.
        style: For its pixels an inch.

    Returns:
        Width and height in inches.

    Example:
        >>> tile_size(np.zeros((1, 3, 100, 200)), 1.0, 1.0)
        (1.0, 0.5)
        >>> tile_size(np.zeros((1, 3, 64, 64)), 1.5, 1.5)  # 192 pixels
        (1.6, 1.6)
    """
    down, across = images.shape[2:]
    enlarged = style.dpi * min(width / across, height / down)
    whole = [times for times in (math.floor(enlarged), math.ceil(enlarged)) if times >= 1]
    limit = min(_LARGEST * enlarged, style.dpi * widest / across)
    fitting = [times for times in whole if _SMALLEST * enlarged <= times <= limit]
    enlarged = min(fitting, key=lambda times: abs(times - enlarged), default=enlarged)
    return enlarged * across / style.dpi, enlarged * down / style.dpi


class Canvas(Page):
    """A page whose maps share a colour scale; places are inches from the top left corner.

    Args:
        width: In inches.
        body: Height below the head, in inches.
        title: First lines of the head.
        notes: The lines below.
        scale: Of all maps, as `ColourScale.in_style` gives it; None where there are none, and no bar has to explain it.
        blended: Whether a map lies on the grey version of its image, or stands alone.
        shown_as: What was done to the images so that they can be seen.
        style: How it looks.
    """

    def __init__(
        self,
        width: float,
        body: float,
        *,
        title: str,
        notes: str,
        scale: ColourScale | None,
        blended: bool,
        shown_as: str = "",
        style: FigureStyle = PLAIN,
    ) -> None:
        if scale is not None and style.interpolation != "nearest":
            notes += f" · smoothed between patches ({style.interpolation})"
        super().__init__(width, body, title=title, notes=notes, shown_as=shown_as, bar=scale is not None, style=style)
        self.scale = ColourScale("share") if scale is None else scale
        self._opacity = style.alpha if blended else 1.0
        if scale is not None:
            self._explain(scale)

    def _explain(self, scale: ColourScale) -> None:
        """Draw the bar."""
        # On overlays the bar shows what the eye meets there: the colours on a grey of middle lightness.
        middle = 255 * (_DARKEST + _GREY_RANGE / 2)
        seen = _rounded(self._opacity * scale.palette.astype(np.float32) + (1 - self._opacity) * middle)
        ticks = [(scale.place(tick), with_minus(f"{tick:g}")) for tick in scale.ticks]
        self.colour_bar(seen, ticks, scale.name, lower=scale.kind == "signed", upper=not scale.by_image)

    def image(self, picture: Array, x: float, y: float, width: float, height: float) -> None:
        """Show an image (3 or 1, H, W) in [0, 1]."""
        tile = self.place(x, y, width, height)
        self.region(tile)[:] = _resized(_colour_picture(picture), tile)
        self.framed(tile)

    def map(self, picture: Array, heatmap: Array, x: float, y: float, width: float, height: float) -> None:
        """Show a map (h, w); on a blended canvas, on the grey version of its image (3 or 1, H, W)."""
        tile = self.place(x, y, width, height)
        if not np.isfinite(heatmap).all():
            # In shares of its sum, a map that is zero everywhere is NaN everywhere.
            self._hatched(tile, "no map" if np.isnan(heatmap).all() else "not finite")
        elif self._opacity == 1:
            self.region(tile)[:] = self._colours_of(heatmap, tile)
        else:
            # Softened greys leave the map's own lightness readable on dark and on light images alike.
            grey = _DARKEST + _GREY_RANGE / 255 * (_colour_picture(picture) @ _LUMINANCE)
            below = _resized(_rounded(255 * (1 - self._opacity) * grey), tile)
            above = self._colours_of(heatmap, tile, self._opacity)
            np.add(above, below[..., None], out=self.region(tile))
        self.framed(tile)

    def _colours_of(self, heatmap: Array, tile: Tile, opacity: float = 1.0) -> Picture:
        """A map in the size of a tile, each patch a rectangle of one colour unless the style smooths between them."""
        if self.style.interpolation == "nearest":
            colours = self.scale.colours_of(heatmap)
            return repeated(_rounded(opacity * colours) if opacity < 1 else colours, tile)
        size = (tile.right - tile.left, tile.bottom - tile.top)
        way = Image.Resampling[self.style.interpolation.upper()]
        values = np.asarray(Image.fromarray(np.ascontiguousarray(heatmap, dtype=np.float32)).resize(size, way))
        return _rounded(opacity * self.scale.colours_of(values).astype(np.float32))

    def outline(self, mask: Array, x: float, y: float, width: float, height: float) -> None:
        """Draw the edge of a mask (H, W) over a tile, along the sides of its pixels: those of at least 0.5."""
        tile = Tile(*(self.style.pixels(side) for side in (x, y, x + width, y + height)))
        inside = np.pad(repeated(mask >= _COVERED, tile), 1)
        middle = inside[1:-1, 1:-1]
        light = middle & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])
        around = np.pad(light, 1)
        rows = around[:-2] | around[1:-1] | around[2:]
        dark = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
        # A light line in a dark one is seen on every colour of a map.
        self.region(tile)[dark] = 0
        self.region(tile)[light] = 255

    def _hatched(self, tile: Tile, words: str) -> None:
        region = self.region(tile)
        height, width = region.shape[:2]
        stripes = np.add.outer(np.arange(height), np.arange(width)) % _STRIPES_APART < _STRIPE_WIDTH
        region[:] = np.where(stripes, _STRIPE, _BLANK)[..., None]
        across = width / self.style.dpi
        size = min(TEXT_SIZE, TEXT_SIZE * 0.9 * across / text_width(words, TEXT_SIZE))
        wide, high = text_width(words, size) + 0.04, 1.5 * size / 72
        x, y = tile.left / self.style.dpi + across / 2, (tile.top + tile.bottom) / 2 / self.style.dpi
        self.fill(x - wide / 2, y - high / 2, wide, high, WHITE)
        self.write(x, y, words, width=1.02 * wide, size=size, align="center")


def _colour_picture(picture: Array) -> Picture:
    """(3 or 1, H, W) in [0, 1] → (H, W, 3) in 0…255; what is NaN is black."""
    clean = _rounded(255 * np.nan_to_num(picture)).transpose(1, 2, 0)
    return np.repeat(clean, 3, axis=-1) if clean.shape[-1] == 1 else clean


def _resized(picture: Picture, tile: Tile) -> Picture:
    """A picture (H, W) or (H, W, 3) in the size of a tile."""
    width, height = tile.right - tile.left, tile.bottom - tile.top
    enlarged = min(width / picture.shape[1], height / picture.shape[0])
    if enlarged >= _ENLARGED or (enlarged >= 1 and width % picture.shape[1] == height % picture.shape[0] == 0):
        return repeated(picture, tile)
    whole = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC))


def _rounded(values: npt.NDArray[Any]) -> Picture:
    """Values in 0…255 as whole numbers."""
    rounded: Picture = (np.clip(values, 0, 255) + 0.5).astype(np.uint8)
    return rounded
