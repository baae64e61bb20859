"""The shortest change: exact on linear models, and the naive search elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.rewrite import Normalisation, rewrite
from lightning_attngrad.rewrite.margins import TargetMargin
from lightning_attngrad.rewrite.minimal_norm import minimal_norm
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

EXACT = {"linf": reference.shortest_linf, "l2": reference.shortest_l2}
EXACT_OF_MANY = {"linf": reference.shortest_linf_of_many, "l2": reference.shortest_l2_of_many}
NORM_NAMES = list(NORMS)
SHAPE = (3, 6, 6)


def flat(tensor: Tensor) -> reference.Array:
    return np.asarray(tensor.detach().flatten().double().numpy())


def photo(seed: int) -> Tensor:
    """A third of the pixels are black or white, so that the box is in the way of half of those."""
    image = random(*SHAPE, seed=seed)
    return torch.where(random(*SHAPE, seed=seed + 1000) < 1 / 3, image.round(), image)


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_the_exact_distances_agree_with_the_programs(norm: str) -> None:
    """Closed forms against linprog and SLSQP, with the box in the way and without."""
    for seed, need in ((0, 0.01), (1, 0.1), (2, 0.25)):
        image = random(2, 3, 3, seed=seed).round() if seed == 1 else random(2, 3, 3, seed=seed)
        model, difference = two_classes(image, need, seed=seed)
        weight, bias = model.weight.detach().double().numpy(), flat(model.bias)
        lacking = float(bias[0] - bias[1] - flat(difference) @ flat(image))
        closed = EXACT[norm](flat(difference), lacking, flat(image))
        assert closed == pytest.approx(EXACT_OF_MANY[norm](weight, bias, flat(image), 1), rel=1e-5)
        free = EXACT[norm](flat(difference), lacking)
        assert free < closed * (0.9999 if seed == 1 else 1.0001)
        assert EXACT[norm](flat(difference), 1e6, flat(image)) == math.inf


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_two_linear_classes_within_1_per_cent_where_the_box_is_far(seed: int, norm: str) -> None:
    image = 0.4 + 0.2 * random(*SHAPE, seed=seed)
    need = (0.001, 0.01, 0.05)[seed % 3]
    model, difference = two_classes(image, need, seed=seed)
    exact = EXACT[norm](flat(difference), need * float(difference.abs().sum()))
    result = rewrite(model, image[None], 1, norm=norm, **PIXELS)
    assert_true_report(result, model)
    assert result.health.good.all()
    assert exact * (1 - 1e-4) <= float(result.distance) <= exact * 1.01


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_two_linear_classes_within_1_per_cent_where_the_box_is_in_the_way(seed: int, norm: str) -> None:
    image = photo(seed)
    need = (0.01, 0.03, 0.1)[seed % 3]
    model, difference = two_classes(image, need, seed=seed)
    lacking = need * float(difference.abs().sum())
    exact = EXACT[norm](flat(difference), lacking, flat(image))
    assert exact > 1.05 * EXACT[norm](flat(difference), lacking)  # it is in the way
    result = rewrite(model, image[None], 1, norm=norm, **PIXELS)
    assert_true_report(result, model)
    assert exact * (1 - 1e-4) <= float(result.distance) <= exact * 1.01


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_the_distance_is_in_pixels_whatever_the_normalisation(norm: str) -> None:
    image = photo(0)
    model, difference = two_classes(image, 0.03)
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    exact = EXACT[norm](flat(difference), 0.03 * float(difference.abs().sum()), flat(image))

    def of_normalised(images: Tensor) -> Tensor:
        return model(images * std + mean)

    options = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    result = rewrite(model, ((image - mean) / std)[None], 1, norm=norm, forward=of_normalised, **options)
    assert_true_report(result, of_normalised)
    assert float(result.distance) == pytest.approx(exact, rel=0.01)


def ratios_to_exact(classes: int, norm: str, *, steps: int = 16, sharpness: float = 10.0) -> list[float]:
    """Of nine images of three linear models with logits of about ``7 · sharpness``."""
    ratios = []
    for seed in range(3):
        model, images = linear_model(classes, 48, seed), random(3, 3, 4, 4, seed=seed)
        model.requires_grad_(False)
        model.weight *= sharpness
        model.bias *= sharpness
        target = others(model, images)
        weight, bias = model.weight.double().numpy(), flat(model.bias)
        result = rewrite(model, images, target, norm=norm, steps=steps, **PIXELS)
        assert_true_report(result, model)
        for row, image in enumerate(images):
            exact = EXACT_OF_MANY[norm](weight, bias, flat(image), int(target[row]))
            ratios.append(float(result.distance[row]) / exact)
    assert min(ratios) > 1 - 1e-4  # nothing is shorter than the shortest
    return sorted(ratios)


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_many_linear_classes_within_a_few_per_cent(classes: int, norm: str) -> None:
    ratios = ratios_to_exact(classes, norm)
    assert ratios[-1] < 1.06
    assert ratios[4] < 1.01


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_flat_logits_cost_more(norm: str) -> None:
    """Climbed are the log-odds, whose gradient is not the margin's where several rivals are equally probable."""
    assert ratios_to_exact(5, norm, sharpness=1.0)[-1] < 1.2


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_more_steps_come_closer(norm: str) -> None:
    few, many = (ratios_to_exact(10, norm, steps=steps) for steps in (4, 64))
    assert many[-1] < few[-1]
    assert many[-1] < 1.03


