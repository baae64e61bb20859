"""SaCo against a slow reference and models of which it is known on paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_attngrad.metrics.functional import group_drops, saco
from tests.metrics.functional.test_faithfulness import GRIDS, Noisy, _images, _linear, _maps, _model, _zeros
from tests.references import faithfulness as reference
from tests.references import saco as slow


@pytest.mark.parametrize(("size", "grid"), GRIDS)
@pytest.mark.parametrize("replacement", ["mean", "blur"])
@pytest.mark.parametrize("groups", [2, 3, 10])
def test_equals_the_reference(size, grid, replacement, groups) -> None:
    groups = min(groups, grid[0] * grid[1])
    model, images, heatmap, target = _model(size), _images(size), _maps(grid), torch.tensor([1, 2])
    found = group_drops(model, images, heatmap, target, groups=groups, replacement=replacement, batch=5)
    for index in range(len(images)):

        def probability(image: np.ndarray, index: int = index) -> float:
            logits = model(torch.tensor(image, dtype=torch.float32)[None]).detach()[0].double().numpy()
            return float(np.exp(logits[target[index]]) / np.exp(logits).sum())

        image, ranked = images[index].double().numpy(), heatmap[index].double().numpy()
        instead = reference.mean_colour(image) if replacement == "mean" else reference.blurred(image, grid)
        drops = [slow.drop(probability, image, instead, grid, group) for group in slow.groups(ranked, groups)]
        assert found.drop[index].tolist() == pytest.approx(drops, abs=1e-6)
        assert float(found.saco[index]) == pytest.approx(
            slow.saco(probability, image, ranked, instead, groups), abs=1e-6
        )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.booleans())
def test_the_coefficient_equals_the_reference(seed: int, groups: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    salience = torch.randn(4, groups, generator=generator).sort(dim=1, descending=True).values
    drop = torch.randn(4, groups, generator=generator)
    if ties:
        salience, drop = salience.round(), drop.round()
    found = saco(salience, drop)
    expected = [slow.coefficient(s.tolist(), d.tolist()) for s, d in zip(salience, drop, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert ((found.abs() <= 1 + 1e-6) | found.isnan()).all()
    torch.testing.assert_close(saco(3 * salience + 1, drop), found, equal_nan=True, atol=1e-5, rtol=0)
    order = torch.randperm(groups, generator=generator)
    torch.testing.assert_close(saco(salience[:, order], drop[:, order]), found, equal_nan=True, atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8, 16]))
def test_true_contributions_have_1_and_their_reverse_minus_1(seed: int, groups: int) -> None:
    model, images, contribution = _linear(seed)
    asked = model, images
    torch.testing.assert_close(group_drops(*asked, contribution, _zeros(3), groups=groups).saco, torch.ones(3))
    torch.testing.assert_close(group_drops(*asked, -contribution, _zeros(3), groups=groups).saco, -torch.ones(3))


def test_random_maps_have_0_on_average() -> None:
    model, images, _ = _linear(0, batch=1)
    many = images.expand(400, -1, -1, -1)
    found = group_drops(model, many, _maps((4, 4), batch=400), _zeros(400), groups=8).saco
    assert abs(float(found.mean())) < 4 * float(found.std()) / 20
    assert float(found.std()) > 0.1


def test_margins_count_and_not_the_order_alone() -> None:
    drop = torch.tensor([[0.3, 0.1, 0.2]])
    close, far = torch.tensor([[1.0, 0.11, 0.1]]), torch.tensor([[1.0, 0.9, 0.1]])
    assert float(saco(close, drop)) > 0.98  # wrong about two groups that it calls almost alike
    assert float(saco(far, drop)) == pytest.approx((0.1 + 0.9 - 0.8) / 1.8)


def test_how_many_go_at_once_and_with_whom_does_not_matter() -> None:
    model, images, heatmap, target = _model((8, 8)), _images((8, 8), 5), _maps((4, 4), 5), torch.tensor([0, 1, 2, 0, 1])
    expected = group_drops(model, images, heatmap, target, groups=8, batch=1000)
    for batch in (1, 7):
        found = group_drops(model, images, heatmap, target, groups=8, batch=batch)
        torch.testing.assert_close(found.drop, expected.drop)
        torch.testing.assert_close(found.saco, expected.saco)
    alone = [
        group_drops(model, images[i : i + 1], heatmap[i : i + 1], target[i : i + 1], groups=8).saco for i in range(5)
    ]
    torch.testing.assert_close(torch.cat(alone), expected.saco)


@pytest.mark.parametrize(("groups", "batch", "images"), [(10, 64, 4), (2, 3, 5), (16, 1, 2), (10, 64, 0)])
def test_the_number_of_forwards_is_known_beforehand(groups: int, batch: int, images: int) -> None:
    model = _model((8, 8)).eval()
    sizes: list[int] = []

    def forward(some: Tensor) -> Tensor:
        sizes.append(len(some))
        return model(some)

    found = group_drops(
        model,
        _images((8, 8), images),
        _maps((4, 4), images),
        _zeros(images),
        groups=groups,
        batch=batch,
        forward=forward,
    )
    rows = (groups + 1) * images
    assert sum(sizes) == rows
    assert len(sizes) == math.ceil(rows / batch)
    assert found.salience.shape == found.drop.shape == (images, groups)


def test_where_there_is_no_number() -> None:
    model, images = _model((8, 8)), _images((8, 8), 5)
    heatmap = _maps((4, 4), 5)
    heatmap[0], heatmap[1, 0, 0], heatmap[2, 3, 3] = 0.7, math.nan, -math.inf
    images[3] = math.nan  # and with them the output
    found = group_drops(model, images, heatmap, _zeros(5), groups=4)
    assert found.saco.isnan().tolist() == [True, True, True, True, False]
    assert found.salience.isnan().all(dim=1).tolist() == [False, True, True, False, False]
    assert found.drop.isnan().all(dim=1).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_left_behind(around: Any) -> None:
    model = Noisy().train()
    with around():
        images, heatmap = _images((8, 8)), _maps((4, 4))
        before, state = images.clone(), torch.get_rng_state()
        found = group_drops(model, images, heatmap, _zeros(2))
        again = group_drops(model, images, heatmap, _zeros(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert torch.equal(found.drop, again.drop)  # no dropout
    assert not found.drop.is_inference()
    assert not found.salience.is_inference()
    assert model.training
    assert float(model.calls) == 0


def test_a_model_that_crops_is_measured_as_it_is_on_the_crop() -> None:
    generator = torch.Generator().manual_seed(5)
    inner, images = _model((12, 8), channels=1), torch.randn(2, 1, 18, 14, generator=generator)
    heatmap, target, top, left = torch.rand(2, 3, 2, generator=generator), torch.tensor([0, 2]), 4, 1

    class Crops(nn.Module):
        def forward(self, whole: Tensor) -> Tensor:
            return inner(whole[..., top : top + 12, left : left + 8])

    expected = group_drops(inner, images[..., top : top + 12, left : left + 8], heatmap, target, groups=3)
    found = group_drops(Crops(), images, heatmap, target, groups=3, area=(top, left, top + 12, left + 8))
    torch.testing.assert_close(found.drop, expected.drop)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"groups": 1}, "groups: got 1 of 16 patches"),
    ({"groups": 17}, "groups: got 17 of 16 patches"),
    ({"groups": 2.0}, "groups: got 2.0; expected a positive int"),
    ({"batch": 0}, "batch: got"),
    ({"replacement": "noise"}, "replacement: got 'noise'"),
    ({"heatmap": torch.ones(1, 4, 4)}, "heatmap: got"),
    ({"target": torch.zeros(2)}, "target: got"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], message: str) -> None:
    arguments = {"images": _images((8, 8)), "heatmap": _maps((4, 4)), "target": _zeros(2)} | wrong
    with pytest.raises(ValueError, match=message):
        group_drops(_model((8, 8)), **arguments)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (3,)), ((2, 1), (2, 1))])
def test_groups_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="salience, drop: got shapes"):
        saco(*(torch.ones(shape) for shape in shapes))
