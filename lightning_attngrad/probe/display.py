"""How the images that a model is given become pictures in figures: which channels, and what is black and white."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_attngrad.explain.displayed import STRETCHED, UNKNOWN, stretched
from lightning_attngrad.probe.normalisation import KnownPixels


@dataclass(frozen=True, eq=False)
class Display:
    """How images are shown.

    Attributes:
        channels: those that are red, green and blue, or the one that is grey; None takes the first three, or the first.
        limits: (N, 2) the values of each image that are black and white; None are 0 and 1.
        words: what figures say of it; empty for pixels as they are.
    """

    channels: tuple[int, ...] | None = None
    limits: Tensor | None = None
    words: str = ""

    def of_channels(self, values: Tensor) -> Tensor:
        """The channels (…, 3 or 1, H, W) that are shown of (…, C, H, W)."""
        channels = self.channels or ((0, 1, 2) if values.shape[-3] >= 3 else (0,))
        return values[..., list(channels), :, :]

    def limits_of(self, index: Tensor) -> Tensor | None:
        """(M, 2) of images with these numbers; None where black is 0 and white 1."""
        return None if self.limits is None else self.limits[index]


def shown_pixels(images: Tensor, known: KnownPixels, channels: Sequence[int] | None = None) -> tuple[Tensor, Display]:
    """Images as they can be shown.

    Pixels that are known are shown as they are. Images of other than one or three channels, those whose ``channels``
    are chosen, and those of which nothing says what is black and white, are stretched, each by itself and all its shown
    channels alike: so colours keep their order. Where the normalisation is not known either, it is not undone.

    Args:
        images: (N, C, H, W), as the model takes them.
        known: of their normalisation.
        channels: three, or one; None takes the first three of three and more, else the first.

    Returns:
        (N, 3 or 1, H, W) in [0, 1], float32, on the CPU; and how they came about.

    Raises:
        ValueError: for channels that the images do not have.
    """
    images, count = images.detach().float().cpu(), images.shape[1]
    if channels is not None and max(channels) >= count:
        raise ValueError(
            f"channels: got {list(channels)}; the images have {count} channels, 0 to {count - 1}: choose three of "
            "these for red, green and blue, or one for grey"
        )
    values = images
    if known.values is not None:
        values = (known.normalisation.in_pixels if known.normalisation is not None else known.values).undone(images)
    display = Display(None if channels is None else tuple(channels))
    shown = display.of_channels(values)
    words = _words(display.channels or tuple(range(shown.shape[1])), count, chosen=channels is not None)
    if known.values is None:
        words = [*words, UNKNOWN]
    if channels is None and count in (1, 3) and known.normalisation is not None:
        return shown.clamp(0, 1), display
    pixels, limits = stretched(shown)
    return pixels, Display(display.channels, limits, "; ".join([*words, STRETCHED]))


def _words(channels: tuple[int, ...], count: int, *, chosen: bool) -> list[str]:
    """Which channels are seen, where that needs to be said."""
    if count in (1, 3) and not chosen:
        return []
    if len(channels) == 1:
        return [f"channel {channels[0]} of 0 to {count - 1} in grey"]
    numbers = ", ".join(str(channel) for channel in channels)
    return [f"channels {numbers} of 0 to {count - 1} as red, green, blue"]
