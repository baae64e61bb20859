"""Slightly jittered copies of images: what they change in a map is noise."""

from __future__ import annotations

import torch
from torch import Tensor

#: Standard deviation of the added noise, as a share of each image's own range of values.
NOISE = 0.01
#: How far down and how far right, in pixels, in turn.
_SHIFTS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def jittered_copies(images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two copies that show what the images show: one shifted by a pixel, one with a little noise.

    The shift goes right, down, left and up in turn with the images, and the pixels of the border are repeated. The
    noise is Gaussian, with 1 % of each image's range as its standard deviation. No global random number is drawn, and
    the same images get the same copies on every device.

    Args:
        images: (N, C, H, W), as the model takes them.
        seed: of the noise.

    Returns:
        The shifted and the noisy copies, (N, C, H, W) each.

    Example:
        >>> shifted, noisy = jittered_copies(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
        >>> shifted
        tensor([[[[1., 1., 2.]]]])
        >>> float((noisy - torch.tensor([[[[1.0, 2.0, 3.0]]]])).abs().max()) < 0.1
        True
    """
    return _shifted(images), _noisy(images, seed)


def _shifted(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    copies = []
    for index, image in enumerate(images):
        down, right = _SHIFTS[index % len(_SHIFTS)]
        moved = image[:, (rows - down).clamp(0, height - 1)]
        copies.append(moved[:, :, (columns - right).clamp(0, width - 1)])
    return torch.stack(copies)


def _noisy(images: Tensor, seed: int) -> Tensor:
    spread = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    # Drawn on the CPU: the generators of other devices give other numbers.
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return images + NOISE * spread * noise.to(images)
