"""Pictures of figures, encoded once for every place that they go to."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from lightning_attngrad.reporting.canvas import figure_to_array

#: Of 1 … 9. More takes several times as long and saves a tenth of the bytes.
_COMPRESSION = 1


@dataclass(frozen=True, eq=False)
class Picture:
    r"""A drawn figure.

    Attributes:
        pixels: (H, W, 3) red, green and blue in 0…255.

    Example:
        >>> picture = Picture(np.zeros((30, 40, 3), dtype=np.uint8))
        >>> picture.width, picture.height, picture.png[:4]
        (40, 30, b'\x89PNG')
    """

    pixels: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, figure: Figure) -> Picture:
        """Draw a figure."""
        return cls(figure_to_array(figure))

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    @functools.cached_property
    def png(self) -> bytes:
        """The picture as a PNG file, encoded when it is first asked for."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "PNG", compress_level=_COMPRESSION)
        return buffer.getvalue()
