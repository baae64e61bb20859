"""The images of a probe, read before training needs them, without a trace in the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from lightning_attngrad.probe.given import GivenImages, read_pictures
from lightning_attngrad.probe.isolation import hooks_of_batches, isolated
from lightning_attngrad.probe.labels import groups_of, join_labels
from lightning_attngrad.probe.loaders import is_map_style, untouched_dataset
from lightning_attngrad.probe.origin import NAMES_OF_DATA, Origin, transforms_of
from lightning_attngrad.probe.parts import Part, joined
from lightning_attngrad.probe.resolve import ProbeInputError
from lightning_attngrad.probe.sampler_items import are_positions, sampler_items
from lightning_attngrad.probe.selection import balanced_choice, candidate_indices, known_targets
from lightning_attngrad.probe.settings import ProbeImages
from lightning_attngrad.probe.tasks import Seen
from lightning_attngrad.state import untouched_objects

T = TypeVar("T")

#: Items that are read to find as many of one class as of another, where the data set does not tell without.
CANDIDATES_PER_IMAGE = 8


class UnreadableItemError(ProbeInputError):
    """The data set does not give the items that it was asked for."""


def read_batches(loader: DataLoader[Any], indices: Sequence[Any], of: str = "validation data") -> list[Any]:
    """Read items as the loader would, in this process and without touching the loader's iterator or sampler.

    Args:
        loader: over a map-style data set. Its ``collate_fn`` is used; with ``batch_size=None`` each item is a
            batch of its own, unless the sampler hands out lists of indices, which the data set then reads at
            one go.
        indices: positions in ``loader.dataset``, or what else indexes it.
        of: which data these are, for messages.

    Returns:
        Collated batches: one of all the items, or with ``batch_size=None`` one an item.

    Raises:
        UnreadableItemError: if an item cannot be read; its cause is the original error.
        ProbeInputError: if the items cannot be collated; likewise.
    """
    with reader(loader, of) as read:
        return read(indices)


@contextmanager
def reader(loader: DataLoader[Any], of: str = "validation data") -> Iterator[Callable[[Sequence[Any]], list[Any]]]:
    """As `read_batches`, for several calls: the data set is put back once, when all have been made."""
    with untouched_dataset(loader.dataset), untouched_objects(loader.collate_fn):
        yield partial(_read, loader, of)


def read_through(loader: Iterable[Any], size_of: Callable[[Any], int], count: int) -> list[Any]:
    """The first batches of a loader that is not of the run, until there are enough images.

    Args:
        loader: it is iterated from its start.
        size_of: how many images a batch holds.
        count: how many images are enough.

    Raises:
        ProbeInputError: if it gives no batch, or fails.
    """
    batches: list[Any] = []
    images = 0
    with untouched_dataset(getattr(loader, "dataset", None)):
        iterator = iter(loader)
        while images < count:
            try:
                batch = next(iterator)
            except StopIteration:
                break
            except Exception as error:
                raise ProbeInputError(
                    f"ProbeImages(images=…): batch {len(batches)} of the {type(loader).__name__} failed with {error!r}"
                ) from error
            batches.append(batch)
            images += size_of(batch)
    if not batches:
        raise ProbeInputError(f"ProbeImages(images=…): the {type(loader).__name__} gave no batch; give it at least one")
    return batches


def _read(loader: DataLoader[Any], of: str, indices: Sequence[Any]) -> list[Any]:
    dataset, collate = loader.dataset, loader.collate_fn
    indices = list(indices)
    all_at_once = loader.batch_size is None and loader.batch_sampler is None
    try:
        if all_at_once:
            together = isinstance(loader.sampler, BatchSampler)
            uncollated = [dataset[indices]] if together else [dataset[index] for index in indices]
        else:
            fetch_many = getattr(dataset, "__getitems__", None)
            uncollated = [fetch_many(indices) if fetch_many else [dataset[index] for index in indices]]
    except Exception as error:
        raise UnreadableItemError(
            f"{of}: reading the items {indices[:8]} of {type(dataset).__name__} in the main process failed with "
            f"{error!r}; the data set must be readable without a worker_init_fn: make it so, or give images that are, "
            "with ProbeImages(images=…)"
        ) from error
    try:
        return [collate(items) for items in uncollated]
    except Exception as error:
        raise ProbeInputError(
            f"{of}: collating the items {indices[:8]} of {type(dataset).__name__} with "
            f"{getattr(collate, '__name__', collate)!r} failed with {error!r}; all probe images must have one size: "
            "resize them in the transform, or set num_images=1"
        ) from error


@dataclass(frozen=True)
class ReadAhead:
    """What was read.

    Attributes:
        part: images and targets, as collated, or as the model takes them where there are no batches.
        batches: as collated, on the CPU; None for tensors, files and pictures.
        indices: positions in the data set, if they are what was read.
        dataset_length: of the data set that they are positions in.
        remarks: what the user should know.
        seen: what is known of labels beyond those of the images.
    """

    part: Part
    batches: list[Any] | None = None
    indices: list[int] | None = None
    dataset_length: int | None = None
    remarks: tuple[str, ...] = ()
    seen: Seen | None = None


def read_ahead(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    origin: Origin,
    settings: ProbeImages,
    resumed: Callable[[int], list[int] | None],
    split: Callable[..., Part],
) -> ReadAhead | None:
    """Read the images of a run now, from any hook.

    Args:
        trainer: the Trainer.
        pl_module: the LightningModule.
        origin: where the images come from.
        settings: how many, and where in a batch.
        resumed: from the length of the data set to the positions that an earlier part of this run has read, or None.
        split: a collated batch into its parts; with ``quietly=True`` nothing is said of labels that cannot be read.

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
        return _items(here, trainer.world_size, origin, settings, resumed, split)
    if origin.source != "given":
        return None
    with here():
        batches = read_through(origin.loader, lambda batch: len(split(batch, quietly=True).images), settings.num_images)
        part = joined([split(batch) for batch in batches], settings.num_images, NAMES_OF_DATA["given"])
    return ReadAhead(part, batches, remarks=_too_few(part, settings))


