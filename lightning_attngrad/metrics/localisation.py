"""Localisation of maps as torchmetrics: means over the images that have an object and a map with a largest patch."""

from __future__ import annotations

from torch import Tensor

from lightning_attngrad.metrics.functional import localisation
from lightning_attngrad.metrics.plotted_metric import MeanOverImages


class _Localisation(MeanOverImages):
    """A mean between 0 and 1, where more is better."""

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0


class EnergyInMask(_Localisation):
    """Share of the positive part of a map inside the mask: mean of :func:`~.functional.energy_in_mask`.

    Returns:
        (), between 0 and 1; NaN where no image has a number.

    Raises:
        ValueError: for maps and masks in ``update`` that do not fit.

    Example:
        >>> import torch
        >>> metric = EnergyInMask()
        >>> metric.update(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        >>> metric.compute()
        tensor(0.7500)
    """

    def update(self, heatmap: Tensor, mask: Tensor) -> None:
        """Add images: heatmaps (B, h, w) and masks (B, H, W)."""
        self._add(localisation.energy_in_mask(heatmap, mask))


class PointingGame(_Localisation):
    """How often the largest patch of a map is on the object: mean of :func:`~.functional.pointing_game`.

    Returns:
        (), between 0 and 1; NaN where no image has a number.

    Raises:
        ValueError: for maps and masks in ``update`` that do not fit.

    Example:
        >>> import torch
        >>> metric = PointingGame()
        >>> metric.update(torch.tensor([[[3.0, 1.0]], [[1.0, 3.0]]]), torch.tensor([[[True, False]]]).expand(2, -1, -1))
        >>> metric.compute()
        tensor(0.5000)
    """

    def update(self, heatmap: Tensor, mask: Tensor) -> None:
        """Add images: heatmaps (B, h, w) and masks (B, H, W)."""
        self._add(localisation.pointing_game(heatmap, mask))


class MaskAveragePrecision(_Localisation):
    """How well a map ranks the object's patches first: mean of :func:`~.functional.mask_average_precision`.

    Returns:
        (), between 0 and 1; NaN where no image has a number.

    Raises:
        ValueError: for maps and masks in ``update`` that do not fit.

    Example:
        >>> import torch
        >>> metric = MaskAveragePrecision()
        >>> metric.update(torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]), torch.tensor([[[True, False], [True, False]]]))
        >>> metric.compute()
        tensor(0.8333)
    """

    def update(self, heatmap: Tensor, mask: Tensor) -> None:
        """Add images: heatmaps (B, h, w) and masks (B, H, W)."""
        self._add(localisation.mask_average_precision(heatmap, mask))
