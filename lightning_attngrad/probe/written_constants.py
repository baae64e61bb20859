"""Means and standard deviations that are written somewhere in a run, and may be those of its images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from lightning_attngrad.probe.transforms import FoundTransform, steps_of
from lightning_attngrad.rewrite.pixels import Normalisation, PixelRange, as_numbers

_BYTES_END = 255.0


def of_transforms(transforms: Iterable[FoundTransform]) -> Normalisation | None:
    """That of the first ``Normalize`` in transforms of the images; certain where they are certainly theirs."""
    for place, transform, certain in transforms:
        for step in steps_of(transform):
            if (found := of_step(step, place, certain=certain)) is not None:
                return found
    return None


def of_datamodule(datamodule: Any) -> Iterator[Normalisation]:
    """Those of every ``Normalize`` in its transforms and augmentations, and of its attributes ``mean`` and ``std``."""
    if datamodule is None:
        return
    name = type(datamodule).__name__
    for value in list(vars(datamodule).values()):
        if isinstance(value, nn.Module):
            yield from of_module(value, name)
    mean, std = getattr(datamodule, "mean", None), getattr(datamodule, "std", None)
    if (found := _normalisation(mean, std, f"{name}.mean and {name}.std", certain=False)) is not None:
        yield found


def of_module(module: nn.Module, name: str) -> Iterator[Normalisation]:
    """That of every ``Normalize`` inside a module, as of torchvision or Kornia."""
    for inner in module.modules():
        if (found := of_step(inner, name, certain=False)) is not None:
            yield found


def of_processors(owners: Iterable[Any]) -> Iterator[Normalisation]:
    """Those of Hugging Face image processors that these objects hold."""
    for owner in owners:
        for name, value in list(getattr(owner, "__dict__", {}).items()):
            place = f"{type(owner).__name__}.{name}"
            for processor in (value, getattr(value, "image_processor", None)):
                if (found := _of_processor(processor, place)) is not None:
                    yield found
                    break


def of_step(step: Any, place: str, *, certain: bool) -> Normalisation | None:
    """That of a step named Normalize, or of a torchvision preset.

    By name and not by class: the package does not import torchvision or Kornia, and noise transforms have a mean and
    std too.
    """
    name = type(step).__name__
    if "Normalize" not in name and name != "ImageClassification":
        return None
    flags = getattr(step, "flags", None)  # where Kornia keeps them
    kept = flags if isinstance(flags, Mapping) else {}
    mean, std = (getattr(step, which, kept.get(which)) for which in ("mean", "std"))
    return _normalisation(mean, std, f"{name} in {place}", certain=certain)


def _normalisation(mean: Any, std: Any, source: str, *, certain: bool) -> Normalisation | None:
    """Of what may be no numbers at all."""
    if mean is None or std is None:
        return None
    try:
        numbers = as_numbers(mean), as_numbers(std)
        # Those of pixels in [0, 1] lie there themselves; others are in a unit that is not written beside them.
        in_pixels = all(0 <= value <= 1 for value in (*numbers[0], *numbers[1]))
        return Normalisation(*numbers, source, certain, (0.0, 1.0) if in_pixels else None)
    except (TypeError, ValueError):
        return None


def _of_processor(processor: Any, place: str) -> Normalisation | None:
    """``(scale · bytes − offset − image_mean) / image_std``, as far as the processor does that."""
    flags = [getattr(processor, name, None) for name in ("do_normalize", "do_rescale")]
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if not all(isinstance(flag, bool) for flag in flags) or (flags[0] and (mean is None or std is None)):
        return None
    normalises, rescales = flags
    source = f"{type(processor).__name__} in {place}"
    mean, std = (mean, std) if normalises else (0.0, 1.0)
    found = _normalisation(mean, std, source, certain=False)
    scale = getattr(processor, "rescale_factor", None)
    if found is None or not rescales or not isinstance(scale, int | float):
        return found
    offset = 1.0 if getattr(processor, "rescale_offset", False) or getattr(processor, "offset", False) else 0.0
    return Normalisation(found.mean, found.std, found.source, False, _ends(scale, offset))


def _ends(scale: float, offset: float) -> PixelRange:
    """Black and white after rescaling bytes."""
    white = scale * _BYTES_END - offset
    return -offset, float(round(white)) if math.isclose(white, round(white), abs_tol=1e-6) else white
