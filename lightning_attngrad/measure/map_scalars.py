"""Numbers of maps: where they lie on the object, what they account for, and what the heads of each layer do."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.explain import UnsupportedModelError
from lightning_attngrad.measure.maps import Maps
from lightning_attngrad.measure.questions import say_once
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


def completeness_scalars(maps: Maps) -> dict[str, float]:
    """How much of the output the relevance of the tokens fails to account for, mean of the images; none without one."""
    error = maps.completeness_error
    return {} if error is None else {"completeness_error": float(error.nanmean())}


def head_scalars(evaluation: Evaluation) -> dict[str, float]:
    """Entropy and distance of each layer, means over heads and images; a collective operation.

    A layer with fewer heads than others has NaN in the place of those that it has not. Where the attention of the model
    cannot be read, or it has none, they are left out, and one line says so.
    """

    def work(part: Tensor) -> HeadStatistics | str:
        images = evaluation.images[part.to(evaluation.images.device)]
        try:
            return head_statistics(evaluation.model, images, forward=evaluation.forward_of(part))
        except UnsupportedModelError as error:
            return str(error)

    count = len(evaluation.images)
    found = evaluation.once("heads", lambda: evaluation.each(count, work, at_most=-(-count // 2)))
    why = next((part for part in found if isinstance(part, str)), None)
    if why is not None:
        say_once(evaluation, f"head_entropy and head_distance are left out. {why}")
        return {}
    parts = [part for part in found if isinstance(part, HeadStatistics)]
    return {
        f"head_{kind}/{layer}": value
        for kind in ("entropy", "distance")
        for layer, value in zip(
            parts[0].layer_names,
            torch.cat([getattr(part, kind).cpu() for part in parts]).nanmean(dim=(0, 2)).tolist(),
            strict=True,
        )
    }
