"""The colours of maps, the same over all epochs, images and layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap, Normalize
from matplotlib.ticker import MaxNLocator


@dataclass(frozen=True)
class ColourScale:
    """The one colour scale of every map in a figure, fixed before any map is seen.

    Attributes:
        kind: ``"share"`` runs from 0 to ``limit`` (larger values keep the last colour), ``"signed"`` from
            ``-limit`` to ``limit``. Both colour maps are safe for colour-blind readers.
        limit: End of the scale, in times the uniform share (1 wherever all patches are treated alike).

    Raises:
        ValueError: For an unknown kind, or a limit that is not a positive finite number.

    Example:
        >>> ColourScale("signed", limit=3.0)
        ColourScale(kind='signed', limit=3.0)
    """

    kind: Literal["share", "signed"] = "share"
    limit: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in ("share", "signed"):
            raise ValueError(f"kind: got {self.kind!r}; expected 'share' or 'signed'")
        if not (np.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"limit: got {self.limit!r}; expected a positive finite number")

    @property
    def colours(self) -> Colormap:
        """The matplotlib colour map."""
        return mpl.colormaps["inferno" if self.kind == "share" else "PuOr_r"]

    @property
    def normalisation(self) -> Normalize:
        """From values to the unit interval of the colour map."""
        return Normalize(0.0 if self.kind == "share" else -self.limit, self.limit, clip=True)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Round steps from 0 outwards, few enough to be read."""
        locator = MaxNLocator(nbins=3 if self.kind == "signed" else 6, steps=[1, 2, 2.5, 5, 10])
        upper = [float(tick) for tick in locator.tick_values(0.0, self.limit) if tick <= self.limit * (1 + 1e-9)]
        lower = [-tick for tick in reversed(upper[1:])] if self.kind == "signed" else []
        return (*lower, *upper)
