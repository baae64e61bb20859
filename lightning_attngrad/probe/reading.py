"""Single items of a map-style loader, read without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from lightning_attngrad.probe.loaders import dataset_chain
from lightning_attngrad.probe.resolve import ProbeInputError
from lightning_attngrad.state import untouched_objects


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


def untouched_dataset(dataset: Any) -> AbstractContextManager[None]:
    """Leave a data set, those that it wraps and its transforms as they were: see :func:`untouched_objects`."""
    return untouched_objects(*dataset_chain(dataset))
