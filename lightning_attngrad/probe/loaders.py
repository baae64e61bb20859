"""The loaders of a run, and the data sets inside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_attngrad.state import untouched_objects

# What the user's val_dataloader() gave when it was asked before Lightning did, so that all who ask, ask once: by
# Trainer, with the object that was asked.
_asked: WeakKeyDictionary[Any, tuple[Any, list[Any]]] = WeakKeyDictionary()


def evaluation_loaders(trainer: pl.Trainer) -> list[Any]:
    """The loaders that validation (or a standalone test) of this run goes through, never iterated here.

    Lightning may not have set them up yet (``check_val_every_n_epoch`` above 1 without a sanity check). Then the user's
    ``val_dataloader`` is asked, once for all callbacks of the Trainer: call this under isolated random streams.

    Returns:
        One loader for each ``dataloader_idx``; a ``CombinedLoader`` that mixes its loaders into one batch
        counts as one. Empty if the run has none.
    """
    loop = _evaluation_loop(trainer)
    # A private attribute, as `trainer.val_dataloaders` drops the mode in which several loaders are combined.
    if loop._combined_loader is not None:
        return _as_list(loop._combined_loader)
    source = loop._data_source
    if source.instance is None or not source.is_defined():
        return []
    asked, loaders = _asked.get(trainer, (None, []))
    if asked is not source.instance:
        loaders = _as_list(source.dataloader())
        _asked[trainer] = source.instance, loaders
    return loaders


def release_loaders(trainer: pl.Trainer) -> None:
    """Let go of loaders that were asked for early, as soon as Lightning has its own."""
    if trainer in _asked and _evaluation_loop(trainer)._combined_loader is not None:
        del _asked[trainer]


def training_loaders(trainer: pl.Trainer) -> list[Any]:
    """The loaders that training goes through, as `evaluation_loaders` lists them; empty before Lightning has them."""
    loop = trainer.fit_loop
    return [] if trainer.state.fn != "fit" or loop._combined_loader is None else _as_list(loop._combined_loader)


def _evaluation_loop(trainer: pl.Trainer) -> Any:
    # By value: `pytorch_lightning` has enumerations of its own.
    if trainer.state.fn == "test":
        return trainer.test_loop
    return trainer.validate_loop if trainer.state.fn == "validate" else trainer.fit_loop.epoch_loop.val_loop


def _as_list(loaders: Any) -> list[Any]:
    if not _is_combined(loaders):
        # Lightning flattens collections in the same way.
        return list(CombinedLoader(loaders, "sequential").flattened)
    alone = len(loaders.flattened) == 1 and loaders.flattened[0] is loaders.iterables  # its batches are not wrapped
    return list(loaders.flattened) if alone or loaders._mode == "sequential" else [loaders]


def _is_combined(loader: Any) -> bool:
    """By name: ``pytorch_lightning`` has a class of its own."""
    return any(base.__name__ == CombinedLoader.__name__ for base in type(loader).__mro__)


def is_map_style(loader: Any) -> bool:
    """Whether single items of the loader can be read without iterating it.

    A subclass with an ``__iter__`` of its own may do anything to its batches, so it counts as a stream.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    iterates_like_torch = type(loader).__iter__.__module__.startswith(("torch.", "torchdata."))
    dataset = loader.dataset
    return iterates_like_torch and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def dataset_chain(dataset: Any) -> Iterator[Any]:
    """A data set, then those it wraps: ``.dataset`` (Subset, wrappers), the parts of a ConcatDataset."""
    waiting, seen = [dataset], set()
    while waiting:
        here = waiting.pop(0)
        if here is None or id(here) in seen:
            continue
        seen.add(id(here))
        yield here
        inner = getattr(here, "dataset", None)
        if inner is not None and hasattr(inner, "__getitem__"):
            waiting.append(inner)
        parts = getattr(here, "datasets", None)
        if isinstance(parts, list | tuple):
            waiting.extend(parts)


def datasets_of(loaders: Iterable[Any]) -> Iterator[Any]:
    """Every data set behind some loaders, outermost first."""
    for loader in loaders:
        parts = loader.flattened if _is_combined(loader) else [loader]
        for part in parts:
            yield from dataset_chain(getattr(part, "dataset", None))


def evaluation_datasets(trainer: pl.Trainer, dataloader_idx: int | None = None) -> Iterator[Any]:
    """Every data set behind the evaluation loaders, or behind one of them, outermost first."""
    loaders = evaluation_loaders(trainer)
    yield from datasets_of(loaders if dataloader_idx is None else loaders[dataloader_idx : dataloader_idx + 1])


def untouched_dataset(dataset: Any) -> AbstractContextManager[None]:
    """Leave a data set, those that it wraps and its transforms as they were: see :func:`untouched_objects`."""
    return untouched_objects(*dataset_chain(dataset))
