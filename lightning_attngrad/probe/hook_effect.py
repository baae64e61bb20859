"""What the user's transfer hooks do to the values of images: found by sending images of one value through them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Of what comes out, so much may differ from a straight line: float32 rounds, and so does a resize.
_STRAIGHT = 1e-4
_DIGITS = 5  # of a std that was measured: what float32 gives alike on every device


@dataclass(frozen=True)
class HookEffect:
    """``after = (before − mean) / std``, a channel, if that is what the hooks do.

    Attributes:
        name: of the hook, such as ``Data.on_after_batch_transfer``.
        mean: one number a channel; empty where they do something else.
        std: likewise, positive.
        why_unknown: what else they do; empty where mean and std are known.
    """

    name: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    why_unknown: str = ""

    @property
    def is_known(self) -> bool:
        """Whether a mean and std say all that happens to values."""
        return bool(self.mean)

    @property
    def is_identity(self) -> bool:
        """Whether values come out as they went in."""
        return not any(self.mean) and set(self.std) == {1.0}


def measure_hooks(
    name: str,
    batches: Sequence[Any],
    images_in: Callable[[Any], Tensor],
    send: Callable[[list[Any]], Tensor],
) -> HookEffect:
    """Send the same batches with images of one value a channel: the darkest, the brightest, and values in between.

    Two of them give mean and std; the third, with another value in each channel, shows whether these are all: a curve,
    a mixture of channels or a random change would not fit. Nothing but the images differs, so the batches are as the
    hooks expect them.

    Args:
        name: of the hooks.
        batches: as collated; they are copied.
        images_in: the images (B, C, H, W) of a batch, in the memory of the batch.
        send: batches through the hooks, and their images (N, C, H, W) out of them; from one random state at each call.

    Returns:
        What the hooks do, or why that cannot be said.
    """
    try:
        return _measured(name, batches, images_in, send)
    except Exception as error:  # of the user's hooks, which may expect images
        return HookEffect(name, why_unknown=f"of images of one value it raises {type(error).__name__}: {error}")


def _measured(
    name: str,
    batches: Sequence[Any],
    images_in: Callable[[Any], Tensor],
    send: Callable[[list[Any]], Tensor],
) -> HookEffect:
    all_images = torch.cat([images_in(batch).detach().float().flatten() for batch in batches])
    low, high = (float(value) for value in all_images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        return HookEffect(name, why_unknown="the images are not finite")
    dtype, channels = images_in(batches[0]).dtype, images_in(batches[0]).shape[1]
    if dtype == torch.uint8:
        low, high = 0.0, 255.0
    elif low == high:
        high = low + 1.0
    steps = torch.arange(1, channels + 1, dtype=torch.float64) / (channels + 1)
    # Exact in the type of the images: whole numbers in uint8.
    between = (low + (high - low) * steps).to(dtype)

    def sent(values: Tensor) -> Tensor | None:
        """(C,) what comes out of (C,) values, float64; None if that is not one value a channel."""
        copies = [copy.deepcopy(batch) for batch in batches]
        for batch in copies:
            images = images_in(batch)
            images.copy_(values.to(dtype).view(-1, 1, 1))
            if not torch.equal(images_in(batch), images):
                return None  # a batch_adapter that makes images of its own
        images = send(copies).detach()
        if images.shape[1] != channels or images.dtype not in (torch.float32, torch.float64):
            return None
        by_channel = images.double().cpu().transpose(0, 1).flatten(1)
        lowest, highest = by_channel.amin(dim=1), by_channel.amax(dim=1)
        allowed = _STRAIGHT * by_channel.abs().amax(dim=1)
        return (lowest + highest) / 2 if bool((highest - lowest <= allowed).all()) else None

    darkest, brightest = torch.full((channels,), low).to(dtype), torch.full((channels,), high).to(dtype)
    dark, bright, middle = sent(darkest), sent(brightest), sent(between)
    if dark is None or bright is None or middle is None:
        return HookEffect(name, why_unknown="an image of one value does not come out as one")
    before, width = darkest.double(), brightest.double() - darkest.double()
    slope = (bright - dark) / width
    expected = dark + slope * (between.double() - before)
    allowed = _STRAIGHT * torch.stack([dark.abs(), bright.abs()]).amax(dim=0)
    if not bool((slope > 0).all()) or bool(((middle - expected).abs() > allowed).any()):
        return HookEffect(name, why_unknown="it is more than a mean and std for each channel")
    std = 1 / slope
    mean = before - dark * std
    rounded = [_rounded(float(m), float(s)) for m, s in zip(mean, std, strict=True)]
    return HookEffect(name, tuple(m for m, _ in rounded), tuple(s for _, s in rounded))


def _rounded(mean: float, std: float) -> tuple[float, float]:
    """To so many digits of the std."""
    decimals = _DIGITS - 1 - math.floor(math.log10(std))
    return round(mean, decimals) + 0.0, round(std, decimals)
