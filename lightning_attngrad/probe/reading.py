"""Single items of a map-style loader, read without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from lightning_attngrad.probe.loaders import dataset_chain
from lightning_attngrad.probe.resolve import ProbeInputError
from lightning_attngrad.state import untouched_objects


def read_batches(loader: DataLoader[Any], indices: Sequence[int]) -> list[Any]:
    """Read items as the loader would, in this process and without touching the loader's iterator or sampler.

    Args:
        loader: over a map-style data set. Its ``collate_fn`` is used; with ``batch_size=None`` each item is a
            batch of its own, unless the sampler hands out lists of indices, which the data set then reads at
            one go.
        indices: positions in ``loader.dataset``.

    Returns:
        Collated batches: one of all the items, or with ``batch_size=None`` one an item.

    Raises:
        ProbeInputError: if an item cannot be read or the items cannot be collated; its cause is the original
            error.
    """
    dataset = loader.dataset
    collate = loader.collate_fn
    try:
        with untouched_dataset(dataset), untouched_objects(collate):
            if loader.batch_size is None and loader.batch_sampler is None:
                if isinstance(loader.sampler, BatchSampler):
                    return [collate(dataset[list(indices)])]
                return [collate(dataset[index]) for index in indices]
            fetch_many = getattr(dataset, "__getitems__", None)
            items = fetch_many(list(indices)) if fetch_many else [dataset[index] for index in indices]
            return [collate(items)]
    except Exception as error:
        raise ProbeInputError(
            f"validation data: reading the items {list(indices)[:8]} of {type(dataset).__name__} in the "
            f"main process and collating them with {getattr(collate, '__name__', collate)!r} failed with "
            f"{error!r}; all probe images must have one size, and the data set must be readable without a "
            "worker_init_fn"
        ) from error


def untouched_dataset(dataset: Any) -> AbstractContextManager[None]:
    """Leave a data set, those that it wraps and its transforms as they were: see :func:`untouched_objects`."""
    return untouched_objects(*dataset_chain(dataset))
