"""Metrics of single maps by their definitions: loops over patches, exact fractions, nothing of the package."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def shares(heatmap: Array) -> Array:
    """The size of each patch over that of all."""
    return np.abs(heatmap) / np.abs(heatmap).sum()


def corner_mass(heatmap: Array) -> float:
    """What lies in the four corners, a seventh of each side rounded up; a patch of two corners counts once."""
    rows, columns = heatmap.shape
    high, wide = math.ceil(Fraction(rows, 7)), math.ceil(Fraction(columns, 7))
    corners = set()
    for i in range(high):
        for j in range(wide):
            corners |= {(i, j), (rows - 1 - i, j), (i, columns - 1 - j), (rows - 1 - i, columns - 1 - j)}
    return sum(float(shares(heatmap)[place]) for place in corners)


def centroid(heatmap: Array) -> tuple[float, float]:
    """The mean place of the middles of the patches, in sides of the image."""
    rows, columns = heatmap.shape
    row = column = 0.0
    for (i, j), share in np.ndenumerate(shares(heatmap)):
        row += share * (i + 0.5) / rows
        column += share * (j + 0.5) / columns
    return row, column


def centroid_shift(a: Array, b: Array) -> float:
    """How far the centroid moves, measured in patches, over the length of the diagonal in patches."""
    rows, columns = a.shape
    (row_a, column_a), (row_b, column_b) = centroid(a), centroid(b)
    return math.hypot((row_a - row_b) * rows, (column_a - column_b) * columns) / math.hypot(rows, columns)


def top_share_iou(a: Array, b: Array, share: Fraction) -> float:
    """Over the places of a map drawn by lot where patches are equal: the expected choice, then its overlap."""

    def chosen(heatmap: Array) -> list[Fraction]:
        values = heatmap.ravel().tolist()
        count = math.ceil(share * len(values))
        parts = []
        for value in values:
            larger = sum(1 for other in values if other > value)
            equal = sum(1 for other in values if other == value)
            left = min(max(count - larger, 0), equal)
            parts.append(Fraction(left, equal))
        return parts

    first, second = chosen(a), chosen(b)
    smaller = sum(min(x, y) for x, y in zip(first, second, strict=True))
    larger = sum(max(x, y) for x, y in zip(first, second, strict=True))
    return float(smaller / larger)


def coverage(mask: Array, grid: tuple[int, int]) -> Array:
    """The mean of the mask over the area of each patch: every pixel is cut into so many that no patch cuts one."""
    fine = np.kron(mask, np.ones(grid))  # H·h × W·w
    height, width = mask.shape
    covered = np.empty(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            covered[i, j] = fine[i * height : (i + 1) * height, j * width : (j + 1) * width].mean()
    return covered


def energy_in_mask(heatmap: Array, covered: Array) -> float:
    """The positive map inside over the positive map."""
    positive = np.maximum(heatmap, 0)
    return float((positive * covered).sum() / positive.sum())


def pointing_game(heatmap: Array, covered: Array) -> float:
    """Of the largest patches, those that are covered by half."""
    largest = [place for place, value in np.ndenumerate(heatmap) if value == heatmap.max()]
    return sum(1 for place in largest if covered[place] >= 0.5) / len(largest)
