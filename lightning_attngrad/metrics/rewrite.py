"""Class rewriting as torchmetrics: classes that gather image–target pairs batch by batch and reduce over processes.

Each agrees with its function in :mod:`lightning_attngrad.metrics.functional` on all pairs together, in however many
batches and processes they came; a process may have no pair at all. Where sums are enough, only sums are kept. Keyword
arguments beside the named ones are those of :class:`torchmetrics.Metric`.

Pairs that have to be kept are stored in the metric's own type and in one dimension: for a process that never had a
pair, torchmetrics sends an empty tensor of that type and shape, and gathering anything else would fail or hang.

States have names of their own in each class, and settings that change what is summed are states too. A
MetricCollection lets two metrics whose states agree after the first batch share them from then on; counts of other
things, or at other radii, may well agree by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.plot import plot_confusion_matrix

from lightning_attngrad.metrics.functional import pairs
from lightning_attngrad.metrics.functional import rewrite as functional
from lightning_attngrad.metrics.plotted_metric import PlottedMetric, Share, ShareAtRadii


class RewriteSuccess(ShareAtRadii):
    """Share of pairs that are rewritten within each radius: :func:`~.functional.success_at`.

    Args:
        radii: R finite radii in the unit of the distance.

    Returns:
        (R,), or () for a single radius, as torchmetrics has it; NaN without a pair.

    Raises:
        ValueError: for radii, or distances in ``update``, that are not numbers from 0 on.

    Example:
        >>> metric = RewriteSuccess(radii=[1 / 255, 8 / 255])
        >>> metric.update(torch.tensor([0.002, 0.02, float("inf")]))
        >>> metric.compute()
        tensor([0.3333, 0.6667])
    """

    higher_is_better: bool = False
    succeeded: Tensor

    def __init__(self, radii: Sequence[float] | Tensor, **kwargs: Any) -> None:
        super().__init__(radii, **kwargs)
        self.add_state("succeeded", torch.zeros(len(self.radii), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, distance: Tensor) -> None:
        """Add pairs: distance (M,), ∞ for a failure."""
        distance = pairs.checked_distance(distance).to(self.dtype)
        self.succeeded += pairs.pairs_within(distance, self.radii).sum(dim=0)
        self.pairs += len(distance)

    def compute(self) -> Tensor:
        return self.succeeded / self.pairs


class RobustAccuracy(ShareAtRadii):
    """Share of pairs that are correct and not rewritten within each radius: :func:`~.functional.robust_accuracy`.

    Args:
        radii: R finite radii in the unit of the distance.

    Returns:
        (R,), or () for a single radius, as torchmetrics has it; NaN without a pair.

    Raises:
        ValueError: for radii, or pairs in ``update``, of other values, shapes or types.

    Example:
        >>> metric = RobustAccuracy(radii=[0.0, 8 / 255])
        >>> metric.update(torch.tensor([0.02, float("inf")]), correct=torch.tensor([True, True]))
        >>> metric.compute()
        tensor([1.0000, 0.5000])
    """

    higher_is_better: bool = True
    robust: Tensor

    def __init__(self, radii: Sequence[float] | Tensor, **kwargs: Any) -> None:
        super().__init__(radii, **kwargs)
        self.add_state("robust", torch.zeros(len(self.radii), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, distance: Tensor, correct: Tensor) -> None:
        """Add pairs: distance (M,), and correct (M,) bool, whether the unchanged image is classified correctly."""
        distance = pairs.checked_distance(distance).to(self.dtype)
        correct = pairs.checked_flags("correct", correct, len(distance))
        self.robust += pairs.robust_pairs(distance, correct, self.radii).sum(dim=0)
        self.pairs += len(distance)

    def compute(self) -> Tensor:
        return self.robust / self.pairs


class AreaUnderSuccess(Share):
    """Mean success rate over the log radii of a range; larger is easier: :func:`~.functional.area_under_success`.

    Args:
        low: the smallest radius, above 0.
        high: the largest, above low.

    Returns:
        (), between 0 and 1; NaN without a pair.

    Raises:
        ValueError: for not 0 < low < high < ∞, or distances in ``update`` that are not numbers from 0 on.

    Example:
        >>> metric = AreaUnderSuccess(low=0.01, high=1.0)
        >>> metric.update(torch.tensor([0.01, 0.1, float("inf")]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better: bool = False
    log_range: Tensor
    area: Tensor
    pairs: Tensor

    def __init__(self, low: float, high: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pairs.check_range(low, high)
        self.low, self.high = low, high
        self.add_state("log_range", torch.tensor([low, high], dtype=self.dtype), dist_reduce_fx="max")
        self.add_state("area", torch.tensor(0.0, dtype=self.dtype), dist_reduce_fx="sum")
        self.add_state("pairs", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, distance: Tensor) -> None:
        """Add pairs: distance (M,), ∞ for a failure."""
        distance = pairs.checked_distance(distance).to(self.dtype)
        self.area += pairs.area_of_pairs(distance, self.low, self.high).sum()
        self.pairs += len(distance)

    def compute(self) -> Tensor:
        return self.area / self.pairs


class RewriteDistance(PlottedMetric):
    """Median and quartiles of the distance, failures counted as ∞: :func:`~.functional.distance_quantiles`.

    Args:
        q: Q shares between 0 and 1.

    Returns:
        (Q,), or () for a single share, finite or ∞; NaN without a pair.

    Raises:
        ValueError: for shares outside [0, 1], or distances in ``update`` that are not numbers from 0 on.

    Example:
        >>> metric = RewriteDistance()
        >>> metric.update(torch.tensor([0.03, 0.01]))
        >>> metric.update(torch.tensor([float("inf"), 0.02]))
        >>> metric.compute()
        tensor([0.0175, 0.0250,    inf])
    """

    higher_is_better: bool = True
    plot_lower_bound: float = 0.0
    distance: list[Tensor]

    def __init__(self, q: Sequence[float] = (0.25, 0.5, 0.75), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.q = pairs.checked_shares(q)
        self.add_state("distance", [], dist_reduce_fx="cat")

    def update(self, distance: Tensor) -> None:
        """Add pairs: distance (M,), ∞ for a failure."""
        self.distance.append(pairs.checked_distance(distance).to(self.dtype))

    def compute(self) -> Tensor:
        return functional.distance_quantiles(self._kept(self.distance), self.q)

    def _drawn(self, result: Any) -> Any:
        return dict(zip([f"{100 * share:g} %" for share in self.q], torch.atleast_1d(result), strict=True))


class RewriteQuality(PlottedMetric):
    """How much of an image its rewrite leaves as it was, over the successes: :func:`~.functional.image_quality`.

    Returns:
        ``psnr``, the median in dB (∞ where most rewrites changed nothing), and ``ssim``, the mean; NaN where nothing
        was rewritten.

    Raises:
        ValueError: for pairs in ``update`` of other shapes or types, or pixels outside [0, 1].

    Example:
        >>> metric = RewriteQuality()
        >>> original = torch.full((2, 3, 8, 8), 0.5)
        >>> metric.update(original, original + 0.1, success=torch.tensor([True, False]))
        >>> metric.compute()["psnr"]
        tensor(20.0000)
    """

    higher_is_better: bool = True
    psnr: list[Tensor]
    ssim: Tensor
    successes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("psnr", [], dist_reduce_fx="cat")
        self.add_state("ssim", torch.tensor(0.0, dtype=self.dtype), dist_reduce_fx="sum")
        self.add_state("successes", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, original: Tensor, rewritten: Tensor, success: Tensor) -> None:
        """Add pairs: original and rewritten (M, C, H, W) pixels in [0, 1], success (M,) bool."""
        original, rewritten = pairs.checked_pixels(original, rewritten)
        success = pairs.checked_flags("success", success, len(original))
        quality = functional.image_quality(original[success], rewritten[success])
        self.psnr.append(quality.psnr.to(self.dtype))
        self.ssim += quality.ssim.sum()
        self.successes += success.sum()

    def compute(self) -> dict[str, Tensor]:
        return {"psnr": pairs.quantiles(self._kept(self.psnr), [0.5])[0], "ssim": self.ssim / self.successes}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        val = self.compute() if val is None else val
        several = isinstance(val, Sequence)
        figure, ax = self._plot([one["psnr"] for one in val] if several else val["psnr"], ax)
        ax.set_ylabel("median PSNR (dB), blue")
        beside = ax.twinx()  # decibels and a share have no scale in common
        self._plot([one["ssim"] for one in val] if several else val["ssim"], beside)
        beside.get_lines()[-1].set(color="tab:orange", markerfacecolor="none")
        beside.set(ylabel="mean SSIM, orange", ylim=(0, 1.05))
        beside.grid(visible=False)
        return figure, ax


class EightBitSurvival(Share):
    """Of the pairs that were rewritten, the share that survive rounding: :func:`~.functional.share_surviving`.

    Returns:
        (), between 0 and 1; NaN where nothing was rewritten.

    Raises:
        ValueError: for pairs in ``update`` of other shapes or types.

    Example:
        >>> metric = EightBitSurvival()
        >>> metric.update(torch.tensor([True, False, True]), torch.tensor([True, True, False]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better: bool = True
    survivors: Tensor
    successes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("survivors", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("successes", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, survived: Tensor, success: Tensor) -> None:
        """Add pairs: (M,) bool each, whether the rounded image is of the target class, and whether the unrounded is."""
        success = pairs.checked_flags("success", success)
        self.survivors += (pairs.checked_flags("survived", survived, len(success)) & success).sum()
        self.successes += success.sum()

    def compute(self) -> Tensor:
        return self.survivors / self.successes


class RewriteMatrix(PlottedMetric):
    """Median distance from each class to each other: :func:`~.functional.median_matrix`.

    Args:
        num_classes: C.

    Returns:
        (C, C), row source, column target; ∞ where the median pair failed, NaN where there is no pair.

    Raises:
        ValueError: for pairs in ``update`` of other shapes or types, or classes outside [0, C).

    Example:
        >>> metric = RewriteMatrix(num_classes=2)
        >>> metric.update(torch.tensor([0.1, 0.3, 0.5]), torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]))
        >>> metric.compute()
        tensor([[   nan, 0.2000],
                [0.5000,    nan]])
    """

    between: list[Tensor]
    source: list[Tensor]
    target: list[Tensor]

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pairs.check_count("num_classes", num_classes)
        self.num_classes = num_classes
        for name in ("between", "source", "target"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, distance: Tensor, source: Tensor, target: Tensor) -> None:
        """Add pairs: distance (M,), ∞ for a failure, and the classes source and target (M,) ints in [0, C)."""
        distance = pairs.checked_distance(distance)
        source = pairs.checked_classes("source", source, len(distance), self.num_classes)
        target = pairs.checked_classes("target", target, len(distance), self.num_classes)
        for state, values in ((self.between, distance), (self.source, source), (self.target, target)):
            state.append(values.to(self.dtype))  # float32 holds every class below 2²⁴

    def compute(self) -> Tensor:
        source, target = self._kept(self.source).long(), self._kept(self.target).long()
        return functional.median_matrix(self._kept(self.between), source, target, self.num_classes)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one matrix as an image: ``val`` a result of ``compute``, and ``ax`` as in the other metrics."""
        matrix = (self.compute() if val is None else val).reshape(self.num_classes, self.num_classes)
        largest = max(matrix[matrix.isfinite()].tolist(), default=0.0) or 1.0
        beyond = matrix.nan_to_num(nan=torch.nan, posinf=2 * largest)
        figure, ax = plot_confusion_matrix(beyond, ax=ax, add_text=False)
        image = ax.get_images()[-1]
        image.set(cmap=image.get_cmap().with_extremes(over="0.8"), clim=(0, largest))
        ax.figure.colorbar(image, ax=ax, extend="max", label="median distance (grey: ∞, white: no pair)")
        ticks = range(0, self.num_classes, 1 + self.num_classes // 20)
        ax.set(xlabel="to class", ylabel="from class")
        ax.set_xticks(ticks, ticks, rotation=0)
        ax.set_yticks(ticks, ticks, rotation=0)
        return figure, ax


class PairedLogRatio(PlottedMetric):
    """How much more it takes than in the reference, with an interval: :func:`~.functional.paired_log_ratio`.

    Args:
        confidence: of the interval.
        resamples: how many samples of the pairs are drawn.
        seed: of the draws.

    Returns:
        ``median``, ``low`` and ``high`` of log(distance / reference), NaN where no pair says anything, and how many
        ``pairs`` do.

    Raises:
        ValueError: for options out of range, or distances in ``update`` that are not two for each pair.

    Example:
        >>> metric = PairedLogRatio()
        >>> metric.update(torch.tensor([0.2, 0.3, 0.4]), torch.tensor([0.1, 0.1, 0.1]))
        >>> metric.compute()["median"].exp(), metric.compute()["pairs"]
        (tensor(3.), tensor(3))
    """

    higher_is_better: bool = True
    paired_distance: list[Tensor]
    reference: list[Tensor]

    def __init__(self, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pairs.check_bootstrap(confidence, resamples)
        self.options: Any = {"confidence": confidence, "resamples": resamples, "seed": seed}
        self.add_state("paired_distance", [], dist_reduce_fx="cat")
        self.add_state("reference", [], dist_reduce_fx="cat")

    def update(self, distance: Tensor, reference: Tensor) -> None:
        """Add pairs: distance and reference (M,), ∞ for a failure, of the same images and targets."""
        distance, reference = pairs.checked_pair(distance, reference)
        self.paired_distance.append(distance.to(self.dtype))
        self.reference.append(reference.to(self.dtype))

    def compute(self) -> dict[str, Tensor]:
        distance, reference = self._kept(self.paired_distance), self._kept(self.reference)
        return vars(functional.paired_log_ratio(distance, reference, **self.options))

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        figure, ax = super().plot(val, ax)
        ax.axhline(0, color="k", linewidth=1)  # as much as in the reference
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, -high / 10), max(high, -low / 10))
        return figure, ax

    def _drawn(self, result: Any) -> Any:
        return {name: result[name] for name in ("low", "median", "high")}
