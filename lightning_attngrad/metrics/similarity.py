"""Similarity of maps as torchmetrics."""

from __future__ import annotations

from torch import Tensor

from lightning_attngrad.metrics.functional.similarity import map_spearman
from lightning_attngrad.metrics.plotted_metric import MeanOverImages


class MapShift(MeanOverImages):
    """How far the explanation moves when the class is rewritten: 1 − rank correlation of the heatmaps, mean of images.

    0 where the patches keep their order, 1 where the orders have nothing in common, 2 where the order is reversed:
    see :func:`~.functional.map_spearman`. Images of which one map is constant or not finite are left out.

    Returns:
        (), between 0 and 2; NaN where no image has a number.

    Raises:
        ValueError: for maps in ``update`` of different shapes.

    Example:
        >>> import torch
        >>> metric = MapShift()
        >>> before = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> metric.update(before, -before)
        >>> metric.compute()
        tensor(2.)
    """

    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 2.0

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add images: heatmaps of the image and of its rewrite, (B, h, w) each."""
        self._add(1 - map_spearman(before, after))
