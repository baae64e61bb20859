"""Drift of maps, and what part of it is noise, as torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.metrics.functional.drift import DRIFT_MEASURES, map_drift
from lightning_attngrad.metrics.plotted_metric import PlottedMetric


class MapDrift(PlottedMetric):
    """How far maps have moved from a reference, by each distance of :func:`~.functional.map_drift`, beside its floor.

    The floor is the same distance between the maps of now and those that the same weights give on slightly jittered
    copies of the images (moved by a pixel, a little noise). Images of which one of the two maps is constant or not
    finite are left out, of the drift and of the floor each for itself.

    Returns:
        By the name of each measure its mean over images; with ``_floor`` behind the name the mean that noise alone
        gives; with ``_ratio`` the one over the other, as :func:`~.functional.drift_ratio` has it: about 1 is nothing
        but noise. NaN where no image has a number.

    Raises:
        ValueError: for maps in ``update`` that are not (B, h, w), or of different shapes.

    Example:
        >>> metric = MapDrift()
        >>> before = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> metric.update(reference=before, now=before.flip(-1), jittered=before.flip(-1) + torch.eye(2) / 100)
        >>> metric.compute()["spearman"], metric.compute()["centroid_ratio"] > 10
        (tensor(0.4000), tensor(True))
    """

    moved: Tensor
    moved_images: Tensor
    jitter: Tensor
    jitter_images: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("moved", "jitter"):
            self.add_state(name, torch.zeros(len(DRIFT_MEASURES), dtype=self.dtype), dist_reduce_fx="sum")
            self.add_state(f"{name}_images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, reference: Tensor, now: Tensor, jittered: Tensor) -> None:
        """Add images: heatmaps (B, h, w) at the reference, now, and now of jittered copies of the images."""
        if now.ndim != 3:
            raise ValueError(f"now: got shape {tuple(now.shape)}; expected (B, h, w), one map an image")
        moved, jitter = self._defined(reference, now), self._defined(now, jittered)
        self.moved += moved.sum(dim=0)
        self.moved_images += len(moved)
        self.jitter += jitter.sum(dim=0)
        self.jitter_images += len(jitter)

    def compute(self) -> dict[str, Tensor]:
        drift, floor = self.moved / self.moved_images, self.jitter / self.jitter_images
        return {
            f"{name}{kind}": value
            for kind, values in (("", drift), ("_floor", floor), ("_ratio", drift / floor))
            for name, value in zip(DRIFT_MEASURES, values, strict=True)
        }

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw drift and floor of each measure on a log scale, the ratio above; or the ratios from step to step.

        Args:
            val: a result of ``compute`` or ``forward``, or a list of them; without it that of ``compute``.
            ax: a matplotlib axis to draw on.

        Returns:
            The figure (None where an axis was given) and the axis. What is 0 has no place on the scale.
        """
        val = self.compute() if val is None else val
        if isinstance(val, Sequence):
            figure, ax = super().plot(val, ax)
            ax.axhline(1, color="k", linewidth=1)  # nothing but noise
            ax.set_ylabel("drift / noise floor")
            ax.set_ylim(bottom=0)
            return figure, ax
        figure, ax = self._empty_axis(ax, "", "mean distance")
        for kind, style in (("", {"marker": "o"}), ("_floor", {"marker": "_", "markersize": 18, "color": "0.4"})):
            heights = [float(val[f"{name}{kind}"]) or torch.nan for name in DRIFT_MEASURES]
            ax.plot(range(len(heights)), heights, linestyle="", label=("noise floor" if kind else "drift"), **style)
        drawn = [height for line in ax.lines for height in line.get_ydata() if height == height]  # noqa: PLR0124
        if drawn:
            ax.set(yscale="log", ylim=(min(drawn) / 2, max(drawn) * 2))
        names = [f"{name.replace('_', ' ')}\n×{float(val[f'{name}_ratio']):.3g}" for name in DRIFT_MEASURES]
        ax.set_xticks(range(len(names)), names, rotation=0, fontsize=8)
        ax.set(xlim=(-0.5, len(names) - 0.5))
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncol=2)
        return figure, ax

    def _drawn(self, result: Any) -> Any:
        return {name.replace("_", " "): result[f"{name}_ratio"] for name in DRIFT_MEASURES}

    def _defined(self, before: Tensor, after: Tensor) -> Tensor:
        """Distances of the images that have them, (images, measures)."""
        drift = torch.stack(list(map_drift(before, after).values()), dim=1).to(self.dtype)
        return drift[~drift.isnan().any(dim=1)]
