"""What a sampler hands out where no integer indexes the data set: boxes on a map, names, keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import index
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

from lightning_attngrad.probe.loaders import untouched_dataset
from lightning_attngrad.probe.selection import candidate_indices

#: Samplers are drawn from no further than this.
_LONGEST_DRAW = 100_000


def sampler_items(loader: DataLoader[Any], count: int, seed: int) -> list[Any] | None:
    """Some items of the loader's sampler, by which its data set is read.

    A fresh iterator is drawn from; the attributes and the generators of the sampler are put back. Call this under
    isolated random streams.

    Args:
        loader: over a map-style data set.
        count: how many items; fewer if the sampler has fewer.
        seed: which ones of all, where the sampler has a length: the first boxes of a grid are neighbours.

    Returns:
        The items, perhaps positions; None if the sampler cannot be asked: it fails here, or keeps an iterator, which
        would be moved on for good.
    """
    sampler = _sampler_of(loader)
    if _keeps_an_iterator(sampler):
        return None
    with untouched_dataset(sampler if hasattr(sampler, "__dict__") else None):  # nothing changes in a plain list
        try:
            return list(_some(sampler, count, seed))
        except Exception:  # the user's code, in a place for which it was not written
            return None


def are_positions(items: list[Any]) -> bool:
    """Whether these are integers: then it is not the sampler that knows better than we do what to read."""
    return all(_is_integer(item) for item in items)


def _is_integer(item: Any) -> bool:
    try:
        index(item)
    except TypeError:
        return False
    return True


def _sampler_of(loader: DataLoader[Any]) -> Any:
    """What decides on single items, or on lists of them."""
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    while type(sampler) is BatchSampler:
        sampler = sampler.sampler
    # Lightning wraps samplers where several processes share their items.
    return getattr(getattr(sampler, "dataset", None), "_sampler", sampler)


def _keeps_an_iterator(sampler: Any) -> bool:
    attributes = getattr(sampler, "__dict__", {})
    return hasattr(sampler, "__next__") or any(hasattr(value, "__next__") for value in attributes.values())


def _some(sampler: Iterable[Any], count: int, seed: int) -> Iterator[Any]:
    length = _length(sampler)
    chosen = set(range(count) if length is None else candidate_indices(min(length, _LONGEST_DRAW), count, seed))
    for place, drawn in enumerate(sampler):
        if place in chosen:
            # A sampler of batches hands out lists; one item of each spreads them further than all of the first.
            yield drawn[0] if isinstance(drawn, list) and drawn else drawn
            chosen.discard(place)
        if not chosen:
            return


def _length(sampler: Any) -> int | None:
    try:
        return len(sampler)
    except (TypeError, NotImplementedError):
        return None
