"""Class rewriting by its definitions: exact distances of linear models, and the searches one image at a time.

Plain float64, loops, numpy and scipy. Of the package only the constants of the schedule are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

# Constants of the schedule, nothing that computes.
from lightning_attngrad.rewrite import fewest_pixels as sparse
from lightning_attngrad.rewrite import margins, norms
from lightning_attngrad.rewrite import minimal_norm as constants

Array = NDArray[np.float64]


def shortest_linf(weight: Array, need: float, pixels: Array | None = None) -> float:
    """The smallest ε for which a change of at most ε a pixel raises ``weight · x`` by ``need``.

    Pixel i moves along the sign of its weight, by ε or as far as the box [0, 1] lets it, room_i. So ε is where
    ``Σ |w_i| min(ε, room_i) = need``: a line that bends down at each room, climbed from bend to bend. Without a box it
    is ``need / ‖w‖₁``, the L∞ case of the affine binary classifier in DeepFool (arXiv 1511.04599, section 2.1 and 3.1).

    Args:
        weight: (D,).
        need: above 0.
        pixels: (D,) in [0, 1]; None is no box.

    Returns:
        ε, ∞ if the whole box does not hold such a point.
    """
    slopes = np.abs(weight)
    if pixels is None:
        return need / slopes.sum()
    room = np.where(weight > 0, 1 - pixels, pixels)
    climbed, reached = 0.0, 0.0
    for i in np.argsort(room):  # the pixels from here on still move
        moving = slopes[room >= room[i]].sum()
        gain = moving * (room[i] - reached)
        if moving > 0 and climbed + gain >= need:
            return float(reached + (need - climbed) / moving)
        climbed, reached = climbed + gain, room[i]
    return math.inf


def shortest_l2(weight: Array, need: float, pixels: Array | None = None) -> float:
    """The smallest ‖δ‖₂ for which ``weight · δ = need``.

    Without a box it is ``need / ‖w‖₂`` (DeepFool, arXiv 1511.04599, equation 3). With one the KKT conditions give
    ``|δ_i| = min(λ |w_i|, room_i)`` for one λ, here bisected until ``Σ |w_i| |δ_i| = need``.
    """
    slopes = np.abs(weight)
    if pixels is None:
        return need / float(np.sqrt((slopes**2).sum()))
    room = np.where(weight > 0, 1 - pixels, pixels)
    if (slopes * room).sum() < need:
        return math.inf
    low, high = 0.0, 1.0
    while (slopes * np.minimum(high * slopes, room)).sum() < need:
        high *= 2
        if high > 1e30:
            return math.inf
    for _ in range(200):
        middle = (low + high) / 2
        if (slopes * np.minimum(middle * slopes, room)).sum() < need:
            low = middle
        else:
            high = middle
    return float(np.sqrt((np.minimum(high * slopes, room) ** 2).sum()))


def shortest_linf_of_many(weight: Array, bias: Array, pixels: Array, target: int) -> float:
    """The smallest ε of a linear model of K classes, as a linear program.

    minimise ε over (δ, ε), where ``(w_j − w_t) · (x + δ) + b_j − b_t ≤ 0`` for every j, ``−ε ≤ δ_i ≤ ε``, and
    ``0 ≤ x_i + δ_i ≤ 1``.

    Args:
        weight: (K, D).
        bias: (K,).
        pixels: (D,).
        target: the class to be rewritten to.
    """
    size = len(pixels)
    rivals = [j for j in range(len(bias)) if j != target]
    rows, limits = [], []
    for j in rivals:
        difference = weight[j] - weight[target]
        rows.append(np.append(difference, 0.0))
        limits.append(-(difference @ pixels + bias[j] - bias[target]))
    for i in range(size):
        for sign in (1.0, -1.0):
            row = np.zeros(size + 1)
            row[i], row[size] = sign, -1.0
            rows.append(row)
            limits.append(0.0)
    goal = np.append(np.zeros(size), 1.0)
    bounds = [(-x, 1 - x) for x in pixels] + [(0.0, None)]
    found = linprog(goal, A_ub=np.array(rows), b_ub=np.array(limits), bounds=bounds, method="highs")
    return float(found.fun) if found.success else math.inf


def shortest_l2_of_many(weight: Array, bias: Array, pixels: Array, target: int) -> float:
    """The smallest ‖δ‖₂ of a linear model of K classes, as a convex quadratic program (arguments as above)."""
    rivals = [j for j in range(len(bias)) if j != target]
    lead = np.array([weight[target] - weight[j] for j in rivals])
    at_start = lead @ pixels + np.array([bias[target] - bias[j] for j in rivals])
    found = minimize(
        lambda delta: 0.5 * float(delta @ delta),
        np.zeros_like(pixels),
        jac=lambda delta: delta,
        bounds=[(-x, 1 - x) for x in pixels],
        constraints={"type": "ineq", "fun": lambda delta: lead @ delta + at_start, "jac": lambda delta: lead},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    return float(np.sqrt(found.x @ found.x)) if found.success else math.inf


@dataclass
class Attempts:
    """What a search has tried on one image.

    Attributes:
        original: (C, H, W) pixels.
        distance: of the shortest success, ∞ before the first.
        pixels: of that success, or of the attempt with the largest margin.
        margins: of the iterates, not of what came after the last gradient.
        passes: forward passes.
        closest: the margin of ``pixels``.
    """

    original: Array
    distance: float = math.inf
    pixels: Array = field(init=False)
    margins: list[float] = field(default_factory=list)
    passes: int = 0
    closest: float = -math.inf

    def __post_init__(self) -> None:
        self.pixels = self.original


class Classifier:
    """A float64 model that takes pixels, looked at one image at a time."""

    def __init__(self, model: nn.Module, target: int) -> None:
        self.model, self.target = model, target

    def logits(self, pixels: Array) -> Array:
        """(K,)."""
        with torch.no_grad():
            return np.asarray(self.model(torch.from_numpy(pixels)[None])[0].numpy())

    def log_odds_gradient(self, pixels: Array) -> Array:
        """Of ``log p_t − log(1 − p_t)``, where ``1 − p_t`` is the sum of the other probabilities."""
        images = torch.from_numpy(pixels)[None].requires_grad_()
        probabilities = self.model(images)[0].softmax(0)
        others = [p for j, p in enumerate(probabilities) if j != self.target]
        log_odds: Tensor = probabilities[self.target].log() - torch.stack(others).sum().log()
        return np.asarray(torch.autograd.grad(log_odds, images)[0][0].numpy())

    def look(self, attempts: Attempts, pixels: Array, norm: str) -> tuple[float, bool]:
        """One forward pass: the margin ``z_t − max_{j≠t} z_j``, and whether the target leads; kept if it is better."""
        logits = self.logits(pixels)
        margin = float(logits[self.target] - max(z for j, z in enumerate(logits) if j != self.target))
        leads = margin > max(margins._LEAD, margins._ROUNDINGS * np.finfo(np.float64).eps) * float(np.abs(logits).max())
        length = length_of(pixels - attempts.original, norm)
        attempts.passes += 1
        if (leads and length < attempts.distance) or (attempts.distance == math.inf and margin > attempts.closest):
            attempts.distance = length if leads else math.inf
            attempts.pixels, attempts.closest = pixels, margin
        return margin, leads


def length_of(delta: Array, norm: str) -> float:
    """‖δ‖ of one image."""
    if norm == "l0":
        return float(sum(1 for y, x in places_of(delta) if any(delta[:, y, x] != 0)))
    if norm == "linf":
        return max(abs(float(d)) for d in delta.flat)
    return math.sqrt(math.fsum(float(d) ** 2 for d in delta.flat))


def unit_step(gradient: Array, norm: str) -> Array:
    """argmax of ``gradient · v`` over ``‖v‖ ≤ 1``; 0 where the gradient is."""
    if norm == "linf":
        return np.sign(gradient)
    length = length_of(gradient, norm)
    return gradient / length if length > 0 else np.zeros_like(gradient)


def dual_length(gradient: Array, norm: str) -> float:
    """max of ``gradient · v`` over ``‖v‖ ≤ 1``."""
    return float((gradient * unit_step(gradient, norm)).sum())


def into_ball(delta: Array, norm: str, radius: float) -> Array:
    """The nearest change of at most the radius."""
    if norm == "linf":
        return np.clip(delta, -radius, radius)
    length = length_of(delta, norm)
    return delta * (radius / length) if length > radius else delta


def minimal_norm(model: nn.Module, original: Array, target: int, norm: str, steps: int) -> tuple[Attempts, bool]:
    """The search for the shortest change (after arXiv 2605.11392; the schedule is our own), for one image.

    With ``c_i = (1 + cos(π i / T)) / 2`` and every constant going from its first to its last value along it:

    - a gradient counts where the box lets its pixel follow it: upwards below 1, downwards above 0;
    - the direction is a running sum of the log-odds gradients, each of dual length 1;
    - the radius is ``(1 + γ_T) ‖δ‖ + overshoot · |margin| / ‖∇‖_*`` until the first success, and then times ``1 − γ_i``
      where the iterate leads and ``1 + γ_i`` where it does not, never above the best;
    - each step is a share of the radius, cut to the ball and then to the box;
    - the last iterate counts too. Then the best change is shortened by false position, and one step is tried alone.

    Args:
        model: float64, takes pixels.
        original: (C, H, W).
        target: class.
        norm: ``linf`` or ``l2``.
        steps: T.

    Returns:
        What was tried, and whether the one step falls short.
    """
    classifier, attempts = Classifier(model, target), Attempts(original)
    largest = 1.0 if norm == "linf" else math.sqrt(original.size)
    first_stride, last_stride = norms.NORMS[norm].strides
    pixels, radius = original, 0.0
    direction = np.zeros_like(original)
    first = np.zeros_like(original)
    for i in range(steps):
        c = (1 + math.cos(math.pi * i / steps)) / 2
        margin, leads = classifier.look(attempts, pixels, norm)
        attempts.margins.append(margin)
        gradient = classifier.log_odds_gradient(pixels)
        first = gradient.copy() if i == 0 else first
        gradient[(gradient > 0) & (pixels >= 1)] = 0
        gradient[(gradient < 0) & (pixels <= 0)] = 0
        dual = dual_length(gradient, norm)
        direction = constants._MOMENTUM * direction + (gradient / dual if dual > 0 else 0.0)
        if attempts.distance < math.inf:
            change = constants._LAST_CHANGE + (constants._FIRST_CHANGE - constants._LAST_CHANGE) * c
            radius = min(radius * (1 - change if leads else 1 + change), attempts.distance)
        else:
            away = constants._OVERSHOOT * abs(margin) / dual if dual > 0 else math.inf
            radius = (1 + constants._LAST_CHANGE) * length_of(pixels - original, norm) + away
        radius = min(radius, largest)
        stride = last_stride + (first_stride - last_stride) * c
        delta = pixels - original + radius * stride * unit_step(direction, norm)
        pixels = np.clip(original + into_ball(delta, norm, radius), 0, 1)
    attempts.margins.append(classifier.look(attempts, pixels, norm)[0])
    shorten(classifier, attempts, norm)

    length = attempts.distance if attempts.distance < math.inf else largest
    alone = np.clip(original + constants._SHORT_OF * length * unit_step(first, norm), 0, 1)
    falls_short = not classifier.look(attempts, alone, norm)[1]
    return attempts, falls_short or length == 0


def shorten(classifier: Classifier, attempts: Attempts, norm: str) -> None:
    """False position (Illinois) on the line from the original to the best attempt, for the zero of the margin.

    Of the two ends one is replaced by each look, and the margin of the other is halved. A look aims a little beyond
    the zero, so that it succeeds, and keeps a distance from both ends.
    """
    change = attempts.pixels - attempts.original
    low, high = (0.0, attempts.margins[0]), (1.0, attempts.closest)
    for _ in range(constants._SHORTENINGS):
        share = low[1] / (low[1] - high[1]) if high[1] > low[1] else 0.5
        share = min(max(share, constants._NO_NEARER), 1.0)
        left = high[0] - low[0]
        place = min(low[0] + share * left + constants._BEYOND * high[0], high[0] - constants._NO_NEARER * left)
        tried = np.clip(attempts.original + place * change, 0, 1)
        margin, leads = classifier.look(attempts, tried, norm)
        if leads:
            low, high = (low[0], low[1] / 2), (place, margin)
        else:
            low, high = (place, margin), (high[0], high[1] / 2)


def fixed_radius(model: nn.Module, original: Array, target: int, norm: str, steps: int, radius: float) -> Attempts:
    """Projected gradient steps in a ball (PGD, arXiv 1706.06083), of length ``radius · (0.1 + 0.9 c_i)``.

    The attempt that is kept is the first success.
    """
    classifier, attempts = Classifier(model, target), Attempts(original)
    pixels = original
    for i in range(steps + 1):
        known = attempts.distance, attempts.pixels
        margin, _ = classifier.look(attempts, pixels, norm)
        if known[0] < math.inf:
            attempts.distance, attempts.pixels = known
        attempts.margins.append(margin)
        if i == steps:
            break
        c = (1 + math.cos(math.pi * i / steps)) / 2
        step = radius * (0.1 + 0.9 * c) * unit_step(classifier.log_odds_gradient(pixels), norm)
        pixels = np.clip(original + into_ball(pixels - original + step, norm, radius), 0, 1)
    return attempts


def places_of(image: Array) -> list[tuple[int, int]]:
    """Row and column of each pixel of (C, H, W), in reading order."""
    return [(row, column) for row in range(image.shape[1]) for column in range(image.shape[2])]


def fewest_pixels(
    model: nn.Module, original: Array, target: int, steps: int, most: int | None = None
) -> tuple[Attempts, bool]:
    """The search for the fewest pixels (our own), for one image.

    With ``c_i = (1 + cos(π i / T)) / 2`` and every constant going from its first to its last value along it:

    - the direction is a running sum of the log-odds gradients, each divided by the sum of its magnitudes;
    - every value moves along its sign, and a pixel gains the sum over its channels of direction times change; the k
      pixels that gain most keep their change, all others are as they were;
    - k is what a linear model would need until the first success, and one more than changed at least; then it falls by
      the share γ_i where the iterate leads and grows by it elsewhere, by one at least, and is below the best;
    - the last iterate counts too. Then k of the best change is bisected from its half, and one step is tried alone.

    Args:
        model: float64, takes pixels.
        original: (C, H, W).
        target: class.
        steps: T.
        most: stay with this k.

    Returns:
        What was tried, and whether the one step falls short.
    """
    classifier, attempts = Classifier(model, target), Attempts(original)
    pixels, number, total = original, 0.0, original[0].size
    direction, first = np.zeros_like(original), np.zeros_like(original)
    for i in range(steps):
        c = (1 + math.cos(math.pi * i / steps)) / 2
        margin, leads = classifier.look(attempts, pixels, "l0")
        attempts.margins.append(margin)
        gradient = classifier.log_odds_gradient(pixels)
        first = gradient.copy() if i == 0 else first
        if most is not None:
            number = most
        elif attempts.distance < math.inf:
            change = sparse._LAST_CHANGE + (sparse._FIRST_CHANGE - sparse._LAST_CHANGE) * c
            fewer, more = math.floor(number * (1 - change)), math.ceil(number * (1 + change))
            number = min(min(fewer, number - 1) if leads else max(more, number + 1), attempts.distance - 1)
        else:
            lacking = float((gradient * (pixels - original)).sum()) - margin
            number = max(linear_need(gradient, original, lacking), length_of(pixels - original, "l0") + 1)
        number = min(max(number, 1), total)
        magnitude = float(np.abs(gradient).sum())
        direction = sparse._MOMENTUM * direction + (gradient / magnitude if magnitude > 0 else 0.0)
        stride = sparse._LAST_STEP + (sparse._FIRST_STEP - sparse._LAST_STEP) * c
        pixels = kept(original, direction, np.clip(pixels + stride * np.sign(direction), 0, 1), number)
    attempts.margins.append(classifier.look(attempts, pixels, "l0")[0])
    if most is not None:
        return attempts, True

    best, high = attempts.pixels, min(attempts.distance, total)
    low = math.floor(high / 2)
    for _ in range(sparse._DROPS):
        middle = math.floor((low + high) / 2)
        leads = classifier.look(attempts, kept(original, direction, best, middle), "l0")[1]
        low, high = (low, middle) if leads else (middle, high)
    found = min(attempts.distance, total)
    fewer = min(math.floor(sparse._SHORT_OF * found), found - 1)
    alone = kept(original, first, np.clip(original + np.sign(first), 0, 1), fewer)
    return attempts, not classifier.look(attempts, alone, "l0")[1] or found == 0


def kept(original: Array, slopes: Array, pixels: Array, number: float) -> Array:
    """Of the pixels that differ only so many: those whose change gains most along the slopes."""
    moved = [(y, x) for y, x in places_of(original) if any(pixels[:, y, x] != original[:, y, x])]
    gains = {(y, x): float((slopes[:, y, x] * (pixels[:, y, x] - original[:, y, x])).sum()) for y, x in moved}
    result = original.copy()
    for rank, (y, x) in enumerate(sorted(moved, key=lambda place: -gains[place])):
        if rank < number:
            result[:, y, x] = pixels[:, y, x]
    return result


def linear_need(gradient: Array, original: Array, lacking: float) -> int:
    """How many pixels gain what is lacking, each changed as far as it can be along the gradient."""
    room = np.where(gradient > 0, 1 - original, original)
    gains = sorted((np.abs(gradient) * room).sum(axis=0).flat, reverse=True)
    for number, gain in enumerate(gains, start=1):
        lacking -= float(gain)
        if lacking <= 0:
            return number
    return len(gains)


def ranks_of(heatmap: Array) -> NDArray[np.int64]:
    """The place of each patch (h, w) from the highest value down; of equal ones the first, row by row, is ahead."""
    places = np.zeros(heatmap.shape, dtype=np.int64)
    patches = [(row, column) for row in range(heatmap.shape[0]) for column in range(heatmap.shape[1])]
    ordered = sorted(patches, key=lambda patch: (-heatmap[patch], patch))
    for place, patch in enumerate(ordered):
        places[patch] = place
    return places


def mask_of(ranks: NDArray[np.int64], number: int, patch: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W): the pixels of the first ``number`` patches of a ranking (h, w), of ``patch`` pixels each."""
    height, width = ranks.shape[0] * patch[0], ranks.shape[1] * patch[1]
    mask = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            mask[y, x] = ranks[y // patch[0], x // patch[1]] < number
    return mask


def share_changed(original: Array, pixels: Array, ranks: NDArray[np.int64], patch: tuple[int, int]) -> float:
    """The share of the patches from the top of the ranking down to the last in which a pixel (C, H, W) changed."""
    last = 0
    for row in range(ranks.shape[0]):
        for column in range(ranks.shape[1]):
            area = np.s_[:, row * patch[0] : (row + 1) * patch[0], column * patch[1] : (column + 1) * patch[1]]
            if (original[area] != pixels[area]).any():
                last = max(last, int(ranks[row, column]) + 1)
    return last / ranks.size
