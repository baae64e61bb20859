"""Metrics of class rewriting by their definitions: loops over rows, exact fractions, nothing of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
INFINITE = math.inf


def success_at(distance: Sequence[float], radii: Sequence[float]) -> list[float]:
    """How many of all rows lie within each radius."""
    return [sum(1 for d in distance if d <= radius) / len(distance) for radius in radii]


def quantile(values: Sequence[float], q: str) -> float:
    """The value at place ``q·(n − 1)`` of the sorted values, in proportion between two of them (numpy's default).

    Args:
        values: n numbers; ∞ is one of them.
        q: a decimal fraction, written out: its place is an exact fraction.
    """
    ordered = sorted(values)
    place = Fraction(q) * (len(ordered) - 1)
    below = math.floor(place)
    weight = place - below
    if weight == 0:
        return ordered[below]
    if ordered[below + 1] == INFINITE:
        return INFINITE
    return ordered[below] * float(1 - weight) + ordered[below + 1] * float(weight)


def area_under_success(distance: Sequence[float], low: float, high: float) -> float:
    """∫ success(ε) d log ε from low to high, over log(high / low): the steps of the curve, one rectangle each."""
    steps = sorted({low, high, *(d for d in distance if low < d < high)})
    area = 0.0
    for left, right in pairwise(steps):
        height = sum(1 for d in distance if d <= left) / len(distance)  # nothing happens before `right`
        area += height * (math.log(right) - math.log(left))
    return area / (math.log(high) - math.log(low))


def robust_accuracy(distance: Sequence[float], correct: Sequence[bool], radii: Sequence[float]) -> list[float]:
    """How many of all rows are classified correctly and are not rewritten within the radius."""
    robust = []
    for radius in radii:
        kept = [right and not d <= radius for d, right in zip(distance, correct, strict=True)]
        robust.append(sum(kept) / len(distance))
    return robust


def median_matrix(distance: Sequence[float], source: Sequence[int], target: Sequence[int], num_classes: int) -> Array:
    """The median of the rows of each pair of classes; NaN where there is none."""
    matrix = np.full((num_classes, num_classes), np.nan)
    for s in range(num_classes):
        for t in range(num_classes):
            rows = [d for d, a, b in zip(distance, source, target, strict=True) if (a, b) == (s, t)]
            if rows:
                matrix[s, t] = quantile(rows, "0.5")
    return matrix


def share_surviving(survived: Sequence[bool], success: Sequence[bool]) -> float:
    """Of the successes, those that are one after rounding too; NaN without a success."""
    outcomes = [kept for kept, succeeded in zip(survived, success, strict=True) if succeeded]
    return sum(outcomes) / len(outcomes) if outcomes else math.nan


def psnr(original: Array, rewritten: Array) -> float:
    """``10 log10(1 / MSE)`` of one image with values from 0 to 1."""
    error = float(np.mean((original - rewritten) ** 2))
    return 10 * math.log10(1 / error) if error > 0 else INFINITE


def ssim(original: Array, rewritten: Array, window: int, sigma: float) -> float:
    """Structural similarity (Wang et al., 2004, equation 13) of one image (C, H, W) with values from 0 to 1.

    Means, variances and the covariance of each pixel are those of a Gaussian window around it; beyond its edge the
    image is mirrored, the edge itself not repeated. The mean over all pixels and channels.
    """
    half = window // 2
    offsets = range(-half, half + 1)
    weights = np.array([[math.exp(-(i * i + j * j) / (2 * sigma**2)) for j in offsets] for i in offsets])
    weights /= weights.sum()
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for x, y in zip(original, rewritten, strict=True):
        padded_x, padded_y = (np.pad(channel, half, mode="reflect") for channel in (x, y))
        for row in range(x.shape[0]):
            for column in range(x.shape[1]):
                a = padded_x[row : row + window, column : column + window]
                b = padded_y[row : row + window, column : column + window]
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                variance_a = (weights * (a - mean_a) ** 2).sum()
                variance_b = (weights * (b - mean_b) ** 2).sum()
                covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
                values.append(luminance * structure)
    return float(np.mean(values))


def log_ratios(distance: Sequence[float], reference: Sequence[float]) -> list[float]:
    """log(distance / reference) of the rows that say something."""
    ratios = []
    for d, r in zip(distance, reference, strict=True):
        if (d == INFINITE and r == INFINITE) or (d == 0 and r == 0):
            continue
        if d == INFINITE or r == 0:
            ratios.append(INFINITE)
        elif r == INFINITE or d == 0:
            ratios.append(-INFINITE)
        else:
            ratios.append(math.log(d / r))
    return ratios


def middle(values: Sequence[float]) -> float:
    """The median; between −∞ and ∞ it is 0, which favours neither."""
    ordered = sorted(values)
    lower, upper = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if lower == upper:
        return lower
    if (lower, upper) == (-INFINITE, INFINITE):
        return 0.0
    return (lower + upper) / 2


def bootstrap_median_at_most(values: Sequence[float], bound: float) -> float:
    """P(the median of a bootstrap sample ≤ bound), exactly, for an odd number n of values.

    It is at most the bound where more than half of n draws are; each is with the share of values that are.
    """
    n = len(values)
    assert n % 2 == 1
    share = sum(1 for value in values if value <= bound) / n
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range((n + 1) // 2, n + 1))
