"""Images that a model takes, as pictures: which channels, and what is black and white, with nothing guessed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Rounding in half precision, and a bicubic resize, leave pixels a little outside [0, 1].
_TOLERANCE = 0.05
#: Shares of the values of an image, in its shown channels, below and above which all is black or white.
_STRETCH = (0.02, 0.98)
STRETCHED = "each image stretched, 2–98 %"
UNKNOWN = "normalisation unknown"


def as_pixels(
    images: Tensor, mean: Sequence[float] | float | None = None, std: Sequence[float] | float | None = None
) -> tuple[Tensor, str]:
    """Images as they can be shown, and what a figure has to say of that.

    Images in [0, 1] are shown as they are, and integers of 0 to 255 by their bytes. Others are pixels where ``mean``
    and ``std`` say how they were normalised; where nothing does, no normalisation is undone: each image is stretched
    from its own darkest to its own brightest values, and the figure says so.

    Args:
        images: (N, C, H, W), as the model takes them.
        mean: one number a channel or one for all, with which they were normalised, in units of [0, 1] pixels.
        std: likewise.

    Returns:
        (N, 3 or 1, H, W) in [0, 1], float32, on the CPU; and the words, empty for pixels as they are.

    Raises:
        ValueError: for constants that do not undo to pixels.

    Example:
        >>> as_pixels(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3), mean=0.5, std=0.5)[0].flatten().tolist()
        [0.0, 0.5, 1.0]
        >>> as_pixels(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3))[1]
        'normalisation unknown; each image stretched, 2–98 %'
    """
    if images.dim() != 4:
        raise ValueError(f"images: got shape {tuple(images.shape)}; expected (N, C, H, W)")
    count, bytes_of = images.shape[1], not (images.is_floating_point() or images.is_complex())
    values, words = images.detach().float().cpu(), channel_words(count)
    if mean is not None or std is not None:
        values = _undone(values, 0.0 if mean is None else mean, 1.0 if std is None else std)
        low, high = (float(end) for end in values.aminmax())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise ValueError(
                f"mean, std: got {mean!r} and {std!r}, and without them the images lie in [{low:.2f}, {high:.2f}]; "
                "expected those with which they were normalised, which gives pixels in [0, 1]"
            )
    elif bytes_of:
        values = values / 255
    shown = values[:, :3] if count >= 3 else values[:, :1]
    low, high = (float(end) for end in values.aminmax())
    if low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
        return shown.clamp(0, 1), "; ".join(words)
    return stretched(shown)[0], "; ".join([*words, UNKNOWN, STRETCHED])


def _undone(values: Tensor, mean: Sequence[float] | float, std: Sequence[float] | float) -> Tensor:
    constants = [torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1) for numbers in (mean, std)]
    for name, numbers in zip(("mean", "std"), constants, strict=True):
        if len(numbers) not in (1, values.shape[1]):
            raise ValueError(f"{name}: got {len(numbers)} numbers, and the images have {values.shape[1]} channels")
    return values * constants[1] + constants[0]


def channel_words(count: int) -> list[str]:
    """Which channels of so many are seen, where that needs to be said."""
    if count in (1, 3):
        return []
    return [f"channels 0, 1, 2 of 0 to {count - 1} as red, green, blue" if count > 3 else "channel 0 of 0 to 1 in grey"]


def stretched(shown: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, c, H, W) each stretched by itself, all its channels alike, in [0, 1]; and black and white (N, 2)."""
    limits = torch.stack([_limits(image) for image in shown])
    low, high = (limits[:, end, None, None, None] for end in (0, 1))
    return ((shown - low) / (high - low)).clamp(0, 1), limits


def _limits(image: Tensor) -> Tensor:
    """(2,) the values of an image (c, H, W) that are black and white; what is not finite does not count."""
    values = image[torch.isfinite(image)].sort().values
    if not len(values):
        return torch.tensor([0.0, 1.0])
    low, high = (float(values[round(share * (len(values) - 1))]) for share in _STRETCH)
    if low == high:  # nearly all of it is of one value
        low, high = float(values[0]), float(values[-1])
    return torch.tensor([low, high] if high > low else [low - 0.5, low + 0.5])
