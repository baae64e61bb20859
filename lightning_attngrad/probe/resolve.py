"""From the user's module and batch to the model, the images and the targets."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_attngrad.probe.attention_parts import attention_parts
from lightning_attngrad.probe.labels import LabelsError, read_labels

Key: TypeAlias = str | int | Sequence[str | int]
BatchAdapter: TypeAlias = Callable[[Any], tuple[Tensor, Tensor | None]]

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "imgs", "x", "input", "inputs")
TARGET_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes")

#: Pixels of a side, and channels, by which (B, H, W, C) is told from (B, C, H, W).
_LEAST_SIDE, _MOST_COLOURS = 8, 4
_DEEPEST_PATH = 4  # to images that an error message points to
_LONGEST_DESCRIPTION = 12  # entries of a batch that an error message lists


class ProbeInputError(ValueError):
    """The data hold no images that a probe could use; the message says what they hold."""


class ModelPathError(ValueError):
    """The attribute path leads to no module; the message lists what is there."""


def resolve_model(pl_module: nn.Module, path: str | None, *, needs_forward: bool = True) -> nn.Module:
    """The module to look into.

    Args:
        pl_module: the LightningModule.
        path: None for the module itself, or a dotted attribute path such as ``"net.backbone"``.
        needs_forward: whether it is called with images; not where the user gives another way to run it.

    Raises:
        ModelPathError: if the path leads nowhere, or to something that is not a module; or if there is none, and the
            LightningModule has no ``forward`` of its own.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> resolve_model(net, "1")
        ReLU()
    """
    if path is None:
        if needs_forward and not _has_a_forward(pl_module):
            raise ModelPathError(
                f"model: got None, but {type(pl_module).__name__} defines no forward(); expected the path of the part "
                f"that maps images to logits, one of {list(dict(pl_module.named_children()))} or a part of theirs; or "
                "a function (model, images) -> output as forward" + _parts_in_words(pl_module)
            )
        return pl_module
    here: Any = pl_module
    walked = "the LightningModule"
    for part in path.split("."):
        children = list(dict(here.named_children())) if isinstance(here, nn.Module) else []
        try:
            here = getattr(here, part)
        except AttributeError:
            raise ModelPathError(
                f"model: got {path!r}, but {walked} has no attribute {part!r}; expected one of {children}, "
                "or None for the LightningModule itself"
            ) from None
        walked = f"{walked}.{part}" if walked != "the LightningModule" else part
    if not isinstance(here, nn.Module):
        raise ModelPathError(
            f"model: got {path!r}, which is a {type(here).__name__}; expected the path of an nn.Module"
        )
    return here


def _parts_in_words(pl_module: nn.Module) -> str:
    parts = attention_parts(pl_module)
    named = ", ".join(f"ProbeImages(model={part.path!r}) for {part.kind}" for part in parts)
    return f". Parts that contain attention: {named}" if parts else ""


def _has_a_forward(pl_module: nn.Module) -> bool:
    """Whether a LightningModule has one of its own; by name, as ``pytorch_lightning`` has another base class."""
    forward = getattr(type(pl_module), "forward", None)
    is_of_lightning = getattr(forward, "__module__", "").split(".")[0] in ("lightning", "pytorch_lightning")
    return not (is_of_lightning and getattr(forward, "__qualname__", "") == "LightningModule.forward")


def load_batch_adapter(batch_adapter: BatchAdapter | str | None) -> BatchAdapter | None:
    """The adapter itself, imported when it is given as ``"package.module.function"``.

    Raises:
        ValueError: if it is neither callable nor the import path of a callable.
    """
    if batch_adapter is None or callable(batch_adapter):
        return batch_adapter
    expected = "expected a callable batch -> (images, targets or None), or its import path 'package.module.function'"
    return import_callable("batch_adapter", batch_adapter, expected)


def import_callable(argument: str, path: str, expected: str) -> Callable[[Any], Any]:
    """What an import path such as ``"package.module.function"`` or ``"package.module:function"`` leads to.

    Args:
        argument: the user's argument, for messages.
        path: where the callable is.
        expected: for messages.

    Raises:
        ValueError: if it is no import path of a callable.
    """
    if not isinstance(path, str) or "." not in path.replace(":", "."):
        raise ValueError(f"{argument}: got {path!r}; {expected}")
    module_name, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{argument}: got {path!r}, which fails with {error!r}; {expected}") from error
    if callable(found):
        return found  # type: ignore[no-any-return]
    raise ValueError(f"{argument}: got {path!r}, a {type(found).__name__}; {expected}")


def split_batch(
    batch: Any,
    *,
    image_key: Key | None = None,
    target_key: Key | None = None,
    batch_adapter: BatchAdapter | str | None = None,
    require_float: bool = True,
    class_names: Callable[[], Sequence[str] | None] = lambda: None,
    say: Callable[[str], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Find images and labels in a batch.

    Without arguments: a tensor is the images; in a tuple or list the first image tensor is, or the first of a list of
    views, and what follows it the target; in a mapping (also Hugging Face ones), dataclass, named tuple or other
    object the well-known names are tried (``image``, ``pixel_values``, …; ``label``, ``target``, …), then the first
    of its list of views, if it has one.

    Args:
        batch: as the loader or a validation hook gives it.
        image_key: where the images are: a name, an index, a dotted path (``"inputs.image"``) or a sequence of
            names and indices (``["views", 0]``).
        target_key: where the targets are, in the same way.
        batch_adapter: a function from the batch to ``(images, targets or None)``, or its import path; it
            replaces both keys.
        require_float: whether images must be floating; False also takes uint8, for batches that are converted
            later.
        class_names: asked where labels are words.
        say: told once, in one line, of labels that cannot be read.

    Returns:
        Images (B, C, H, W), and labels in one of the forms of `probe.labels`, or None where the batch holds none.

    Raises:
        ProbeInputError: if there are no images; it lists what the batch contains.

    Example:
        >>> batch = {"pixel_values": torch.rand(2, 3, 8, 8), "labels": torch.tensor([1, 0])}
        >>> images, targets = split_batch(batch)
        >>> images.shape, targets
        (torch.Size([2, 3, 8, 8]), tensor([1, 0]))
    """
    adapter = load_batch_adapter(batch_adapter)
    if adapter is not None:
        adapted = adapter(batch)
        if not isinstance(adapted, tuple | list) or len(adapted) != 2:
            raise ProbeInputError(
                f"batch_adapter: it returned {describe(adapted)}; expected a pair (images, targets or None)"
            )
        images, found_target = adapted
        images = _checked_images(images, batch, "batch_adapter", require_float)
        return images, _first_labels(images, [found_target], class_names, say)
    if image_key is not None:
        images = _checked_images(follow_key(batch, image_key, "image_key"), batch, "image_key", require_float)
        neighbour = None
    else:
        images, neighbour = _search_images(batch, require_float)
    if target_key is not None:
        return images, _first_labels(images, [follow_key(batch, target_key, "target_key")], class_names, say)
    candidates = [neighbour, *_named(batch, TARGET_KEYS)]
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        if image_key is not None:
            candidates += batch  # images were pointed to: the first entry that can be labels is that
        elif isinstance(neighbour, Tensor) and neighbour.is_floating_point():
            candidates = [*_class_numbers_behind(batch, neighbour), *candidates]  # numbers beside images, then classes
    return images, _first_labels(images, candidates, class_names, say)


