"""A model and images as they are handed over: what is wrong with them, and what to write instead."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

_EXPECTED = "expected a floating-point tensor (B, C, H, W), normalised for the model"
#: Channels of pictures: grey, colour, colour with transparency.
_CHANNELS = (1, 3, 4)
#: No image that was normalised is as bright, and no picture of bytes as dark.
_BRIGHT = 20
_WHITE = 255


def check_model(model: Any) -> None:
    """Refuse what is no module.

    Raises:
        TypeError: saying what to write.
    """
    if isinstance(model, nn.Module):
        return
    instead = ""
    if isinstance(model, type) and issubclass(model, nn.Module):
        instead = f". This is the class: write {model.__name__}(…), with its weights loaded"
    elif isinstance(model, str):
        instead = ". Write timm.create_model(name, pretrained=True), or load it as you do elsewhere"
    elif callable(model):
        instead = ". Give the module itself, and the function as forward="
    raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module{instead}")


def check_images(images: Any) -> None:
    """Refuse what is no batch of images as a model takes them.

    Raises:
        ValueError: saying what was given and what to write.

    Example:
        >>> check_images(torch.rand(3, 32, 32))
        Traceback (most recent call last):
        ValueError: images: got torch.float32 (3, 32, 32); expected a floating-point tensor (B, C, H, W), normalised \
