"""Two published attacks that look for few changed pixels, one image at a time, from their formulas.

σ-zero: Cinà et al., "σ-zero: Gradient-based Optimization of ℓ0-norm Adversarial Examples", arXiv 2402.01879.
VFGA: Hajri et al., "Stochastic sparse adversarial attacks", arXiv 2011.12423. Both are written for any change of class
and turned here to one target class, as the margin ``z_t − max_{j≠t} z_j`` in the place of theirs. Nothing of the
package is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Model = Callable[[Tensor], Tensor]
"""Pixels (1, C, H, W) in [0, 1] → logits (1, K)."""


@dataclass(frozen=True)
class Sparse:
    """What an attack on one image came to.

    Attributes:
        pixels: (C, H, W), rewritten; as they were where it failed.
        number: of the pixels that changed, ∞ where it failed.
        gradients: that were taken.
    """

    pixels: Tensor
    number: float
    gradients: int


def changed(delta: Tensor) -> int:
    """Pixels of a change (C, H, W) that differ in any channel."""
    return int((delta != 0).any(dim=0).sum())


def shortest_l0(weight: Array, need: float, pixels: Array) -> float:
    """The fewest pixels whose change raises ``weight · x`` by ``need``, all of (C, H, W): exact for two linear classes.

    A pixel gains at most what each of its channels has room for; the pixels that gain most are taken first.
    """
    gains = (np.abs(weight) * np.where(weight > 0, 1 - pixels, pixels)).sum(axis=0)
    gained = 0.0
    for number, gain in enumerate(sorted(gains.flat, reverse=True)):
        if gained >= need:
            return float(number)
        gained += float(gain)
    return float(gains.size) if gained >= need else math.inf


def smooth_l0(delta: Tensor, sigma: float) -> Tensor:
    """``Σ_i δ_i² / (δ_i² + σ)`` (equation 5), where δ_i is the length of pixel i's change over its channels."""
    squares = delta.square().sum(dim=0)  # (H, W)
    return (squares / (squares + sigma)).sum()


def sigma_zero(
    model: Model,
    original: Tensor,
    target: int,
    steps: int,
    *,
    step: float = 1.0,
    sigma: float = 1e-3,
    threshold: float = 0.3,
    rate: float = 0.01,
) -> Sparse:
    """σ-zero (algorithm 1) with the authors' constants, and Adam as in their code; the unit is a pixel.

    The loss is ``max(−margin, 0) + smooth_l0 / d``, its gradient divided by the largest magnitude in it. After each
    step what is shorter than τ becomes 0; τ rises by ``rate · η`` where the target leads and falls by it elsewhere.

    Args:
        model: takes pixels.
        original: (C, H, W).
        target: class.
        steps: N.
        step: η₀; with a cosine it falls to a tenth.
        sigma: σ.
        threshold: τ₀.
        rate: t.
    """
    delta, tau, eta = torch.zeros_like(original), threshold, step
    average, squares = torch.zeros_like(original), torch.zeros_like(original)
    best = Sparse(original, math.inf, steps)
    for i in range(steps):
        delta = delta.detach().requires_grad_()
        margin = _margin(model, original + delta, target)
        loss = (-margin).clamp(min=0) + smooth_l0(delta, sigma) / (original.shape[1] * original.shape[2])
        gradient = torch.autograd.grad(loss, delta)[0]
        delta = delta.detach()
        leads = float(margin.detach()) > 0
        if leads and changed(delta) < best.number:
            best = Sparse(original + delta, changed(delta), steps)
        gradient = gradient / gradient.abs().max().clamp(min=1e-12)
        average = 0.9 * average + 0.1 * gradient
        squares = 0.999 * squares + 0.001 * gradient**2
        adam = (average / (1 - 0.9 ** (i + 1))) / ((squares / (1 - 0.999 ** (i + 1))).sqrt() + 1e-8)
        delta = (original + delta - eta * adam).clamp(0, 1) - original
        eta = step * (0.1 + 0.9 * (1 + math.cos(math.pi * i / steps)) / 2)
        tau = min(max(tau + (rate if leads else -rate) * eta, 0.0), 1.0)
        delta = torch.where(delta.abs().amax(dim=0) < tau, 0.0, delta)
    return best


def vfga(model: Model, original: Tensor, target: int, steps: int, *, samples: int = 10, seed: int = 0) -> Sparse:
    """VFGA (algorithm 2): one value of one pixel a step, until the target leads.

    Of the values that are as they were, the one is taken that promises most upwards (gradient of the target's
    probability times the room to 1), and the one that promises most downwards. Each is tried with ``samples`` half-
    normal changes of the room's size, and the change that makes the target most probable stays.

    Args:
        model: takes pixels.
        original: (C, H, W).
        target: class.
        steps: most values that change.
        samples: of each of the two.
        seed: of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = original.clone()
    for number in range(steps):
        if float(_margin(model, pixels, target).detach()) > 0:
            return Sparse(pixels, changed(pixels - original), number)
        inputs = pixels.clone().requires_grad_()
        probability = model(inputs[None])[0].softmax(0)[target]
        gradient = torch.autograd.grad(probability, inputs)[0]
        free = pixels == original
        if not free.any():
            break
        tried = []
        for up in (True, False):
            room = 1 - pixels if up else pixels
            promise = torch.where(free, gradient * room * (1 if up else -1), -math.inf)
            place = int(promise.argmax())
            for _ in range(samples):
                length = torch.randn((), generator=generator, dtype=torch.float64).abs() * float(room.flatten()[place])
                candidate = pixels.clone()
                value = float(candidate.flatten()[place]) + float(length) * (1 if up else -1)
                candidate.view(-1)[place] = min(max(value, 0.0), 1.0)
                with torch.no_grad():
                    scores = model(candidate[None])[0].softmax(0)
                tried.append((float(scores[target]) + (int(scores.argmax()) == target), len(tried), candidate))
        pixels = max(tried)[2]
    if float(_margin(model, pixels, target).detach()) > 0:
        return Sparse(pixels, changed(pixels - original), steps)
    return Sparse(original, math.inf, steps)


def _margin(model: Model, pixels: Tensor, target: int) -> Tensor:
    logits = model(pixels[None])[0]
    rivals = torch.cat([logits[:target], logits[target + 1 :]])
    return logits[target] - rivals.max()