def _class_numbers_behind(batch: Sequence[Any], numbers: Tensor) -> list[Tensor]:
    """Whole numbers, one an image, that stand behind numbers of another kind: those are then no labels."""
    place = next(index for index, value in enumerate(batch) if value is numbers)
    is_class = [
        isinstance(value, Tensor) and value.shape == numbers.shape[:1] and value.dtype in (torch.int64, torch.int32)
        for value in batch
    ]
    return [value for index, value in enumerate(batch) if index > place and is_class[index]]


def _first_labels(
    images: Tensor,
    candidates: Iterable[Any],
    class_names: Callable[[], Sequence[str] | None],
    say: Callable[[str], None] | None,
) -> Tensor | None:
    looking = _Labels(images, class_names)
    found = next((labels for one in candidates if (labels := looking.at(one)) is not None), None)
    if found is None and looking.why and say is not None:
        say(looking.why)
    return found


def describe(batch: Any, depth: int = 2) -> str:
    """What a batch contains, in one line: keys, types, shapes."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}"
    entries = entries_of(batch)
    if entries is None or depth == 0:
        return type(batch).__name__
    shown = [
        f"{key!r}: {describe(value, depth - 1)}" if isinstance(key, str) else describe(value, depth - 1)
        for key, value in entries[:_LONGEST_DESCRIPTION]
    ]
    if len(entries) > _LONGEST_DESCRIPTION:
        shown.append(f"… {len(entries) - _LONGEST_DESCRIPTION} more")
    return f"{type(batch).__name__}({', '.join(shown)})"


def entries_of(batch: Any) -> list[tuple[str | int, Any]] | None:
    """(key, value) pairs of a container, None for anything else."""
    if isinstance(batch, Mapping):
        return list(batch.items())
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return list(zip(batch._fields, batch, strict=True))
    if isinstance(batch, tuple | list):
        return list(enumerate(batch))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [(field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch)]
    attributes = getattr(batch, "__dict__", None)
    return list(attributes.items()) if attributes and not isinstance(batch, Tensor | nn.Module) else None


def _named(batch: Any, names: Iterable[str]) -> list[Any]:
    """Values under the well-known names, in the order of the names."""
    entries = None if isinstance(batch, Tensor) else entries_of(batch)
    by_name = {key: value for key, value in entries or [] if isinstance(key, str)}
    return [by_name[name] for name in names if name in by_name]


def _is_image_batch(value: Any) -> bool:
    """Four axes, floating or uint8; the dtype is judged later, so that uint8 gets an error of its own."""
    return isinstance(value, Tensor) and value.ndim == 4 and (value.is_floating_point() or value.dtype == torch.uint8)


def _is_volume(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 5


def _are_views(value: Any) -> bool:
    """Several images of each sample: a list of batches of them, of as many samples and channels each."""
    return (
        isinstance(value, tuple | list)
        and bool(value)
        and all(map(_is_image_batch, value))
        and len({view.shape[:2] for view in value}) == 1
    )


def _search_images(batch: Any, require_float: bool) -> tuple[Tensor, Any]:
    """The images of a batch of a known form, and what stands behind them in a sequence."""
    if isinstance(batch, Tensor):
        return _checked_images(batch, batch, "image_key", require_float), None
    candidates = _named(batch, IMAGE_KEYS)
    for value in candidates:
        if _is_image_batch(value):
            return _checked_images(value, batch, "image_key", require_float), None
    if isinstance(batch, tuple | list):
        for of_kind in (_is_image_batch, _are_views):
            for index, value in enumerate(batch):
                if of_kind(value):
                    neighbour = batch[index + 1] if index + 1 < len(batch) else None
                    images = value if isinstance(value, Tensor) else value[0]
                    return _checked_images(images, batch, "image_key", require_float), neighbour
    elif len(views := [value for _, value in entries_of(batch) or () if _are_views(value)]) == 1:
        return _checked_images(views[0][0], batch, "image_key", require_float), None
    raise _no_images(batch)


def _no_images(batch: Any) -> ProbeInputError:
    volume = next((value for _, value in entries_of(batch) or () if _is_volume(value)), None)
    if volume is not None:
        return _of_a_volume(volume, "batch")
    values = [value for _, value in entries_of(batch) or ()]
    if any(_is_list_of_images(value) for value in values):
        return _in_another_layout("a list, one by one", "torch.stack(list({}))", "list(images)")
    # square ones alone: (B, T, D) may be embedded words
    if any(isinstance(one, Tensor) and one.ndim == 3 and one.shape[1] == one.shape[2] >= _LEAST_SIDE for one in values):
        return _in_another_layout("without an axis of channels", "{}.unsqueeze(1)", "images.squeeze(1)")
    return ProbeInputError(
        f"batch: no images (B, C, H, W) found in {describe(batch)}; set image_key to the name, index or path of the "
        f"images, such as {_deeper_path(batch) or [0, 0]}, or batch_adapter to a function batch -> (images, targets)"
    )


def _is_list_of_images(value: Any) -> bool:
    """Of each image of a batch one, of one size or of several: tensors (C, H, W), or pictures."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all((isinstance(one, Tensor) and one.ndim == 3) or hasattr(one, "getbands") for one in value)
    )


