"""Any value as plain ones, for checkpoints and hashes: what is equal is described alike, in another process too.

Functions are known by module, name and a hash of their code, tensors by a hash of their values; nothing by where it
lies in memory. Bytecode belongs to one minor version of Python: under another, functions have other hashes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Set
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

Plain = Any  # None, bool, int, float, str, list[Plain] or dict[str, Plain]


def plain(value: Any) -> Plain:
    """Describe ``value`` by plain values.

    Tensors, and arrays with ``tobytes``, become their type, shape and a hash of their values; functions, partial ones
    and bound methods what they run and what they hold; a module of torch its class and the shapes of its parameters,
    which change while it trains; other objects their class and those of their attributes that are plain themselves.

    Example:
        >>> plain({"against": (1, 2), "power": 0.5})
        {'against': [1, 2], 'power': 0.5}
        >>> plain(lambda output: output[:, 3])["name"]
        '<lambda>'
        >>> plain(lambda output: output[:, 3]) == plain(lambda output: output[:, 4])
        False
    """
    return _described(value, ())


def _described(value: Any, inside: tuple[int, ...]) -> Plain:
    if value is None:
        return None
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)  # numpy's and enumerations' are subclasses
    if isinstance(value, str):
        return str.__str__(value)
    if id(value) in inside:
        return {"type": _name_of(type(value)), "inside": "itself"}
    for kinds, describe in _DESCRIPTIONS:
        if isinstance(value, kinds):
            return describe(value, (*inside, id(value)))
    return _object(value, (*inside, id(value)))


def _bytes(value: bytes, inside: tuple[int, ...]) -> Plain:  # noqa: ARG001  (all descriptions take it)
    return {"bytes": _hash(value)}


def _tensor(value: Tensor, inside: tuple[int, ...]) -> Plain:  # noqa: ARG001
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"tensor": str(value.dtype), "shape": list(value.shape), "values": _hash(raw)}


def _mapping(value: Mapping[Any, Any], inside: tuple[int, ...]) -> Plain:
    return {str(key): _described(item, inside) for key, item in value.items()}


def _sequence(value: list[Any] | tuple[Any, ...], inside: tuple[int, ...]) -> Plain:
    return [_described(item, inside) for item in value]


def _set(value: Set[Any], inside: tuple[int, ...]) -> Plain:
    return sorted((_described(item, inside) for item in value), key=lambda item: json.dumps(item, sort_keys=True))


def _class(value: type, inside: tuple[int, ...]) -> Plain:  # noqa: ARG001
    return {"class": _name_of(value), "code": _code_of_class(value)}


def _partial(value: functools.partial[Any], inside: tuple[int, ...]) -> Plain:
    return {
        "partial": _described(value.func, inside),
        "arguments": _described(value.args, inside),
        "keywords": _described(value.keywords, inside),
    }


def _method(value: MethodType, inside: tuple[int, ...]) -> Plain:
    return {"method": _described(value.__func__, inside), "of": _described(value.__self__, inside)}


def _builtin(value: BuiltinFunctionType, inside: tuple[int, ...]) -> Plain:  # noqa: ARG001
    return {"module": str(value.__module__), "name": value.__qualname__}


def _function(value: FunctionType, inside: tuple[int, ...]) -> Plain:
    held = {
        "defaults": value.__defaults__,
        "keyword_defaults": value.__kwdefaults__,
        "closure": _closure(value) or None,
    }
    return {
        "module": str(value.__module__),
        "name": value.__qualname__,
        "code": _code(value.__code__),
        **{name: _described(item, inside) for name, item in held.items() if item is not None},
    }


def _closure(function: FunctionType) -> dict[str, Any]:
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True) if cell != _EMPTY_CELL}


def _object(value: Any, inside: tuple[int, ...]) -> Plain:
    found: dict[str, Plain] = {"type": _name_of(type(value)), "code": _code_of_class(type(value))}
    if isinstance(value, nn.Module):
        found["parameters"] = _hash(repr([(name, tuple(p.shape)) for name, p in value.named_parameters()]).encode())
    elif hasattr(value, "tobytes") and hasattr(value, "shape"):
        found.update({"shape": list(value.shape), "values": _hash(value.tobytes())})
    elif dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        found.update({name: _described(item, inside) for name, item in fields.items()})
    elif hasattr(value, "__dict__"):
        kept = {name: item for name, item in vars(value).items() if _is_plain(item)}
        found.update({name: _described(item, inside) for name, item in sorted(kept.items())})
    elif " at 0x" not in repr(value):  # operator.itemgetter, methodcaller
        found["value"] = repr(value)
    return found


def _is_plain(value: Any) -> bool:
    """Numbers, text, tensors, functions, and collections of them: not the parts of a program that an object knows."""
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(item) for item in value)
    kinds = (bool, int, float, str, bytes, Tensor, FunctionType, functools.partial, BuiltinFunctionType)
    return value is None or isinstance(value, kinds)


def _code_of_class(kind: type) -> str:
    """Hash of the code of a class's own functions; those of its bases are known by their names."""
    functions = [(name, inspect.unwrap(item)) for name, item in sorted(vars(kind).items()) if callable(item)]
    codes = [(name, _code(item.__code__)) for name, item in functions if isinstance(item, FunctionType)]
    return _hash(repr([[_name_of(base) for base in kind.__mro__], codes]).encode())


def _code(code: CodeType) -> str:
    """Hash of what a function does: its instructions, constants and names; not of where it was written."""
    constants = [_code(item) if isinstance(item, CodeType) else _constant(item) for item in code.co_consts]
    return _hash(repr((code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars)).encode())


def _constant(value: Any) -> str:
    # The order of a set of strings differs from process to process.
    return f"set{sorted(map(repr, value))}" if isinstance(value, frozenset) else repr(value)


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


_EMPTY_CELL = CellType()  # of a name that is not assigned yet

_DESCRIPTIONS: tuple[tuple[type | tuple[type, ...], Callable[[Any, tuple[int, ...]], Plain]], ...] = (
    (bytes, _bytes),
    (Tensor, _tensor),
    (Mapping, _mapping),
    ((list, tuple), _sequence),
    (Set, _set),
    (type, _class),
    (functools.partial, _partial),
    (MethodType, _method),
    (BuiltinFunctionType, _builtin),
    (FunctionType, _function),
)
