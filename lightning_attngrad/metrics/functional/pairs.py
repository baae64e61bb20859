"""Image–target pairs of class rewriting: what is summed over them, their quantiles, and what is asked of an input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_ROUNDING = 1e-9  # of a place q·(M − 1) in float64: 0.55·100 is 55.000000000000007
_PIXEL_TOLERANCE = 1e-3  # what denormalising may add to [0, 1]


def pairs_within(distance: Tensor, radii: Tensor) -> Tensor:
    """Whether each pair lies within each radius: (M, R) bool."""
    return distance[:, None] <= radii


def robust_pairs(distance: Tensor, correct: Tensor, radii: Tensor) -> Tensor:
    """Whether each pair is correct and stays so within each radius: (M, R) bool."""
    return correct[:, None] & ~pairs_within(distance, radii)


def area_of_pairs(distance: Tensor, low: float, high: float) -> Tensor:
    """Share of the log radii from low to high at which a pair is rewritten, (M,): those from its distance on."""
    return ((high / distance.clamp(low, high)).log() / math.log(high / low)).clamp(0, 1)


def quantiles(values: Tensor, q: Sequence[float]) -> Tensor:
    """As :func:`distance_quantiles`, for any numbers above −∞ (M,)."""
    if len(values) == 0:
        return values.new_full((len(q),), torch.nan)
    ordered = values.sort().values
    places = [share * (len(values) - 1) for share in q]
    below = [math.floor(place) for place in places]
    above = [min(floor + 1, len(values) - 1) for floor in below]
    weight = values.new_tensor([place - floor for place, floor in zip(places, below, strict=True)])
    weight = torch.where(weight > _ROUNDING, weight, 0)
    lower, upper = ordered[torch.tensor([below, above], device=values.device)]  # (Q,) each
    between = torch.where(upper.isinf(), upper, lower + weight * (upper - lower))
    return torch.where(weight > 0, between, lower)


def checked_distance(distance: Tensor, name: str = "distance") -> Tensor:
    """Distances in at least float32, refused where one is NaN or negative."""
    if distance.ndim != 1 or not distance.is_floating_point():
        raise ValueError(
            f"{name}: got shape {tuple(distance.shape)} of {distance.dtype}; expected (M,) floats, one distance for "
            "each pair"
        )
    wrong = int((~(distance >= 0)).sum())
    if wrong:
        raise ValueError(
            f"{name}: got {wrong} of {len(distance)} pairs that are NaN or negative; expected numbers from 0 on, "
            "inf where rewriting failed"
        )
    return distance.to(torch.promote_types(distance.dtype, torch.float32))


def checked_radii(radii: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """Radii (R,) in the type and place of a tensor, refused where one is no radius."""
    checked = torch.as_tensor(radii, dtype=like.dtype, device=like.device)
    if checked.ndim != 1 or not len(checked) or not bool((checked.isfinite() & (checked >= 0)).all()):
        raise ValueError(f"radii: got {radii!r}; expected one or more finite numbers from 0 on, such as [1/255, 8/255]")
    return checked


def checked_shares(q: Sequence[float]) -> tuple[float, ...]:
    """Shares of a quantile, refused outside [0, 1]."""
    if not len(q) or not all(0 <= share <= 1 for share in q):
        raise ValueError(f"q: got {q!r}; expected one or more shares between 0 and 1, such as (0.25, 0.5, 0.75)")
    return tuple(q)


def check_range(low: float, high: float) -> None:
    """Refuse radii between which there is no log range."""
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"low, high: got {low!r} and {high!r}; expected 0 < low < high < inf, such as 1/255 and 16/255"
        )


def check_count(name: str, value: int) -> None:
    """Refuse all but a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}; expected a positive int")


def check_bootstrap(confidence: float, resamples: int) -> None:
    """Refuse options of a bootstrap that are out of range."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence!r}; expected a number between 0 and 1, such as 0.95")
    check_count("resamples", resamples)


def checked_flags(name: str, flags: Tensor, pairs: int | None = None) -> Tensor:
    """Flags (M,), refused where they are not bool or not one for each pair."""
    if flags.dtype != torch.bool or flags.ndim != 1 or (pairs is not None and len(flags) != pairs):
        expected = "M" if pairs is None else pairs
        raise ValueError(
            f"{name}: got shape {tuple(flags.shape)} of {flags.dtype}; expected ({expected},) bool, one for each pair"
        )
    return flags


def checked_classes(name: str, classes: Tensor, pairs: int, num_classes: int) -> Tensor:
    """Classes (M,) int64, refused where they are not ints of the C classes, one for each pair."""
    whole = not classes.is_floating_point() and not classes.is_complex() and classes.dtype != torch.bool
    if classes.shape != (pairs,) or not whole:
        raise ValueError(
            f"{name}: got shape {tuple(classes.shape)} of {classes.dtype}; expected ({pairs},) ints, one for each pair"
        )
    if not bool(((classes >= 0) & (classes < num_classes)).all()):
        raise ValueError(
            f"{name}: got classes from {int(classes.min())} to {int(classes.max())}; "
            f"expected them in [0, {num_classes}): give num_classes as many as the model has"
        )
    return classes.long()


def checked_pair(distance: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and those of the reference, refused where they are not one for one."""
    distance, reference = checked_distance(distance), checked_distance(reference, "reference")
    if len(distance) != len(reference):
        raise ValueError(
            f"distance, reference: got {len(distance)} and {len(reference)} pairs; "
            "expected as many: the same images and targets in both"
        )
    return distance, reference


def checked_pixels(original: Tensor, rewritten: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (M, C, H, W) in at least float32 and one type, refused outside [0, 1]."""
    if original.ndim != 4 or original.shape != rewritten.shape or 0 in original.shape[1:]:
        raise ValueError(
            f"original, rewritten: got shapes {tuple(original.shape)} and {tuple(rewritten.shape)}; "
            "expected two batches (M, C, H, W) of the same shape"
        )
    for name, images in (("original", original), ("rewritten", rewritten)):
        inside = (images >= -_PIXEL_TOLERANCE) & (images <= 1 + _PIXEL_TOLERANCE)
        if not images.is_floating_point() or not bool(inside.all()):
            raise ValueError(
                f"{name}: got values of {images.dtype} outside [0, 1]; expected floats in [0, 1]: give the pixels, "
                "not the images as the model takes them"
            )
    dtype = torch.promote_types(torch.promote_types(original.dtype, rewritten.dtype), torch.float32)
    return original.to(dtype), rewritten.to(dtype)
