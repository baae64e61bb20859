"""Whole batches of the chosen samples: any of them, in any number, with other images in the place of their own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_attngrad.probe.resolve import ProbeInputError, describe, entries_of

#: Where in a batch something is: names and indices, one container after the other; () is the batch itself.
Path = tuple[str | int, ...]

_DEEPEST = 6  # containers in containers


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The chosen samples as one batch, in the form in which a validation step gets it.

    What goes along with a sample: of a tensor or array that is as long as the batch its row; of a list of as many
    things its thing, unless they are parts of the batch themselves (views, fields). All else belongs to every sample.

    Attributes:
        batch: of all of them.
        size: how many samples it holds.
        path: where its images are; None where they are not in it as they are, as a batch adapter may make others.
    """

    batch: Any
    size: int
    path: Path | None

    @classmethod
    def of(cls, batches: Sequence[Any], sizes: Sequence[int], paths: Sequence[Path | None]) -> Samples:
        """One batch of several.

        Args:
            batches: of one structure.
            sizes: how many samples each holds.
            paths: where its images are.

        Raises:
            ProbeInputError: where batches cannot be put together.
        """
        path = paths[0] if len(set(paths)) == 1 else None
        return cls(_joined(batches, sizes, path, "batch"), sum(sizes), path)

    def rows(self, rows: Tensor, images: Tensor | None = None) -> Any:
        """The batch of some samples.

        Args:
            rows: (R,) ints; a sample may be named more than once.
            images: (R, C, H, W) to be put in the place of theirs, if that is known.
        """
        batch = _rows(self.batch, self.size, rows, self.path)
        return batch if images is None or self.path is None else put(batch, self.path, images)

    def map(self, change: Callable[[Tensor], Tensor]) -> Samples:
        """With every tensor changed."""
        return dataclasses.replace(self, batch=map_tensors(self.batch, change))


def path_to(batch: Any, part: Any, depth: int = _DEEPEST) -> Path | None:
    """Where this very object is in a batch; None where it is not."""
    if batch is part:
        return ()
    for key, value in entries_of(batch) or () if depth else ():
        if (path := path_to(value, part, depth - 1)) is not None:
            return (key, *path)
    return None


def path_in_words(path: Path, batch: Any) -> str:
    """How a path in this batch is written in Python.

    Example:
        >>> path_in_words(("views", 0), {"views": [torch.zeros(2)]})
        "batch['views'][0]"
    """
    words = "batch"
    for part in path:
        by_attribute = isinstance(part, str) and not isinstance(batch, Mapping)
        words += f".{part}" if by_attribute else f"[{part!r}]"
        batch = follow(batch, (part,))
    return words


def follow(batch: Any, path: Path) -> Any:
    """What is there."""
    for part in path:
        batch = dict(entries_of(batch) or ())[part]
    return batch


def put(batch: Any, path: Path, value: Any) -> Any:
    """A batch with something else in one place; containers on the way are copied, all else is shared."""
    if not path:
        return value
    key, *below = path
    inner = put(dict(entries_of(batch) or ())[key], tuple(below), value)
    return _rebuilt(batch, {key: inner})


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor], depth: int = _DEEPEST) -> Any:
    """A batch with every tensor changed; what holds none is shared."""
    if isinstance(batch, Tensor):
        return change(batch)
    changed = {}
    for key, value in entries_of(batch) or () if depth else ():
        new = map_tensors(value, change, depth - 1)
        if new is not value:
            changed[key] = new
    return _rebuilt(batch, changed) if changed else batch


def tensors_of(value: Any, depth: int = _DEEPEST) -> list[Tensor]:
    """All tensors in a batch or in an output, in their order."""
    if isinstance(value, Tensor):
        return [value]
    return [one for _, part in (entries_of(value) or () if depth else ()) for one in tensors_of(part, depth - 1)]


