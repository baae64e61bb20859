"""Map statistics as torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.metrics.functional.maps import MAP_STATISTICS, map_centroid
from lightning_attngrad.metrics.plotted_metric import Share

_NAMES = (*MAP_STATISTICS, "centroid_row", "centroid_column")


class MapStatistics(Share):
    """Means over images of how spread out a map is, and how much of it lies where.

    The numbers of :func:`~.functional.map_statistics`, and the mean place of :func:`~.functional.map_centroid`. Maps
    that are zero everywhere, or not finite, are left out.

    Returns:
        ``entropy``, ``border_mass``, ``corner_mass``, ``top_decile_mass``, ``centroid_row`` and ``centroid_column``,
        between 0 and 1 each; NaN where no image has a map.

    Raises:
        ValueError: for maps in ``update`` that are not (B, h, w).

    Example:
        >>> metric = MapStatistics()
        >>> metric.update(torch.ones(2, 14, 14))
        >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
        {'entropy': 1.0, 'border_mass': 0.265, 'corner_mass': 0.082, 'top_decile_mass': 0.102,
         'centroid_row': 0.5, 'centroid_column': 0.5}
    """

    statistics: Tensor
    maps: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("statistics", torch.zeros(len(_NAMES), dtype=self.dtype), dist_reduce_fx="sum")
        self.add_state("maps", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, heatmap: Tensor) -> None:
        """Add images: heatmaps (B, h, w)."""
        if heatmap.ndim != 3 or 0 in heatmap.shape[1:]:
            raise ValueError(f"heatmap: got shape {tuple(heatmap.shape)}; expected (B, h, w), one map an image")
        numbers = torch.stack([statistic(heatmap) for statistic in MAP_STATISTICS.values()], dim=1)
        numbers = torch.cat([numbers, map_centroid(heatmap)], dim=1).to(self.dtype)  # (B, 6)
        defined = numbers[~numbers.isnan().any(dim=1)]
        self.statistics += defined.sum(dim=0)
        self.maps += len(defined)

    def compute(self) -> dict[str, Tensor]:
        return dict(zip(_NAMES, self.statistics / self.maps, strict=True))
