"""What turns the images that the model is given back into pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_attngrad.probe.loaders import evaluation_datasets

# Rounding in half precision may leave pixels a little outside [0, 1].
_PIXEL_TOLERANCE = 1e-2
_DEEPEST_TRANSFORM = 6


@dataclass(frozen=True)
class Normalisation:
    """``images = (pixels − mean) / std``, with pixels in [0, 1].

    Attributes:
        mean: one number a channel, or a single one for all channels.
        std: likewise, positive.
        source: where they were found, for the log.

    Raises:
        ValueError: if the lengths differ, or a ``std`` is not positive.

    Example:
        >>> Normalisation((0.5,), (0.5,), "argument").to_pixels(torch.tensor([[[[-1.0, 0.0, 3.0]]]]))
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean, std: got {len(self.mean)} and {len(self.std)} numbers ({self.source}); expected as "
                "many of one as of the other, one a channel"
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std: got {self.std} ({self.source}); expected positive numbers")

    def to_pixels(self, images: Tensor) -> Tensor:
        """Undo the normalisation.

        Args:
            images: (B, C, H, W), of any floating type.

        Returns:
            Pixels (B, C, H, W) float32, clamped to [0, 1].

        Raises:
            ValueError: if the images have another number of channels.
        """
        images = images.detach().float()
        channels = images.shape[-3]
        if len(self.mean) not in (1, channels):
            raise ValueError(
                f"mean, std: got {len(self.mean)} numbers each ({self.source}), but the images have "
                f"{channels} channels; pass mean and std with {channels} numbers"
            )
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)  # (C, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images * std + mean).clamp(0, 1)


def find_normalisation(
    trainer: pl.Trainer,
    pl_module: nn.Module,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    images: Tensor | None = None,
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

    Returns:
        The normalisation, or None if nothing tells.

    Raises:
        ValueError: if only one of ``mean`` and ``std`` is given, or they do not fit together.
    """
    if (explicit := check_normalisation(mean, std)) is not None:
        return explicit
    for place, transform in _candidate_transforms(trainer):
        for step in _walk_transforms(transform):
            if (found := _from_transform(step)) is not None:
                return Normalisation(*found, f"{type(step).__name__} in {place}")
    if images is None:
        return None
    lowest, highest = images.detach().float().aminmax()
    if lowest >= -_PIXEL_TOLERANCE and highest <= 1 + _PIXEL_TOLERANCE:
        return Normalisation((0.0,), (1.0,), "images that lie in [0, 1] already")
    return _from_timm(pl_module, channels=images.shape[1])


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
        numbers = _numbers(mean), _numbers(std)
    except (TypeError, ValueError):
        raise ValueError(
            f"mean, std: got mean={mean!r} and std={std!r}; expected numbers, one a channel, in units of [0, 1] pixels"
        ) from None
    return Normalisation(*numbers, "arguments mean and std")


def _numbers(values: Any) -> tuple[float, ...]:
    if isinstance(values, int | float):
        return (float(values),)
    if isinstance(values, Tensor):
        values = values.flatten().tolist()
    return tuple(float(value) for value in values)


def _candidate_transforms(trainer: pl.Trainer) -> Iterator[tuple[str, Any]]:
    """Transforms of validation images, each with the name of its place; those of training are left out."""
    for dataset in evaluation_datasets(trainer):
        for name in ("transform", "transforms"):
            yield f"{type(dataset).__name__}.{name}", getattr(dataset, name, None)
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
        yield f"{type(datamodule).__name__}.{name}", getattr(datamodule, name)


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
        return _numbers(mean), _numbers(std)
    except (TypeError, ValueError):
        return None


def _from_timm(pl_module: nn.Module, channels: int) -> Normalisation | None:
    """The constants of a timm model's configuration, unless they are for images of other channels.

    A model made with ``in_chans=1`` keeps the three numbers of its RGB configuration.
    """
    for name, module in pl_module.named_modules():
        for attribute in ("pretrained_cfg", "default_cfg"):
            configuration = getattr(module, attribute, None)
            if not isinstance(configuration, Mapping):
                continue
            if configuration.get("mean") is not None and configuration.get("std") is not None:
                mean, std = _numbers(configuration["mean"]), _numbers(configuration["std"])
                if len(mean) in (1, channels):
                    return Normalisation(mean, std, f"{attribute} of {name or type(module).__name__}")
    return None
