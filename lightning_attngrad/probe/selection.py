"""Which items of a data set a probe looks at."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightning_attngrad.probe.resolve import TARGET_KEYS


def candidate_indices(length: int, count: int, seed: int) -> list[int]:
    """``count`` different indices below ``length``, the same for the same three numbers."""
    return random.Random(seed).sample(range(length), min(count, length))  # noqa: S311  (nothing secret)


def balanced_choice(targets: Sequence[int] | np.ndarray[Any, Any], count: int, seed: int) -> list[int]:
    """Positions of ``count`` items, as many of one class as of another.

    Classes take turns, in an order drawn with the seed; a class that has run out is skipped.

    Args:
        targets: the class of each item, (M,).
        count: how many positions; all of them if there are no more.
        seed: the choice is the same for the same targets, count and seed.

    Returns:
        Different positions in ``targets``, class by turn.

    Example:
        >>> targets = [0, 0, 0, 0, 0, 0, 1, 2]
        >>> sorted(targets[position] for position in balanced_choice(targets, 4, seed=0))
        [0, 0, 1, 2]
    """
    generator = random.Random(seed)  # noqa: S311
    values = np.asarray(targets)
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])  # of each class in the order
    sizes = np.diff(np.r_[starts, len(values)])
    turns = list(range(len(starts)))  # the classes, in the order in which they take turns
    generator.shuffle(turns)
    drawn = []
    for number, share in zip(turns, _shares(sizes[turns], min(count, len(values))), strict=True):
        if share == 0:
            continue
        places = generator.sample(range(int(sizes[number])), int(share))
        drawn.append([int(order[starts[number] + place]) for place in places])
    longest = max(map(len, drawn))
    return [group[turn] for turn in range(longest) for group in drawn if turn < len(group)]


def _shares(sizes: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """How many items each class gives, (K,): one a turn, until there are ``count``."""
    shares = np.zeros_like(sizes)
    while (missing := count - int(shares.sum())) > 0:
        shares[np.flatnonzero(shares < sizes)[:missing]] += 1
    return shares


def known_targets(dataset: Any) -> np.ndarray[Any, Any] | None:
    """The labels of every item, where a data set tells without reading its images.

    Looks at ``targets``, ``labels``, ``tensors[1]``, ``samples`` and label columns of Hugging Face data sets,
    through Subset, ConcatDataset, and wrappers that hold a ``dataset`` of the same length.

    Returns:
        (M,) int64 classes for the M items, or (M, K) bool where each has a row of 0 and 1; or None.
    """
    length = len(dataset)
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and isinstance(indices, Sequence | np.ndarray | torch.Tensor) and len(indices) == length:
        known = known_targets(inner)
        return None if known is None else known[np.asarray(indices, dtype=np.int64)]
    parts = getattr(dataset, "datasets", None)
    if isinstance(parts, list | tuple) and parts and sum(len(part) for part in parts) == length:
        all_known = [known_targets(part) for part in parts]
        found = [known for known in all_known if known is not None]
        same = len({known.shape[1:] for known in found}) == 1
        return np.concatenate(found) if len(found) == len(parts) and same else None
    for values in _target_attributes(dataset):
        if (targets := _as_classes(values, length)) is not None:
            return targets
    if inner is not None and hasattr(inner, "__len__") and len(inner) == length:
        return known_targets(inner)
    return None


def _target_attributes(dataset: Any) -> Iterator[Any]:
    """What may hold the class of every item, one after the other, as some of it takes a second to build."""
    yield getattr(dataset, "targets", None)
    yield getattr(dataset, "labels", None)
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, list | tuple) and len(tensors) > 1:
        yield tensors[1]
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple) and len(samples[0]) == 2:
        yield [sample[1] for sample in samples]
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping) and hasattr(dataset, "with_format"):
        for name in TARGET_KEYS:
            if name in features:
                yield _column(dataset, name)


def _column(dataset: Any, name: str) -> Any:
    """A column of a Hugging Face data set as an array, of a million labels in milliseconds.

    Without the user's format: reading a column through it would run their transform over all of it.
    """
    shuffled = getattr(dataset, "_indices", None)
    if shuffled is not None:  # private, but the public way gathers the rows one by one
        return dataset.data.column(name).to_numpy()[shuffled.column(0).to_numpy()]
    return dataset.with_format("arrow")[name][:].to_numpy()


def _as_classes(values: Any, length: int) -> np.ndarray[Any, Any] | None:
    """``values`` as (M,) int64 or (M, K) bool if that is what they are: one integer, or a row of 0 and 1, an item."""
    if not isinstance(values, list | tuple | np.ndarray | torch.Tensor) or len(values) != length or length == 0:
        return None
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy() if values.dtype != torch.bfloat16 else values.float().numpy()
    elif isinstance(values, list | tuple) and not isinstance(values[0], int | np.integer | torch.Tensor):
        return None  # cheap refusal before an array of a million strings is built
    try:
        if isinstance(values, list | tuple) and isinstance(values[0], torch.Tensor):
            values = torch.stack(list(values)).numpy()  # an array of tensors is built element by element
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):
        return None
    if array.ndim == 2 and len(array) == length and array.shape[1] > 1 and array.dtype.kind in "iufb":
        return array.astype(bool) if bool(((array == 0) | (array == 1)).all()) else None
    if array.shape != (length,) or array.dtype.kind not in "iu":
        return None
    return array.astype(np.int64)
