"""What is drawn of drift."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attngrad.explain import Question, within_area
from lightning_attngrad.measure.drift import LEADING, Drift, PastDrift, Reference
from lightning_attngrad.measure.maps import Maps
from lightning_attngrad.metrics.functional import times_uniform_share
from lightning_attngrad.probe import Evaluation
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.drift import drift_curves, layer_drift
from lightning_attngrad.reporting.moved import MovedCaption, moved_most
from lightning_attngrad.reporting.style import PLAIN, FigureStyle

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
    evaluation: Evaluation,
    question: Question,
    drift: Drift,
    reference: Reference | None,
    now: Reference,
    past: Sequence[PastDrift],
    maps: Maps,
    style: FigureStyle = PLAIN,
) -> dict[str, Figure]:
    """The figures of one evaluation.

    Args:
        evaluation: for images, names and the label.
        question: for the method.
        drift: what was measured.
        reference: what was compared with; None if there is nothing.
        now: the maps of this evaluation.
        past: the history, this one last.
        maps: those that ``now`` was made of, for the names of their layers and the area that they cover.
        style: how they look.

    Returns:
        ``curves``; ``layers`` for methods that have them; ``moved`` unless this evaluation is the reference.
    """
    then = "nothing to compare with" if reference is None else f"against {reference.label}"
    method = question.method_in_words
    labels = [one.label for one in past]
    figures = {
        "curves": drift_curves(
            {_CALLED[name]: [one.distance[name] for one in past] for name in drift.distance},
            {_CALLED[name]: [one.floor[name] for one in past] for name in drift.floor},
            labels,
            title=f"Drift of the maps · {then} · {method}",
            style=style,
        )
    }
    if len(drift.layers):
        figures["layers"] = layer_drift(
            torch.tensor([one.layers for one in past]).T,
            drift.layer_floor,
            maps.layer_names,
            labels,
            title=f"Which parts of the map moved · {then}",
            style=style,
        )
    if reference is not None and reference is not now:
        order = drift.distance[LEADING].nan_to_num(-1).argsort(descending=True, stable=True)[:_SHOWN]
        figures["moved"] = moved_most(
            within_area(evaluation.pixels[order], maps.area),
            times_uniform_share(reference.heatmap[order]),
            times_uniform_share(now.heatmap[order]),
            [_caption(evaluation, drift, reference, now, int(index)) for index in order],
            images=len(evaluation.pixels),
            title=f"What moved most · {evaluation.label} {then}",
            scale=ColourScale("signed" if question.signed else "share"),
            shown_as=evaluation.display.words,
            style=style,
        )
    return figures


def _of_labels(evaluation: Evaluation, there: Tensor, probability: Tensor) -> tuple[str, float | None]:
    """The labels that are predicted, and the probability of that where they are one, or none of one."""
    labels = evaluation.task.true_classes(there)
    name = ", ".join(evaluation.class_name(label) for label in labels) or "none"
    if len(labels) != 1:
        return name, None
    return name, float(probability[labels[0]]) if labels[0] < len(there) else 1 - float(probability[0])


def _caption(evaluation: Evaluation, drift: Drift, reference: Reference, now: Reference, index: int) -> MovedCaption:
    predicted: list[tuple[str | None, float | None]] = []
    for one in (reference, now):
        if one.predicted is None or one.probability is None:
            predicted.append((None, None))
        elif one.predicted.dim() == 1:
            predicted.append((evaluation.class_name(int(one.predicted[index])), float(one.probability[index])))
        else:
            predicted.append(_of_labels(evaluation, one.predicted[index], one.probability[index]))
    true = ", ".join(evaluation.true_names(index)) or None
    return MovedCaption(
        drift=float(drift.distance[LEADING][index]),
        floor=float(drift.floor[LEADING][index]),
        before=predicted[0][0],
        before_probability=predicted[0][1],
        after=predicted[1][0],
        after_probability=predicted[1][1],
        true=true,
    )
