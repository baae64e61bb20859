"""Lengths of changes, steps along a gradient, and balls, in L∞ and L2, a row at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Norm(ABC):
    """One way of measuring a change δ (M, C, H, W) of pixels in [0, 1]."""

    name: str
    #: Lengths of the first and last step of a search, as shares of its radius. The sign of a gradient jumps from step
    #: to step and needs short last ones; its direction settles, and long ones align the change with it sooner.
    strides: tuple[float, float]

    @abstractmethod
    def length(self, delta: Tensor) -> Tensor:
        """‖δ‖ of each row, (M,)."""

    @abstractmethod
    def dual_length(self, gradient: Tensor) -> Tensor:
        """‖∇‖_* (M,): how fast a linear function grows along its best direction of length 1."""

    @abstractmethod
    def ascent(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 along which a linear function with this gradient grows fastest."""

    @abstractmethod
    def within(self, delta: Tensor, radius: Tensor) -> Tensor:
        """The nearest change of at most the radius (M,)."""

    @abstractmethod
    def largest(self, pixels: Tensor) -> float:
        """The longest change that an image of this shape (…, C, H, W) can have inside [0, 1]."""


class _Linf(Norm):
    name = "linf"
    strides = (0.5, 0.1)

    def length(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(dim=1)

    def dual_length(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(1).abs().sum(dim=1)

    def ascent(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def within(self, delta: Tensor, radius: Tensor) -> Tensor:
        limit = over_pixels(radius)
        return torch.minimum(torch.maximum(delta, -limit), limit)

    def largest(self, pixels: Tensor) -> float:  # noqa: ARG002
        return 1.0


class _L2(Norm):
    name = "l2"
    strides = (0.6, 0.3)

    def length(self, delta: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3))
        return lengths

    def dual_length(self, gradient: Tensor) -> Tensor:
        # The squares of 1e-25, a gradient behind a saturated softmax, are 0 in float32: the largest is taken out first.
        peak = gradient.flatten(1).abs().amax(dim=1)
        return peak * self.length(gradient / over_pixels(torch.where(peak > 0, peak, 1.0)))

    def ascent(self, gradient: Tensor) -> Tensor:
        length = over_pixels(self.dual_length(gradient))
        return torch.where(length > 0, gradient / length, 0.0)

    def within(self, delta: Tensor, radius: Tensor) -> Tensor:
        length = self.length(delta)
        return delta * over_pixels(torch.where(length > radius, radius / length, 1.0))

    def largest(self, pixels: Tensor) -> float:
        return math.sqrt(math.prod(pixels.shape[-3:]))


NORMS: dict[str, Norm] = {norm.name: norm for norm in (_Linf(), _L2())}


def over_pixels(values: Tensor) -> Tensor:
    """One number a row, (M,), so that it spreads over (M, C, H, W)."""
    return values[:, None, None, None]
