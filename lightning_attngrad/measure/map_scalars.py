"""Numbers of maps: where they lie on the object, and what the heads of each layer do."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.metrics.functional import (
    HeadStatistics,
    energy_in_mask,
    head_statistics,
    mask_average_precision,
    mask_on_grid,
    pointing_game,
)
from lightning_attngrad.metrics.functional.localisation import COVERED
from lightning_attngrad.probe import Evaluation


def mask_scalars(heatmap: Tensor, masks: Tensor) -> dict[str, float]:
    """Means over the images that have an object, and a map.

    A number for which no image has an object (for the last two it has to fill half of a patch) is left out, at this
    evaluation and at all others, rather than a NaN that a later evaluation might mend.

    Args:
        heatmap: (N, h, w).
        masks: (N, H, W) in [0, 1].
    """
    coverage = mask_on_grid(masks, (heatmap.shape[1], heatmap.shape[2])).flatten(1)
    values: dict[str, Tensor] = {}
    if bool(((coverage.amax(dim=1) > 0) & (coverage.amin(dim=1) < 1)).any()):
        inside = energy_in_mask(heatmap, masks)
        values |= {"mass_in_mask": inside, "mass_outside_mask": 1 - inside}
    if bool(((coverage.amax(dim=1) >= COVERED) & (coverage.amin(dim=1) < COVERED)).any()):
        values["pointing"] = pointing_game(heatmap, masks)
        values["mask_average_precision"] = mask_average_precision(heatmap, masks)
    return {name: float(value.nanmean()) for name, value in values.items()}


def head_scalars(evaluation: Evaluation) -> dict[str, float]:
    """Entropy and distance of each layer, means over heads and images; a collective operation."""

    def work(part: Tensor) -> HeadStatistics:
        images = evaluation.images[part.to(evaluation.images.device)]
        return head_statistics(evaluation.model, images, forward=evaluation.forward)

    count = len(evaluation.images)
    parts = evaluation.once("heads", lambda: evaluation.each(count, work, at_most=-(-count // 2)))
    return {
        f"head_{kind}/{layer}": value
        for kind in ("entropy", "distance")
        for layer, value in zip(
            parts[0].layer_names,
            torch.cat([getattr(part, kind).cpu() for part in parts]).mean(dim=(0, 2)).tolist(),
            strict=True,
        )
    }
