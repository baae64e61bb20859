"""What every search for a rewrite keeps: the best attempt so far, the trace, and signs of ill health."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_attngrad.rewrite.margins import TargetMargin
from lightning_attngrad.rewrite.norms import over_pixels
from lightning_attngrad.rewrite.result import Health

#: A search that shortens its result by more than this share in its last quarter has not converged.
_STILL_SHORTENING = 0.15


def schedule(step: int, steps: int) -> float:
    """``(1 + cos(π·step/steps)) / 2``: from 1 at the first step towards 0 after the last."""
    return (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(eq=False)
class Search:
    """The best change of each of M rows so far; rows never wait for each other.

    Attributes:
        margin: what is climbed.
        original: (M, C, H, W) pixels.
        cost: (M,) of the best success, ∞ before the first.
        best: (M, C, H, W) pixels, the best success, or the attempt that came closest.
        logits: (M, K) there.
        closest: (M,) the margin there.
        trace: margins (M,) of the iterates.
    """

    margin: TargetMargin
    original: Tensor
    cost: Tensor = field(init=False)
    best: Tensor = field(init=False)
    logits: Tensor = field(init=False)
    closest: Tensor = field(init=False)
    logits_before: Tensor = field(init=False)
    trace: list[Tensor] = field(default_factory=list)
    _zero: Tensor = field(init=False)
    _steps: int = 0
    _cost_at: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = self.original.new_zeros(len(self.original))
        self.cost, self.closest, self._zero = rows + math.inf, rows - math.inf, rows.clone()
        self.best = self.original

    @property
    def found(self) -> Tensor:
        """(M,) bool: rows that have a success."""
        return self.cost < math.inf

    def climb(self, pixels: Tensor, cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate an iterate, with its gradient.

        Returns:
            Margin (M,), gradient (M, C, H, W), and whether each row is rewritten (M,).
        """
        logits, gradient = self.margin.climb(pixels)
        self._zero += (gradient.flatten(1) == 0).all(dim=1)
        self._steps += 1
        margin, rewritten = self._take(pixels, cost, logits)
        self.trace.append(margin)
        self._cost_at.append(self.cost)
        return margin, gradient, rewritten

    def attempt(self, pixels: Tensor, cost: Tensor, *, traced: bool = False) -> tuple[Tensor, Tensor]:
        """Evaluate an attempt without a gradient: margin (M,), and whether each row is rewritten (M,)."""
        margin, rewritten = self._take(pixels, cost, self.margin.attempt(pixels))
        if traced:
            self.trace.append(margin)
            self._cost_at.append(self.cost)
        return margin, rewritten

    def _take(self, pixels: Tensor, cost: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self._steps <= 1 and not self.trace:
            self.logits_before = self.logits = logits
        # A float64 model must not make float64 pixels.
        margin, rewritten = self.margin.of(logits).to(pixels.dtype), self.margin.rewritten(logits)
        better = torch.where(self.found, rewritten & (cost < self.cost), rewritten | (margin > self.closest))
        self.cost = torch.where(rewritten & (cost < self.cost), cost, self.cost)
        self.best = torch.where(over_pixels(better), pixels, self.best)
        self.logits = torch.where(better[:, None], logits, self.logits)
        self.closest = torch.where(better, margin, self.closest)
        return margin, rewritten

    def health(self, *, beats_one_step: Tensor, huge_radius: Tensor, unit: float = 0.0) -> Health:
        """The signs of ill health of the steps so far; call it before the result is polished.

        Args:
            beats_one_step: (M,) bool, for the result.
            huge_radius: (M,) bool, likewise.
            unit: of costs that are counted: one less of a few is a large share, and no sign of anything.
        """
        last, before = self._cost_at[-1], self._cost_at[-1 - max(1, self._steps // 4)]
        shortened = torch.where(self.found, before - last > (_STILL_SHORTENING * before).clamp(min=unit), False)
        return Health(
            zero_gradient=self._zero / self._steps,
            unconverged=shortened | (self.found & (before == math.inf)),
            huge_radius=huge_radius,
            beats_one_step=beats_one_step,
        )
