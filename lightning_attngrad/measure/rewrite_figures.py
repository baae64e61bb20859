"""What is drawn of rewritten images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attngrad.measure.rewriting import RewriteSettings, RewrittenPairs, ShownPair
from lightning_attngrad.metrics.functional import median_matrix
from lightning_attngrad.probe import Display, Evaluation
from lightning_attngrad.reporting.class_matrix import class_matrix
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.curves import success_curves
from lightning_attngrad.reporting.distances import Norm, distance_unit
from lightning_attngrad.reporting.rewriting import RewriteCaption, rewrite_panels
from lightning_attngrad.reporting.style import PLAIN, FigureStyle

_MOST_CLASSES = 40  # of a matrix that is drawn


def rewrite_figures(
    evaluation: Evaluation,
    settings: RewriteSettings,
    pairs: RewrittenPairs,
    shown: list[ShownPair],
    curves: Mapping[str, list[float]],
    warning: str,
    style: FigureStyle = PLAIN,
) -> dict[str, Figure]:
    """The figures of one evaluation.

    Args:
        evaluation: for names and for the label.
        settings: what was asked.
        pairs: what came of it.
        shown: the first pairs, with their images.
        curves: distances by the name of the evaluation, this one last.
        warning: what speaks against the numbers; empty if nothing does.
        style: how they look.

    Returns:
        ``success``; ``rewrites``, with maps where the model has any; ``classes`` where there are not too many.
    """
    norm = cast("Norm", settings.norm)
    warned = f" · {warning}" if warning else ""
    figures = {
        "success": success_curves(
            {label: torch.tensor(distances) for label, distances in curves.items()},
            radii=settings.radii,
            norm=norm,
            title=f"Rewritten within a radius · {evaluation.label}{warned}",
            style=style,
        )
    }
    if shown:
        display, of_images = evaluation.display, pairs.image[[pair.pair for pair in shown]]
        there = [pair.maps for pair in shown if pair.maps is not None]
        maps = torch.stack(there) if len(there) == len(shown) else None  # (N, 2, h, w)
        figures["rewrites"] = rewrite_panels(
            display.of_channels(torch.stack([pair.original for pair in shown])),
            display.of_channels(torch.stack([pair.rewritten for pair in shown])),
            None if maps is None else maps[:, 0],
            None if maps is None else maps[:, 1],
            captions_of(evaluation, settings, pairs, shown),
            title=f"Smallest change found · {evaluation.label}{warned}",
            scale=ColourScale("signed" if shown[0].signed else "share"),
            limits=display.limits_of(of_images),
            shown_as=_shown_as(display, shown[0].original.shape[0]),
            style=style,
        )
    classes = len(shown[0].before) if shown else 0
    if 0 < classes <= _MOST_CLASSES:
        figures["classes"] = class_matrix(
            median_matrix(pairs.distance, pairs.own, pairs.target, classes),
            [evaluation.class_name(index) for index in range(classes)],
            norm=norm,
            title=f"From class to class · {evaluation.label}{warned}",
            style=style,
        )
    return figures


def captions_of(
    evaluation: Evaluation, settings: RewriteSettings, pairs: RewrittenPairs, shown: Sequence[ShownPair]
) -> list[RewriteCaption]:
    """What is said of each pair that is shown."""
    return [_caption(evaluation, settings, pairs, pair) for pair in shown]


def _caption(
    evaluation: Evaluation, settings: RewriteSettings, pairs: RewrittenPairs, shown: ShownPair
) -> RewriteCaption:
    number = shown.pair
    before, after = (_predicted(evaluation, scores) for scores in (shown.before, shown.after))
    success = bool(pairs.success[number])
    text = distance_unit(cast("Norm", settings.norm)).in_words(float(pairs.distance[number]))
    complaints = {
        "unconverged": bool(pairs.unconverged[number]),
        "no gradient": float(pairs.zero_gradient[number]) > 0,
        "one step does better": bool(pairs.one_step_better[number]),
    }
    return RewriteCaption(
        before=before[0],
        before_probability=before[1],
        after=after[0],
        after_probability=after[1],
        target=evaluation.class_name(int(pairs.target[number])),
        success=success,
        distance=text if success else "at no distance",
        psnr=float(pairs.psnr[number]),
        note=", ".join(complaint for complaint, applies in complaints.items() if applies),
    )


def _predicted(evaluation: Evaluation, scores: Tensor) -> tuple[str, float | None]:
    """What is predicted from scores (K,), and the probability of it where it is one class."""
    classes = evaluation.task.predicted_classes(scores)
    name = ", ".join(evaluation.class_name(index) for index in classes) or "none"
    return name, float(evaluation.task.probabilities(scores)[classes[0]]) if len(classes) == 1 else None


def _shown_as(display: Display, count: int) -> str:
    """What figures say of the images; where not all channels are seen, neither is all that has changed."""
    unseen = count - len(display.channels or range(3 if count >= 3 else 1))
    hidden = f"changes in {unseen} other{'s' if unseen > 1 else ''} not shown" if unseen > 0 else ""
    return "; ".join(words for words in (display.words, hidden) if words)
