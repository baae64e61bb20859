"""The best margin within a radius: the bound holds, and on linear models it is reached."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_attngrad.metrics.functional import success_at
from lightning_attngrad.rewrite import Normalisation, rewrite
from lightning_attngrad.rewrite.fixed_radius import fixed_radius
from lightning_attngrad.rewrite.margins import TargetMargin
from lightning_attngrad.rewrite.norms import NORMS
from lightning_attngrad.rewrite.search import Search
from tests.references import rewriting as reference
from tests.rewrite.models import (
    PIXELS,
    Counted,
    assert_true_report,
    linear_model,
    others,
    perceptron,
    random,
    tiny_vit,
    two_classes,
)

NORM_NAMES = list(NORMS)
EXACT = {"linf": reference.shortest_linf, "l2": reference.shortest_l2}


def flat(tensor: Tensor) -> reference.Array:
    return np.asarray(tensor.detach().flatten().double().numpy())


@pytest.mark.parametrize("radius", [1 / 255, 8 / 255, 0.3, 1.0])
@pytest.mark.parametrize("norm", NORM_NAMES)
def test_no_change_is_longer_than_the_radius(norm: str, radius: float) -> None:
    """Not by a last digit either: a success at 8/255 counts at 8/255."""
    # Roots: torch.rand itself gives multiples of 2⁻²⁴ only, whose sums are all rounded alike.
    model, images = linear_model(3, 3 * 40 * 40), random(6, 3, 40, 40).sqrt()
    target = others(model, images)
    result = rewrite(model, images, target, norm=norm, radius=radius, steps=4, **PIXELS)
    assert_true_report(result, model)
    reach = NORMS[norm].length(result.pixels - result.original)
    assert (reach <= torch.tensor(radius)).all()
    assert (reach > 0.9 * radius).any()
    assert float(success_at(result.distance, [radius])) == float(result.success.float().mean())


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_two_linear_classes_switch_at_the_exact_distance(seed: int, norm: str) -> None:
    image = 0.4 + 0.2 * random(3, 5, 5, seed=seed)
    model, difference = two_classes(image, 0.02, seed=seed)
    exact = EXACT[norm](flat(difference), 0.02 * float(difference.abs().sum()))
    for factor, reached in ((0.5, False), (0.995, False), (1.005, True), (2.0, True)):
        result = rewrite(model, image[None], 1, norm=norm, radius=exact * factor, steps=2, **PIXELS)
        assert bool(result.success) == reached
        assert_true_report(result, model)


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_the_first_step_goes_to_the_edge_of_the_ball(norm: str) -> None:
    """FGSM for L∞: a step of the radius along the sign of the gradient."""
    model, images = linear_model(2, 48), 0.3 + 0.4 * random(2, 3, 4, 4)
    target = others(model, images)
    result = rewrite(model, images, target, norm=norm, radius=0.01, steps=1, **PIXELS)
    step = (model.weight[1] - model.weight[0]).detach().view(3, 4, 4) * (2 * target - 1)[:, None, None, None]
    step = step.sign() if norm == "linf" else step / step.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(result.pixels, result.original + 0.01 * step, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_all_rows_at_once_as_one_after_the_other(norm: str) -> None:
    model = perceptron().double().requires_grad_(False)
    pixels = random(4, 3, 2, 2, seed=1).double()
    target = others(model, pixels)
    radius = {"linf": 0.25, "l2": 0.55}[norm]
    search = Search(TargetMargin(model, Normalisation((0.0,), (1.0,), ""), target), pixels)
    beats = fixed_radius(search, NORMS[norm], 6, radius, None)
    for row in range(4):
        naive = reference.fixed_radius(model, pixels[row].numpy(), int(target[row]), norm, 6, radius)
        np.testing.assert_allclose(torch.stack(search.trace)[:, row].numpy(), naive.margins, atol=1e-5)
        np.testing.assert_allclose(search.best[row].numpy(), naive.pixels, atol=1e-5)
        assert bool(search.found[row]) == (naive.distance < np.inf)
        assert bool(beats[row]) == (naive.margins[-1] >= naive.margins[1])
    assert set(search.found.tolist()) == {True, False}


@pytest.mark.parametrize(("norm", "top"), [("linf", 0.16), ("l2", 5.0)])
def test_success_never_falls_as_the_radius_grows(norm: str, top: float) -> None:
    """True of one search for the shortest by construction.

    Separate searches in two balls promise nothing of the kind: in the larger one steps are longer and may jump over a
    narrow class. On this model they agree.
    """
    model, images = tiny_vit(), random(6, 3, 32, 32)
    target = others(model, images)
    radii = [top * i / 8 for i in range(1, 9)]
    distance = rewrite(model, images, target, norm=norm, **PIXELS).distance
    shares = success_at(distance, radii).tolist()
    assert shares == sorted(shares)
    apart = [rewrite(model, images, target, norm=norm, radius=radius, steps=4, **PIXELS).success for radius in radii]
    for smaller, larger in pairwise(apart):
        assert (larger | ~smaller).all()
    assert apart[0].sum() < apart[-1].sum()


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_an_image_of_the_class_is_left_alone(norm: str) -> None:
    model, images = linear_model(4, 48), random(3, 3, 4, 4)
    result = rewrite(model, images, model(images).argmax(1), norm=norm, radius=0.1, steps=3, **PIXELS)
    assert result.distance.tolist() == [0.0] * 3
    assert torch.equal(result.pixels, result.original)


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_every_image_costs_the_same_passes(norm: str) -> None:
    model, images = linear_model(3, 48), random(3, 3, 4, 4)
    for target in (model(images).argmax(1), others(model, images)):
        counted = Counted(model)
        rewrite(counted, images, target, norm=norm, radius=0.05, **PIXELS)
        assert (counted.forwards, counted.gradients) == (17, 16)


def test_health_of_a_fixed_radius_says_nothing_of_a_huge_one() -> None:
    model, images = linear_model(3, 48), random(3, 3, 4, 4)
    result = rewrite(model, images, others(model, images), radius=0.001, **PIXELS)
    assert not result.success.any()
    assert result.health.huge_radius.all()
    assert result.health.beats_one_step.all()
