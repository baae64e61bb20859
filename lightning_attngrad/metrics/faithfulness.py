"""Faithfulness as torchmetrics: means over images of the areas of :func:`~.functional.faithfulness_curves`, and SaCo.

The curves come from the function, which runs the model; the classes add them up batch by batch and over processes, and
draw the mean curve. Images of which a point is NaN, as those of a map that is not finite, are left out. SaCo takes the
groups of :func:`~.functional.group_drops`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.utilities.plot import plot_curve

from lightning_attngrad.metrics.functional import pairs, saco
from lightning_attngrad.metrics.functional.faithfulness import area_under_curve, replaced_shares
from lightning_attngrad.metrics.plotted_metric import MeanOverImages, PlottedMetric

_AXES = ("share of patches replaced", "probability of the target")
_ROUNDING = 1e-3  # of a probability in half precision


class _MeanCurves(PlottedMetric):
    """Sums of curves over the images, from which means and areas follow."""

    shares: Tensor
    #: Names of the curves, by which the states of the classes are told apart.
    curves: ClassVar[tuple[str, ...]]

    def __init__(self, patches: int, steps: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pairs.check_count("patches", patches)
        pairs.check_count("steps", steps)
        self.add_state("shares", replaced_shares(patches, steps).to(self.dtype), dist_reduce_fx="max")
        for name in self.curves:
            self.add_state(f"{name}_sum", torch.zeros(steps + 1, dtype=self.dtype), dist_reduce_fx="sum")
        self.add_state(self._count, torch.tensor(0), dist_reduce_fx="sum")

    @property
    def _count(self) -> str:
        return "_".join((*self.curves, "images"))

    def mean_curves(self) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``plot`` draws; with several processes a collective operation, as ``compute`` is.

        Returns:
            Shares of the patches that are replaced, (S + 1,), and by the name of the curve the mean probability at
            each, (S + 1,); NaN without an image.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self.shares.clone(), {name: self._mean(name) for name in self.curves}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the mean curve, or given results as the other metrics do.

        Args:
            val: a result of ``compute`` or ``forward``, or a list of them; without it the mean curve is drawn.
            ax: a matplotlib axis to draw on.

        Returns:
            The figure (None where an axis was given) and the axis.
        """
        if val is not None:
            return super().plot(val, ax)
        shares, means = self.mean_curves()
        figure = None
        for name, mean in means.items():
            curve = (shares, mean, shares)  # thresholds are asked for and not drawn
            drawn, ax = plot_curve(curve, ax=ax, label_names=_AXES, name=type(self).__name__)
            figure = figure or drawn
            ax.get_lines()[-1].set(marker="o", label=name)
        if len(means) > 1:
            ax.fill_between(shares.tolist(), *(mean.tolist() for mean in means.values()), color="0.85", zorder=0)
        ax.legend()
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        return figure, ax

    def _add(self, **curves: Tensor) -> None:
        points = len(self.shares)
        for name, curve in curves.items():
            if curve.ndim != 2 or curve.shape[1] != points or not curve.is_floating_point():
                raise ValueError(
                    f"{name}: got shape {tuple(curve.shape)} of {curve.dtype}; expected (B, {points}) floats, "
                    f"curves of {points - 1} steps: give steps= as faithfulness_curves had it"
                )
            if bool(((curve < -_ROUNDING) | (curve > 1 + _ROUNDING)).any()):
                span = f"{float(curve.min()):.4g} to {float(curve.max()):.4g}"
                raise ValueError(f"{name}: got values from {span}; expected probabilities")
        counts = [len(curve) for curve in curves.values()]
        if len(set(counts)) > 1:
            raise ValueError(f"{', '.join(curves)}: got {counts} images; expected both curves of each")
        known = ~torch.stack([curve.isnan().any(dim=1) for curve in curves.values()]).any(dim=0)
        for name, curve in curves.items():
            state = f"{name}_sum"
            setattr(self, state, getattr(self, state) + curve[known].to(self.dtype).sum(dim=0))
        setattr(self, self._count, getattr(self, self._count) + known.sum())

    def _mean(self, name: str) -> Tensor:
        mean: Tensor = getattr(self, f"{name}_sum") / getattr(self, self._count)
        return mean

    def _area(self, name: str) -> Tensor:
        return area_under_curve(self._mean(name), self.shares)


