"""Which data the images of a probe come from: what the user gave, the validation data, or the training data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import lightning.pytorch as pl

from lightning_attngrad.probe.loaders import datasets_of, evaluation_loaders, is_map_style, training_loaders
from lightning_attngrad.probe.resolve import ProbeInputError
from lightning_attngrad.probe.settings import ProbeImages
from lightning_attngrad.probe.transforms import FoundTransform, found_transforms

Source: TypeAlias = Literal["validation", "training", "given"]

#: What messages call the data.
NAMES_OF_DATA: dict[Source, str] = {
    "validation": "validation data",
    "training": "training data",
    "given": "ProbeImages(images=…)",
}
_OTHERWISE = "for other images, give ProbeImages(images=…): a folder, files, tensors or a loader"


@dataclass(frozen=True)
class Origin:
    """Where the images come from.

    Attributes:
        source: which data.
        loader: whose batches hold them; None for files, pictures and tensors.
        remarks: what the user should know about it.
    """

    source: Source
    loader: Any = None
    remarks: tuple[str, ...] = ()


def find_origin(trainer: pl.Trainer, settings: ProbeImages) -> Origin:
    """Where this run's images come from; call it under isolated random streams, as the user's code is asked.

    Raises:
        ProbeInputError: if the run has no such loader.
    """
    if settings.given is not None:
        return Origin("given", settings.given.loader)
    loaders = evaluation_loaders(trainer)
    # A stream gives its images only if it goes by.
    if loaders and (is_map_style(_one_of(loaders, settings, "validation")) or _validates(trainer)):
        return _from_loaders("validation", loaders, settings)
    training = training_loaders(trainer)
    if not training:
        raise ProbeInputError(
            "validation data: the run has no validation loader that it goes through, and no training loader; define "
            "val_dataloader(), or pass val_dataloaders to trainer.fit, or give the images with ProbeImages(images=…)"
        )
    why = "no validation goes through its loader" if loaders else "the run has no validation loader"
    return _from_loaders(
        "training",
        training,
        settings,
        f"{why}: the probe images come from the training data, with its augmentation as it falls at the seed; "
        f"{_OTHERWISE}",
    )


def _validates(trainer: pl.Trainer) -> bool:
    return trainer.state.fn != "fit" or bool(trainer.enable_validation)


def _one_of(loaders: list[Any], settings: ProbeImages, source: Source) -> Any:
    place, count = settings.dataloader_idx, len(loaders)
    if place >= count:
        raise ProbeInputError(
            f"dataloader_idx: got {place}; expected "
            + (f"0 to {count - 1}, as there are {count}" if count > 1 else "0, as there is one")
            + f" {source} loader{'s' if count > 1 else ''}"
        )
    return loaders[place]


def _from_loaders(source: Source, loaders: list[Any], settings: ProbeImages, *remarks: str) -> Origin:
    loader = _one_of(loaders, settings, source)
    if len(loaders) > 1:
        remarks = (
            *remarks,
            f"there are {len(loaders)} {source} loaders; the probe images come from dataloader_idx="
            f"{settings.dataloader_idx}",
        )
    return Origin(source, loader, remarks)


def named_datasets(trainer: pl.Trainer) -> Iterator[Any]:
    """The data sets that know what the classes of this run are called: those of validation, or else of training."""
    yield from datasets_of(evaluation_loaders(trainer) or training_loaders(trainer))


def transforms_of(trainer: pl.Trainer, settings: ProbeImages, source: Source) -> Iterator[FoundTransform]:
    """The transforms of the images, first those that are certainly theirs."""
    place = slice(settings.dataloader_idx, settings.dataloader_idx + 1)
    if source == "training":
        yield from found_transforms(trainer, datasets_of(training_loaders(trainer)[place]), training=True)
        return
    given = settings.given
    if given is None:
        yield from found_transforms(trainer, datasets_of(evaluation_loaders(trainer)[place]))
        return
    if settings.transform is not None:
        yield FoundTransform("ProbeImages(transform=…)", settings.transform, certain=True)
    elif given.is_loader:
        for found in found_transforms(trainer, datasets_of([given.loader])):
            if found.certain:
                yield found
    evaluated = list(datasets_of(evaluation_loaders(trainer)))
    # Pictures have been through the first of these; tensors need not have.
    yield from found_transforms(trainer, evaluated, certain=given.has_pictures and settings.transform is None)
    yield from found_transforms(trainer, datasets_of(training_loaders(trainer)), certain=False, training=True)
