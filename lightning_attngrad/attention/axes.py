"""Along which axes of a tensor the keys of an attention lie, while a model moves its axes about.

An axis is made of parts, slowest first: one where it is what it was at the softmax, several where axes were merged.
No tensor is looked into: what a function did to the axes is read off shapes and strides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A factor of an axis: its size, and whether it counts keys."""

    size: int
    is_key: bool


Axis = tuple[Part, ...]
Axes = tuple[Axis, ...]


def axes_over(shape: Sequence[int], keys: Sequence[int]) -> Axes:
    """Of a tensor of this shape, whose keys lie along the axes ``keys``. Other axes of size 1 have no part."""
    numbers = {key % len(shape) for key in keys}
    return tuple(
        (Part(size, axis in numbers),) if size > 1 or axis in numbers else () for axis, size in enumerate(shape)
    )


def key_axes(axes: Axes) -> tuple[int, ...] | None:
    """Numbers of the axes of keys; none where keys were lost, None where an axis holds keys and something else."""
    found = []
    for number, axis in enumerate(axes):
        if any(part.is_key for part in axis):
            if not all(part.is_key for part in axis):
                return None
            found.append(number)
    return tuple(found)


def has_keys(axes: Axes) -> bool:
    """Whether any part of any axis counts keys."""
    return any(part.is_key for axis in axes for part in axis)


def moved(axes: Axes, before: Tensor, after: Tensor) -> Axes | None:
    """Of a view of ``before`` whose axes were permuted, cut, left out or expanded; None where strides do not tell."""
    if not after._is_view():
        return None
    found: list[Axis] = []
    for size, stride in zip(after.shape, after.stride(), strict=True):
        alike = [
            (axes[axis], before.shape[axis])
            for axis in range(before.dim())
            if before.stride(axis) == stride and before.shape[axis] >= size and (size > 1) <= (before.shape[axis] > 1)
        ]
        exact = {axis for axis, length in alike if length == size}
        candidates = exact or {axis for axis, _ in alike}
        if size == 1 and not any(part.is_key for axis in exact for part in axis):
            found.append(())
        elif stride == 0 and not any(part.is_key for axis in candidates for part in axis):
            found.append((Part(size, False),))
        elif len(candidates) != 1:
            return None
        else:
            axis = candidates.pop()
            if math.prod(part.size for part in axis) != size:  # a part of the axis, or a part of several
                if len({part.is_key for part in axis}) != 1:
                    return None
                axis = (Part(size, axis[0].is_key),)
            found.append(axis)
    return tuple(found)


def regrouped(axes: Axes, shape: torch.Size) -> Axes | None:
    """Of the same elements in the same order under another shape; None where parts do not fall on its axes."""
    waiting = _joined([part for axis in axes for part in axis])
    if any(part.is_key and part.size == 1 for part in waiting):
        return None  # it could lie anywhere
    found: list[Axis] = []
    for size in shape:
        axis: list[Part] = []
        missing = size
        while missing > 1:
            if not waiting:
                return None
            part = waiting.pop(0)
            if missing % part.size == 0:
                axis.append(part)
                missing //= part.size
            elif part.size % missing == 0:
                axis.append(Part(missing, part.is_key))
                waiting.insert(0, Part(part.size // missing, part.is_key))
                missing = 1
            else:
                return None
        found.append(tuple(_joined(axis)))
    return tuple(found) if not waiting else None


def aligned(axes: Axes, before: torch.Size, after: torch.Size, resized: bool = False) -> Axes | None:
    """Of the result of an elementwise function, its axes aligned with the last; None where keys do not survive.

    Args:
        axes: of an operand.
        before: its shape.
        after: shape of the result.
        resized: whether an axis of keys may be of another length.
    """
    added = len(after) - len(before)
    if added < 0:
        return None
    found: list[Axis] = [(Part(size, False),) if size > 1 else () for size in after[:added]]
    for axis, size, length in zip(axes, before, after[added:], strict=True):
        if size == length:
            found.append(axis)
        elif not any(part.is_key for part in axis):
            found.append((Part(length, False),) if length > 1 else ())
        elif resized and len(axis) == 1:
            found.append((Part(length, True),))
        else:
            return None
    return tuple(found)


def merged(first: Axes, second: Axes) -> Axes | None:
    """Of what two operands of the same result say of it; None where they place keys differently."""
    found: list[Axis] = []
    for one, other in zip(first, second, strict=True):
        if one != other and any(part.is_key for part in (*one, *other)):
            return None
        found.append(one)
    return tuple(found)


def without(axes: Axes, left_out: Sequence[int], keep: bool) -> Axes:
    """After a reduction over axes, which stay with size 1 or go."""
    numbers = {axis % len(axes) for axis in left_out}
    return tuple(() if number in numbers else axis for number, axis in enumerate(axes) if keep or number not in numbers)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbours of one kind made one."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1].is_key == part.is_key:
            found[-1] = Part(found[-1].size * part.size, part.is_key)
        else:
            found.append(part)
    return found
