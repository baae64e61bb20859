"""The sparse attacks of others: against subsets that are all tried, and steps that can be written down."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.references.sparse_attacks import changed, shortest_l0, sigma_zero, smooth_l0, vfga

SHAPE = (2, 2, 3)


def linear(seed: int, share: float) -> tuple[nn.Module, Tensor, np.ndarray, float]:
    """Two classes, of which the second lacks a share of what all pixels together can gain."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    image = torch.rand(SHAPE, generator=generator, dtype=torch.float64)
    need = share * float((weight.abs() * torch.where(weight > 0, 1 - image, image)).sum())

    class Model(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            margin = ((pixels - image) * weight).sum(dim=(1, 2, 3)) - need
            return torch.stack([torch.zeros_like(margin), margin], dim=1)

    return Model(), image, weight.numpy(), need


def of_all_subsets(weight: np.ndarray, need: float, image: np.ndarray) -> float:
    places = [(y, x) for y in range(SHAPE[1]) for x in range(SHAPE[2])]
    for number in range(len(places) + 1):
        for subset in combinations(places, number):
            gain = 0.0
            for y, x in subset:
                for channel in range(SHAPE[0]):
                    slope, value = weight[channel, y, x], image[channel, y, x]
                    gain += max(slope * (1 - value), -slope * value)
            if gain >= need:
                return float(number)
    return math.inf


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.8, 0.99, 1.2])
@pytest.mark.parametrize("seed", range(3))
def test_the_fewest_pixels_of_a_linear_model_are_those_of_all_subsets(seed: int, share: float) -> None:
    _, image, weight, need = linear(seed, share)
    assert shortest_l0(weight, need, image.numpy()) == of_all_subsets(weight, need, image.numpy())


def test_the_smooth_count_nears_the_count() -> None:
    delta = torch.zeros(3, 2, 2, dtype=torch.float64)
    delta[:, 0, 1], delta[1, 1, 0] = 0.6, -0.5
    assert changed(delta) == 2
    assert float(smooth_l0(delta, 1e-9)) == pytest.approx(2, abs=1e-6)
    assert float(smooth_l0(delta, 0.25)) == pytest.approx(1.08 / 1.33 + 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_sigma_zero_on_a_linear_model_comes_near_and_never_below(seed: int) -> None:
    model, image, weight, need = linear(seed, 0.4)
    exact = shortest_l0(weight, need, image.numpy())
    found = sigma_zero(model, image, 1, 200)
    assert exact <= found.number <= exact + 1
    assert float(model(found.pixels[None])[0, 1]) > 0
    assert changed(found.pixels - image) == found.number


def test_the_first_step_of_sigma_zero_goes_to_the_corner() -> None:
    """δ = 0 has no smooth count to descend: every value moves by η₀ = 1 along its slope, and none is below τ."""
    model, image, weight, _ = linear(0, 0.4)
    found = sigma_zero(model, image, 1, 2)
    corner = torch.from_numpy((weight > 0).astype(float))
    small = (corner - image).abs().amax(0) < 0.3 - 0.01  # τ has fallen once, as the target did not lead
    expected = torch.where(small, image, corner)
    torch.testing.assert_close(found.pixels, expected)


@pytest.mark.parametrize("seed", range(3))
def test_vfga_changes_a_value_a_step_until_the_target_leads(seed: int) -> None:
    model, image, weight, need = linear(seed, 0.4)
    found = vfga(model, image, 1, 12)
    assert float(model(found.pixels[None])[0, 1]) > 0
    assert int((found.pixels != image).sum()) == found.gradients
    assert found.number == changed(found.pixels - image) >= shortest_l0(weight, need, image.numpy())
    assert ((found.pixels >= 0) & (found.pixels <= 1)).all()


def test_vfga_with_too_few_steps_fails_and_returns_the_image() -> None:
    model, image, _, _ = linear(0, 0.9)
    found = vfga(model, image, 1, 1)
    assert found.number == math.inf
    assert torch.equal(found.pixels, image)
