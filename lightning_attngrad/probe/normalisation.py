"""What turns the images that the model is given back into pixels: known for sure, or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_attngrad.probe.hook_effect import HookEffect
from lightning_attngrad.rewrite import UnknownNormalisationError, require_normalisation
from lightning_attngrad.rewrite.pixels import (
    Normalisation,
    PixelRange,
    are_pixels,
    check_normalisation,
)

__all__ = ["KnownPixels", "Normalisation", "check_normalisation", "find_pixels"]

_LINE = "probe=attngrad.ProbeImages({})"
#: Constants that were measured, and constants that are written somewhere, are the same up to this share of the std.
_SAME = 1e-3


@dataclass(frozen=True)
class KnownPixels:
    """What is known of the pixels behind the images of a run.

    Attributes:
        normalisation: of the images, for sure; None in doubt.
        values: what can be undone for a picture: the normalisation, or a mean and std in units of which nothing says
            what is black and white; None if neither is known.
        why_not: why there is no normalisation, and what to write; empty if there is one.
    """

    normalisation: Normalisation | None
    values: Normalisation | None
    why_not: str = ""

    def required(self) -> Normalisation:
        """The normalisation.

        Raises:
            UnknownNormalisationError: in doubt.
        """
        if self.normalisation is None:
            raise UnknownNormalisationError(self.why_not)
        return self.normalisation


def find_pixels(
    images: Tensor,
    *,
    model: nn.Module,
    given: Normalisation | None = None,
    pixel_range: PixelRange | None = None,
    stated: Normalisation | None = None,
    hints: Sequence[Normalisation] = (),
    hooks: HookEffect | None = None,
    collated: Tensor | None = None,
) -> KnownPixels:
    """Find out how the images of this run were normalised; one decision for rewriting and for the colours of figures.

    Believed in this order, each only if the images can have come from it: the arguments; the ``Normalize`` of the
    images' own data set, and what the transfer hooks then do to a batch; constants that are written on the datamodule,
    on a processor, or in a timm configuration, where the pixels then reach from black to white; the images themselves,
    where they are pixels already.

    Args:
        images: (N, C, H, W), as the model gets them.
        model: the LightningModule.
        given: the arguments mean and std.
        pixel_range: the argument: black and white, in whatever unit the data are in before they are normalised.
        stated: by a ``Normalize`` in transforms.
        hints: constants that may be those of the images.
        hooks: what the transfer hooks do to a batch; None where the images did not go through any.
        collated: the images as the loader collates them; None where nobody knows.
    """
    if stated is not None and pixel_range is not None:
        stated = replace(stated, pixel_range=pixel_range)
    known, more = given, ""
    if given is None:
        if hooks is not None and collated is not None and hooks.is_known:
            known = _through_hooks(images, collated, stated, hooks, hints, pixel_range)
        elif hooks is not None:
            more = f"; what {hooks.name} does to a batch cannot be read off it ({hooks.why_unknown})"
        if known is None:
            known = stated
        if known is None and pixel_range is not None and not hints and not more:
            known = Normalisation((0.0,), (1.0,), "argument pixel_range", pixel_range=pixel_range)
    try:
        found = require_normalisation(model, images, known, () if given is not None else hints)
    except ValueError as error:
        lacks_range = known is not None and known.certain and known.serves(images) and known.pixel_range is None
        asked = "pixel_range=(black, white)" if lacks_range else "mean=[…], std=[…]"
        values = known if lacks_range and bool(torch.isfinite(images).all()) else None
        return KnownPixels(None, values, f"{error}{more}. The line to write: {_LINE.format(asked)}")
    return KnownPixels(found, found)


def _through_hooks(
    images: Tensor,
    collated: Tensor,
    stated: Normalisation | None,
    hooks: HookEffect,
    hints: Sequence[Normalisation],
    pixel_range: PixelRange | None,
) -> Normalisation | None:
    """The normalisation of the data set and that of the hooks as one; None where the hooks leave images alone."""
    first = _of_collated(collated, stated, pixel_range)
    if hooks.is_identity:
        return first if first is not None and collated.dtype == torch.uint8 else None
    second = _as_written(hooks, hints)
    if first is None:
        if are_pixels(images):  # each channel from 0 to 1, by what the hooks take for its black and white
            return Normalisation((0.0,), (1.0,), f"images that lie in [0, 1] after {hooks.name}")
        return second
    # images = (collated − m₂) / s₂ and collated = (values − m₁) / s₁
    channels = max(len(first.mean), len(second.mean))
    four = (first.mean, first.std, second.mean, second.std)
    pairs = zip(*(_wide(numbers, channels) for numbers in four), strict=True)
    constants = [(m1 + s1 * m2, s1 * s2) for m1, s1, m2, s2 in pairs]
    source = second.source if not any(first.mean) and set(first.std) == {1.0} else f"{first.source}, then {hooks.name}"
    return replace(
        second,
        mean=tuple(mean for mean, _ in constants),
        std=tuple(std for _, std in constants),
        source=source,
        pixel_range=first.pixel_range,
    )


def _of_collated(
    collated: Tensor, stated: Normalisation | None, pixel_range: PixelRange | None
) -> Normalisation | None:
    """How images were normalised before the hooks; None where nothing tells for sure."""
    if stated is not None and stated.certain:
        ranged = stated.with_range_of(collated)
        return ranged if ranged.serves(collated) and ranged.pixel_range is not None else None
    if pixel_range is not None:
        return Normalisation((0.0,), (1.0,), "argument pixel_range", pixel_range=pixel_range)
    if collated.dtype == torch.uint8:
        return Normalisation((0.0,), (1.0,), "uint8 images", pixel_range=(0.0, 255.0))
    try:
        return require_normalisation(None, collated, stated)
    except ValueError:
        return None


def _as_written(hooks: HookEffect, hints: Sequence[Normalisation]) -> Normalisation:
    """What the hooks do, with the constants as they are written where they are the measured ones."""
    for hint in hints:
        if len(hint.mean) in (1, len(hooks.mean)) and all(
            abs(mean - said_mean) <= _SAME * max(std, abs(mean)) and math.isclose(std, said_std, rel_tol=_SAME)
            for mean, std, said_mean, said_std in zip(
                hooks.mean,
                hooks.std,
                _wide(hint.mean, len(hooks.mean)),
                _wide(hint.std, len(hooks.mean)),
                strict=True,
            )
        ):
            return replace(hint, source=f"{hint.source}, by {hooks.name}", certain=True, pixel_range=None)
    source = f"what {hooks.name} does to a batch"
    return Normalisation(hooks.mean, hooks.std, source, certain=True, pixel_range=None)


def _wide(numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number a channel."""
    return numbers * channels if len(numbers) == 1 else numbers
