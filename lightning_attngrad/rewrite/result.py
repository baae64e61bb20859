"""What :func:`lightning_attngrad.rewrite` returns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_attngrad.explain import UNSAID, Multilabel, Task


@dataclass(frozen=True, eq=False)
class Health:
    """Whether a search can be believed, for each of M rows.

    A model that hides its gradients looks robust to any search that follows them; these flags tell the two apart.

    Attributes:
        zero_gradient: (M,) share of the steps at which no gradient, or none that is finite, reached the pixels.
        unconverged: (M,) bool, the search was still getting much better in the last quarter of its steps.
        huge_radius: (M,) bool, the class could be rewritten at all, however large the change. All True where
            the radius was fixed, since then nobody asked.
        beats_one_step: (M,) bool, a single step along the first gradient does not do better than the whole search.
    """

    zero_gradient: Tensor
    unconverged: Tensor
    huge_radius: Tensor
    beats_one_step: Tensor

    @property
    def good(self) -> Tensor:
        """(M,) bool: nothing speaks against this row."""
        return (self.zero_gradient == 0) & ~self.unconverged & self.huge_radius & self.beats_one_step


@dataclass(frozen=True, eq=False)
class Rewrite:
    """Images that the model takes for another class, and how far they had to be changed.

    M rows, one for each pair of image and target class; C channels; K classes; T steps.

    Attributes:
        images: (M, C, H, W) rewritten, as the model takes them. Where it failed: the attempt that came closest.
        pixels: the same in [0, 1], float32.
        original: (M, C, H, W) the images before, in [0, 1], float32.
        index: (M,) int64, which of the images that were given a row is of.
        target: (M,) int64, the class to be rewritten to; in multi-label classification label c switched on is c, and
            switched off K + c.
        success: (M,) bool, the model predicts ``target`` for ``images``, and did so in a forward pass on just these.
        distance: (M,) length of ``pixels − original``; ∞ where it failed. ``linf``: the largest change of a
            pixel value. ``l2``: the root of the sum of squares over all of them. ``l0_patches``: the share of the
            patches from the top of their ranking down to the last that changed. An upper bound of the smallest such
            change, never a certificate.
        logits_before: (M, K) of the original, float32.
        logits_after: (M, K) of ``images``, float32.
        margin: (T + 1, M) logit of the target minus the largest other, at each iterate of the search.
        norm: ``linf``, ``l2`` or ``l0_patches``.
        health: whether the search can be believed.
        task: what the output means.
    """

    images: Tensor
    pixels: Tensor
    original: Tensor
    index: Tensor
    target: Tensor
    success: Tensor
    distance: Tensor
    logits_before: Tensor
    logits_after: Tensor
    margin: Tensor
    norm: str
    health: Health
    task: Task = UNSAID

    @property
    def also_changed(self) -> Tensor:
        """(M, K) bool: which labels besides the target changed their state; classes that exclude each other, none."""
        changed = (self.logits_before > 0) != (self.logits_after > 0)
        if not isinstance(self.task, Multilabel):
            return torch.zeros_like(changed)
        label = self.target % changed.shape[1]
        return changed.scatter(1, label[:, None], value=False)


def joined(parts: list[Rewrite]) -> Rewrite:
    """Rewrites of parts of the rows as one."""
    if len(parts) == 1:
        return parts[0]

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=1 if name == "margin" else 0)

    health = Health(*(torch.cat([getattr(part.health, field.name) for part in parts]) for field in fields(Health)))
    tensors = {field.name: cat(field.name) for field in fields(Rewrite) if field.name not in ("norm", "health", "task")}
    return Rewrite(**tensors, norm=parts[0].norm, task=parts[0].task, health=health)
