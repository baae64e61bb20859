"""What is drawn of drift."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from lightning_attngrad.callbacks.drift import LEADING, Drift, LookBack, Reference
from lightning_attngrad.callbacks.frozen_maps import FrozenMaps
from lightning_attngrad.callbacks.look import Probe
from lightning_attngrad.metrics.functional import times_uniform_share
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.drift import drift_curves, layer_drift
from lightning_attngrad.reporting.moved import MovedCaption, moved_most

#: Images that are drawn.
_SHOWN = 6
#: What each measure is called in a figure.
_CALLED = {
    "spearman": "1 − rank correlation",
    "cosine": "1 − cosine",
    "ssim": "1 − SSIM",
    "top_iou": "1 − IoU of the top tenth",
    "jensen_shannon": "Jensen–Shannon, bits",
    "centroid": "centroid shift, of the diagonal",
}


def drift_figures(
    probe: Probe,
    maps: FrozenMaps,
    drift: Drift,
    reference: Reference | None,
    now: Reference,
    looks: Sequence[LookBack],
    layer_names: Sequence[str],
) -> dict[str, Figure]:
    """The figures of one look.

    Args:
        probe: for images, names and the label.
        maps: for the method.
        drift: what was measured.
        reference: what was compared with; None if there is nothing.
        now: the maps of this look.
        looks: of the history, this one last.
        layer_names: L names.

    Returns:
        ``curves``; ``layers`` for methods that have them; ``moved`` unless this look is the reference.
    """
    then = "nothing to compare with" if reference is None else f"against {reference.label}"
    method = maps.method.replace("_", " ")
    labels = [look.label for look in looks]
    figures = {
        "curves": drift_curves(
            {_CALLED[name]: [look.distance[name] for look in looks] for name in drift.distance},
            {_CALLED[name]: [look.floor[name] for look in looks] for name in drift.floor},
            labels,
            title=f"Drift of the maps · {then} · {method}",
        )
    }
    if len(drift.layers):
        figures["layers"] = layer_drift(
            torch.tensor([look.layers for look in looks]).T,
            drift.layer_floor,
            layer_names,
            labels,
            title=f"Which layers moved · {then}",
        )
    if reference is not None and reference is not now:
        order = drift.distance[LEADING].nan_to_num(-1).argsort(descending=True, stable=True)[:_SHOWN]
        figures["moved"] = moved_most(
            probe.pixels[order],
            times_uniform_share(reference.heatmap[order]),
            times_uniform_share(now.heatmap[order]),
            [_caption(probe, drift, reference, now, int(index)) for index in order],
            images=len(probe.pixels),
            title=f"What moved most · {probe.label} {then}",
            scale=ColourScale("signed" if maps.signed else "share"),
        )
    return figures


def _caption(probe: Probe, drift: Drift, reference: Reference, now: Reference, index: int) -> MovedCaption:
    predicted: list[tuple[str | None, float | None]] = []
    for look in (reference, now):
        if look.predicted is None or look.probability is None:
            predicted.append((None, None))
        else:
            predicted.append((probe.class_name(int(look.predicted[index])), float(look.probability[index])))
    true = None if probe.targets is None or probe.targets[index] < 0 else probe.class_name(int(probe.targets[index]))
    return MovedCaption(
        drift=float(drift.distance[LEADING][index]),
        floor=float(drift.floor[LEADING][index]),
        before=predicted[0][0],
        before_probability=predicted[0][1],
        after=predicted[1][0],
        after_probability=predicted[1][1],
        true=true,
    )
