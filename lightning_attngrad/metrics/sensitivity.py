"""Class sensitivity and sanity of maps as torchmetrics."""

from __future__ import annotations

from torch import Tensor

from lightning_attngrad.metrics.functional import sensitivity
from lightning_attngrad.metrics.plotted_metric import MeanOverImages


class ClassSensitivity(MeanOverImages):
    """How much a map depends on the class that it explains: mean of :func:`~.functional.class_sensitivity`.

    Images of which one map is constant or not finite are left out.

    Returns:
        (), between 0 (all classes have the same map) and 2; NaN where no image has a number.

    Raises:
        ValueError: for maps in ``update`` of different shapes.

    Example:
        >>> import torch
        >>> metric = ClassSensitivity()
        >>> maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> metric.update(maps, maps.flip(-1))
        >>> metric.compute()
        tensor(0.4000)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 2.0

    def update(self, predicted_maps: Tensor, runner_up_maps: Tensor) -> None:
        """Add images: heatmaps of the predicted class and of the runner-up, (B, h, w) each."""
        self._add(sensitivity.class_sensitivity(predicted_maps, runner_up_maps))


class TwoObjectShare(MeanOverImages):
    """Where two objects share an image, the share on the right one: mean of :func:`~.functional.two_object_share`.

    Images whose map has no positive patch on either object are left out.

    Returns:
        (), between 0 and 1; NaN where no image has a number.

    Raises:
        ValueError: for maps and masks in ``update`` that do not fit.

    Example:
        >>> import torch
        >>> metric = TwoObjectShare()
        >>> left, right = torch.tensor([[[True, False]]]), torch.tensor([[[False, True]]])
        >>> metric.update(torch.tensor([[[3.0, 1.0]]]), left, right)
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0

    def update(self, heatmap: Tensor, mask_right: Tensor, mask_wrong: Tensor) -> None:
        """Add images: heatmaps (B, h, w) of the right class, and the masks of both objects (B, H, W)."""
        self._add(sensitivity.two_object_share(heatmap, mask_right, mask_wrong))


class SanityCheck(MeanOverImages):
    """How alike the maps of a trained and of a redrawn model are: mean of :func:`~.functional.sanity_correlation`.

    **Near 0 is good.** Images of which one map is constant or not finite are left out.

    Returns:
        (), between −1 and 1; NaN where no image has a number.

    Raises:
        ValueError: for maps in ``update`` of different shapes.

    Example:
        >>> import torch
        >>> metric = SanityCheck()
        >>> maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> metric.update(maps, maps.flip(-1))
        >>> metric.compute()
        tensor(0.6000)
    """

    plot_lower_bound: float = -1.0
    plot_upper_bound: float = 1.0

    def update(self, maps: Tensor, maps_of_redrawn: Tensor) -> None:
        """Add images: heatmaps of the trained model and of :func:`~.functional.redrawn_state`, (B, h, w) each."""
        self._add(sensitivity.sanity_correlation(maps, maps_of_redrawn))
