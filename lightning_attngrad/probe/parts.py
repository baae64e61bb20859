"""Images, targets and masks as they come from batches, and as one set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_attngrad.probe.labels import join_labels
from lightning_attngrad.probe.masks import read_masks
from lightning_attngrad.probe.resolve import ProbeInputError, split_batch
from lightning_attngrad.probe.settings import ProbeImages


class Part(NamedTuple):
    """Some images (B, C, H, W), their labels in a form of `probe.labels`, and their masks (B, H, W)."""

    images: Tensor
    targets: Tensor | None
    masks: Tensor | None = None

    def clone(self) -> Part:
        """Each tensor anew, in memory of its own."""
        return Part(
            self.images.clone(),
            None if self.targets is None else self.targets.clone(),
            None if self.masks is None else self.masks.clone(),
        )


def part_of(
    batch: Any,
    settings: ProbeImages,
    *,
    as_collated: bool = False,
    with_masks: bool = False,
    class_names: Callable[[], Sequence[str] | None] = lambda: None,
    say: Callable[[str], None] | None = None,
) -> Part:
    """What a batch holds, where the settings say.

    Args:
        batch: of the run's loaders.
        settings: where in it to look.
        as_collated: whether images may still be uint8, as before the transfer hooks.
        with_masks: whether to read masks, if the settings name any.
        class_names: asked where labels are words.
        say: told of labels that cannot be read.

    Raises:
        ProbeInputError: if there are no images, or masks that do not fit them.
    """
    images, targets = split_batch(
        batch,
        image_key=settings.image_key,
        target_key=settings.target_key,
        batch_adapter=settings.batch_adapter,
        require_float=not as_collated,
        class_names=class_names,
        say=say,
    )
    reads_masks = with_masks and settings.mask is not None
    return Part(images, targets, read_masks(batch, settings.mask, images) if reads_masks else None)  # type: ignore[arg-type]


def joined(parts: list[Part], count: int, of: str = "validation data") -> Part:
    """All parts as one, cut to ``count`` images; targets and masks only if every part has them.

    Args:
        parts: at least one.
        count: how many images at most.
        of: which data these are, for the message.

    Raises:
        ProbeInputError: for images of several sizes.
    """
    sizes = {tuple(part.images.shape[1:]) for part in parts}
    if len(sizes) > 1:
        raise ProbeInputError(
            f"{of}: the images have different sizes (C, H, W): {sorted(sizes)}; resize them to "
            "one size in the transform or in a batch_adapter, or set num_images=1"
        )
    images = torch.cat([part.images for part in parts])[:count]
    targets = [part.targets for part in parts if part.targets is not None]
    masks = [part.masks for part in parts if part.masks is not None]
    labels = join_labels(targets) if len(targets) == len(parts) else None
    return Part(
        images,
        labels[:count] if labels is not None else None,
        torch.cat(masks)[:count] if len(masks) == len(parts) else None,
    )


def hash_of(part: Part) -> str:
    """SHA-256 of images and targets, and of masks if there are any."""
    images, targets, masks = part
    digest = hashlib.sha256()
    for tensor in (images, targets, *([] if masks is None else [masks])):
        if tensor is None:
            digest.update(b"none")
            continue
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
