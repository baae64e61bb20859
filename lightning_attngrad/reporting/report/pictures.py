"""Arrays as a page carries them: pictures as data addresses, maps as bytes of their place on the colour scale."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

#: End of the scale of maps, in times the uniform share: that of all figures.
LIMIT = 4.0
#: Of a byte of a map: no map here.
BLANK = 255
#: Images of a page are no larger than this; differences keep their pixels up to the second.
LARGEST, LARGEST_DIFFERENCE = 320, 512
#: Letters of a page for all images.
ROOM_FOR_IMAGES = 4_000_000
_LEAST = 48  # pixels of a side
_SMALL = 2**14  # bytes of a PNG that is taken, whatever a JPEG would take
_QUALITY = 88


def picture_address(pixels: npt.NDArray[np.uint8], *, largest: int = LARGEST) -> str:
    """A picture (H, W, 3 or 1) as a data address: PNG, or JPEG where that is much smaller.

    Args:
        pixels: of the picture.
        largest: height or width; a larger one is made smaller.

    Example:
        >>> picture_address(np.zeros((2, 2, 1), np.uint8))[:22]
        'data:image/png;base64,'
    """
    image = _image(pixels)
    if max(image.size) > largest:
        image.thumbnail((largest, largest))
    png = _saved(image, "PNG", optimize=True)
    if len(png) <= _SMALL:
        return _address("png", png)
    jpeg = _saved(image, "JPEG", quality=_QUALITY, subsampling=0)
    return _address("jpeg", jpeg) if len(jpeg) < len(png) else _address("png", png)


def picture_addresses(images: npt.NDArray[np.uint8]) -> list[str]:
    """Those of images (N, H, W, 3 or 1), made smaller where all of them would take more than their room."""
    largest = min(LARGEST, max(images.shape[1:3]))
    while True:
        found = [picture_address(pixels, largest=largest) for pixels in images]
        taken = sum(map(len, found))
        if taken <= ROOM_FOR_IMAGES or largest <= _LEAST:
            return found
        largest = max(_LEAST, int(largest * min(0.9, math.sqrt(ROOM_FOR_IMAGES / taken))))


def exact_address(pixels: npt.NDArray[np.uint8]) -> str:
    """Likewise, no pixel changed."""
    return _address("png", _saved(_image(pixels), "PNG", optimize=True))


def thinned(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every so many rows and columns of a picture (H, W, c) that is too large: differences must not be averaged."""
    by = -(-max(pixels.shape[:2]) // LARGEST_DIFFERENCE)
    return pixels[::by, ::by]


def as_levels(difference: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], float]:
    """A difference (H, W, c) as bytes around 128, and what a step of these is worth.

    No finer than a quarter of a step of an 8-bit image, unless it is very small: what is finer cannot be seen, and
    takes the room of many pictures.

    Example:
        >>> levels, step = as_levels(np.array([[[0.0], [8 / 255], [-4 / 255]]]))
        >>> levels.ravel().tolist(), round(step * 255, 2)
        ([128, 160, 112], 0.25)
    """
    values = np.nan_to_num(difference.astype(np.float64))
    largest = float(np.abs(values).max()) or 1.0
    step = max(largest / 127, min(0.25 / 255, largest / 7))
    return (np.clip(np.round(values / step), -127, 127) + 128).astype(np.uint8), step


def as_bytes(maps: npt.NDArray[Any], *, signed: bool) -> str:
    """Maps in times the uniform share as base64 of their places on the colour scale, 0 to 254; 255 is no map.

    Example:
        >>> list(base64.b64decode(as_bytes(np.array([0.0, 1.0, 4.0, 9.0, np.nan]), signed=False)))
        [0, 64, 254, 254, 255]
    """
    values = np.asarray(maps, dtype=np.float32)
    low = -LIMIT if signed else 0.0
    with np.errstate(invalid="ignore"):
        places = np.clip((values - low) / (LIMIT - low), 0, 1) * (BLANK - 1)
        found = np.where(np.isnan(values), BLANK, np.round(places)).astype(np.uint8)
    return base64.b64encode(found.tobytes()).decode()


def _image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
