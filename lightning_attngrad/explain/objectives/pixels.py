"""Objectives about places of an output that is a map: the class of a pixel or a region, and a number there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.places import Area
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives.base import Objective, Seeds, class_in_words, seeds_of
from lightning_attngrad.explain.objectives.held import map_of_numbers, map_of_scores
from lightning_attngrad.explain.placing import within_area
from lightning_attngrad.explain.plain import Plain, plain
from lightning_attngrad.state import outside_inference

#: A pixel (row, column) of the images, a mask (H, W) or (B, H, W), or the masks of a monitor's images.
Where: TypeAlias = tuple[int, int] | Tensor | Literal["mask"] | None


@dataclass(frozen=True, eq=False)
class PixelClass(Objective):
    """The score of a class at a pixel, or its mean over a region: for semantic segmentation.

    Of an output (B, K, h, w): a tensor, its ``logits`` (Hugging Face), ``out`` (torchvision) or ``output``
    (terratorch), or the one such tensor in a list. It may be smaller than the images, as SegFormer's is, and covers
    the part of them that the model sees. What a class is says ``task=``, as everywhere: with ``"binary"`` an output of
    one channel has classes 0 and 1. Takes no target.

    Args:
        target: the class.
        where: a pixel (row, column) of the images: the score at the place of the output in which its middle lies; a
            mask (H, W) or (B, H, W), of the images or of any grid over the part that the model sees, by whose share of
            each place the mean is weighted; ``"mask"`` for the masks of a monitor's images; or None for the places
            where the class is the predicted one now. An image without any has a map of zeros and the value NaN, and a
            warning says so.

    Raises:
        ValueError: for what is no class, or no place; the message says what would do.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> PixelClass(3, where=(40, 60)).in_words()
        'class 3 at (40, 60)'
        >>> # attngrad.explain(model, images, objective=attngrad.PixelClass(3, where=(40, 60)))
    """

    target: int
    where: Where = None
    needs_target: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_number("target", self.target, "the number of a class, from 0")
        object.__setattr__(self, "where", _checked(self.where))

    @property
    def lacks(self) -> Literal["masks"] | None:
        return "masks" if isinstance(self.where, str) else None

    def filled(self, found: Tensor) -> PixelClass:
        return replace(self, where=found)

    def check(self) -> None:
        _check_masks(self)

    def of_images(self, indices: Tensor) -> PixelClass:
        return replace(self, where=_of_images(self.where, indices))

    def plain(self) -> Plain:
        return {"pixel_class": self.target, "where": plain(self.where)}

    def in_words(self, class_name: Callable[[int], str] = str) -> str:
        where = "where it is predicted" if self.where is None else _in_words(self.where)
        return f"{class_in_words(self.target, class_name)} {where}"

    def seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:  # noqa: ARG002
        self.check()
        found = map_of_scores(forward.output, forward.batch)  # (B, K, h, w)
        rows = found.movedim(1, -1).flatten(0, -2)  # (B·h·w, K): each place is classified as an image would be
        scores = forward.scores_of(rows)
        classes = torch.full_like(scores[:, 0], self.target, dtype=torch.long)
        forward.task.of_rows.check_target(classes[:1], scores.shape[1])
        batch, _, height, width = found.shape
        of_class = scores[:, self.target].view(batch, height, width)
        if self.where is None:
            predicted = forward.task.of_rows.margin(scores.detach(), classes) > 0
            weights = predicted.view(batch, height, width).to(of_class.dtype)
        else:
            weights = _weights(self.where, forward, of_class)
        empty = "the class is predicted nowhere" if self.where is None else "the mask is empty"
        return _mean(of_class, weights, self, empty)


@dataclass(frozen=True, eq=False)
class PixelValue(Objective):
    """The number at a pixel, or its mean over a region: depth, height, or whatever else a model says of each place.

    Of an output (B, h, w) or (B, 1, h, w): a tensor, its ``predicted_depth`` or ``depth``, or where
    :class:`PixelClass` looks. Takes no target.

    Args:
        where: as for :class:`PixelClass`; None is the mean over the whole output.

    Raises:
        ValueError: for what is no place; the message says what would do.

    Example:
        >>> PixelValue(where=(40, 60)).in_words()
        'the value at (40, 60)'
        >>> # attngrad.explain(depth_model, images, objective=attngrad.PixelValue(where=(40, 60)))
    """

    where: Where = None
    needs_target: bool = field(default=False, init=False, repr=False)
    asks_task: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", _checked(self.where))

    @property
    def lacks(self) -> Literal["masks"] | None:
        return "masks" if isinstance(self.where, str) else None

    def filled(self, found: Tensor) -> PixelValue:
        return replace(self, where=found)

    def check(self) -> None:
        _check_masks(self)

    def of_images(self, indices: Tensor) -> PixelValue:
        return replace(self, where=_of_images(self.where, indices))

    def plain(self) -> Plain:
        return {"pixel_value": plain(self.where)}

    def in_words(self, class_name: Callable[[int], str] = str) -> str:  # noqa: ARG002
        return f"the value {'everywhere' if self.where is None else _in_words(self.where)}"

    def seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:  # noqa: ARG002
        self.check()
        values = map_of_numbers(forward.output, forward.batch)  # (B, h, w)
        weights = torch.ones_like(values) if self.where is None else _weights(self.where, forward, values)
        return _mean(values.clone(), weights, self, "the mask is empty")


def _mean(values: Tensor, weights: Tensor, objective: PixelClass | PixelValue, empty: str) -> Seeds:
    """Φ is the weighted mean of values (B, h, w); NaN, with a gradient of 0, where all weights are 0."""
    total = weights.detach().flatten(1).sum(dim=1)  # (B,)
    nowhere = total == 0
    seeds = seeds_of((values * weights).flatten(1).sum(dim=1) / torch.where(nowhere, 1, total))
    if not bool(nowhere.any()):
        return seeds
    warnings.warn(
        f"objective: {empty} in some images, and {objective.in_words()} is no number there: their values are NaN and "
        "their maps 0",
        stacklevel=2,
    )
    return replace(seeds, value=seeds.value.masked_fill(nowhere, torch.nan))


def _weights(where: Tensor | tuple[int, int] | str, forward: ForwardPass, values: Tensor) -> Tensor:
    """Which share of each place of an output (B, h, w) is meant, (B, h, w)."""
    batch, height, width = values.shape
    area = forward.places.area
    if isinstance(where, tuple):
        row, column = _place_of(where, area, (height, width))
        weights = values.new_zeros(1, height, width)
        weights[:, row, column] = 1
        return weights.expand(batch, -1, -1)
    assert isinstance(where, Tensor)
    if where.dim() == 3 and len(where) not in (1, batch):
        raise ValueError(f"where: got masks of shape {tuple(where.shape)}; expected (H, W) or ({batch}, H, W)")
    mask = outside_inference(where.to(values.device, values.dtype))
    inside = within_area(mask.unsqueeze(0) if mask.dim() == 2 else mask, area)
    return F.adaptive_avg_pool2d(inside.unsqueeze(1), (height, width))[:, 0].expand(batch, -1, -1)


def _place_of(pixel: tuple[int, int], area: Area, size: tuple[int, int]) -> tuple[int, int]:
    """The place of an output (h, w) over an area of the image in which the middle of a pixel lies."""
    top, left, bottom, right = area
    row, column = pixel
    if not (top <= row < bottom and left <= column < right):
        raise ValueError(
            f"where: got the pixel {pixel}; the model sees rows {top} to {bottom - 1} and columns {left} to {right - 1}"
        )
    return (2 * (row - top) + 1) * size[0] // (2 * (bottom - top)), (2 * (column - left) + 1) * size[1] // (
        2 * (right - left)
    )


def check_number(name: str, value: object, what: str) -> None:
    """Refuse what is no number from 0.

    Raises:
        ValueError: with what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: got {value!r}; expected {what}")