for the model. Write images[None] for a single image
    """
    got, write = what_to_write(images)
    if isinstance(images, Tensor) and images.dim() == 4 and images.numel() and not write:
        return
    raise ValueError(f"images: got {got}; {_EXPECTED}{'. Write ' if write else ''}{write}")


def what_to_write(images: Any) -> tuple[str, str]:
    """What was given, in words, and what to write so that it is a batch of images.

    Returns:
        Both; the second is empty for a batch of images, and where nothing is known.

    Example:
        >>> what_to_write(torch.rand(2, 32, 32, 3))
        ('torch.float32 (2, 32, 32, 3)', 'images.permute(0, 3, 1, 2) where channels are last')
    """
    if not isinstance(images, Tensor):
        return _of_another_type(images)
    write = _of_another_shape(images)
    if not write and not images.is_floating_point():
        scale = " / 255" if images.dtype == torch.uint8 else ""
        write = f"images.float(){scale}, and normalise as in training"
    return f"{images.dtype} {tuple(images.shape)}", write


def _of_another_shape(images: Tensor) -> str:
    """What to write where the dimensions are not (B, C, H, W); empty where they are."""
    shape = tuple(images.shape)
    last = len(shape) > 2 and shape[-1] in _CHANNELS and shape[-3] not in _CHANNELS
    single = "images.permute(2, 0, 1)[None] for a single image whose channels are last" if last else "images[None]"
    if len(shape) == 3 and not last:
        grey = "" if shape[0] in _CHANNELS else " (C, H, W), or images[:, None] for grey ones (B, H, W)"
        single += f" for a single image{grey}"
    return {
        2: "images[None, None] for a single grey image, or images.view(B, C, H, W) for rows of pixels, with "
        "forward=lambda images: model(images.flatten(1)) where the model takes these",
        3: single,
        4: "images.permute(0, 3, 1, 2) where channels are last" if last else "",
        5: "strip.images(clips) of strip = attngrad.ClipStrip(frames) for clips, or images.flatten(0, 1) for views",
    }.get(len(shape), "")


def _of_another_type(images: Any) -> tuple[str, str]:
    """What was given, and what to write instead."""
    name = type(images).__name__
    if _is_from("numpy", images):
        return f"{name} of {images.dtype} {images.shape}", _of_array(images)
    if _is_from("PIL", images):
        return f"a picture ({name})", "transform(images)[None], with the transform of your validation images"
    if isinstance(images, str | bytes | PathLike):
        write = "transform(PIL.Image.open(images).convert('RGB'))[None], with the transform of your validation images"
    elif isinstance(images, Mapping):
        keys = [key for key, value in images.items() if isinstance(value, Tensor) and value.dim() == 4]
        name, write = f"{name} with {', '.join(map(repr, images))}", f"images[{keys[0]!r}]" if keys else ""
    elif isinstance(images, list | tuple):
        name, write = _of_list(images)
    else:
        write = "next(iter(images))[0] for the first batch of pairs" if hasattr(images, "__iter__") else ""
    return name, write


def _of_array(array: Any) -> str:
    """What to write for a numpy array: channels are last in most."""
    last = bool(array.shape) and array.shape[-1] in _CHANNELS
    turned = {3: ".permute(2, 0, 1)[None]", 4: ".permute(0, 3, 1, 2)"}.get(len(array.shape), "") if last else ""
    scaled = ".float() / 255, normalised as in training" if str(array.dtype) == "uint8" else ".float()"
    return f"torch.from_numpy(images){turned}{scaled}"


def _of_list(images: Sequence[Any]) -> tuple[str, str]:
    """What was given, and what to write: batches are often pairs."""
    first = images[0] if images else None
    name = f"{type(images).__name__} of {len(images)}{f', the first a {type(first).__name__}' if images else ''}"
    if isinstance(first, Tensor):
        return name, {3: "torch.stack(images)", 4: "images[0]"}.get(first.dim(), "")
    if _is_from("PIL", first) or _is_from("numpy", first) or isinstance(first, str | PathLike):
        return name, "torch.stack([transform(image) for image in images]), with the transform of your validation images"
    return name, ""


def _is_from(package: str, value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == package


def ask_about_bytes(images: Tensor, otherwise: str) -> None:
    """Ask about images in 0…255, which most models take scaled: there the answers would be about other pictures.

    Args:
        images: (B, C, H, W).
        otherwise: what to write where the model takes them as they are.

    Warns:
        UserWarning: once a place, as Python's own filter has it.
    """
    lowest, highest = torch.stack(images.detach().float().aminmax()).tolist()  # the device is waited for once
    if lowest >= 0 and _BRIGHT < highest <= _WHITE:
        warnings.warn(
            f"images: their values go from {lowest:.4g} to {highest:.4g}, as those of pictures that nobody has scaled. "
            "Was the model trained on such values? If not, write images / 255, and normalise as in training. If so, "
            f"{otherwise}",
            stacklevel=3,
        )


@contextlib.contextmanager
def mismatch_in_words(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Say what to write where a model fails on images of another device, type or number of channels than its own.

    Asked after an error only: a model, or a ``forward=``, may move its images by itself.

    Raises:
        ValueError: from torch's error, where that is why.
    """
    try:
        yield
    except RuntimeError as error:
        said = _mismatch(model, images, str(error))
        if not said:
            raise
        raise ValueError(f"images: {said}") from error


def _mismatch(model: nn.Module, images: Tensor, error: str) -> str:
    """What the images are, and what the model has; empty where they agree."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    devices, types = {weight.device for weight in weights}, {weight.dtype for weight in weights}
    name = type(model).__name__
    of_kind = "type" in error or "device" in error
    if of_kind and devices and images.device not in devices:
        device = next(iter(devices))
        return f"they are on {images.device}, and {name} is on {device}; write images.to({str(device)!r})"
    if of_kind and types and images.dtype not in types and not torch.is_autocast_enabled(images.device.type):
        dtype = next(iter(types))
        mixed = (
            "" if torch.float64 in (dtype, images.dtype) else f", or run under torch.autocast({images.device.type!r})"
        )
        return f"they are {images.dtype}, and the weights of {name} are {dtype}; write images.to({dtype}){mixed}"
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = images.shape[1]
    if first is not None and first.in_channels != channels and "channels" in error:
        fits = {1: "images.expand(-1, 3, -1, -1)", 4: "images[:, :3]"}.get(channels) if first.in_channels == 3 else None
        write = f"; write {fits}" if fits else ""
        return f"they have {channels} channel{'s' * (channels > 1)}, and {name} takes {first.in_channels}{write}"
    return ""
