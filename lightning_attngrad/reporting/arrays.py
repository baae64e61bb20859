"""Inputs of figures: whatever holds numbers, as checked float32 arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array: TypeAlias = npt.NDArray[np.float32]
ArrayLike: TypeAlias = Tensor | npt.NDArray[Any]


def as_array(values: Any) -> Array:
    """Tensor of any precision and device, array or list → float32 array."""
    if isinstance(values, Tensor):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float32)


def checked_images(pixels: ArrayLike) -> Array:
    """Images (N, 3 or 1, H, W) as an array, or a ValueError."""
    images = as_array(pixels)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"pixels: got shape {images.shape}; expected (N, 3, H, W) or (N, 1, H, W) with at least one image"
        )
    return images


def checked_maps(name: str, heatmaps: ArrayLike, images: Array, *, dimensions: int) -> Array:
    """Maps of as many images as there are, as an array, or a ValueError."""
    maps = as_array(heatmaps)
    if maps.ndim != dimensions or len(maps) != len(images) or 0 in maps.shape:
        expected = "(N, h, w)" if dimensions == 3 else "(N, number of maps, h, w)"
        raise ValueError(f"{name}: got shape {maps.shape}; expected {expected} with N = {len(images)}")
    return maps


def checked_masks(masks: ArrayLike, images: Array) -> Array:
    """Masks (N, H, W) of as many images as there are, of their size, as an array, or a ValueError."""
    found, expected = as_array(masks), (len(images), *images.shape[2:])
    if found.shape != expected:
        raise ValueError(f"masks: got shape {found.shape}; expected (N, H, W) = {expected}, as the images")
    return found


def check_count(name: str, values: Sequence[Any], expected: int) -> None:
    """Raise a ValueError unless there are as many values as expected."""
    if len(values) != expected:
        raise ValueError(f"{name}: got {len(values)}; expected {expected}, one for each map")
