"""Maps over copies of which half is hidden, patch by patch: slow and obvious."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def mean_where_it_is_there(
    map_of: Callable[[Tensor], Tensor], image: Tensor, copies: Sequence[Tensor], grid: tuple[int, int]
) -> Tensor:
    """Of each patch the mean of its values in those copies of one image in which it is there.

    Args:
        map_of: from an image (1, C, H, W) to its map (h, w).
        image: (C, H, W), whose size is a multiple of the grid's.
        copies: which pixels are there, (H, W) bool each; a patch is there as a whole or not at all.
        grid: rows and columns of patches.
    """
    channels, height, width = image.shape
    maps = []
    for there in copies:
        copy = torch.empty_like(image)
        for channel in range(channels):
            copy[channel] = image[channel].mean()
            copy[channel][there] = image[channel][there]
        maps.append(map_of(copy[None]))
    found = torch.zeros(grid, dtype=maps[0].dtype)
    for row in range(grid[0]):
        for column in range(grid[1]):
            y, x = row * height // grid[0], column * width // grid[1]
            values = [maps[number][row, column] for number, there in enumerate(copies) if bool(there[y, x])]
            found[row, column] = torch.stack(values).mean()
    return found
