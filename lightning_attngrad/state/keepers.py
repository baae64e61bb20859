"""Single objects remembered: each of these can put one of them back, by identity and in place."""

from __future__ import annotations

import io
import operator
import types
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_MISSING = object()


def same_objects(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether two collections of one length hold the same objects in the same order."""
    return all(map(operator.is_, one, other))


class KeptDict:
    """A dict, or the attributes of an object."""

    def __init__(self, held: dict[Any, Any]) -> None:
        self.held = held
        # Of the base class, not the user's own, whose methods may do anything.
        self._base: Any = OrderedDict if isinstance(held, OrderedDict) else dict
        self.before = dict(self._base.items(held))

    def restore(self) -> None:
        """The same entries in the same order."""
        held, base, before = self.held, self._base, self.before
        if (
            len(before) == base.__len__(held)
            and same_objects(base.keys(held), before)
            and same_objects(base.values(held), before.values())
        ):
            return
        base.clear(held)
        for key, value in before.items():
            base.__setitem__(held, key, value)

    def lend(self, key: Any, value: Any) -> None:
        """Another value, until it is restored."""
        self._base.__setitem__(self.held, key, value)


class KeptList:
    """A list or a deque."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self._base: Any = list if isinstance(held, list) else deque
        self.before = list(self._base.__iter__(held))

    def restore(self) -> None:
        """The same items."""
        if len(self.held) == len(self.before) and same_objects(self._base.__iter__(self.held), self.before):
            return
        self._base.clear(self.held)
        self._base.extend(self.held, self.before)

    def lend(self, place: int, value: Any) -> None:
        """Another item, until it is restored."""
        self._base.__setitem__(self.held, place, value)


class KeptSet:
    """A set."""

    def __init__(self, held: set[Any]) -> None:
        self.held = held
        self.before = list(set.__iter__(held))

    def restore(self) -> None:
        """The same members."""
        if len(self.held) != len(self.before) or not same_objects(set.__iter__(self.held), self.before):
            set.clear(self.held)
            set.update(self.held, self.before)


class KeptLength:
    """A container too long to be copied: what was added to it is taken off again."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self._length = len(held)

    def restore(self) -> None:
        """The same length. New entries stand at the end of dicts and lists; where they stand in a set, nobody knows."""
        if isinstance(self.held, list):
            list.__delitem__(self.held, slice(self._length, None))
        elif isinstance(self.held, dict):
            base = OrderedDict if isinstance(self.held, OrderedDict) else dict
            while len(self.held) > self._length:
                base.popitem(self.held)
        elif isinstance(self.held, deque):
            while len(self.held) > self._length:
                deque.pop(self.held)


class KeptSlots:
    """The attributes of an object that has ``__slots__``."""

    def __init__(self, held: object, slots: tuple[types.MemberDescriptorType, ...]) -> None:
        self.held = held
        self.before = {slot: self._value(slot) for slot in slots}

    def _value(self, slot: types.MemberDescriptorType) -> Any:
        try:
            return slot.__get__(self.held)
        except AttributeError:
            return _MISSING

    def restore(self) -> None:
        """The same values; one that was not there is deleted."""
        for slot, value in self.before.items():
            if (now := self._value(slot)) is value:
                continue
            if value is not _MISSING:
                slot.__set__(self.held, value)
            elif now is not _MISSING:
                slot.__delete__(self.held)

    def lend(self, slot: types.MemberDescriptorType, value: Any) -> None:
        """Another value, until it is restored."""
        slot.__set__(self.held, value)


class KeptCell:
    """A variable of a closure, which ``nonlocal`` can bind anew."""

    def __init__(self, held: types.CellType) -> None:
        self.held = held
        self.before = self._content()

    def _content(self) -> Any:
        try:
            return self.held.cell_contents
        except ValueError:  # nothing has been bound to it
            return _MISSING

    def restore(self) -> None:
        """The same object."""
        if self._content() is self.before:
            return
        if self.before is _MISSING:
            del self.held.cell_contents
        else:
            self.held.cell_contents = self.before

    def lend(self, _: Any, value: Any) -> None:
        """Another object, until it is restored."""
        self.held.cell_contents = value


class KeptBytes:
    """A bytearray or an array of the standard library."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self._before = held[:]

    def restore(self) -> None:
        """The same bytes."""
        if self.held != self._before:
            self.held[:] = self._before


class KeptPosition:
    """How far a file has been read. One that is written to stays as it is: what was written would be overwritten."""

    def __init__(self, held: io.IOBase) -> None:
        self.held = held
        self._before: int | None = None
        try:
            if held.seekable() and held.readable() and not held.writable():
                self._before = held.tell()
        except (OSError, ValueError):  # in the midst of an iteration over lines; closed
            self._before = None

    def restore(self) -> None:
        """Read on from there, unless it has been closed meanwhile."""
        if self._before is None or self.held.closed:
            return
        if self.held.tell() != self._before:
            self.held.seek(self._before)


class KeptTensor:
    """The values of a tensor that cannot be exchanged for a copy, as what holds it is no object of Python."""

    def __init__(self, held: Tensor) -> None:
        self.held = held
        self._before = held.detach().clone()

    def restore(self) -> None:
        """The same bytes; where nothing has changed it is not written to, which would stop a pending backward."""
        held, before = self.held, self._before
        with torch.inference_mode(mode=False), torch.no_grad():
            if held.shape != before.shape or held.dtype != before.dtype or held.device != before.device:
                held.data = before  # resized or moved: only a new storage can undo that
            # `==` misses −0.0 and trips over NaN.
            elif not torch.equal(_bytes(held), _bytes(before)):
                held.copy_(before)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