def _checked(where: Any) -> Where:
    """A place in one form, or an error."""
    if where is None:
        return None
    if isinstance(where, str) and where == "mask":
        return "mask"
    if isinstance(where, Tensor):
        _check_mask(where)
        return where
    pair = where if isinstance(where, tuple | list) and len(where) == 2 else ()
    if not pair or any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in pair):
        raise ValueError(
            f"where: got {where!r:.60}; expected a pixel (row, column) of the images, a mask (H, W) or (B, H, W) that "
            "is True inside, 'mask' for the masks of a monitor's images, or None"
        )
    return pair[0], pair[1]


def _check_mask(mask: Tensor) -> None:
    fits = mask.dim() in (2, 3) and mask.numel() > 0 and not mask.is_complex()
    if not fits or not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(
            f"where: got {str(mask.dtype).removeprefix('torch.')}{list(mask.shape)}; expected a mask (H, W) or "
            "(B, H, W), bool or in [0, 1]; compare labels with the one that is meant, as in labels == 3"
        )


def _check_masks(objective: PixelClass | PixelValue) -> None:
    if objective.lacks:
        raise ValueError(
            f"objective: where='mask' of {type(objective).__name__} are the masks of a monitor's images, from "
            "probe=ProbeImages(mask=…); here give the mask itself, a tensor (H, W) or (B, H, W) that is True inside"
        )


def _of_images(where: Where, indices: Tensor) -> Where:
    if not isinstance(where, Tensor) or where.dim() < 3 or len(where) == 1:
        return where
    return where[indices.to(where.device)]


def _in_words(where: Where) -> str:
    return f"at ({where[0]}, {where[1]})" if isinstance(where, tuple) else "in a region"