def _in_another_layout(what: str, to_pictures: str, back: str) -> ProbeInputError:
    return ProbeInputError(
        f"batch: the images are {what}, and expected are pictures (B, C, H, W) of one size. A batch_adapter makes "
        "those of them, and a forward gives the model back what it takes: ProbeImages(batch_adapter=lambda batch: "
        f"({to_pictures.format('batch[0]')}, batch[1]), forward=lambda model, images: model({back})), where batch[0] "
        "are the images and batch[1] the labels"
    )


def _of_a_volume(volume: Tensor, argument: str) -> ProbeInputError:
    return ProbeInputError(
        f"{argument}: the images are {describe(volume)}, a volume or a clip, and maps are drawn on pictures "
        "(B, C, H, W). A batch_adapter can make pictures of it, with its slices or frames side by side "
        "(attngrad.ClipStrip), and a forward can give the model back what it takes"
    )


def _deeper_path(batch: Any, depth: int = _DEEPEST_PATH) -> list[str | int] | None:
    """Where the first tensor that can be images is, further inside than is looked at unasked."""
    for key, value in (entries_of(batch) or []) if depth else []:
        if _is_image_batch(value):
            return [key]
        if not isinstance(value, Tensor) and (path := _deeper_path(value, depth - 1)) is not None:
            return [key, *path]
    return None


