"""Pixels in [0, 1] and the images that a model takes, one the affine function of the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Rounding in half precision, and a bicubic resize, leave pixels a little outside [0, 1].
PIXEL_TOLERANCE = 0.05
_BLACK = 0.02  # and white is as far from 1


class UnknownNormalisationError(ValueError):
    """Nothing tells for sure how the images were normalised; the message says what to pass."""


@dataclass(frozen=True)
class Normalisation:
    """``images = (pixels − mean) / std``, with pixels in [0, 1].

    Attributes:
        mean: one number a channel, or a single one for all channels.
        std: likewise, positive.
        source: where they were found, for the log.
        certain: whether that place speaks of these very images, as an argument and their own transform do; a model's
            configuration does not.

    Raises:
        ValueError: if the lengths differ, or a ``std`` is not positive.

    Example:
        >>> normalisation = Normalisation((0.5,), (0.5,), "argument")
        >>> normalisation.to_pixels(torch.tensor([[[[-1.0, 0.0, 3.0]]]]))
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
        >>> normalisation.to_images(torch.tensor([[[[0.0, 0.5, 1.0]]]]))
        tensor([[[[-1.,  0.,  1.]]]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    certain: bool = True

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean, std: got {len(self.mean)} and {len(self.std)} numbers ({self.source}); expected as "
                "many of one as of the other, one a channel"
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std: got {self.std} ({self.source}); expected positive numbers")

    @property
    def is_identity(self) -> bool:
        """Whether the model takes pixels as they are."""
        return all(value == 0 for value in self.mean) and all(value == 1 for value in self.std)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation.

        Args:
            images: (B, C, H, W), of any floating type.

        Returns:
            Pixels (B, C, H, W) float32, clamped to [0, 1].

        Raises:
            ValueError: if the images have another number of channels.
        """
        return self._unclamped(images).clamp(0, 1)

    def to_images(self, pixels: Tensor) -> Tensor:
        """Normalise, differentiably.

        Args:
            pixels: (B, C, H, W) in [0, 1].

        Returns:
            Images (B, C, H, W), as the model takes them.

        Raises:
            ValueError: if the images have another number of channels.
        """
        if self.is_identity:
            return pixels.clone()  # a model that works in place must not write into the caller's pixels
        mean, std = self._constants(pixels)
        return (pixels - mean) / std

    def fits(self, images: Tensor) -> bool:
        """Whether these images can have come from pixels in [0, 1] by this normalisation."""
        return are_pixels(self._unclamped(images))

    def reaches_both_ends(self, images: Tensor) -> bool:
        """Whether the pixels are in [0, 1] and some are black and some white, as those of photographs are."""
        return self.fits(images) and _reach_both_ends(self._unclamped(images))

    def _unclamped(self, images: Tensor) -> Tensor:
        images = images.detach().float()
        mean, std = self._constants(images)
        return images * std + mean

    def _constants(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, (C, 1, 1) each."""
        channels = images.shape[-3]
        if len(self.mean) not in (1, channels):
            raise ValueError(
                f"mean, std: got {len(self.mean)} numbers each ({self.source}), but the images have "
                f"{channels} channels; pass mean and std with {channels} numbers"
            )
        # Not the default type: under precision="bf16-true" that would round 0.485 to 0.484.
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        return mean, torch.tensor(self.std, dtype=torch.float32, device=images.device).view(-1, 1, 1)


def check_normalisation(
    mean: Sequence[float] | float | None, std: Sequence[float] | float | None
) -> Normalisation | None:
    """The normalisation that the user gave; None if both arguments are.

    Raises:
        ValueError: if only one of them is given, they do not fit together, or are no numbers.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError(f"mean, std: got mean={mean!r} and std={std!r}; expected both, or neither")
    try:
        numbers = as_numbers(mean), as_numbers(std)
    except (TypeError, ValueError):
        raise ValueError(
            f"mean, std: got mean={mean!r} and std={std!r}; expected numbers, one a channel, in units of [0, 1] pixels"
        ) from None
    return Normalisation(*numbers, "arguments mean and std")


def as_numbers(values: Any) -> tuple[float, ...]:
    """A number, a sequence or a tensor as a tuple of floats.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if isinstance(values, int | float):
        return (float(values),)
    if isinstance(values, Tensor):
        values = values.flatten().tolist()
    return tuple(float(value) for value in values)


def are_pixels(images: Tensor, tolerance: float = PIXEL_TOLERANCE) -> bool:
    """Whether images (B, C, H, W) lie in [0, 1], up to a tolerance."""
    lowest, highest = images.detach().float().aminmax()
    return bool(lowest >= -tolerance and highest <= 1 + tolerance)


def configured_normalisation(model: nn.Module, channels: int) -> Normalisation | None:
    """The constants of a timm model's configuration, unless they are for images of other channels.

    A model made with ``in_chans=1`` keeps the three numbers of its RGB configuration.
    """
    for name, module in model.named_modules():
        for attribute, configuration in _configurations(module):
            if configuration.get("mean") is not None and configuration.get("std") is not None:
                mean, std = as_numbers(configuration["mean"]), as_numbers(configuration["std"])
                if len(mean) in (1, channels):
                    return Normalisation(mean, std, f"{attribute} of {name or type(module).__name__}", certain=False)
    return None


def _configurations(module: nn.Module) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for attribute in ("pretrained_cfg", "default_cfg"):
        configuration = getattr(module, attribute, None)
        if isinstance(configuration, Mapping):
            yield attribute, configuration


def require_normalisation(model: nn.Module, images: Tensor, known: Normalisation | None) -> Normalisation:
    """How the images were normalised, for sure, or an error that asks.

    Distances are measured in pixels, so a wrong guess would make every one of them wrong. What the user says, or the
    images' own transform, is only checked against the images. A hint (a transform elsewhere, a timm configuration) is
    believed if undoing it gives pixels from black to white, and the images do not look like pixels already. Without
    any, images in [0, 1] are pixels. Everything else is in doubt.

    Args:
        model: the model, whose timm configuration, if any, is looked at.
        images: (B, C, H, W), as the model takes them.
        known: what the user, or a ``Normalize`` in the transforms, says.

    Raises:
        UnknownNormalisationError: in doubt, or where what is known does not fit the images.
        ValueError: for images that are not finite.
    """
    lowest, highest = (float(value) for value in images.detach().float().aminmax())
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise ValueError("images: got NaN or infinite values; look at what loads or normalises them")
    span = f"the images lie in [{lowest:.2f}, {highest:.2f}]"
    if known is not None and known.certain:
        if not known.fits(images):
            raise UnknownNormalisationError(
                f"mean, std: got {known.mean} and {known.std} ({known.source}), but {span}, which no pixels in [0, 1] "
                "give; pass the mean and std with which the images were really normalised"
            )
        return known
    hint = known or configured_normalisation(model, images.shape[-3])
    as_they_are = Normalisation((0.0,), (1.0,), "images that lie in [0, 1] already")
    if are_pixels(images):
        if hint is None or hint.is_identity or (known is None and _reach_both_ends(images)):
            return as_they_are
        raise UnknownNormalisationError(
            f"mean, std: {span}, but the {hint.source} says mean={hint.mean} and std={hint.std}. Pass mean=0, std=1 if "
            "the model takes pixels in [0, 1] (or normalises inside), else the two that were used"
        )
    if hint is not None and hint.reaches_both_ends(images):
        return hint
    why = "nothing says how they were normalised"
    if hint is not None:
        why = f"the {hint.source} does not {'surely ' if hint.fits(images) else ''}fit"
    raise UnknownNormalisationError(
        f"mean, std: {span}, and {why}; pass the mean and std, in units of [0, 1] pixels, with which the images were "
        "normalised"
    )


def _reach_both_ends(pixels: Tensor) -> bool:
    """From black to white: by chance, if they had been normalised otherwise."""
    lowest, highest = pixels.detach().float().aminmax()
    return bool(lowest <= _BLACK and highest >= 1 - _BLACK)