class Deletion(_MeanCurves):
    """Mean area under the probability of the target while patches are replaced, most relevant first.

    Args:
        patches: of a map, ``h · w``.
        steps: S, as :func:`~.functional.faithfulness_curves` had it.

    Returns:
        (), between 0 and 1, lower is better; NaN without an image.

    Raises:
        ValueError: for arguments, or curves in ``update``, that do not fit.

    Example:
        >>> metric = Deletion(patches=4, steps=2)
        >>> metric.update(torch.tensor([[1.0, 0.5, 0.0], [0.8, 0.0, 0.0]]))
        >>> metric.compute()
        tensor(0.3500)
    """

    higher_is_better: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    curves = ("morf",)

    def update(self, morf: Tensor) -> None:
        """Add images: their curves (B, S + 1), :attr:`~.functional.Faithfulness.morf`."""
        self._add(morf=morf)

    def compute(self) -> Tensor:
        return self._area("morf")


class Insertion(_MeanCurves):
    """Mean area under the probability of the target while patches are put back, most relevant first.

    It is the area under LeRF: see :attr:`~.functional.Faithfulness.insertion`.

    Args:
        patches: of a map, ``h · w``.
        steps: S, as :func:`~.functional.faithfulness_curves` had it.

    Returns:
        (), between 0 and 1, higher is better; NaN without an image.

    Raises:
        ValueError: for arguments, or curves in ``update``, that do not fit.

    Example:
        >>> metric = Insertion(patches=4, steps=2)
        >>> metric.update(torch.tensor([[1.0, 0.9, 0.0]]))
        >>> metric.compute()
        tensor(0.7000)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    curves = ("lerf",)

    def update(self, lerf: Tensor) -> None:
        """Add images: their curves (B, S + 1), :attr:`~.functional.Faithfulness.lerf`."""
        self._add(lerf=lerf)

    def compute(self) -> Tensor:
        return self._area("lerf")


class SymmetricRelevanceGain(_MeanCurves):
    """Mean area between LeRF and MoRF: see :attr:`~.functional.Faithfulness.srg`.

    Args:
        patches: of a map, ``h · w``.
        steps: S, as :func:`~.functional.faithfulness_curves` had it.

    Returns:
        (), between −1 and 1, higher is better, 0 for a random map; NaN without an image.

    Raises:
        ValueError: for arguments, or curves in ``update``, that do not fit.

    Source:
        Blücher et al., arXiv 2401.06654.

    Example:
        >>> metric = SymmetricRelevanceGain(patches=4, steps=2)
        >>> metric.update(morf=torch.tensor([[1.0, 0.5, 0.0]]), lerf=torch.tensor([[1.0, 0.9, 0.0]]))
        >>> metric.compute()
        tensor(0.2000)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = -1.0
    plot_upper_bound: float = 1.0
    curves = ("morf", "lerf")

    def update(self, morf: Tensor, lerf: Tensor) -> None:
        """Add images: both curves of each, (B, S + 1)."""
        self._add(morf=morf, lerf=lerf)

    def compute(self) -> Tensor:
        return self._area("lerf") - self._area("morf")


class SaCo(MeanOverImages):
    """Salience-guided faithfulness coefficient: mean of :func:`~.functional.saco`.

    Images whose groups are all equally salient, or of which a number is not finite, are left out.

    Returns:
        (), between −1 and 1, higher is better, 0 for a random map; NaN where no image has a number.

    Raises:
        ValueError: for groups in ``update`` that do not fit.

    Source:
        Wu et al., CVPR 2024, arXiv 2404.01415.

    Example:
        >>> metric = SaCo()
        >>> metric.update(salience=torch.tensor([[3.0, 1.0, 0.0]]), drop=torch.tensor([[0.5, 0.1, 0.2]]))
        >>> metric.compute()
        tensor(0.6667)
    """

    higher_is_better: bool = True
    plot_lower_bound: float = -1.0
    plot_upper_bound: float = 1.0

    def update(self, salience: Tensor, drop: Tensor) -> None:
        """Add images: salience and drop of their groups, (B, K) each, of :class:`~.functional.GroupDrops`."""
        self._add(saco(salience, drop))
