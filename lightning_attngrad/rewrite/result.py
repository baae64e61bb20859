"""What :func:`lightning_attngrad.rewrite` returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from lightning_attngrad.explain import UNSAID, Multilabel, Task
from lightning_attngrad.explain.displayed import channel_words
from lightning_attngrad.explain.shown import ClassNames, Shown, listed, name_of


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        return f"Health({int(self.good.sum())} of {len(self.good)} rows good)"

    def complaints(self, row: int) -> list[str]:
        """What speaks against a row, in words."""
        said = {
            "unconverged": bool(self.unconverged[row]),
            "no gradient": float(self.zero_gradient[row]) > 0,
            "one step does better": not bool(self.beats_one_step[row]),
        }
        return [complaint for complaint, applies in said.items() if applies]


@dataclass(frozen=True, eq=False, repr=False)
class Rewrite(Shown):
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
            pixel value. ``l2``: the root of the sum of squares over all of them. ``l0``: the number of
            pixels that differ in any channel. ``l0_patches``: the share of the patches from the top of their ranking
            down to the last that changed. An upper bound of the smallest such change, never a certificate.
        logits_before: (M, K) of the original, float32.
        logits_after: (M, K) of ``images``, float32.
        margin: (T + 1, M) logit of the target minus the largest other, at each iterate of the search.
        norm: ``linf``, ``l2``, ``l0`` or ``l0_patches``.
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

    def __repr__(self) -> str:
        from lightning_attngrad.reporting.distances import distance_unit  # noqa: PLC0415

        done = int(self.success.sum())
        median = float(self.distance.quantile(0.5, interpolation="lower")) if done else float("inf")
        length = distance_unit(cast("Any", self.norm)).in_words(median) if median < float("inf") else f"∞ ({self.norm})"
        return f"Rewrite({done} of {len(self.success)} rewritten, median {length}, {self.health!r})"

    def plot(self, *, class_names: ClassNames | None = None, style: Any = None) -> Any:
        """Draw each image, what was changed, and the rewritten image.

        Args:
            class_names: in their order, or by number.
            style: a :class:`lightning_attngrad.FigureStyle`.

        Returns:
            A ``matplotlib.figure.Figure``; of more than 16 rows the first 16, and it says so.

        Example:
            >>> import timm, lightning_attngrad as attngrad
            >>> model, images = timm.create_model("test_vit", num_classes=5), torch.rand(1, 3, 160, 160)
            >>> result = attngrad.rewrite(model, images, target=2, steps=4, mean=0.0, std=1.0)
            >>> figure = result.plot(class_names=["cat", "dog", "owl", "hen", "fox"])
        """
        from lightning_attngrad.reporting.rewriting import RewriteCaption, rewrite_panels  # noqa: PLC0415
        from lightning_attngrad.reporting.style import PLAIN  # noqa: PLC0415

        count = self.original.shape[1]
        channels = slice(0, 3 if count >= 3 else 1)
        unseen = count - (3 if count >= 3 else 1)
        words = [*channel_words(count), f"changes in {unseen} others not shown"] if unseen else channel_words(count)
        return rewrite_panels(
            self.original[:, channels],
            self.pixels[:, channels],
            None,
            None,
            [RewriteCaption(**self._said_of(row, class_names)) for row in range(len(self.success))],
            title="Smallest change found",
            shown_as="; ".join(words),
            style=PLAIN if style is None else style,
        )

    def _said_of(self, row: int, class_names: ClassNames | None) -> dict[str, Any]:
        """What stands beside a row."""
        from lightning_attngrad.reporting.distances import distance_unit  # noqa: PLC0415

        scores = [self.task.of_logits(logits[row].cpu()[None])[0] for logits in (self.logits_before, self.logits_after)]
        names = self.task.in_words(listed(class_names), len(scores[0]))
        (before, p_before), (after, p_after) = (self._predicted(score, names) for score in scores)
        success, error = bool(self.success[row]), float((self.pixels[row] - self.original[row]).square().mean())
        return {
            "before": before,
            "before_probability": p_before,
            "after": after,
            "after_probability": p_after,
            "target": name_of(names, int(self.target[row])),
            "success": success,
            "distance": distance_unit(cast("Any", self.norm)).in_words(float(self.distance[row]))
            if success
            else "at no distance",
            "psnr": -10 * math.log10(error) if error > 0 else math.inf,
            "note": ", ".join(self.health.complaints(row)),
        }

    def _predicted(self, scores: Tensor, names: Sequence[str] | None) -> tuple[str, float | None]:
        """What is predicted from scores (K,), and the probability of it where it is one class."""
        classes = self.task.predicted_classes(scores)
        name = ", ".join(name_of(names, number) for number in classes) or "none"
        return name, float(self.task.probabilities(scores)[classes[0]]) if len(classes) == 1 else None


def joined(parts: list[Rewrite]) -> Rewrite:
    """Rewrites of parts of the rows as one."""
    if len(parts) == 1:
        return parts[0]

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=1 if name == "margin" else 0)

    health = Health(*(torch.cat([getattr(part.health, field.name) for part in parts]) for field in fields(Health)))
    tensors = {field.name: cat(field.name) for field in fields(Rewrite) if field.name not in ("norm", "health", "task")}
    return Rewrite(**tensors, norm=parts[0].norm, task=parts[0].task, health=health)