def _checked_images(images: Any, batch: Any, argument: str, require_float: bool) -> Tensor:
    if isinstance(images, Tensor) and images.ndim == 4:
        if argument != "batch_adapter" and images.shape[3] <= _MOST_COLOURS and images.shape[1] >= _LEAST_SIDE:
            to_pictures = "{}.permute(0, 3, 1, 2)" + ("" if images.is_floating_point() else ".float()")
            raise _in_another_layout(
                f"{describe(images)}, with their channels last", to_pictures, "images.permute(0, 2, 3, 1)"
            )
        if images.is_floating_point() or (images.dtype == torch.uint8 and not require_float):
            return images
        if images.dtype == torch.uint8:
            raise ProbeInputError(
                f"batch: the images are uint8 {list(images.shape)}, which no model differentiates; convert "
                "them to float in the validation transform, in on_after_batch_transfer, or in a batch_adapter"
            )
    if _is_volume(images):
        raise _of_a_volume(images, argument)
    raise ProbeInputError(
        f"{argument}: the images are {describe(images)}; expected a floating tensor (B, C, H, W) with C of "
        f"any size; the batch contains {describe(batch)}"
    )


@dataclasses.dataclass
class _Labels:
    """Looks for labels in one place after the other, and keeps what was there and could not be read."""

    images: Tensor
    names: Callable[[], Sequence[str] | None]
    why: str = ""

    def at(self, value: Any) -> Tensor | None:
        """Labels, if ``value`` is such; else the reason is kept, unless there is nothing, or more images."""
        if value is None or value is self.images or _is_image_batch(value):
            return None
        words = isinstance(value, list | tuple) and bool(value) and isinstance(value[0], str)
        try:
            return read_labels(value, len(self.images), self.names() if words else None)
        except LabelsError as error:
            inside = isinstance(value, Mapping) or (isinstance(value, list | tuple) and not words)
            where = "; if they are further inside, give ProbeImages(target_key=…)" if inside else ""
            said = f"labels {describe(value)} not understood: maps are of predicted classes ({error}{where})"
            self.why = self.why or said
            return None


def follow_key(batch: Any, key: Key, argument: str) -> Any:
    """What ``key`` leads to, one container after the other."""
    parts: list[str | int]
    if isinstance(key, str):
        # A key that itself holds a dot is taken as it stands, if it is there.
        whole = isinstance(batch, Mapping) and key in batch
        parts = [key] if whole else list(key.split("."))
    else:
        parts = [key] if isinstance(key, int) else list(key)
    try:
        return reduce(_step, parts, batch)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise ProbeInputError(
            f"{argument}: got {key!r}, which leads nowhere ({error!r}); the batch contains {describe(batch)}"
        ) from None


def _step(container: Any, part: str | int) -> Any:
    if isinstance(container, Mapping):
        # "0" in a dotted path may mean the key 0
        return container[part] if part in container or not str(part).isdigit() else container[int(part)]
    if isinstance(container, tuple | list) and str(part).lstrip("-").isdigit():
        return container[int(part)]
    return getattr(container, str(part))
