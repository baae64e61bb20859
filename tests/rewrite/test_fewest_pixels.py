"""The fewest pixels: exact on linear models of two classes, and the naive search elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.rewrite import Normalisation, rewrite
from lightning_attngrad.rewrite.fewest_pixels import _places, fewest_pixels, pixels_changed
from lightning_attngrad.rewrite.margins import TargetMargin
from lightning_attngrad.rewrite.patches import rank_patches
from lightning_attngrad.rewrite.search import Search
from tests.references import rewriting as reference
from tests.references.sparse_attacks import shortest_l0, sigma_zero
from tests.rewrite.models import (
    PIXELS,
    Counted,
    Linear,
    assert_true_report,
    linear_model,
    others,
    perceptron,
    random,
    tiny_vit,
)

SHAPE = (3, 6, 6)


def image_that_lacks(share: float, seed: int) -> tuple[Linear, Tensor, float]:
    """Two linear classes, an image a third of which is black or white, and the fewest pixels that rewrite it."""
    generator = torch.Generator().manual_seed(seed)
    weight, image = torch.randn(2, math.prod(SHAPE), generator=generator), random(*SHAPE, seed=seed)
    image = torch.where(random(*SHAPE, seed=seed + 1000) < 1 / 3, image.round(), image)
    difference = (weight[1] - weight[0]).view(SHAPE)
    gains = (difference.abs() * torch.where(difference > 0, 1 - image, image)).sum()
    need = share * float(gains)
    bias = torch.stack([difference.flatten() @ image.flatten() + need, torch.zeros(())])
    exact = shortest_l0(difference.double().numpy(), need, image.double().numpy())
    return Linear(weight, bias), image, exact


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_two_linear_classes_exactly(share: float, seed: int) -> None:
    model, image, exact = image_that_lacks(share, seed)
    result = rewrite(model, image[None], 1, norm="l0", **PIXELS)
    assert_true_report(result, model)
    assert float(result.distance) == exact
    assert result.health.good.all()


def test_many_linear_classes_are_no_nearer_than_the_nearest_rival_allows() -> None:
    """Of each pair of classes the fewest are known; all rivals at once need as many as the farthest of them."""
    excess = []
    for seed in range(4):
        model, images = linear_model(5, 108, seed), random(3, *SHAPE, seed=seed)
        target = others(model, images)
        result = rewrite(model, images, target, norm="l0", steps=25, **PIXELS)
        assert_true_report(result, model)
        weight, bias = model.weight.detach().double(), model.bias.detach().double()
        for row, image in enumerate(images.double()):
            to = int(target[row])
            rivals = [one for one in range(5) if one != to]
            needs = [float((weight[one] - weight[to]) @ image.flatten() + bias[one] - bias[to]) for one in rivals]
            bounds = [
                shortest_l0((weight[to] - weight[one]).view(SHAPE).numpy(), max(need, 0.0), image.numpy())
                for one, need in zip(rivals, needs, strict=True)
            ]
            excess.append(float(result.distance[row]) - max(bounds))
    assert min(excess) >= 0
    assert sorted(excess)[len(excess) // 2] <= 1


@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize(
    ("build", "shape", "steps"),
    [
        (perceptron, (3, 2, 2), 16),
        (lambda: linear_model(3, 48), (3, 4, 4), 5),
        (tiny_vit, (3, 32, 32), 6),
        (tiny_vit, (3, 32, 32), 2),  # so far from the end that pixels can be dropped
    ],
)
def test_all_rows_at_once_as_one_after_the_other(
    build: Callable[[], nn.Module], shape: tuple[int, ...], steps: int, most: int | None
) -> None:
    """In float64, as the naive search is: the two part ways at a rounding otherwise."""
    model = build().double().requires_grad_(False)
    pixels = random(4, *shape, seed=1).double()
    pixels[0] = pixels[0].round()
    target = others(model, pixels)
    target[1] = model(pixels).argmax(1)[1]  # is of the class already
    search = Search(TargetMargin(model, Normalisation((0.0,), (1.0,), ""), target), pixels)
    falls_short = fewest_pixels(search, steps, most, None)
    trace = torch.stack(search.trace)
    for row in range(4):
        naive, alone = reference.fewest_pixels(model, pixels[row].numpy(), int(target[row]), steps, most)
        assert float(search.cost[row]) == naive.distance
        np.testing.assert_allclose(trace[:, row].numpy(), naive.margins, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(search.best[row].numpy(), naive.pixels, atol=1e-6)
        assert bool(falls_short[row]) == alone
    assert naive.passes == steps + (7 if most is None else 1)
    assert most is not None or search.found.all()


def test_fewer_than_sigma_zero_with_as_many_gradients() -> None:
    """On a transformer of random weights, image by image; docs/rewriting.md has trained ones."""
    model, images = tiny_vit(), random(6, 3, 32, 32)
    target = others(model, images)
    result = rewrite(model, images, target, norm="l0", steps=25, **PIXELS)
    assert_true_report(result, model)
    theirs = [sigma_zero(model, image, int(to), 25).number for image, to in zip(images, target, strict=True)]
    assert all(mine < number for mine, number in zip(result.distance.tolist(), theirs, strict=True))


@pytest.mark.parametrize("number", [1, 5, 9, 16])
def test_the_pixels_that_are_kept_are_those_that_gain_most(number: int) -> None:
    """What is as it was comes last, also after what loses."""
    original, slopes = random(3, 2, 4, 4).double(), random(3, 2, 4, 4, seed=1).double() - 0.7
    pixels = torch.where(random(3, 1, 4, 4, seed=2) < 0.6, 1.0, original)
    kept = torch.where(_places(slopes, pixels, original) < number, pixels, original)
    for row in range(3):
        expected = reference.kept(*(batch[row].numpy() for batch in (original, slopes, pixels)), number)
        np.testing.assert_array_equal(kept[row].numpy(), expected)


def test_a_pixel_counts_once_with_all_its_channels() -> None:
    original = random(2, 3, 4, 4)
    pixels = original.clone()
    pixels[0, :, 1, 2] += 0.5
    pixels[0, 2, 3, 3] += 0.5
    assert pixels_changed(pixels, original).tolist() == [2.0, 0.0]


@pytest.mark.parametrize(("radius", "number"), [(1, 1), (3.7, 3), (16, 16), (10**6, 16)])
def test_a_radius_is_a_number_of_pixels_that_is_never_exceeded(radius: float, number: int) -> None:
    model, images = linear_model(3, 48), random(4, 3, 4, 4)
    result = rewrite(model, images, others(model, images), norm="l0", radius=radius, steps=6, **PIXELS)
    assert_true_report(result, model)
    changed = pixels_changed(result.pixels, result.original)
    assert (changed <= number).all()
    assert result.success.all() or number < 16
    assert (result.distance[result.success] <= radius).all()


@pytest.mark.parametrize(("share", "number"), [(0.25, 4), (1.0, 16)])
def test_nothing_changes_outside_the_top_share(share: float, number: int) -> None:
    model, images = tiny_vit(), random(3, 3, 32, 32)
    target = others(model, images)
    result = rewrite(model, images, target, norm="l0", steps=6, top_share=share, **PIXELS)
    assert_true_report(result, model)
    ranks = rank_patches(model, result.original, target, model).ranks
    free = torch.from_numpy(np.stack([reference.mask_of(rank.numpy(), number, (8, 8)) for rank in ranks]))[:, None]
    changed = result.pixels != result.original
    assert not (changed & ~free).any()
    assert (changed & free).any()


def test_every_image_costs_the_same_passes() -> None:
    model, images = linear_model(3, 48), random(3, 3, 4, 4)
    never = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).requires_grad_(False)
    never[1].weight.zero_()
    easy, hard = model(images).argmax(1), others(model, images)
    for network, target in ((model, easy), (model, hard), (never, torch.zeros(3, dtype=torch.int64))):
        for radius, passes in ((None, 7), (4, 1)):
            counted = Counted(network)
            rewrite(counted, images, target, norm="l0", radius=radius, **PIXELS)
            assert (counted.forwards, counted.gradients, counted.batches) == (16 + passes, 16, {3})


def test_an_image_of_the_class_needs_no_change() -> None:
    model, images = linear_model(4, 48), random(3, 3, 4, 4)
    result = rewrite(model, images, model(images).argmax(1), norm="l0", **PIXELS)
    assert result.success.all()
    assert result.distance.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(result.pixels, result.original)
    assert result.health.good.all()


def test_a_failure_is_infinitely_far_and_shows_the_closest_attempt() -> None:
    """Class 1 gains on the way to white and yet never leads."""

    def forward(images: Tensor) -> Tensor:
        brightness = images.mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(brightness), brightness - 2], dim=1)

    images = random(2, 3, 4, 4)
    result = rewrite(nn.Identity(), images, 1, norm="l0", forward=forward, **PIXELS)
    assert result.distance.tolist() == [math.inf] * 2
    assert not result.health.good.any()
    assert torch.equal(result.pixels, torch.ones_like(images))


def test_a_single_step_in_fewer_pixels_shows() -> None:
    """The slope is so faint that all pixels are changed, and any number but all of them would do."""

    def forward(images: Tensor) -> Tensor:
        white = (images > 0.9).all(dim=1).flatten(1).sum(dim=1)
        logit = 1e-3 * images.mean(dim=(1, 2, 3)) - 0.5 + ((white > 0) & (white < 16)).float()
        return torch.stack([torch.zeros_like(logit), logit], dim=1)

    result = rewrite(nn.Identity(), torch.full((2, 3, 4, 4), 0.25), 1, norm="l0", forward=forward, steps=4, **PIXELS)
    assert_true_report(result, forward)
    assert result.success.all()
    assert not result.health.beats_one_step.any()


def test_rows_do_not_depend_on_their_batch() -> None:
    model, images = linear_model(4, 48), random(4, 3, 4, 4)
    target = others(model, images)
    together = rewrite(model, images, target, norm="l0", **PIXELS).distance
    apart = [
        float(rewrite(model, images[i : i + 1], target[i : i + 1], norm="l0", **PIXELS).distance) for i in range(4)
    ]
    assert together.tolist() == apart
