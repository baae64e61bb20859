"""What is drawn of rewritten images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attngrad.callbacks.look import Probe
from lightning_attngrad.callbacks.rewriting import RewriteSettings, RewrittenRows, ShownRow
from lightning_attngrad.metrics.functional import median_matrix
from lightning_attngrad.reporting.class_matrix import class_matrix
from lightning_attngrad.reporting.curves import success_curves
from lightning_attngrad.reporting.distances import Norm, distance_unit
from lightning_attngrad.reporting.rewriting import RewriteCaption, rewrite_panels

_MOST_CLASSES = 40  # of a matrix that is drawn
_SYMBOLS = {"linf": "L∞ ", "l2": "L2 ", "l0_patches": ""}
_OF_WHAT = {"linf": "", "l2": "", "l0_patches": " of the patches"}


def rewrite_figures(
    probe: Probe,
    settings: RewriteSettings,
    rows: RewrittenRows,
    shown: list[ShownRow],
    curves: Mapping[str, list[float]],
    warning: str,
) -> dict[str, Figure]:
    """The figures of one look.

    Args:
        probe: for names and for the label.
        settings: what was asked.
        rows: what came of it.
        shown: the first rows, with their images.
        curves: distances by the name of the look, this one last.
        warning: what speaks against the numbers; empty if nothing does.

    Returns:
        ``success``, ``classes`` where there are not too many, and ``rewrites`` where the model has maps.
    """
    norm = cast("Norm", settings.norm)
    warned = f" · {warning}" if warning else ""
    figures = {
        "success": success_curves(
            {label: torch.tensor(distances) for label, distances in curves.items()},
            radii=settings.radii,
            norm=norm,
            title=f"Rewritten within a radius · {probe.label}{warned}",
        )
    }
    if shown and all(row.maps is not None for row in shown):
        maps = torch.stack([torch.as_tensor(row.maps) for row in shown])  # (N, 2, h, w)
        figures["rewrites"] = rewrite_panels(
            torch.stack([_drawn_channels(row.original) for row in shown]),
            torch.stack([_drawn_channels(row.rewritten) for row in shown]),
            maps[:, 0],
            maps[:, 1],
            [_caption(probe, settings, rows, row) for row in shown],
            title=f"The least that rewrites · {probe.label}{warned}",
        )
    classes = len(shown[0].before) if shown else 0
    if 0 < classes <= _MOST_CLASSES:
        figures["classes"] = class_matrix(
            median_matrix(rows.distance, rows.own, rows.target, classes),
            [probe.class_name(index) for index in range(classes)],
            norm=norm,
            title=f"From class to class · {probe.label}{warned}",
        )
    return figures


def _caption(probe: Probe, settings: RewriteSettings, rows: RewrittenRows, shown: ShownRow) -> RewriteCaption:
    row = shown.row
    before, after = int(shown.before.argmax()), int(shown.after.argmax())
    success = bool(rows.success[row])
    text = distance_unit(cast("Norm", settings.norm)).text(float(rows.distance[row]))
    complaints = {
        "unconverged": bool(rows.unconverged[row]),
        "no gradient": float(rows.zero_gradient[row]) > 0,
        "one step does better": bool(rows.one_step_better[row]),
    }
    return RewriteCaption(
        before=probe.class_name(before),
        before_probability=float(shown.before[before]),
        after=probe.class_name(after),
        after_probability=float(shown.after[after]),
        target=probe.class_name(int(rows.target[row])),
        success=success,
        distance=f"{_SYMBOLS[settings.norm]}{text}{_OF_WHAT[settings.norm]}" if success else "at no distance",
        psnr=float(rows.psnr[row]),
        note=", ".join(complaint for complaint, applies in complaints.items() if applies),
    )


def _drawn_channels(pixels: Tensor) -> Tensor:
    """(3 or 1, H, W): of more than three channels the first three are shown, of two the first."""
    return pixels[:3] if pixels.shape[0] >= 3 else pixels[:1]
