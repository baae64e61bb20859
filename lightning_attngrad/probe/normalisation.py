"""What turns the images that the model is given back into pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_attngrad.probe.loaders import evaluation_datasets
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
_DEEPEST_TRANSFORM = 6


def find_normalisation(
    trainer: pl.Trainer,
    pl_module: nn.Module,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    images: Tensor | None = None,
    dataloader_idx: int | None = None,
) -> Normalisation | None:
    """Find out how the images of this run were normalised.

    Looked at in this order: the arguments; a ``Normalize`` in the transforms of the validation data set or of
    the datamodule; the images themselves, which need nothing undone where they lie in [0, 1]; and, where they
    do not, the constants of a timm model's configuration.

    Args:
        trainer: the Trainer.
        pl_module: the LightningModule.
        mean: one number a channel, in units of [0, 1] pixels.
        std: likewise.
        images: some images as the model gets them (B, C, H, W). Without them neither of the last two sources
            is used.
        dataloader_idx: which evaluation loader the images come from; None asks all of them.

    Returns:
        The normalisation, or None if nothing tells.

    Raises:
        ValueError: if only one of ``mean`` and ``std`` is given, or they do not fit together.
    """
    if (explicit := check_normalisation(mean, std)) is not None:
        return explicit
    for place, transform, certain in _candidate_transforms(trainer, dataloader_idx):
        for step in _walk_transforms(transform):
            if (found := _from_transform(step)) is not None:
                return Normalisation(*found, f"{type(step).__name__} in {place}", certain)
    if images is None:
        return None
    if are_pixels(images, _PIXEL_TOLERANCE):
        return Normalisation((0.0,), (1.0,), "images that lie in [0, 1] already")
    return configured_normalisation(pl_module, channels=images.shape[1])


def _candidate_transforms(trainer: pl.Trainer, dataloader_idx: int | None) -> Iterator[tuple[str, Any, bool]]:
    """Transforms of validation images, each with the name of its place; those of training are left out.

    That of the images' own data set is certain; one that lies on the datamodule may be of other images.
    """
    for dataset in evaluation_datasets(trainer, dataloader_idx):
        for name in ("transform", "transforms"):
            yield f"{type(dataset).__name__}.{name}", getattr(dataset, name, None), True
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is None:
        return
    names = [
        name
        for name in vars(datamodule)
        if "transform" in name and not any(word in name for word in ("train", "target"))
    ]
    # what says "val" comes first, then the other evaluation transforms, then those without a stage
    names.sort(key=lambda name: (0 if "val" in name else 1 if "test" in name or "predict" in name else 2, name))
    for name in names:
        yield f"{type(datamodule).__name__}.{name}", getattr(datamodule, name), False


def _walk_transforms(transform: Any, depth: int = 0) -> Iterator[Any]:
    """A transform and those inside it: Compose, nn.Sequential, lists, torchvision's StandardTransform."""
    if transform is None or depth > _DEEPEST_TRANSFORM:
        return
    if isinstance(transform, Mapping):
        inner: Iterable[Any] = transform.values()
    elif isinstance(transform, list | tuple | nn.Sequential | nn.ModuleList):
        inner = transform
    else:
        yield transform
        inner = [value for name in ("transforms", "transform") if (value := getattr(transform, name, None)) is not None]
    for step in inner:
        yield from _walk_transforms(step, depth + 1)


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
