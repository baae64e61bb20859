"""Faithfulness by its definition: one image, one step and one patch at a time, in numpy, nothing of the package."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import floor

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: From an image (C, H, W) to the probability of its class.
Model = Callable[[Array], float]


def patch_of(pixel: int, pixels: int, patches: int) -> int:
    """In which of some equal patches along a line the centre of a pixel lies."""
    return floor(Fraction(2 * pixel + 1, 2) * Fraction(patches, pixels))


def mean_colour(image: Array) -> Array:
    """Every pixel replaced by its channel's mean."""
    result = np.zeros_like(image)
    for channel in range(image.shape[0]):
        result[channel] = image[channel].mean()
    return result


def blurred(image: Array, grid: tuple[int, int]) -> Array:
    """A Gaussian mean around each pixel, σ = one patch, over the pixels that there are: all pairs of pixels."""
    _, height, width = image.shape
    sigma_y, sigma_x = height / grid[0], width / grid[1]
    rows, columns = np.mgrid[:height, :width]
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            weight = np.exp(-((rows - y) ** 2) / (2 * sigma_y**2) - ((columns - x) ** 2) / (2 * sigma_x**2))
            for channel in range(image.shape[0]):
                result[channel, y, x] = (weight * image[channel]).sum() / weight.sum()
    return result


def curve(model: Model, image: Array, heatmap: Array, instead: Array, steps: int, order: str) -> list[float]:
    """Probability with the first n patches of the order replaced, n from none to all in equal steps.

    Args:
        model: from an image to a probability.
        image: (C, H, W).
        heatmap: (h, w).
        instead: (C, H, W), what patches are replaced by.
        steps: of the curve.
        order: ``morf``, ``lerf``, or ``insertion``: from the replaced image, patches put back most relevant first.
    """
    cells = [(row, column) for row in range(heatmap.shape[0]) for column in range(heatmap.shape[1])]
    ranking = sorted(cells, key=lambda cell: -heatmap[cell])  # stable: of equals the first in reading order
    if order == "lerf":
        ranking = ranking[::-1]
    base, other = (instead, image) if order == "insertion" else (image, instead)
    values = []
    for step in range(steps + 1):
        number = floor(Fraction(step * len(cells), steps) + Fraction(1, 2))
        changed = base.copy()
        for cell in ranking[:number]:
            for y in range(image.shape[1]):
                for x in range(image.shape[2]):
                    where = patch_of(y, image.shape[1], heatmap.shape[0]), patch_of(x, image.shape[2], heatmap.shape[1])
                    if where == cell:
                        changed[:, y, x] = other[:, y, x]
        values.append(model(changed))
    return values


def area(values: list[float], patches: int) -> float:
    """Under the straight lines between the points of a curve, over the share of patches."""
    steps = len(values) - 1
    at = [Fraction(floor(Fraction(step * patches, steps) + Fraction(1, 2)), patches) for step in range(steps + 1)]
    return sum(float(at[i + 1] - at[i]) * (values[i] + values[i + 1]) / 2 for i in range(steps))
