"""What an evaluation of faithfulness measures: patches replaced in the order of the maps, and maps of two classes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_attngrad.explain import Question
from lightning_attngrad.measure.maps import Maps, explain_classes
from lightning_attngrad.metrics.functional import Faithfulness, class_sensitivity, faithfulness_curves
from lightning_attngrad.probe import Evaluation

#: Changed images at once, for each image of a part: they need no gradient, and so less memory than its map.
_CHANGED_AT_ONCE = 4


def curves_of(evaluation: Evaluation, maps: Maps, steps: int, replacement: Literal["mean", "blur"]) -> Faithfulness:
    """Probability of the frozen classes while patches are replaced; a collective operation.

    Args:
        evaluation: images and model.
        maps: of the images, whose order of patches is followed.
        steps: points of a curve.
        replacement: of patches.
    """
    assert maps.target is not None
    target = maps.target
    # A map of zeros has no order, and the first patches are not the most relevant ones.
    blank = (maps.heatmap == 0).flatten(1).all(dim=1)
    ordered = maps.heatmap.masked_fill(blank[:, None, None], torch.nan)

    def work(part: Tensor) -> Faithfulness:
        found = faithfulness_curves(
            evaluation.model,
            evaluation.images[part.to(evaluation.images.device)],
            ordered[part],
            target[part],
            steps=steps,
            replacement=replacement,
            area=maps.area,
            # In proportion to the images: so every part, also a smaller one, takes as many passes as any other, on
            # which the processes of a sharded model have to agree.
            batch=_CHANGED_AT_ONCE * len(part),
            forward=evaluation.forward_of(part),
            task=evaluation.task,
        )
        return Faithfulness(found.shares.cpu(), found.morf.cpu(), found.lerf.cpu())

    parts = evaluation.each(len(evaluation.images), work)
    morf, lerf = (torch.cat([getattr(part, name) for part in parts]) for name in ("morf", "lerf"))
    return Faithfulness(parts[0].shares, morf, lerf)


def sensitivity_of(evaluation: Evaluation, question: Question, maps: Maps, memory_budget: int | None) -> Tensor | None:
    """(N,) of the two classes (labels) that are most probable now; None without two. A collective operation."""
    classes = evaluation.task.likeliest(maps.scores(evaluation), 2)
    if classes is None:
        return None
    heatmaps = explain_classes(evaluation, question, classes, memory_budget=memory_budget)  # (N, 2, h, w)
    return class_sensitivity(heatmaps[:, 0], heatmaps[:, 1])
