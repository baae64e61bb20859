"""What the metrics have in common: states, means, shares, and plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.plot import plot_curve

from lightning_attngrad.metrics.functional import pairs


class PlottedMetric(Metric):
    """What all metrics here share."""

    is_differentiable: bool = False
    full_state_update: bool = False

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw a result, or how it changes from step to step. What is ∞ has no place on an axis and is left out.

        Args:
            val: a result of ``compute`` or ``forward``, or a list of them; without it that of ``compute``.
            ax: a matplotlib axis to draw on.

        Returns:
            The figure (None where an axis was given) and the axis.
        """
        val = self.compute() if val is None else val
        return self._plot([self._drawn(one) for one in val] if isinstance(val, Sequence) else self._drawn(val), ax)

    def _drawn(self, result: Any) -> Any:
        """What is drawn of a result: a number, or numbers with the names that stand in the legend."""
        return result

    @staticmethod
    def _empty_axis(ax: Any, xlabel: str, ylabel: str) -> tuple[Any, Any]:
        """The axis that was given and no figure, or a new figure and its axis, by torchmetrics' own choice of both."""
        nothing = torch.zeros(0)
        figure, ax = plot_curve((nothing, nothing, nothing), ax=ax, label_names=(xlabel, ylabel))
        ax.get_lines()[-1].remove()
        return figure, ax

    def _kept(self, state: list[Tensor] | Tensor) -> Tensor:
        """All values of a state, (M,): a list before processes are gathered, a tensor afterwards."""
        return dim_zero_cat(state) if len(state) else torch.zeros(0, dtype=self.dtype, device=self.device)


class MeanOverImages(PlottedMetric):
    """The mean of one number an image; images whose number is NaN are left out, and without one left it is NaN.

    States bear the name of the class: a MetricCollection would let two classes share states that agree by chance.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._total, self._images = (f"{type(self).__name__}_{what}" for what in ("total", "images"))
        self.add_state(self._total, torch.tensor(0.0, dtype=self.dtype), dist_reduce_fx="sum")
        self.add_state(self._images, torch.tensor(0), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        mean: Tensor = getattr(self, self._total) / getattr(self, self._images)
        return mean

    def _add(self, numbers: Tensor) -> None:
        """Add images by their numbers, (B,)."""
        defined = numbers[~numbers.isnan()].to(self.dtype)
        setattr(self, self._total, getattr(self, self._total) + defined.sum())
        setattr(self, self._images, getattr(self, self._images) + len(defined))


class Share(PlottedMetric):
    """A metric between 0 and 1."""

    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0


class ShareAtRadii(Share):
    """A share of image–target pairs at each of some radii."""

    radii: Tensor
    pairs: Tensor

    def __init__(self, radii: Sequence[float] | Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checked = pairs.checked_radii(radii, torch.zeros((), dtype=self.dtype))
        self.add_state("radii", checked, dist_reduce_fx="max")
        self.add_state("pairs", torch.tensor(0), dist_reduce_fx="sum")

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        if isinstance(val, Sequence) or len(self.radii) == 1:
            return super().plot(val, ax)
        shares = self.compute() if val is None else val
        order = self.radii.argsort()
        curve = (self.radii[order], shares[order], order)  # thresholds are asked for and not drawn
        figure, ax = plot_curve(
            curve, ax=ax, label_names=("radius", "share of image–target pairs"), name=type(self).__name__
        )
        ax.get_lines()[-1].set_marker("o")
        ax.set_ylim(-0.03, 1.03)
        radii = self.radii.tolist()
        if min(radii) > 0:
            ax.set_xscale("log")
        else:  # linear from 0 to the smallest other
            ax.set_xscale("symlog", linthresh=min(filter(None, radii), default=1.0), linscale=0.5)
        ax.set_xticks(radii, [f"{radius:.2g}" for radius in radii], fontsize=8)
        ax.minorticks_off()
        return figure, ax

    def _drawn(self, result: Any) -> Any:
        names = [f"radius {radius:.4g}" for radius in self.radii.tolist()]
        return dict(zip(names, torch.atleast_1d(result), strict=True))
