"""The images of a probe, read before training needs them, without a trace in the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_attngrad.probe.given import GivenImages, read_pictures
from lightning_attngrad.probe.isolation import isolated
from lightning_attngrad.probe.item_choice import CANDIDATES_PER_IMAGE, choose_items, choose_positions
from lightning_attngrad.probe.loaders import is_map_style
from lightning_attngrad.probe.origin import NAMES_OF_DATA, Origin, transforms_of
from lightning_attngrad.probe.parts import Part, joined, part_of
from lightning_attngrad.probe.reading import UnreadableItemError, read_batches, read_through, untouched_dataset
from lightning_attngrad.probe.resolve import ProbeInputError
from lightning_attngrad.probe.sampler_items import are_positions, sampler_items
from lightning_attngrad.probe.settings import ProbeImages
from lightning_attngrad.probe.transfer import hooks_of_batches


@dataclass(frozen=True)
class ReadAhead:
    """What was read.

    Attributes:
        part: images and targets, as collated, or as the model takes them where there are no batches.
        batches: as collated, on the CPU; None for tensors, files and pictures.
        indices: positions in the data set, if they are what was read.
        dataset_length: of the data set that they are positions in.
        remarks: what the user should know.
    """

    part: Part
    batches: list[Any] | None = None
    indices: list[int] | None = None
    dataset_length: int | None = None
    remarks: tuple[str, ...] = ()


def read_ahead(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    origin: Origin,
    settings: ProbeImages,
    resumed: Callable[[int], list[int] | None],
) -> ReadAhead | None:
    """Read the images of a run now, from any hook.

    Args:
        trainer: the Trainer.
        pl_module: the LightningModule.
        origin: where the images come from.
        settings: how many, and where in a batch.
        resumed: from the length of the data set to the positions that an earlier part of this run has read, or None.

    Returns:
        The images; None if they have to be gathered as batches go by.

    Raises:
        ProbeInputError: if there are none.
    """
    here = partial(isolated, trainer, pl_module, seed=settings.seed)
    if origin.loader is None:
        assert settings.given is not None
        with here(), torch.no_grad():
            return _pictures(trainer, pl_module, settings, settings.given)
    if is_map_style(origin.loader):
        return _items(here, trainer.world_size, origin, settings, resumed)
    if origin.source != "given":
        return None
    with here():
        split = partial(part_of, settings=settings, as_collated=True)
        batches = read_through(origin.loader, lambda batch: len(split(batch).images), settings.num_images)
        part = joined([split(batch) for batch in batches], settings.num_images, NAMES_OF_DATA["given"])
    return ReadAhead(part, batches, remarks=_too_few(part, settings))


def _items(
    here: Callable[[], Any],
    processes: int,
    origin: Origin,
    settings: ProbeImages,
    resumed: Callable[[int], list[int] | None],
) -> ReadAhead | None:
    """Items of a map-style data set, by their positions or by what the sampler hands out."""
    loader, of = origin.loader, NAMES_OF_DATA[origin.source]
    count, seed = settings.num_images, settings.seed
    split = partial(part_of, settings=settings, as_collated=True)
    length = len(loader.dataset)
    if length == 0:
        raise ProbeInputError(f"{of}: the data set is empty; give it at least one image")

    def read(items: list[Any]) -> tuple[Part, list[Any]]:
        with here():  # anew: the choice may have drawn random numbers
            batches = read_batches(loader, items, of)
            # Inside, as outside of it a validation hook would make inference tensors of them.
            return joined([split(batch) for batch in batches], count, of), batches

    try:
        with here():
            indices = resumed(length) or choose_positions(loader, count, seed, split, of)
        part, batches = read(indices)
        return ReadAhead(part, batches, indices, length, _too_few(part, settings))
    except UnreadableItemError:
        with here():
            items = sampler_items(loader, CANDIDATES_PER_IMAGE * count, seed)
        if items is not None and are_positions(items):  # it is the data set that cannot be read
            raise
    if items is None or processes > 1:  # each may have another sampler; of what goes by, all get those of the first
        return None
    with here():
        items = choose_items(loader, items, count, seed, split, of)
    part, batches = read(items)
    return ReadAhead(part, batches, remarks=_too_few(part, settings))


def _too_few(part: Part, settings: ProbeImages) -> tuple[str, ...]:
    asked, found = settings.num_images, len(part.images)
    return (f"{asked} probe images were asked for, the data set holds {found}: using those",) if found < asked else ()


def _pictures(
    trainer: pl.Trainer, pl_module: pl.LightningModule, settings: ProbeImages, given: GivenImages
) -> ReadAhead:
    """Tensors, files and pictures that the user gave, as the model takes them."""
    remarks = []
    pictures = given.choose(settings.num_images, settings.seed)
    transform: Any = settings.transform  # imported by the settings
    if transform is None and given.has_pictures:
        found = next((one for one in transforms_of(trainer, settings, "given") if callable(one.transform)), None)
        if found is not None:
            transform = found.transform
            remarks.append(f"images: {given.kind} goes through the transform of the run's own data, {found.place}")
    with untouched_dataset([transform]):
        images = read_pictures(pictures, transform)
    if hooks := hooks_of_batches(trainer, pl_module):
        remarks.append(
            f"images: {given.kind} does not go through {hooks}, as the batches of this run do; where that normalises "
            "or resizes, give a loader as images=: its batches go through it"
        )
    if given.size is not None and given.size > len(images):
        remarks.append(f"images: of the {given.size} images given, the first {len(images)} are used; set num_images")
    return ReadAhead(Part(images, None), remarks=tuple(remarks))
