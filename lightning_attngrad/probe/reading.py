"""Single items of a map-style loader, read without a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from lightning_attngrad.probe.loaders import dataset_chain
from lightning_attngrad.probe.module_state import AttributeSnapshot
from lightning_attngrad.probe.resolve import ProbeInputError

_DEEPEST_OBJECT = 4


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
        with untouched_dataset(dataset):
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


@contextmanager
def untouched_dataset(dataset: Any) -> Iterator[None]:
    """Leave the attributes and the private random generators of a data set and its transforms as they were.

    A file handle or cache that the data set opens at its first item is thus dropped again: a handle inherited
    by forked workers would be shared between them. Left uncovered: what lies deeper than a container in an
    attribute.
    """
    objects = _reachable(dataset)
    snapshot = AttributeSnapshot(objects)
    generators: list[Any] = [
        value
        for item in objects
        for value in vars(item).values()
        if isinstance(value, random.Random | np.random.Generator | np.random.RandomState | torch.Generator)
    ]
    states = [_generator_state(generator) for generator in generators]
    try:
        yield
    finally:
        snapshot.restore()
        for generator, state in zip(generators, states, strict=True):
            _set_generator_state(generator, state)


def _reachable(dataset: Any) -> list[Any]:
    """The chain of data sets, and the transforms they hold."""
    found: dict[int, Any] = {}

    def visit(item: Any, depth: int) -> None:
        if isinstance(item, list | tuple):
            for step in item:
                visit(step, depth + 1)
            return
        if depth > _DEEPEST_OBJECT or id(item) in found or not isinstance(getattr(item, "__dict__", None), dict):
            return
        if isinstance(item, type) or callable(getattr(item, "__get__", None)):
            return  # classes and functions: their attributes belong to everyone
        found[id(item)] = item
        for name, value in list(vars(item).items()):
            if "transform" in name:
                visit(value, depth + 1)

    for part in dataset_chain(dataset):
        visit(part, 0)
    return list(found.values())


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def _set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
