"""Numbers about class rewriting: how little it takes to turn an image into another class for the model.

A pair is an image and the class that it is to be rewritten to. Its distance is the length of the change that was
found, in pixel units for the norms ``linf`` and ``l2``, and ∞ where none was found. A distance is an upper bound on the
smallest one there is, so every number here describes the model *and* the search; compare only pairs of one search.
Pairs that share an image are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_attngrad.metrics.functional.pairs import (
    area_of_pairs,
    check_bootstrap,
    check_count,
    check_range,
    checked_classes,
    checked_distance,
    checked_flags,
    checked_pair,
    checked_pixels,
    checked_radii,
    checked_shares,
    pairs_within,
    quantiles,
    robust_pairs,
)
from lightning_attngrad.metrics.functional.structural import structural_similarity

_DRAWS_AT_ONCE = 2**22  # of a bootstrap: 32 MiB of places


@dataclass(frozen=True)
class ImageQuality:
    """How much of each rewritten image is left as it was.

    Attributes:
        psnr: (M,) peak signal-to-noise ratio in dB, ∞ where nothing changed.
        ssim: (M,) structural similarity, at most 1.
    """

    psnr: Tensor
    ssim: Tensor


@dataclass(frozen=True)
class LogRatio:
    """Median log-ratio of paired distances and its bootstrap interval: above 0, more is needed than in the reference.

    Attributes:
        median: () of log(distance / reference); ±∞ where most pairs failed on one side only.
        low: () lower end of the interval.
        high: () upper end.
        pairs: () int64, how many pairs said something. With none the other three are NaN.
    """

    median: Tensor
    low: Tensor
    high: Tensor
    pairs: Tensor


def success_at(distance: Tensor, radii: Sequence[float] | Tensor) -> Tensor:
    """Share of pairs that are rewritten within each radius. It never falls as the radius grows.

    Args:
        distance: (M,), ∞ for a failure.
        radii: (R,), finite, in the unit of the distance; rounded to its type, so that a distance of 8/255 lies within
            the radius 8/255.

    Returns:
        (R,), between 0 and 1; NaN where there is no pair.

    Raises:
        ValueError: for distances or radii that are not numbers from 0 on.

    Example:
        >>> success_at(torch.tensor([0.01, 0.02, float("inf")]), [0.005, 0.01, 0.1])
        tensor([0.0000, 0.3333, 0.6667])
    """
    distance = checked_distance(distance)
    return _share(pairs_within(distance, checked_radii(radii, distance)))


def distance_quantiles(distance: Tensor, q: Sequence[float] = (0.25, 0.5, 0.75)) -> Tensor:
    """Quantiles of the distance over all pairs, failures counted as ∞.

    Linear between two finite neighbours at the place ``q·(M − 1)`` of the sorted pairs (numpy's default). Where the
    upper neighbour has any weight and is a failure, the quantile is ∞: half-way to a failure there is no number.

    Args:
        distance: (M,), ∞ for a failure.
        q: Q shares between 0 and 1.

    Returns:
        (Q,), finite or ∞; NaN only where there is no pair.

    Raises:
        ValueError: for distances that are not numbers from 0 on, or shares outside [0, 1].

    Example:
        >>> distance_quantiles(torch.tensor([0.03, 0.01, float("inf"), 0.02]))
        tensor([0.0175, 0.0250,    inf])
    """
    return quantiles(checked_distance(distance), checked_shares(q))


def area_under_success(distance: Tensor, low: float, high: float) -> Tensor:
    """Mean success rate over all radii from low to high, each factor of the radius counting alike.

    The integral of the success rate over log ε from low to high, over log(high / low): exact, not a sum over a grid
    of radii. **Larger is easier to rewrite**: 1 where every pair lies within ``low``, 0 where none lies within
    ``high``. A distance of 0 is a success at every radius.

    Args:
        distance: (M,), ∞ for a failure.
        low: the smallest radius, above 0.
        high: the largest, above low.

    Returns:
        (), between 0 and 1; NaN where there is no pair.

    Raises:
        ValueError: for distances that are not numbers from 0 on, or not 0 < low < high < ∞.

    Example:
        >>> area_under_success(torch.tensor([0.01, 0.1, float("inf")]), 0.01, 1.0)  # (1 + ½ + 0) / 3
        tensor(0.5000)
    """
    check_range(low, high)
    return area_of_pairs(checked_distance(distance), low, high).mean()


def robust_accuracy(distance: Tensor, correct: Tensor, radii: Sequence[float] | Tensor) -> Tensor:
    """Share of pairs that are classified correctly and are not rewritten within each radius.

    An upper bound on the robust accuracy against the target class: a longer search may find more. With one pair an
    image it is that of images.

    Args:
        distance: (M,), ∞ for a failure.
        correct: (M,) bool, whether the image, unchanged, is classified correctly.
        radii: (R,), as for :func:`success_at`.

    Returns:
        (R,), at most the share of correct pairs; NaN where there is no pair.

    Raises:
        ValueError: for distances or radii that are not numbers from 0 on, or ``correct`` of another shape or type.

    Example:
        >>> distance = torch.tensor([0.01, 0.2, float("inf")])
        >>> robust_accuracy(distance, torch.tensor([True, True, False]), [0.0, 0.1])
        tensor([0.6667, 0.3333])
    """
    distance = checked_distance(distance)
    return _share(
        robust_pairs(distance, checked_flags("correct", correct, len(distance)), checked_radii(radii, distance))
    )


def median_matrix(distance: Tensor, source: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Median distance from each class to each other: which classes lie close together for the model.

    Args:
        distance: (M,), ∞ for a failure.
        source: (M,) ints, the class that a pair starts from.
        target: (M,) ints, the class that it is rewritten to.
        num_classes: C.

    Returns:
        (C, C), row source, column target; ∞ as in :func:`distance_quantiles`; NaN where there is no pair.

    Raises:
        ValueError: for distances that are not numbers from 0 on, or classes that are not ints in [0, C).

    Example:
        >>> median_matrix(torch.tensor([0.1, 0.3, 0.5]), torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), 2)
        tensor([[   nan, 0.2000],
                [0.5000,    nan]])
    """
    distance = checked_distance(distance)
    check_count("num_classes", num_classes)
    source = checked_classes("source", source, len(distance), num_classes)
    target = checked_classes("target", target, len(distance), num_classes)
    order = distance.argsort()
    cell = (source * num_classes + target)[order]
    by_cell = cell.argsort(stable=True)  # pairs of a cell lie together, and in each they stay sorted by distance
    cells, counts = cell[by_cell].unique_consecutive(return_counts=True)
    ordered, first = distance[order][by_cell], counts.cumsum(0) - counts
    matrix: Tensor = distance.new_full((num_classes * num_classes,), torch.nan)
    matrix[cells] = _medians(ordered, torch.stack([first + (counts - 1) // 2, first + counts // 2], dim=-1))
    return matrix.view(num_classes, num_classes)


def share_surviving(survived: Tensor, success: Tensor) -> Tensor:
    """Of the pairs that were rewritten, the share that still are when the image is rounded to 8 bits, as files are.

    Args:
        survived: (M,) bool, whether the rounded image is classified as the target.
        success: (M,) bool, whether the image before rounding is.

    Returns:
        (), between 0 and 1; NaN where nothing was rewritten.

    Raises:
        ValueError: for other shapes or types.

    Example:
        >>> share_surviving(torch.tensor([True, False, True]), torch.tensor([True, True, False]))
        tensor(0.5000)
    """
    success = checked_flags("success", success)
    return _share(checked_flags("survived", survived, len(success))[success])


def image_quality(original: Tensor, rewritten: Tensor) -> ImageQuality:
    """PSNR and SSIM of each rewritten image against its original; SSIM by torchmetrics' own function.

    SSIM has its usual Gaussian window of 11 pixels (σ 1.5). Where an image has a side of less than 11, the window is
    the widest odd one that fits and σ shrinks with it: small images compare with small images only.

    Args:
        original: (M, C, H, W) pixels in [0, 1].
        rewritten: (M, C, H, W) pixels in [0, 1].

    Returns:
        M numbers of each.

    Raises:
        ValueError: for other shapes, or values outside [0, 1]: the images as a model takes them are normalised.

    Example:
        >>> original = torch.full((1, 3, 8, 8), 0.5)
        >>> image_quality(original, original + 0.1).psnr, image_quality(original, original).ssim
        (tensor([20.0000]), tensor([1.]))
    """
    original, rewritten = checked_pixels(original, rewritten)
    if len(original) == 0:
        return ImageQuality(original.new_zeros(0), original.new_zeros(0))
    psnr = -10 * (original - rewritten).square().mean(dim=(1, 2, 3)).log10()
    return ImageQuality(psnr, structural_similarity(rewritten, original))


def paired_log_ratio(
    distance: Tensor, reference: Tensor, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> LogRatio:
    """How much more, or less, it takes than in the reference: the median of log(distance / reference) over pairs.

    Each pair has two distances, of the same image and target. Where both failed, or both needed nothing, a pair tells
    nothing and is left out. Where one failed, or one needed nothing, the log-ratio is ±∞ and stays: a median can bear
    it. The median between −∞ and ∞ is 0: exchanging the two sides changes the sign of the median and nothing else.

    The interval is the percentile bootstrap over pairs (Efron, 1979); its ends are medians that were drawn, never
    numbers between two of them. Neither the order of the pairs nor the state of torch's random numbers matters to it.

    Args:
        distance: (M,), ∞ for a failure.
        reference: (M,) distances of the same pairs before, or of another model.
        confidence: of the interval, between 0 and 1.
        resamples: how many samples of the pairs are drawn.
        seed: of the draws.

    Returns:
        Never NaN, unless no pair says anything.

    Raises:
        ValueError: for distances that are not numbers from 0 on, other shapes, or options out of range.

    Example:
        >>> now, before = torch.tensor([0.2, 0.3, float("inf")]), torch.tensor([0.1, 0.1, 0.1])
        >>> paired_log_ratio(now, before).median.exp(), paired_log_ratio(now, before).high
        (tensor(3.), tensor(inf))
    """
    distance, reference = checked_pair(distance, reference)
    check_bootstrap(confidence, resamples)
    ratios = distance.log() - reference.log()  # ∞ − ∞ is NaN: the pairs that tell nothing
    ratios = ratios[~ratios.isnan()].sort().values
    pairs = len(ratios)
    count = torch.tensor(pairs, device=ratios.device)
    if pairs == 0:
        nothing = ratios.new_tensor(torch.nan)
        return LogRatio(nothing, nothing, nothing, count)
    middle = torch.tensor([(pairs - 1) // 2, pairs // 2], device="cpu")
    medians = _medians(ratios, _bootstrap_places(pairs, middle, resamples, seed)).sort().values
    outside = int((1 - confidence) / 2 * (resamples - 1))
    return LogRatio(_medians(ratios, middle), medians[outside], medians[resamples - 1 - outside], count)


def _share(flags: Tensor) -> Tensor:
    """Share of pairs that are True, over the first dimension; NaN without a pair."""
    return flags.float().mean(dim=0)


def _medians(ordered: Tensor, middle: Tensor) -> Tensor:
    """Half-way between sorted values at two places (…, 2); 0 between −∞ and ∞, the one number that favours neither."""
    lower, upper = ordered[middle.to(ordered.device)].unbind(dim=-1)
    half_way = torch.where(lower.isinf() & upper.isinf(), 0, lower / 2 + upper / 2)
    return torch.where(lower == upper, lower, half_way)


def _bootstrap_places(pairs: int, middle: Tensor, resamples: int, seed: int) -> Tensor:
    """Which of the sorted values are the middle two of each bootstrap sample: (resamples, 2).

    Draws are places, not values: values that are sorted stay so, and the draws are the same on every device.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    block = max(1, _DRAWS_AT_ONCE // pairs)
    chosen = []
    for done in range(0, resamples, block):
        shape = (min(block, resamples - done), pairs)
        draws = torch.randint(pairs, shape, generator=generator, device="cpu")
        chosen.append(draws.sort(dim=1).values[:, middle])
    return torch.cat(chosen)
