"""Two cameras point by point, in plain Python: nothing of epipolar_mask's."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]
Matrix = Sequence[Sequence[float]]


def plausible(F: Matrix, grid_a: tuple[int, int], grid_b: tuple[int, int], tolerance: float) -> list[list[bool]]:
    """The definition: distance of each patch's centre to the line of each other's, the point Fx = 0 left out."""
    found = []
    for row_a in range(grid_a[0]):
        for column_a in range(grid_a[1]):
            x = (column_a + 0.5, row_a + 0.5, 1.0)
            a, b, c = (sum(entry * number for entry, number in zip(row, x, strict=True)) for row in F)
            length = math.sqrt(a * a + b * b)
            distances = [
                abs(a * (column + 0.5) + b * (row + 0.5) + c) / length if length else math.inf
                for row in range(grid_b[0])
                for column in range(grid_b[1])
            ]
            found.append([distance <= tolerance for distance in distances])
    return found


def seen_at(K: Matrix, R: Matrix, t: Vector, point: Vector) -> tuple[float, float, float]:
    """Column, row and depth at which a camera sees a point that is given in the coordinates of another one."""
    there = [sum(r * p for r, p in zip(row, point, strict=True)) + shift for row, shift in zip(R, t, strict=True)]
    image = [sum(k * p for k, p in zip(row, there, strict=True)) for row in K]
    return image[0] / image[2], image[1] / image[2], there[2]


def point_at(K: Matrix, column: float, row: float, depth: float) -> tuple[float, float, float]:
    """The point that a camera with its origin here sees at a pixel, so far away; K is upper triangular."""
    y = (row - K[1][2]) / K[1][1]
    x = (column - K[0][2] - K[0][1] * y) / K[0][0]
    return x * depth, y * depth, depth