def searched(model: nn.Module, pixels: Tensor, target: Tensor, norm: str, steps: int) -> tuple[Search, Tensor]:
    """In float64, as the naive search is: the two part ways at a rounding otherwise."""
    margin = TargetMargin(model, Normalisation((0.0,), (1.0,), ""), target)
    search = Search(margin, pixels)
    return search, minimal_norm(search, NORMS[norm], steps, None)


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize(
    ("build", "shape", "steps"),
    [(perceptron, (3, 2, 2), 16), (lambda: linear_model(3, 48), (3, 4, 4), 5), (tiny_vit, (3, 32, 32), 6)],
)
def test_all_rows_at_once_as_one_after_the_other(
    build: Callable[[], nn.Module], shape: tuple[int, ...], steps: int, norm: str
) -> None:
    model = build().double().requires_grad_(False)
    pixels = random(4, *shape, seed=1).double()
    pixels[0] = pixels[0].round()
    target = others(model, pixels)
    target[1] = model(pixels).argmax(1)[1]  # is of the class already
    search, falls_short = searched(model, pixels, target, norm, steps)
    trace = torch.stack(search.trace)
    for row in range(4):
        naive, alone = reference.minimal_norm(model, pixels[row].numpy(), int(target[row]), norm, steps)
        assert float(search.cost[row]) == pytest.approx(naive.distance, rel=1e-6)
        np.testing.assert_allclose(trace[:, row].numpy(), naive.margins, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(search.best[row].numpy(), naive.pixels, atol=1e-6)
        assert bool(falls_short[row]) == alone
    assert naive.passes == steps + 7
    assert search.found[[0, 2, 3]].any()


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_every_image_costs_the_same_passes(norm: str) -> None:
    """16 gradients and 7 forward passes, however easy or hard it is."""
    model, images = linear_model(3, 48), random(3, 3, 4, 4)
    easy, hard = model(images).argmax(1), others(model, images)
    never = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).requires_grad_(False)
    never[1].weight.zero_()
    for network, target in ((model, easy), (model, hard), (never, torch.zeros(3, dtype=torch.int64))):
        counted = Counted(network)
        rewrite(counted, images, target, norm=norm, **PIXELS)
        assert counted.forwards == 16 + 7
        assert counted.gradients == 16
        assert counted.batches == {3}


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_an_image_of_the_class_needs_no_change(norm: str) -> None:
    model, images = linear_model(4, 48), random(3, 3, 4, 4)
    result = rewrite(model, images, model(images).argmax(1), norm=norm, **PIXELS)
    assert result.success.all()
    assert result.distance.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(result.pixels, result.original)
    assert result.health.good.all()


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_a_failure_is_infinitely_far_and_shows_the_closest_attempt(norm: str) -> None:
    """Class 1 gains on the way to white and yet never leads."""

    def forward(images: Tensor) -> Tensor:
        brightness = images.mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(brightness), brightness - 2], dim=1)

    images = random(2, 3, 4, 4)
    result = rewrite(nn.Identity(), images, 1, norm=norm, forward=forward, **PIXELS)
    assert not result.success.any()
    assert result.distance.tolist() == [float("inf")] * 2
    assert not result.health.huge_radius.any()
    assert not result.health.good.any()
    reached = result.logits_after[:, 1]
    assert torch.equal(reached, forward(result.images)[:, 1])
    assert (reached >= result.margin.amax(0)).all()
    assert (reached > result.logits_before[:, 1] + 0.3).all()


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_rows_do_not_depend_on_their_batch(norm: str) -> None:
    model, images = linear_model(4, 48), random(4, 3, 4, 4)
    target = others(model, images)
    together = rewrite(model, images, target, norm=norm, **PIXELS).distance
    apart = torch.cat(
        [rewrite(model, images[i : i + 1], target[i : i + 1], norm=norm, **PIXELS).distance for i in range(4)]
    )
    torch.testing.assert_close(together, apart, rtol=1e-2, atol=0)


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_the_distance_is_in_units_of_the_range_whatever_that_is(norm: str) -> None:
    image, mean, std = photo(0), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    model, _ = two_classes(image, 0.03)
    columns = [torch.tensor(values)[:, None, None] for values in (mean, std)]
    images = ((image - columns[0]) / columns[1])[None]

    def forward(images: Tensor) -> Tensor:
        return model(images * columns[1] + columns[0])

    in_pixels = rewrite(model, images, 1, norm=norm, forward=forward, mean=mean, std=std)
    counts = {"mean": [-100 + 10_100 * value for value in mean], "std": [10_100 * value for value in std]}
    in_counts = rewrite(model, images, 1, norm=norm, forward=forward, pixel_range=(-100, 10_000), **counts)
    assert in_counts.success.all()
    torch.testing.assert_close(in_counts.distance, in_pixels.distance, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(in_counts.original, in_pixels.original, rtol=0, atol=1e-5)
    torch.testing.assert_close(in_counts.images, in_pixels.images, rtol=1e-2, atol=1e-2)


def test_images_that_lie_in_a_range_as_they_are() -> None:
    image = photo(0)
    model, _ = two_classes(image, 0.03)
    plain = rewrite(model, image[None], 1, **PIXELS)
    in_bytes = rewrite(model, 255 * image[None], 1, pixel_range=(0, 255), forward=lambda images: model(images / 255))
    torch.testing.assert_close(in_bytes.distance, plain.distance, rtol=1e-3, atol=1e-6)
    assert float(in_bytes.images.max()) > 1
