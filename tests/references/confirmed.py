"""``quality="best"`` patch by patch and image by image, with plain autograd: slow and obvious."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: From one image (1, C, H, W) to its objective, a tensor of one number in the graph.
Phi = Callable[[Tensor], Tensor]


def integrated_gradients(phi: Phi, image: Tensor, grid: tuple[int, int], steps: int) -> Tensor:
    """Sundararajan et al., arXiv 1703.01365, from the image's mean colour, summed in patches: (h, w)."""
    colour = image.mean(dim=(1, 2), keepdim=True).expand_as(image)
    total = torch.zeros_like(image)
    for step in range(steps):
        point = (colour + (step + 0.5) / steps * (image - colour)).clone().requires_grad_()
        with torch.enable_grad():
            total += torch.autograd.grad(phi(point[None]).sum(), point)[0]
    pixels = (total / steps * (image - colour)).sum(dim=0)
    found = torch.zeros(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            found[row, column] = pixels[_patch(image, grid, row, column)].sum()
    return found


def shares(heatmap: Tensor) -> Tensor:
    """A map over the sum of its absolute values."""
    return heatmap / heatmap.abs().sum()


def confirmation(phi: Phi, image: Tensor, heatmap: Tensor, parts: Sequence[float]) -> float:
    """Mean of Φ with the highest patches shown alone, less Φ with them hidden alone."""
    grid = (heatmap.shape[0], heatmap.shape[1])
    ranked = sorted(range(heatmap.numel()), key=lambda number: (-float(heatmap.flatten()[number]), number))
    gains = []
    for part in parts:
        highest = {number for place, number in enumerate(ranked) if place < part * len(ranked)}
        shown, hidden = image.clone(), image.clone()
        for number in range(len(ranked)):
            away = hidden if number in highest else shown
            for channel, values in enumerate(image):
                away[channel][_patch(image, grid, number // grid[1], number % grid[1])] = values.mean()
        gains.append(float(phi(shown[None])) - float(phi(hidden[None])))
    return sum(gains) / len(gains)


def best(phi: Phi, image: Tensor, maps: Sequence[Tensor], steps: int, parts: Sequence[float]) -> tuple[Tensor, float]:
    """The map (h, w), and by how much it is better confirmed than the other one (below 0: the mean of all is)."""
    grid = (maps[0].shape[0], maps[0].shape[1])
    first = shares(integrated_gradients(phi, image, grid, steps))
    second = first.clone()
    for one in maps:
        second += shares(one)
    second = shares(second)
    lead = confirmation(phi, image, first, parts) - confirmation(phi, image, second, parts)
    return (first if lead >= 0 else second), lead


def _patch(image: Tensor, grid: tuple[int, int], row: int, column: int) -> tuple[slice, slice]:
    height, width = image.shape[1] // grid[0], image.shape[2] // grid[1]
    return slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
