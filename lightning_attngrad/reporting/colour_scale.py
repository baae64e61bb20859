"""The colours of maps, the same over all epochs, images and layers."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

from lightning_attngrad.reporting.arrays import Array
from lightning_attngrad.reporting.style import FigureStyle

_MIDDLE_LUMINANCE = 0.27  # below it white is read more easily, above it black; either has a contrast of 3 at least


@dataclass(frozen=True)
class ColourScale:
    """The one colour scale of every map in a figure, fixed before any map is seen.

    Attributes:
        kind: ``"share"`` runs from 0 to ``limit`` (larger values keep the last colour), ``"signed"`` from
            ``-limit`` to ``limit``.
        limit: End of the scale, in times the uniform share (1 wherever all patches are treated alike).
        cmap: Name of a colour map of matplotlib's; None is one that is safe for colour-blind readers.
        by_image: Whether the maps of each image were divided by their largest value, see `in_style`.

    Raises:
        ValueError: For an unknown kind, or a limit that is not a positive finite number.

    Example:
        >>> ColourScale("signed", limit=3.0)
        ColourScale(kind='signed', limit=3.0, cmap=None, by_image=False)
    """

    kind: Literal["share", "signed"] = "share"
    limit: float = 4.0
    cmap: str | None = None
    by_image: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("share", "signed"):
            raise ValueError(f"kind: got {self.kind!r}; expected 'share' or 'signed'")
        if not (np.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"limit: got {self.limit!r}; expected a positive finite number")

    @property
    def palette(self) -> npt.NDArray[np.uint8]:
        """(256, 3) red, green and blue in 0…255 from the lower to the upper end."""
        return palette(self.cmap or ("inferno" if self.kind == "share" else "PuOr_r"))

    @property
    def name(self) -> str:
        """Of what is shown, for the colour bar."""
        unit = "of the image's largest" if self.by_image else "times an equal share"
        return f"signed, {unit}" if self.kind == "signed" else unit

    def in_style(self, maps: Array, style: FigureStyle) -> tuple[Array, ColourScale]:
        """The maps and the scale that are drawn in a style.

        Args:
            maps: (N, …, h, w), in times the uniform share.
            style: Whose colour map, and end of the scale.

        Returns:
            The maps, divided by the largest finite value of each image where that is the end of its scale, and the
            scale.
        """
        cmap = style.cmap if self.kind == "share" else style.signed_cmap
        if style.limit is None:
            return maps, replace(self, cmap=cmap)
        if style.limit != "image":
            return maps, replace(self, cmap=cmap, limit=float(style.limit))
        sizes = np.where(np.isfinite(maps), np.abs(maps), 0).reshape(len(maps), -1).max(axis=1)
        sizes = np.where(sizes > 0, sizes, 1).reshape(-1, *[1] * (maps.ndim - 1)).astype(np.float32)
        return maps / sizes, replace(self, cmap=cmap, limit=1.0, by_image=True)

    def place(self, values: Any) -> Any:
        """Where values lie on the scale: 0 is its lower end, 1 its upper one."""
        lowest = 0.0 if self.kind == "share" else -self.limit
        return (values - lowest) / (self.limit - lowest)

    def colours_of(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Colours (…, 3) in 0…255 of finite values (…); what lies beyond an end has the colour of that end."""
        return colours_at(self.palette, self.place(values))

    @property
    def ticks(self) -> tuple[float, ...]:
        """Round steps from 0 outwards, few enough to be read."""
        locator = MaxNLocator(nbins=3 if self.kind == "signed" else 6, steps=[1, 2, 2.5, 5, 10])
        upper = [float(tick) for tick in locator.tick_values(0.0, self.limit) if tick <= self.limit * (1 + 1e-9)]
        lower = [-tick for tick in reversed(upper[1:])] if self.kind == "signed" else []
        return (*lower, *upper)


@functools.cache
def palette(name: str) -> npt.NDArray[np.uint8]:
    """Colours (256, 3) in 0…255 of a colour map of matplotlib's, by its name."""
    colours = mpl.colormaps[name](np.arange(256), bytes=True)[:, :3]
    colours.flags.writeable = False  # it is handed out again
    return colours


def colours_at(colours: npt.NDArray[np.uint8], places: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Colours (…, 3) at places (…) from 0 to 1 along a palette (n, 3); beyond its ends they are those of the ends."""
    index = np.clip(places * len(colours), 0, len(colours) - 1).astype(np.intp)
    found: npt.NDArray[np.uint8] = colours[index]
    return found


def ink_on(colour: npt.NDArray[np.uint8]) -> str:
    """White or black, whichever is read more easily on a colour (3,) in 0…255."""
    luminance = float((colour / 255) ** 2.2 @ np.array([0.2126, 0.7152, 0.0722]))
    return "#ffffff" if luminance < _MIDDLE_LUMINANCE else "#000000"
