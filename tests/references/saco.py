"""SaCo by its definition (Wu et al., arXiv 2404.01415, algorithm 1): one image, one group, one pair at a time."""

from __future__ import annotations

import numpy as np

from tests.references.faithfulness import Array, Model, patch_of


def groups(heatmap: Array, count: int) -> list[list[tuple[int, int]]]:
    """Patches from the most to the least salient, in groups that are as equal as whole patches allow."""
    cells = [(row, column) for row in range(heatmap.shape[0]) for column in range(heatmap.shape[1])]
    ranking = sorted(cells, key=lambda cell: -heatmap[cell])  # stable: of equals the first in reading order
    bounds = [int(np.floor(index * len(cells) / count + 0.5)) for index in range(count + 1)]
    return [ranking[bounds[index] : bounds[index + 1]] for index in range(count)]


def drop(model: Model, image: Array, instead: Array, grid: tuple[int, int], group: list[tuple[int, int]]) -> float:
    """By how much the probability falls where the pixels of a group are replaced."""
    changed = image.copy()
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            if (patch_of(y, image.shape[1], grid[0]), patch_of(x, image.shape[2], grid[1])) in group:
                changed[:, y, x] = instead[:, y, x]
    return model(image) - model(changed)


def coefficient(salience: list[float], drops: list[float]) -> float:
    """F of groups in falling order of salience."""
    total = weights = 0.0
    for i in range(len(salience) - 1):
        for j in range(i + 1, len(salience)):
            weight = salience[i] - salience[j]
            if not drops[i] >= drops[j]:
                weight = -weight
            total += weight
            weights += abs(weight)
    return total / weights if weights else float("nan")


def saco(model: Model, image: Array, heatmap: Array, instead: Array, count: int) -> float:
    """F of an image (C, H, W), its map (h, w), and what its patches are replaced by (C, H, W)."""
    of_group = groups(heatmap, count)
    salience = [float(sum(heatmap[cell] for cell in group)) / len(group) for group in of_group]
    return coefficient(salience, [drop(model, image, instead, heatmap.shape, group) for group in of_group])