def _items(
    here: Callable[[], Any],
    processes: int,
    origin: Origin,
    settings: ProbeImages,
    resumed: Callable[[int], list[int] | None],
    split: Callable[..., Part],
) -> ReadAhead | None:
    """Items of a map-style data set, by their positions or by what the sampler hands out."""
    loader, of = origin.loader, NAMES_OF_DATA[origin.source]
    count, seed = settings.num_images, settings.seed
    quietly = partial(split, quietly=True)
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
            known = known_targets(loader.dataset)
            seen = None if known is None else Seen.of(torch.from_numpy(known), whole=True)
            indices = resumed(length)
            if not indices:
                indices, found = choose_positions(loader, count, seed, quietly, of, known)
                seen = seen or found
        part, batches = read(indices)
        return ReadAhead(part, batches, indices, length, _too_few(part, settings), seen)
    except UnreadableItemError:
        with here():
            items = sampler_items(loader, CANDIDATES_PER_IMAGE * count, seed)
        if items is not None and are_positions(items):  # it is the data set that cannot be read
            raise
    if items is None or processes > 1:  # each may have another sampler; of what goes by, all get those of the first
        return None
    with here():
        items, _ = choose_items(loader, items, count, seed, quietly, of)
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


def choose_positions(
    loader: DataLoader[Any],
    count: int,
    seed: int,
    split: Callable[[Any], Part],
    of: str = "validation data",
    known: np.ndarray[Any, Any] | None = None,
) -> tuple[list[int], Seen | None]:
    """Positions in the loader's data set, balanced over its classes.

    Args:
        loader: over a map-style data set.
        count: how many; fewer if there are fewer items.
        seed: of the choice.
        split: images and targets of a batch.
        of: which data these are, for messages.
        known: labels of the whole data set, see `known_targets`.

    Returns:
        The positions, and what was seen of other labels where candidates had to be read.

    Raises:
        ProbeInputError: if candidates had to be read, and could not.
    """
    groups = None if known is None else groups_of(torch.from_numpy(known))
    if groups is not None:
        return balanced_choice(groups, count, seed), None
    candidates = candidate_indices(len(loader.dataset), CANDIDATES_PER_IMAGE * count, seed)  # type: ignore[arg-type]
    return choose_items(loader, candidates, count, seed, split, of)


def choose_items(
    loader: DataLoader[Any],
    candidates: Sequence[T],
    count: int,
    seed: int,
    split: Callable[[Any], Part],
    of: str = "validation data",
) -> tuple[list[T], Seen | None]:
    """Some of the candidates, balanced over the classes that reading them shows; else the first ones.

    Args:
        loader: over a map-style data set.
        candidates: positions, or what else indexes the data set.
        count: how many.
        seed: of the choice.
        split: images and targets of a batch.
        of: which data these are, for messages.

    Returns:
        The items, and what was seen of their labels.

    Raises:
        ProbeInputError: if a candidate cannot be read.
    """
    found: list[Tensor] = []
    with reader(loader, of) as read:
        for candidate in candidates:
            images, targets, _ = split(read([candidate])[0])
            # No classes to balance, or items that are batches.
            if targets is None or len(images) != 1 or groups_of(targets) is None:
                return list(candidates[:count]), None
            found.append(targets)
    labels = join_labels(found)
    groups = None if labels is None else groups_of(labels)
    if labels is None or groups is None:
        return list(candidates[:count]), None
    return [candidates[place] for place in balanced_choice(groups, count, seed)], Seen.of(labels, whole=False)
