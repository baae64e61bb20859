"""What can be put back of an object of some class, and which objects are left alone."""

from __future__ import annotations

import array
import functools
import io
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from torch import Tensor, nn
from torch.utils.data import dataloader

from lightning_attngrad.state.randomness import is_private_stream


class Kind(Enum):
    """How a value is remembered."""

    LEFT_ALONE = auto()  # which object it was, and nothing about it
    TENSOR = auto()
    ARRAY = auto()  # of numpy
    BYTES = auto()  # bytearray and array.array
    STREAM = auto()  # a private random generator
    DICT = auto()
    LIST = auto()  # and deque
    SET = auto()
    TUPLE = auto()  # and frozenset
    FUNCTION = auto()  # for what its closure and defaults hold
    METHOD = auto()  # for the object that it belongs to
    PARTIAL = auto()
    OPEN_FILE = auto()
    AT_WORK = auto()  # a thread, a process or a pool: whoever holds one may be written to by it meanwhile
    OBJECT = auto()  # any with attributes


#: Values without a state, looked up first because nearly all are of these types.
PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), range, slice, type(Ellipsis)})

#: Containers that have no attributes beside their entries.
BUILT_IN_CONTAINERS = frozenset({dict, OrderedDict, defaultdict, list, deque, set})

#: Packages whose objects are of the run and not of a module or data set, hold what only their own code can put back,
#: or read data: what derives from them is left alone.
_FOREIGN = frozenset(
    {"lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torch", "logging", "weakref"}
    | {"enum", "ctypes", "_ctypes", "_thread", "threading", "multiprocessing", "concurrent", "socket", "subprocess"}
    | {"numpy", "PIL", "pandas", "pyarrow", "polars", "h5py", "zarr", "fsspec"}
)
_AT_WORK = frozenset(
    {
        ("threading", "Thread"),
        ("multiprocessing.process", "BaseProcess"),
        ("multiprocessing.pool", "Pool"),
        ("concurrent.futures._base", "Executor"),
    }
)
#: Classes of torch that users derive from, or that hold what users wrote.
_OF_THE_USER = ("torch.utils.data.", "torch.nn.")
#: Classes of the standard library that are nothing but attributes.
_ONLY_ATTRIBUTES = frozenset({"types", "argparse", "collections"})


#: The kind of what derives from a class; the first that fits.
_BY_BASE: tuple[tuple[Any, Kind], ...] = (
    ((type, types.ModuleType), Kind.LEFT_ALONE),  # what belongs to them belongs to everyone
    (Tensor, Kind.TENSOR),
    (dict, Kind.DICT),
    ((list, deque), Kind.LIST),
    (set, Kind.SET),
    ((tuple, frozenset), Kind.TUPLE),
    (types.FunctionType, Kind.FUNCTION),
    ((types.MethodType, types.BuiltinMethodType), Kind.METHOD),
    (functools.partial, Kind.PARTIAL),
    ((bytearray, array.array), Kind.BYTES),
    (io.IOBase, Kind.OPEN_FILE),
    (nn.Module, Kind.OBJECT),
)
_LONGEST_MEMORY = 4096
_known: dict[type, Kind] = {}
_known_slots: dict[type, tuple[types.MemberDescriptorType, ...]] = {}


def kind_of(cls: type) -> Kind:
    """The kind of all objects of a class."""
    kind = _known.get(cls)
    if kind is None:
        if len(_known) >= _LONGEST_MEMORY:  # somebody makes classes as they go
            _known.clear()
        kind = _known[cls] = _find_kind(cls)
    return kind


def _find_kind(cls: type) -> Kind:
    for base, kind in _BY_BASE:
        if issubclass(cls, base):
            return kind
    if is_private_stream(cls):
        return Kind.STREAM
    if (cls.__module__, cls.__qualname__) == ("numpy", "ndarray"):  # by name: numpy need not be there
        return Kind.ARRAY
    if any((base.__module__, base.__qualname__) in _AT_WORK for base in cls.__mro__):
        return Kind.AT_WORK
    return Kind.LEFT_ALONE if _is_left_alone(cls) else Kind.OBJECT


def _is_left_alone(cls: type) -> bool:
    return (
        cls in PLAIN
        or not has_attributes(cls)
        or any(_package(base) in _FOREIGN for base in cls.__mro__)
        or issubclass(cls, dataloader._BaseDataLoaderIter)
        or (cls.__module__ in sys.stdlib_module_names and cls.__module__ not in _ONLY_ATTRIBUTES)
    )


def _package(cls: type) -> str:
    """The package that a class comes from, unless it is one that users derive from."""
    module = cls.__module__
    return "" if f"{module}.".startswith(_OF_THE_USER) else module.partition(".")[0]


def has_attributes(cls: type) -> bool:
    """Whether objects of the class have a ``__dict__`` or ``__slots__``."""
    return cls.__dictoffset__ != 0 or bool(slots_of(cls))


def slots_of(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    """The descriptors of ``__slots__``, of the class and of those that it derives from."""
    slots = _known_slots.get(cls)
    if slots is None:
        if len(_known_slots) >= _LONGEST_MEMORY:
            _known_slots.clear()
        slots = _known_slots[cls] = tuple(
            member
            for base in cls.__mro__
            if "__slots__" in vars(base)
            for member in vars(base).values()
            if isinstance(member, types.MemberDescriptorType)
        )
    return slots


def is_foreign_function(function: types.FunctionType) -> bool:
    """Whether a function is a library's own, whose closures are no business of a module."""
    return str(function.__module__).partition(".")[0] in _FOREIGN


def reached_by(function: object) -> Iterable[object]:
    """What a function, a method or a partial function holds on to, other than the cells of its closure."""
    if isinstance(function, types.FunctionType):
        yield from function.__defaults__ or ()
        yield from (function.__kwdefaults__ or {}).values()
    elif isinstance(function, functools.partial):
        yield from (function.func, *function.args, function.keywords)
    elif isinstance(function, types.MethodType | types.BuiltinMethodType):
        yield function.__self__
        if isinstance(function, types.MethodType):
            yield function.__func__
