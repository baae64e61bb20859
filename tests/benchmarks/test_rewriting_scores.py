"""Scores of attacks: AttackBench's optimality by its integrals, rectangle by rectangle."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from benchmarks.rewriting_scores import best_of, optimality, quantile

INF = math.inf


def area_under_robust_accuracy(distances: list[float], end: float) -> Fraction:
    """∫₀^end of the share of images that are not rewritten within a radius (equation 4), exactly."""
    edges = sorted({0.0, end, *(d for d in distances if d < end)})
    area = Fraction(0)
    for left, right in pairwise(edges):
        robust = sum(1 for d in distances if d > left)
        area += (Fraction(right) - Fraction(left)) * Fraction(robust, len(distances))
    return area


def by_the_formula(distances: list[float], best: list[float]) -> float:
    """Equation 5, all images being classified correctly."""
    end = max(d for d in best if d < INF)
    attack, reference = (area_under_robust_accuracy(values, end) for values in (distances, best))
    return float((Fraction(end) - attack) / (Fraction(end) - reference))


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(3, 17, generator=generator) + 0.2
    distances[torch.rand(3, 17, generator=generator) < 0.2] = INF
    distances[0] = distances[0].round(decimals=1)  # several at the same radius
    return distances[0], best_of(list(distances))


@pytest.mark.parametrize("seed", range(8))
def test_optimality_is_the_quotient_of_the_areas(seed: int) -> None:
    distances, best = drawn(seed)
    assert optimality(distances, best) == pytest.approx(by_the_formula(distances.tolist(), best.tolist()), abs=1e-9)
    assert 0 <= optimality(distances, best) < 1
    assert optimality(best, best) == 1


def test_an_attack_that_never_succeeds_has_none() -> None:
    _, best = drawn(0)
    assert optimality(torch.full_like(best, INF), best) == 0


def test_nothing_can_be_said_without_a_success_or_a_spread() -> None:
    never, alike = torch.full((3,), INF), torch.ones(3)
    assert math.isnan(optimality(never, never))
    assert math.isnan(optimality(alike, alike))


def test_a_failure_counts_in_every_quantile() -> None:
    values = torch.tensor([INF, 1.0, 3.0, 2.0])
    assert [quantile(values, share) for share in (0.25, 0.5, 0.75, 1.0)] == [1.0, 2.0, 3.0, INF]
