"""In which ways a model may be run on the images of a batch, from the signature of its ``forward`` and the batch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, Signature
from typing import Any

from torch import Tensor, nn

from lightning_attngrad.probe.labels import exclusive_classes, is_whole
from lightning_attngrad.probe.resolve import TARGET_KEYS, entries_of
from lightning_attngrad.probe.samples import Path, follow, path_in_words

#: A function that runs a model: its model, images (R, C, H, W), and the batch of their samples with them in place.
Call = Callable[[nn.Module, Tensor, Any], Any]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
#: Annotations of what is no tensor: a batch, or a list of views.
_CONTAINER = re.compile(r"^(typing\.)?(dict|list|tuple|mapping|sequence|ordereddict|batch\w*)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Way:
    """A way in which a model is run.

    Attributes:
        words: in Python.
        call: does it.
        needs_batch: whether it has to know the samples that the images are of.
    """

    words: str
    call: Call
    needs_batch: bool = True


PLAIN_WAY = Way("model(images)", lambda model, images, _batch: model(images), needs_batch=False)


def way_of_function(function: Callable[..., Any]) -> Way:
    """The user's own way: a function of a model and images, or of a model, images and the batch of their samples.

    It is given the batch where it needs a third argument, or has one that is called ``batch``.
    """
    name = getattr(function, "__name__", type(function).__name__)
    third, by_name = _takes_batch(function)
    if third:
        return Way(f"{name}(model, images, batch)", function)
    if by_name:
        return Way(f"{name}(model, images, batch=batch)", lambda *given: function(*given[:2], batch=given[2]))
    return Way(f"{name}(model, images)", lambda model, images, _batch: function(model, images), needs_batch=False)


def _takes_batch(function: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether a function needs a third argument; and whether it takes one by the name of ``batch``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of C
        return False, False
    positional = [one for one in parameters if one.kind in _POSITIONAL]
    named = any(one.name == "batch" and one.kind is not Parameter.POSITIONAL_ONLY for one in parameters[2:])
    return len(positional) > 2 and positional[2].default is Parameter.empty, named


def signature_of(model: nn.Module) -> Signature | None:
    """That of ``model.forward``, without ``self``; None where it cannot be read."""
    inner = getattr(model, "_orig_mod", model)  # compiled
    try:
        return inspect.signature(inner.forward)
    except (TypeError, ValueError):
        return None


def ways_of(model: nn.Module, batch: Any, path: Path | None, target: Path | None, count: int) -> Iterator[Way]:
    """The ways that the signature of ``forward`` permits, plainest first; ``model(images)`` is not among them.

    Labels are never handed over by themselves: neither by a keyword, nor in their place.

    Args:
        model: to be run.
        batch: of the samples, as a validation step gets it.
        path: where the images are in it.
        target: where its labels are, if the user says so.
        count: how many samples it holds.
    """
    signature = signature_of(model)
    if path is None or signature is None:
        return
    for depth in range(len(path) - 1, -1, -1):  # the innermost container first: the views, before all that is there
        container, key = follow(batch, path[:depth]), path[depth]
        entries = dict(entries_of(container) or ())
        skip = {name for name in entries if _is_label(name, entries[name], count)}
        if target is not None and target[:depth] == path[:depth] and len(target) > depth:
            skip = {target[depth]} | {name for name in skip if isinstance(name, str)}
        skip -= {key}
        words = path_in_words(path[:depth], batch)
        yield from _by_name(signature, entries, path, depth, skip, batch)
        yield from _by_place(signature, entries, path, depth, skip, words)
        if _fits(signature, 1, ()):
            yield Way(f"model({words})", partial(_run_on, path[:depth]))


def takes_one_container(model: nn.Module) -> bool:
    """Whether the first argument of ``forward`` is annotated as a batch or a list, which ``model(images)`` is not."""
    signature = signature_of(model)
    first = next(iter(signature.parameters.values()), None) if signature is not None else None
    if first is None or first.annotation is Parameter.empty:
        return False
    annotation = first.annotation
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", None) or str(annotation)
    return bool(_CONTAINER.match(text.strip("'\" "))) and "|" not in re.sub(r"\[.*\]", "", text)


def signature_in_words(model: nn.Module) -> str:
    """Arguments of ``forward`` and their defaults, without annotations."""
    signature = signature_of(model)
    if signature is None:
        return "(…)"
    plain = [one.replace(annotation=Parameter.empty) for one in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=Signature.empty))


def _fits(signature: Signature, positional: int, names: Any) -> bool:
    try:
        signature.bind(*[None] * positional, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def _by_name(
    signature: Signature, entries: Mapping[str | int, Any], path: Path, depth: int, skip: set[str | int], batch: Any
) -> Iterator[Way]:
    """Arguments by the names of a mapping: the image alone, then all that ``forward`` knows of."""
    key, where = path[depth], path[:depth]
    if not isinstance(key, str):
        return
    takes_any = any(one.kind is Parameter.VAR_KEYWORD for one in signature.parameters.values())
    known = {name for name, one in signature.parameters.items() if one.kind is not Parameter.POSITIONAL_ONLY}
    named = [name for name in entries if isinstance(name, str) and name not in skip and (takes_any or name in known)]
    others = [name for name in named if name != key]
    words = ", ".join(f"{name}={path_in_words((*where, name), batch)}" for name in (named if key in named else others))
    is_image = depth == len(path) - 1
    if key in named:
        if is_image and _fits(signature, 0, [key]):
            yield Way(f"model({key}=images)", lambda model, images, _batch: model(**{key: images}), needs_batch=False)
        if (others or not is_image) and _fits(signature, 0, named):
            yield Way(f"model({words})", lambda model, _images, batch: model(**_entries_at(batch, where, named)))
    elif is_image and others and _fits(signature, 1, others):
        yield Way(
            f"model(images, {words})",
            lambda model, images, batch: model(images, **_entries_at(batch, where, others)),
        )


def _entries_at(batch: Any, path: Path, names: list[str]) -> dict[str, Any]:
    entries: dict[Any, Any] = dict(entries_of(follow(batch, path)) or ())
    return {name: entries[name] for name in names}


def _by_place(
    signature: Signature, entries: Mapping[str | int, Any], path: Path, depth: int, skip: set[str | int], words: str
) -> Iterator[Way]:
    """The first entries of a sequence in their order, up to its labels: no more of them than are needed."""
    key, where = path[depth], path[:depth]
    if not isinstance(key, int):
        return
    labels = [place for place in skip if isinstance(place, int)]
    labels += [place for place, name in enumerate(_places(signature)) if _is_label_name(name)]
    for count in range(max(2, key + 1), min([*labels, len(entries)]) + 1):
        if _fits(signature, count, ()):
            yield Way(f"model(*{words}[:{count}])", partial(_run_on_first, where, count))


def _places(signature: Signature) -> list[str]:
    """Names of the arguments that may be given by their place."""
    return [name for name, one in signature.parameters.items() if one.kind in _POSITIONAL]


def _run_on(where: Path, model: nn.Module, _images: Tensor, batch: Any) -> Any:
    return model(follow(batch, where))


def _run_on_first(where: Path, count: int, model: nn.Module, _images: Tensor, batch: Any) -> Any:
    return model(*[value for _, value in (entries_of(follow(batch, where)) or ())][:count])


def _is_label_name(name: str) -> bool:
    return name.lower() in TARGET_KEYS or "label" in name.lower() or "target" in name.lower()


def _is_label(name: str | int, value: Any, count: int) -> bool:
    """Whether an entry of a batch may be the labels: by its name, or in a sequence, which has none, by its values."""
    return _is_label_name(name) if isinstance(name, str) else looks_like_labels(value, count)


def looks_like_labels(value: Any, count: int) -> bool:
    """Whether these are whole numbers, or shares that add up to one, for each of so many samples."""
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or len(value) != count:
        return False
    if not value.is_floating_point():
        return not value.is_complex()
    if is_whole(value):
        return True
    return value.ndim > 1 and exclusive_classes(value) is not None
