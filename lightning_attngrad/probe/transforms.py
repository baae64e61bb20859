"""The transforms that the images of a run go through, wherever they are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
from torch import nn

_DEEPEST_TRANSFORM = 6


class FoundTransform(NamedTuple):
    """A transform, the name of its place, and whether it is certainly that of the images."""

    place: str
    transform: Any
    certain: bool


def found_transforms(
    trainer: pl.Trainer, datasets: Iterable[Any], *, certain: bool = True, training: bool = False
) -> Iterator[FoundTransform]:
    """Transforms of the images, each with the name of its place.

    That of the images' own data set is certain; one that lies on the datamodule may be of other images.

    Args:
        trainer: the Trainer.
        datasets: those that the images come from, or may come from.
        certain: whether they do.
        training: whether the images are of the training data. Otherwise the datamodule's transforms of training are
            left out.
    """
    for dataset in datasets:
        for name in ("transform", "transforms"):
            if (transform := getattr(dataset, name, None)) is not None:
                yield FoundTransform(f"{type(dataset).__name__}.{name}", transform, certain)
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is None:
        return
    left_out = ("target",) if training else ("train", "target")
    names = [name for name in vars(datamodule) if "transform" in name and not any(word in name for word in left_out)]
    # What says the stage comes first, then the other evaluation transforms, then those without a stage.
    stage = "train" if training else "val"
    names.sort(key=lambda name: (0 if stage in name else 1 if "test" in name or "predict" in name else 2, name))
    for name in names:
        yield FoundTransform(f"{type(datamodule).__name__}.{name}", getattr(datamodule, name), False)


def steps_of(transform: Any, depth: int = 0) -> Iterator[Any]:
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
        yield from steps_of(step, depth + 1)
