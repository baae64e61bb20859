"""Which items of a data set a probe looks at."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightning_attngrad.probe.resolve import TARGET_KEYS


def candidate_indices(length: int, count: int, seed: int) -> list[int]:
    """``count`` different indices below ``length``, the same for the same three numbers."""
    return random.Random(seed).sample(range(length), min(count, length))  # noqa: S311  (nothing secret)


def balanced_choice(targets: Sequence[int] | np.ndarray[Any, Any], count: int, seed: int) -> list[int]:
    """Positions of ``count`` items, as many of one class as of another.

    Classes take turns, in an order drawn with the seed; a class that has run out is passed over.

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
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    members = np.split(order, starts[1:])  # positions of each class
    generator.shuffle(members)
    count = min(count, len(values))
    shares = [0] * len(members)
    while (missing := count - sum(shares)) > 0:
        open_classes = [number for number, group in enumerate(members) if shares[number] < len(group)]
        for number in open_classes[:missing]:
            shares[number] += 1
    drawn = [
        [int(group[place]) for place in generator.sample(range(len(group)), share)]
        for group, share in zip(members, shares, strict=True)
    ]
    turns = max(shares)
    return [group[turn] for turn in range(turns) for group in drawn if turn < len(group)]


def known_targets(dataset: Any) -> np.ndarray[Any, Any] | None:
    """The class of every item, where a data set tells without reading its images.

    Looks at ``targets``, ``labels``, ``tensors[1]``, ``samples`` and label columns of Hugging Face data sets,
    through Subset, ConcatDataset, and wrappers that hold a ``dataset`` of the same length.

    Returns:
        (M,) int64 for the M items, or None.
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
        return np.concatenate(found) if len(found) == len(parts) else None
    for values in _target_attributes(dataset):
        if (targets := _as_classes(values, length)) is not None:
            return targets
    if inner is not None and hasattr(inner, "__len__") and len(inner) == length:
        return known_targets(inner)
    return None


def _target_attributes(dataset: Any) -> list[Any]:
    found = [getattr(dataset, name, None) for name in ("targets", "labels")]
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, list | tuple) and len(tensors) > 1:
        found.append(tensors[1])
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple) and len(samples[0]) == 2:
        found.append([sample[1] for sample in samples])
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping) and hasattr(dataset, "with_format"):
        # Without the user's format: reading a column through it would run their transform over all of it.
        plain = dataset.with_format(None)
        found += [plain[name][:] for name in TARGET_KEYS if name in features]
    return found


def _as_classes(values: Any, length: int) -> np.ndarray[Any, Any] | None:
    """``values`` as (M,) int64 if that is what they are: one integer an item."""
    if not isinstance(values, list | tuple | np.ndarray | torch.Tensor) or len(values) != length or length == 0:
        return None
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy() if values.dtype != torch.bfloat16 else values.float().numpy()
    elif isinstance(values, list | tuple) and not isinstance(values[0], int | np.integer | torch.Tensor):
        return None  # cheap refusal before an array of a million strings is built
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):
        return None
    if array.shape != (length,) or array.dtype.kind not in "iu":
        return None
    return array.astype(np.int64)