def _rebuilt(batch: Any, changed: Mapping[str | int, Any]) -> Any:
    """A copy of a container with some of its entries changed."""
    if isinstance(batch, tuple) and hasattr(batch, "_replace"):  # named
        return batch._replace(**{str(key): value for key, value in changed.items()})
    if isinstance(batch, tuple | list):
        items = [changed.get(index, item) for index, item in enumerate(batch)]
        return items if isinstance(batch, list) else tuple(items)
    new = copy.copy(batch)
    for key, value in changed.items():
        if isinstance(batch, Mapping):
            new[key] = value
        else:
            object.__setattr__(new, str(key), value)  # of frozen dataclasses too
    return new


def _is_of_samples(value: Any, size: int) -> bool:
    """Whether the first dimension of a tensor or array counts samples."""
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and len(value) == size


def _are_samples(value: Any, size: int) -> bool:
    """Whether each item of a list is of one sample: it is as long as the batch, and its items are no parts of that.

    Of items of one kind some may be as long as the batch by chance (boxes of a detector), of views and fields all are.
    """
    if not isinstance(value, tuple | list) or hasattr(value, "_fields") or len(value) != size:
        return False
    parts = [_holds_samples(item, size) for item in value]
    return not (all(parts) if len({type(item) for item in value}) == 1 else any(parts))


def _holds_samples(value: Any, size: int, depth: int = _DEEPEST) -> bool:
    if _is_of_samples(value, size):
        return True
    return any(_holds_samples(item, size, depth - 1) for _, item in (entries_of(value) or () if depth else ()))


def _rows(value: Any, size: int, rows: Tensor, path: Path | None, depth: int = _DEEPEST) -> Any:
    """Some samples of a part of a batch; what the images are in, by their path, is a container whatever it is like."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if _is_of_samples(value, size) else value
    if isinstance(value, np.ndarray):
        return value[rows.cpu().numpy()] if _is_of_samples(value, size) else value
    if not path and _are_samples(value, size):
        picked = [value[row] for row in rows.tolist()]
        return picked if isinstance(value, list) else tuple(picked)
    changed = {}
    for key, item in entries_of(value) or () if depth else ():
        new = _rows(item, size, rows, _below(path, key), depth - 1)
        if new is not item:
            changed[key] = new
    return _rebuilt(value, changed) if changed else value


def _below(path: Path | None, key: str | int) -> Path | None:
    return path[1:] if path and path[0] == key else None


def _joined(values: Sequence[Any], sizes: Sequence[int], path: Path | None, where: str, depth: int = _DEEPEST) -> Any:
    first = values[0]
    if len(values) == 1:
        return first
    of_samples = [_is_of_samples(value, size) for value, size in zip(values, sizes, strict=True)]
    if all(of_samples):
        if len({tuple(value.shape[1:]) for value in values}) > 1:
            raise ProbeInputError(
                f"{where}: the batches of the probe hold {' and '.join(sorted({describe(value) for value in values}))} "
                "there, which do not fit together; pad them to one size, or set num_images to a batch's size"
            )
        return torch.cat(list(values)) if isinstance(first, Tensor) else np.concatenate(list(values))
    if not path and all(_are_samples(value, size) for value, size in zip(values, sizes, strict=True)):
        items = [item for value in values for item in value]
        return items if isinstance(first, list) else tuple(items)
    entries = [entries_of(value) if depth and type(value) is type(first) else None for value in values]
    keys = [None if some is None else [key for key, _ in some] for some in entries]
    if keys[0] and all(of_value == keys[0] for of_value in keys):
        by_key = [dict(some or ()) for some in entries]
        return _rebuilt(
            first,
            {
                key: _joined([some[key] for some in by_key], sizes, _below(path, key), f"{where}[{key!r}]", depth - 1)
                for key in by_key[0]
            },
        )
    if all(_are_equal(first, value) for value in values[1:]):
        return first
    raise ProbeInputError(
        f"{where}: the batches of the probe hold {describe(first)} there, which differs from batch to batch and is not "
        "of one sample each; leave it out of the batch, or set num_images to a batch's size"
    )


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return one is other
