"""SaCo: whether groups of patches matter to the prediction in the order, and by the margins, that a map gives them.

Each group is replaced by itself, where the curves of :mod:`~.faithfulness` replace more and more at once: what the
first tenth does is not mixed with what the last tenth does, and how much more salient one group is than another counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attngrad.explain import Task, check_task
from lightning_attngrad.explain.shown import counted
from lightning_attngrad.metrics.functional.faithfulness import (
    Replacement,
    bounds_of_shares,
    check,
    probabilities_without,
)
from lightning_attngrad.state import held_still


@dataclass(frozen=True, eq=False, repr=False)
class GroupDrops:
    """Groups of patches, the most salient first, and what each alone does to the prediction, float32.

    Attributes:
        salience: (B, K) mean of the map over the patches of a group.
        drop: (B, K) by how much the probability of the target class falls where that group is replaced; below 0 where
            it rises.

    Images are NaN where the map is not finite; where the model's output is not, those drops are.
    """

    salience: Tensor
    drop: Tensor

    @property
    def saco(self) -> Tensor:
        """(B,) salience-guided faithfulness coefficient, see :func:`saco`."""
        return saco(self.salience, self.drop)

    def __repr__(self) -> str:
        found = f"{float(self.saco.nanmean()):+.3f}".replace("-", "−")
        count, groups = self.drop.shape
        return f"GroupDrops({counted(count, 'image')}, {groups} groups, SaCo {found})"


def saco(salience: Tensor, drop: Tensor) -> Tensor:
    """Salience-guided faithfulness coefficient of groups of patches.

    ``F = Σ ±|s_i − s_j| / Σ |s_i − s_j|`` over all pairs of groups: + where the more salient of the two makes the
    probability fall at least as far as the other, − where it does not. 1 is a map whose groups matter in the order of
    their salience, −1 one in the reverse; a random one has 0 on average.

    Args:
        salience: (B, K), s of each group, in any order.
        drop: (B, K), by how much the probability of the class falls without it.

    Returns:
        (B,), between −1 and 1, unchanged where salience is scaled or shifted. NaN where all groups are equally salient:
        such a map says nothing that could hold or fail; and where a number is not finite.

    Raises:
        ValueError: for shapes that differ, or fewer than two groups.

    Source:
        Wu et al., *On the Faithfulness of Vision Transformer Explanations*, CVPR 2024, arXiv 2404.01415, algorithm 1,
        whose sums over groups of equal size are means here: the same F, as it does not depend on the scale.

    Example:
        >>> salience = torch.tensor([[3.0, 1.0, 0.0]])
        >>> saco(salience, torch.tensor([[0.5, 0.1, 0.2]]))  # pairs weigh 2, 3 and 1, and the last does not hold
        tensor([0.6667])
    """
    if salience.shape != drop.shape or salience.ndim != 2 or salience.shape[1] < 2:
        raise ValueError(
            f"salience, drop: got shapes {tuple(salience.shape)} and {tuple(drop.shape)}; expected (B, K) of both, "
            "two groups or more"
        )
    one, other = torch.triu_indices(salience.shape[1], salience.shape[1], 1, device=salience.device)
    more = salience[:, one] - salience[:, other]  # (B, pairs)
    holds = more.sign() * (drop[:, one] - drop[:, other]) >= 0
    weight = more.abs()
    found = torch.where(holds, weight, -weight).sum(dim=1) / weight.sum(dim=1)
    known = salience.isfinite().all(dim=1) & drop.isfinite().all(dim=1)
    return found.masked_fill(~known, torch.nan)


def group_drops(
    model: nn.Module,
    images: Tensor,
    heatmap: Tensor,
    target: Tensor,
    *,
    groups: int = 10,
    replacement: Replacement = "mean",
    batch: int = 64,
    forward: Callable[[Tensor], Any] | None = None,
    area: tuple[int, int, int, int] | None = None,
    task: str | Task | None = None,
) -> GroupDrops:
    """What each of K equal groups of patches, by their place in a map's ranking, does to the prediction alone.

    Takes ``(K + 1) · B`` images through the model, ``batch`` of them at once. The model is held still meanwhile, as in
    :func:`~.faithfulness_curves`, with which the arguments that are not described here agree. The paper ranks pixels;
    here they are patches, of which a map has one number each. Groups are rounded to whole patches: where K does not
    divide their number, one group may be larger by one than another, which its drop is not corrected for.

    Args:
        model: from images to logits.
        images: (B, C, H, W), normalised as the model takes them.
        heatmap: (B, h, w), larger where a patch is more relevant; its values count here and not its order alone.
        target: (B,) classes, ints.
        groups: K, from 2 to the number of patches; the paper has 10.
        replacement: ``mean``, as in the paper, or ``blur``.
        batch: images that go through the model at once.
        forward: called instead of ``model(images)``.
        area: part of the images that the map covers.
        task: what the output means.

    Returns:
        :class:`GroupDrops`, whose ``saco`` is the coefficient.

    Raises:
        ValueError: for an argument that does not fit.

    Source:
        Wu et al., CVPR 2024, arXiv 2404.01415.

    Example:
        >>> dark_or_bright = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = dark_or_bright[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))
        >>> image = torch.zeros(1, 1, 4, 4)
        >>> image[..., :2, :2] = 1  # one bright patch of four
        >>> heatmap = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> result = group_drops(dark_or_bright, image, heatmap, torch.tensor([1]), groups=4)
        >>> result.salience, result
        (tensor([[1., 0., 0., 0.]]), GroupDrops(1 image, 4 groups, SaCo +1.000))
    """
    check(images, heatmap, target, replacement, groups=groups, batch=batch)
    patches = heatmap.shape[-2] * heatmap.shape[-1]
    if not 2 <= groups <= patches:
        raise ValueError(f"groups: got {groups} of {patches} patches; expected from 2 to one a patch")
    bounds = bounds_of_shares(patches, groups)
    # Outside inference mode also where the caller is in it: results, and what a model caches, are normal tensors.
    with torch.inference_mode(mode=False), torch.no_grad(), held_still(model):
        heatmap = heatmap.to(images.device)
        found = probabilities_without(
            images,
            heatmap,
            target.to(images.device),
            [0, *bounds[:-1]],  # nothing of the first variant: the image as it is
            [0, *bounds[1:]],
            replacement,
            batch,
            forward or model,
            area,
            check_task(task),
        )
        ranked = heatmap.flatten(1).float().sort(dim=1, descending=True).values  # (B, h·w)
        means = [ranked[:, start:stop].mean(dim=1) for start, stop in pairwise(bounds)]
        broken = ~ranked.isfinite().all(dim=1, keepdim=True)
        return GroupDrops(torch.stack(means, dim=1).masked_fill(broken, torch.nan), found[:, :1] - found[:, 1:])
