"""What turns the images that the model is given back into pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_attngrad.probe.loaders import evaluation_datasets
from lightning_attngrad.probe.transforms import FoundTransform, found_transforms, steps_of
from lightning_attngrad.rewrite.pixels import (
    Normalisation,
    are_pixels,
    as_numbers,
    check_normalisation,
    configured_normalisation,
)

__all__ = ["Normalisation", "check_normalisation", "find_normalisation"]

# Of images that are taken for pixels: closer than what a rewrite may clamp.
_PIXEL_TOLERANCE = 1e-2


def find_normalisation(
    trainer: pl.Trainer,
    pl_module: nn.Module,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    images: Tensor | None = None,
    dataloader_idx: int | None = None,
    transforms: Iterable[FoundTransform] | None = None,
) -> Normalisation | None:
    """Find out how the images of this run were normalised.

    Looked at in this order: the arguments; a ``Normalize`` in the transforms of the images' data set or of the
    datamodule; the images themselves, which need nothing undone where they lie in [0, 1]; and, where they
    do not, the constants of a timm model's configuration.

    Args:
        trainer: the Trainer.
        pl_module: the LightningModule.
        mean: one number a channel, in units of [0, 1] pixels.
        std: likewise.
        images: some images as the model gets them (B, C, H, W). Without them neither of the last two sources
            is used.
        dataloader_idx: which evaluation loader the images come from; None asks all of them.
        transforms: where else to look than in those of the evaluation data.

    Returns:
        The normalisation, or None if nothing tells.

    Raises:
        ValueError: if only one of ``mean`` and ``std`` is given, or they do not fit together.
    """
    if (explicit := check_normalisation(mean, std)) is not None:
        return explicit
    if transforms is None:
        transforms = found_transforms(trainer, evaluation_datasets(trainer, dataloader_idx))
    for place, transform, certain in transforms:
        for step in steps_of(transform):
            if (found := _from_transform(step)) is not None:
                return Normalisation(*found, f"{type(step).__name__} in {place}", certain)
    if images is None:
        return None
    if are_pixels(images, _PIXEL_TOLERANCE):
        return Normalisation((0.0,), (1.0,), "images that lie in [0, 1] already")
    return configured_normalisation(pl_module, channels=images.shape[1])


def _from_transform(step: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std of a step named Normalize, or of a torchvision preset.

    By name and not by class: the package does not import torchvision, and noise transforms have a mean and
    std too.
    """
    if "Normalize" not in type(step).__name__ and type(step).__name__ != "ImageClassification":
        return None
    mean, std = getattr(step, "mean", None), getattr(step, "std", None)
    if mean is None or std is None:
        return None
    try:
        return as_numbers(mean), as_numbers(std)
    except (TypeError, ValueError):
        return None
