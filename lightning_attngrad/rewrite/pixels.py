"""Pixels in [0, 1] and the images that a model takes, one the affine function of the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

PixelRange: TypeAlias = tuple[float, float]

#: Rounding in half precision, and a bicubic resize, leave pixels a little outside [0, 1].
PIXEL_TOLERANCE = 0.05
_BLACK = 0.02  # and white is as far from 1
#: Black and white in the units in which means and standard deviations are commonly written.
_UNIT, _BYTES = (0.0, 1.0), (0.0, 255.0)


class UnknownNormalisationError(ValueError):
    """Nothing tells for sure how the images were normalised; the message says what to pass."""


@dataclass(frozen=True)
class Normalisation:
    """``images = (values − mean) / std``, where a value of ``pixel_range[0]`` is black and one of [1] is white.

    Pixels are such values on the scale from black, 0, to white, 1, whatever unit mean and std are written in.

    Attributes:
        mean: one number a channel, or a single one for all channels, in the units of ``pixel_range``.
        std: likewise, positive.
        source: where they were found, for the log.
        certain: whether that place speaks of these very images, as an argument and their own transform do; a model's
            configuration does not.
        pixel_range: the values of black and white; None where nothing says, as of counts of a sensor. Then there are
            values and no pixels.

    Raises:
        ValueError: if the lengths differ, or a ``std`` is not positive.

    Example:
        >>> normalisation = Normalisation((0.5,), (0.5,), "argument")
        >>> normalisation.to_pixels(torch.tensor([[[[-1.0, 0.0, 3.0]]]]))
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
        >>> normalisation.to_images(torch.tensor([[[[0.0, 0.5, 1.0]]]]))
        tensor([[[[-1.,  0.,  1.]]]])
        >>> Normalisation((0.0,), (1.0,), "argument", pixel_range=(0, 255)).to_pixels(torch.tensor([[[[51.0]]]]))
        tensor([[[[0.2000]]]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    certain: bool = True
    pixel_range: PixelRange | None = _UNIT

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean, std: got {len(self.mean)} and {len(self.std)} numbers ({self.source}); expected as "
                "many of one as of the other, one a channel"
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std: got {self.std} ({self.source}); expected positive numbers")

    @property
    def in_pixels(self) -> Normalisation:
        """The same from pixels in [0, 1], which is what distances are measured in.

        Raises:
            UnknownNormalisationError: where nothing says what is black and what is white.
        """
        if self.pixel_range == _UNIT:
            return self
        if self.pixel_range is None:
            raise UnknownNormalisationError(
                f"pixel_range: nothing says which values are black and white, in the units of mean and std "
                f"({self.source}); pass pixel_range=(black, white)"
            )
        low, high = self.pixel_range
        mean = tuple((value - low) / (high - low) for value in self.mean)
        return replace(self, mean=mean, std=tuple(value / (high - low) for value in self.std), pixel_range=_UNIT)

    @property
    def is_identity(self) -> bool:
        """Whether the model takes pixels as they are."""
        inside = self.in_pixels
        return all(value == 0 for value in inside.mean) and all(value == 1 for value in inside.std)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation.

        Args:
            images: (B, C, H, W), of any floating type.

        Returns:
            Pixels (B, C, H, W) float32, clamped to [0, 1].

        Raises:
            ValueError: if the images have another number of channels.
        """
        return self.in_pixels.undone(images).clamp(0, 1)

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
        mean, std = self.in_pixels._constants(pixels)
        return (pixels - mean) / std

    def undone(self, images: Tensor) -> Tensor:
        """The values that the images were made of, in the units of mean and std, (B, C, H, W) float32, as they come."""
        images = images.detach().float()
        mean, std = self._constants(images)
        return images * std + mean

    def serves(self, images: Tensor) -> bool:
        """Whether there is a number for each channel of these images."""
        return len(self.mean) in (1, images.shape[-3])

    def fits(self, images: Tensor) -> bool:
        """Whether these images can have come from pixels in [0, 1] by this normalisation."""
        return are_pixels(self.in_pixels.undone(images))

    def reaches_both_ends(self, images: Tensor) -> bool:
        """Whether the pixels are in [0, 1] and some are black and some white, as those of photographs are."""
        return self.fits(images) and _reach_both_ends(self.in_pixels.undone(images))

    def with_range_of(self, images: Tensor) -> Normalisation:
        """The same with black and white, where only the images tell them for sure; else as it is.

        A mean of 0 and one large std for all channels is a division by white, unless something is whiter. Otherwise the
        values reach from black to white in one of the usual units.
        """
        if self.pixel_range is not None or not self.serves(images):
            return self
        if not any(self.mean) and len(set(self.std)) == 1 and self.std[0] > 1:
            divided = replace(self, pixel_range=(0.0, self.std[0]))
            return divided if divided.fits(images) else self
        ranged = (replace(self, pixel_range=usual) for usual in (_UNIT, _BYTES))
        return next((one for one in ranged if one.reaches_both_ends(images)), self)

    def _constants(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, (C, 1, 1) each."""
        if not self.serves(images):
            channels = images.shape[-3]
            raise ValueError(
                f"mean, std: got {len(self.mean)} numbers each ({self.source}), but the images have "
                f"{channels} channels; pass mean and std with {channels} numbers"
            )
        # Not the default type: under precision="bf16-true" that would round 0.485 to 0.484.
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        return mean, torch.tensor(self.std, dtype=torch.float32, device=images.device).view(-1, 1, 1)


def check_normalisation(
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    pixel_range: Sequence[float] | None = None,
) -> Normalisation | None:
    """The normalisation that the user gave; None if all arguments are.

    Args:
        mean: one number a channel, in the units of ``pixel_range``.
        std: likewise.
        pixel_range: black and white; None is [0, 1]. Alone, it says that the images lie in it as they are.

    Raises:
        ValueError: if only one of mean and std is given, they do not fit together, or are no numbers.
    """
    ends = check_pixel_range(pixel_range)
    if mean is None and std is None:
        return None if ends is None else Normalisation((0.0,), (1.0,), "argument pixel_range", pixel_range=ends)
    if mean is None or std is None:
        raise ValueError(f"mean, std: got mean={mean!r} and std={std!r}; expected both, or neither")
    try:
        numbers = as_numbers(mean), as_numbers(std)
    except (TypeError, ValueError):
        raise ValueError(
            f"mean, std: got mean={mean!r} and std={std!r}; expected numbers, one a channel, in units of [0, 1] pixels "
            "or of the pixel_range given beside them"
        ) from None
    return Normalisation(*numbers, "arguments mean and std", pixel_range=ends or _UNIT)


def check_pixel_range(pixel_range: Sequence[float] | None) -> PixelRange | None:
    """Black and white as two floats, or None.

    Raises:
        ValueError: if they are no two numbers, black below white.
    """
    if pixel_range is None:
        return None
    try:
        low, high = (float(value) for value in pixel_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"pixel_range: got {pixel_range!r}; expected the values of black and white in the units of mean and std, "
            "such as (0, 255), or (0, 10000) for reflectances in ten-thousandths"
        )
    return low, high


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


def require_normalisation(
    model: nn.Module | None, images: Tensor, known: Normalisation | None, hints: Iterable[Normalisation] = ()
) -> Normalisation:
    """How the images were normalised, for sure, or an error that asks.

    Distances are measured in pixels, so a wrong guess would make every one of them wrong, and every colour of a figure.
    What the user says, or the images' own transform, is only checked against the images. A hint (a transform elsewhere,
    a timm configuration) is believed if undoing it gives pixels from black to white, and the images do not look like
    pixels already. Without any, images in [0, 1] are pixels, and so are those that reach from 0 to 255. Everything else
    is in doubt.

    Args:
        model: the model, whose timm configuration, if any, is looked at; None looks at none.
        images: (B, C, H, W), as the model takes them.
        known: what the user, or a ``Normalize`` in the transforms, says.
        hints: what is written elsewhere, in the order in which it is believed.

    Returns:
        The normalisation, with its ``pixel_range``.

    Raises:
        UnknownNormalisationError: in doubt, or where what is known does not fit the images.
        ValueError: for images that are not finite.
    """
    lowest, highest = (float(value) for value in images.detach().float().aminmax())
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise ValueError("images: got NaN or infinite values; look at what loads or normalises them")
    span = f"the images lie in [{lowest:.2f}, {highest:.2f}]"
    if known is not None and known.certain:
        return _checked(known.with_range_of(images), images, span)
    configured = None if model is None else configured_normalisation(model, images.shape[-3])
    written = [one.with_range_of(images) for one in (known, *hints, configured) if one is not None]
    written = [one for one in written if one.serves(images)]
    if are_pixels(images):
        doubts = [one for one in written if one.pixel_range is None or not one.is_identity]
        if not doubts or (known is None and _reach_both_ends(images)):
            return Normalisation((0.0,), (1.0,), "images that lie in [0, 1] already")
        raise UnknownNormalisationError(
            f"mean, std: {span}, but the {doubts[0].source} says mean={doubts[0].mean} and std={doubts[0].std}. Pass "
            "mean=0, std=1 if the model takes pixels in [0, 1] (or normalises inside), else the two that were used"
        )
    for one in written:
        if one.pixel_range is not None and one.reaches_both_ends(images):
            return one
    as_bytes = Normalisation((0.0,), (1.0,), "images that lie in [0, 255] already", pixel_range=_BYTES)
    if as_bytes.reaches_both_ends(images):
        return as_bytes
    why = "nothing says how they were normalised"
    if written:
        fits = written[0].pixel_range is not None and written[0].fits(images)
        why = f"the {written[0].source} does not {'surely ' if fits else ''}fit"
    raise UnknownNormalisationError(
        f"mean, std: {span}, and {why}; pass the mean and std, in units of [0, 1] pixels, with which the images were "
        "normalised, or in other units, and pixel_range=(black, white) in these, such as (0, 255) or (0, 10000)"
    )


def _checked(known: Normalisation, images: Tensor, span: str) -> Normalisation:
    """What is said of these very images, if they can have come from it; else an error that says why not."""
    if known.pixel_range is None:
        lowest, highest = (float(value) for value in known.undone(images).aminmax())
        raise UnknownNormalisationError(
            f"pixel_range: mean and std are known ({known.source}), but not which values are black and white in their "
            f"units, where the images lie in [{lowest:.5g}, {highest:.5g}]; pass pixel_range=(black, white), such as "
            f"{_range_that_holds(lowest, highest)}"
        )
    if known.fits(images):
        return known
    low, high = known.pixel_range
    lowest, highest = (float(value) for value in known.undone(images).aminmax())
    otherwise = ""
    if known.pixel_range != _UNIT:
        otherwise = f", or a pixel_range that holds all of [{lowest:.5g}, {highest:.5g}]"
    elif max(*known.mean, *known.std) > 1:
        otherwise = ", and if these are in units of 0 to 255, pixel_range=(0, 255)"
    raise UnknownNormalisationError(
        f"mean, std: got {known.mean} and {known.std} ({known.source}), but {span}, which no pixels in [{low:g}, "
        f"{high:g}] give; pass the mean and std with which the images were really normalised{otherwise}"
    )


def _range_that_holds(lowest: float, highest: float) -> str:
    """An example of a range: the first of the usual ones in which these values lie."""
    if lowest < 0:
        return f"({math.floor(lowest)}, {math.ceil(highest)})"
    return f"(0, {next((white for white in (1, 255, 4095, 10000, 65535) if highest <= white), math.ceil(highest))})"


def _reach_both_ends(pixels: Tensor) -> bool:
    """From black to white: by chance, if they had been normalised otherwise."""
    lowest, highest = pixels.detach().float().aminmax()
    return bool(lowest <= _BLACK and highest >= 1 - _BLACK)
