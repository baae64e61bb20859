"""Numbers of rewritten images, and what speaks against them."""

from __future__ import annotations

import math
from dataclasses import fields

import torch
from torch import Tensor

from lightning_attngrad.measure.rewriting import RewriteSettings, RewrittenPairs
from lightning_attngrad.metrics.functional import (
    area_under_success,
    distance_quantiles,
    paired_log_ratio,
    robust_accuracy,
    share_surviving,
    success_at,
)


def rewrite_scalars(pairs: RewrittenPairs, settings: RewriteSettings) -> dict[str, float]:
    """The numbers of one evaluation.

    ``median_<norm>``, ``q25_<norm>``, ``q75_<norm>``: of the distances, with failures as ∞. ``success/<radius>``: the
    share rewritten within it. ``robust_accuracy/<radius>``: the share predicted as its own class and not rewritten
    within it. ``area``: under the success over the logarithm of the radius. ``psnr`` (median), ``ssim`` (mean) and
    ``survives_8_bit`` (share): of the successes. ``map_shift``: mean of all; left out where there are no maps.
    ``also_changed``, of labels: how many others changed with the one that was switched, mean of the successes.
    ``health/…``: shares of steps without a gradient, of pairs that were still improving, that were never rewritten, and
    that one step rewrites more cheaply.
    """
    lower, median, upper = distance_quantiles(pairs.distance).tolist()
    names = [settings.radius_name(radius) for radius in settings.radii]
    success = success_at(pairs.distance, settings.radii).tolist()
    robust = robust_accuracy(pairs.distance, pairs.predicted == pairs.own, settings.radii).tolist()
    good = pairs.success
    return {
        f"median_{settings.norm}": median,
        f"q25_{settings.norm}": lower,
        f"q75_{settings.norm}": upper,
        **{f"success/{name}": share for name, share in zip(names, success, strict=True)},
        **{f"robust_accuracy/{name}": share for name, share in zip(names, robust, strict=True)},
        "area": float(area_under_success(pairs.distance, settings.radii[0], settings.radii[-1])),
        "psnr": float(pairs.psnr[good].median()) if good.any() else math.nan,
        "ssim": float(pairs.ssim[good].mean()) if good.any() else math.nan,
        "survives_8_bit": float(share_surviving(pairs.survives, good)),
        **({} if pairs.map_shift is None else {"map_shift": float(pairs.map_shift.nanmean())}),
        **({} if pairs.also_changed is None else {"also_changed": _mean(pairs.also_changed[good])}),
        "health/zero_gradient": float(pairs.zero_gradient.mean()),
        "health/unconverged": float(pairs.unconverged.float().mean()),
        "health/never_rewritten": float((~good).float().mean()),
        "health/one_step_better": float(pairs.one_step_better.float().mean()),
    }


def rewrite_scalar_names(settings: RewriteSettings) -> tuple[str, ...]:
    """Every name that :func:`rewrite_scalars` may give, whatever the model and the task are.

    Example:
        >>> names = rewrite_scalar_names(RewriteSettings())
        >>> "success/4_255" in names, "median_l2" in names
        (True, False)
    """
    one = dict.fromkeys((field.name for field in fields(RewrittenPairs)), torch.ones(1))  # nothing is left out
    return tuple(rewrite_scalars(RewrittenPairs(**{**one, "survives": torch.ones(1, dtype=torch.bool)}), settings))


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan


def ratio_scalars(distance: Tensor, reference: Tensor | None) -> dict[str, float]:
    """Each pair against itself at the reference: the median of log(distance / reference), with a bootstrap interval."""
    if reference is None:
        return dict.fromkeys(("log_ratio", "log_ratio_low", "log_ratio_high"), math.nan)
    ratio = paired_log_ratio(distance, reference)
    return {"log_ratio": float(ratio.median), "log_ratio_low": float(ratio.low), "log_ratio_high": float(ratio.high)}


def ill_health(scalars: dict[str, float]) -> str:
    """What speaks against the numbers of an evaluation, in words for a figure; empty if nothing does."""
    complaints = []
    if scalars["health/zero_gradient"] > 0.1:
        complaints.append("no gradient")
    if scalars["health/never_rewritten"] > 0.05:
        complaints.append("not rewritten at any radius")
    if scalars["health/unconverged"] > 0.25 or scalars["health/one_step_better"] > 0.05:
        complaints.append("unconverged")
    return ", ".join(complaints)
