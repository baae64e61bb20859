"""Where the object is in each image of a batch, where the user can say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_attngrad.probe.resolve import Key, ProbeInputError, describe, follow_key, import_callable

MaskSource: TypeAlias = Key | Callable[[Any], Tensor]

_EXPECTED = (
    "expected a name, index or path in the batch, such as 'mask', 2 or 'target.mask'; or a callable batch -> masks, or "
    "its import path, which has a colon: 'package.module:function'"
)


def load_mask_source(mask: MaskSource | None) -> MaskSource | None:
    """The source itself, imported when it is given as ``"package.module:function"``.

    A name without a colon is a key of the batch: with dots alone, an import path could not be told from one.

    Raises:
        ValueError: if it is neither a key nor a callable, or cannot be imported.
    """
    if mask is None or callable(mask):
        return mask
    if isinstance(mask, bool) or not isinstance(mask, str | int | Sequence) or mask in ("", ()):
        raise ValueError(f"mask: got {mask!r:.60}; {_EXPECTED}")
    if isinstance(mask, str) and ":" in mask:
        return import_callable("mask", mask, _EXPECTED)
    return mask


def read_masks(batch: Any, mask: MaskSource, images: Tensor) -> Tensor:
    """The mask of each image of a batch: 1 on the object, where the model should look.

    Args:
        batch: as the validation step gets it.
        mask: as :func:`load_mask_source` returns it.
        images: (B, C, H, W) of the same batch.

    Returns:
        (B, H, W) float32 in [0, 1], on the CPU, never an inference tensor of the batch's own memory.

    Raises:
        ProbeInputError: if there are none, of another number or size than the images, or with other values.

    Example:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> read_masks((images, images[:, :1] > 0.5), 1, images).shape
        torch.Size([2, 8, 8])
    """
    masks = find_masks(batch, mask, images)
    found = masks.detach().to("cpu", torch.float32, copy=True)
    whole = masks.is_floating_point() or bool(((found == 0) | (found == 1)).all())
    if not whole or not bool(((found >= 0) & (found <= 1)).all()):
        raise ProbeInputError(
            f"mask: got values of {describe(masks)} from {float(found.min()):g} to {float(found.max()):g}; expected "
            "bool, 0 and 1, or floating numbers in [0, 1]; divide an alpha channel of bytes by 255, and compare "
            "labels with those of the object, as in lambda batch: batch['segmentation'] == 1"
        )
    return found


def find_masks(batch: Any, mask: MaskSource, images: Tensor) -> Tensor:
    """The same as the batch has them, (B, H, W) on the device where they are, whatever their values.

    Raises:
        ProbeInputError: if there are none, or of another number or size than the images.
    """
    masks = mask(batch) if callable(mask) else _follow(batch, mask)
    if isinstance(masks, Tensor) and masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if not isinstance(masks, Tensor) or masks.ndim != 3 or masks.is_complex():
        raise ProbeInputError(
            f"mask: got {describe(masks)}; expected a tensor (B, H, W) or (B, 1, H, W), bool or in [0, 1]; the batch "
            f"contains {describe(batch)}"
        )
    size, expected = tuple(masks.shape[1:]), tuple(images.shape[2:])
    if size != expected:
        raise ProbeInputError(
            f"mask: got masks of {size[0]} × {size[1]} pixels; expected {expected[0]} × {expected[1]}, as the images "
            "that the model takes; resize and crop them as the images, as torchvision.transforms.v2 does with "
            "tv_tensors.Mask, or in a function given as mask="
        )
    if len(masks) != len(images):
        raise ProbeInputError(f"mask: got {len(masks)} masks; expected {len(images)}, one an image")
    return masks


def _follow(batch: Any, key: Key) -> Any:
    try:
        return follow_key(batch, key, "mask")
    except ProbeInputError as error:
        if isinstance(key, str) and "." in key:
            raise ProbeInputError(f"{error}; a function's import path is written 'package.module:function'") from None
        raise
