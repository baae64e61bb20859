"""Images, targets and masks as they come from batches, and as one set."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_attngrad.probe.resolve import ProbeInputError


class Part(NamedTuple):
    """Some images (B, C, H, W), their targets (B,) and their masks (B, H, W)."""

    images: Tensor
    targets: Tensor | None
    masks: Tensor | None = None


def joined(parts: list[Part], count: int) -> Part:
    """All parts as one, cut to ``count`` images; targets and masks only if every part has them.

    Raises:
        ProbeInputError: for images of several sizes.
    """
    sizes = {tuple(part.images.shape[1:]) for part in parts}
    if len(sizes) > 1:
        raise ProbeInputError(
            f"validation data: the images have different sizes (C, H, W): {sorted(sizes)}; resize them to "
            "one size in the validation transform or in a batch_adapter, or set num_images=1"
        )
    images = torch.cat([part.images for part in parts])[:count]
    targets = [part.targets for part in parts if part.targets is not None]
    masks = [part.masks for part in parts if part.masks is not None]
    return Part(
        images,
        torch.cat(targets)[:count] if len(targets) == len(parts) else None,
        torch.cat(masks)[:count] if len(masks) == len(parts) else None,
    )
