"""Slightly jittered copies of images: what they change in a map is noise."""

from __future__ import annotations

import torch
from torch import Tensor

#: Standard deviation of the added noise, as a share of each image's own range of values.
NOISE = 0.01
#: The largest shift, as a share of a patch: with more of it, the map would rightly move along.
LARGEST_SHIFT = 1 / 8
#: Whether down or right, and how far, in turn.
_SHIFTS = ((False, 1), (True, 1), (False, -1), (True, -1))


def jittered_copies(images: Tensor, grid: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two copies that show what the images show: one shifted by a pixel, one with a little noise.

    The shift goes right, down, left and up in turn with the images, and the pixels of the border are repeated. Where a
    patch has fewer than 8 pixels it is an eighth of a patch, by linear interpolation. The noise is Gaussian, with 1 %
    of each image's range as its standard deviation. No global random number is drawn, and the same images get the same
    copies on every device.

    Args:
        images: (N, C, H, W), as the model takes them.
        grid: h and w of the patches.
        seed: of the noise.

    Returns:
        The shifted and the noisy copies, (N, C, H, W) each.

    Example:
        >>> images = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]]]])
        >>> shifted, noisy = jittered_copies(images, grid=(1, 1))
        >>> shifted
        tensor([[[[1., 1., 2., 3., 4., 5., 6., 7.]]]])
        >>> jittered_copies(images, grid=(1, 2))[0]  # half a pixel
        tensor([[[[1.0000, 1.5000, 2.5000, 3.5000, 4.5000, 5.5000, 6.5000, 7.5000]]]])
        >>> float((noisy - images).abs().max()) < 0.3
        True
    """
    return _shifted(images, grid), _noisy(images, seed)


def _shifted(images: Tensor, grid: tuple[int, int]) -> Tensor:
    copies = []
    for index, image in enumerate(images):
        down, pixels = _SHIFTS[index % len(_SHIFTS)]
        side, patches = (image.shape[1], grid[0]) if down else (image.shape[2], grid[1])
        places = (torch.arange(side, device=image.device) - pixels).clamp(0, side - 1)
        moved = image[:, places] if down else image[:, :, places]
        share = min(1.0, LARGEST_SHIFT * side / patches)  # of the pixel
        copies.append(moved if share == 1 else torch.lerp(image, moved, share))
    return torch.stack(copies)


def _noisy(images: Tensor, seed: int) -> Tensor:
    spread = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    # Drawn on the CPU: the generators of other devices give other numbers.
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return images + NOISE * spread * noise.to(images)
