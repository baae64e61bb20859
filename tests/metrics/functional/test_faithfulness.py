"""Faithfulness curves against a slow reference, Quantus and a model whose curves are known on paper."""

from __future__ import annotations

import math
import os
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_attngrad.metrics.functional import Faithfulness, area_under_curve, faithfulness_curves
from tests.references import faithfulness as reference

GRIDS = [((8, 8), (4, 4)), ((6, 9), (3, 3)), ((9, 7), (2, 3)), ((5, 5), (5, 5)), ((4, 6), (1, 2))]


def _model(size: tuple[int, int], classes: int = 3, channels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], 8), nn.Tanh(), nn.Linear(8, classes))


def _images(size: tuple[int, int], batch: int = 2, channels: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def _maps(grid: tuple[int, int], batch: int = 2, seed: int = 2) -> Tensor:
    return torch.randn(batch, *grid, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """The probability of class 0 is Σ weight · patch mean: known on paper for every set of replaced patches."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (h, w), sums to 1

    def forward(self, images: Tensor) -> Tensor:
        patches = nn.functional.adaptive_avg_pool2d(images, self.weight.shape)[:, 0]  # (B, h, w)
        probability = (patches * self.weight).sum(dim=(1, 2))
        return torch.stack([probability, 1 - probability], dim=1).log()


def _linear(seed: int, grid: tuple[int, int] = (4, 4), batch: int = 3) -> tuple[Linear, Tensor, Tensor]:
    """The model, images, and how much each patch contributes beyond the mean colour (B, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(grid, generator=generator).square()
    model = Linear(weight / weight.sum())
    brightness = 0.1 + 0.8 * torch.rand(batch, *grid, generator=generator)
    images = brightness.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)[:, None]
    contribution = model.weight.detach() * (brightness - brightness.mean(dim=(1, 2), keepdim=True))
    return model, images, contribution


def _zeros(batch: int) -> Tensor:
    return torch.zeros(batch, dtype=torch.long)


@pytest.mark.parametrize(("size", "grid"), GRIDS)
@pytest.mark.parametrize("replacement", ["mean", "blur"])
@pytest.mark.parametrize("levels", [None, 1])
def test_equals_the_reference(size, grid, replacement, levels) -> None:
    model, images, heatmap, target = _model(size), _images(size), _maps(grid), torch.tensor([1, 2])
    if levels is not None:
        heatmap = (heatmap * levels).round()  # most patches are tied
    steps = 5
    found = faithfulness_curves(model, images, heatmap, target, steps=steps, replacement=replacement, batch=7)
    for index in range(len(images)):

        def probability(image: np.ndarray, index: int = index) -> float:
            logits = model(torch.tensor(image, dtype=torch.float32)[None]).detach()[0].double().numpy()
            return float(np.exp(logits[target[index]]) / np.exp(logits).sum())

        image, ranked = images[index].double().numpy(), heatmap[index].numpy()
        instead = reference.mean_colour(image) if replacement == "mean" else reference.blurred(image, grid)
        curves = {
            order: reference.curve(probability, image, ranked, instead, steps, order)
            for order in ("morf", "lerf", "insertion")
        }
        assert found.morf[index].tolist() == pytest.approx(curves["morf"], abs=1e-6)
        assert found.lerf[index].tolist() == pytest.approx(curves["lerf"], abs=1e-6)
        patches = grid[0] * grid[1]
        deletion, kept = (reference.area(curves[order], patches) for order in ("morf", "lerf"))
        assert float(found.deletion[index]) == pytest.approx(deletion, abs=1e-6)
        assert float(found.srg[index]) == pytest.approx(kept - deletion, abs=1e-6)
        if patches % steps == 0 or steps % patches == 0:  # else shares of whole patches round one way at each end
            assert found.insertion_curve[index].tolist() == pytest.approx(curves["insertion"], abs=1e-6)
            assert float(found.insertion[index]) == pytest.approx(
                reference.area(curves["insertion"], patches), abs=1e-6
            )


@pytest.mark.parametrize("steps", [4, 8, 16])
def test_insertion_sees_the_images_of_lerf_from_the_other_end(steps: int) -> None:
    size, grid = (8, 8), (4, 4)
    model, images, heatmap = _model(size), _images(size, 1), _maps(grid, 1)
    found = faithfulness_curves(model, images, heatmap, torch.tensor([1]), steps=steps)

    def probability(image: np.ndarray) -> float:
        return float(model(torch.tensor(image)[None]).softmax(dim=1)[0, 1].detach())

    image = images[0].numpy()
    expected = reference.curve(probability, image, heatmap[0].numpy(), reference.mean_colour(image), steps, "insertion")
    assert found.insertion_curve[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert float(found.insertion) == pytest.approx(reference.area(expected, 16), abs=1e-6)


@pytest.mark.parametrize("patches_in_step", [1, 2, 4])
def test_equals_quantus(patches_in_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its PixelFlipping, of which a step takes whole patches, in images whose mean colour is 0."""
    monkeypatch.setenv("LD_LIBRARY_PATH", os.environ.get("LD_LIBRARY_PATH", ""))  # its OpenCV writes there
    quantus = pytest.importorskip("quantus")
    grid, patch, channels = (4, 4), 2, 4  # it asks that a step divides the pixels of one channel
    size = (grid[0] * patch, grid[1] * patch)
    images = _images(size, batch=4, channels=channels)
    images -= images.mean(dim=(-2, -1), keepdim=True)
    model, heatmap, target = _model(size, channels=channels).eval(), _maps(grid, batch=4), torch.tensor([0, 2, 1, 1])
    found = faithfulness_curves(model, images, heatmap, target, steps=16 // patches_in_step)

    def flipped(maps: Tensor) -> Tensor:
        metric = quantus.PixelFlipping(
            features_in_step=channels * patch * patch * patches_in_step,
            normalise=False,
            perturb_baseline=0.0,
            disable_warnings=True,
        )
        pixels = maps.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            curves = metric(
                model=model,
                x_batch=images.numpy(),
                y_batch=target.numpy(),
                a_batch=pixels.expand_as(images).numpy(),
                softmax=True,
                channel_first=True,
                device="cpu",
            )
        return torch.tensor(np.array(curves), dtype=torch.float32)

    torch.testing.assert_close(found.morf[:, 1:], flipped(heatmap), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.lerf[:, 1:], flipped(-heatmap), atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 4, 16]))
def test_a_linear_model_has_its_curves_on_paper(seed: int, steps: int) -> None:
    model, images, contribution = _linear(seed)
    found = faithfulness_curves(model, images, contribution, _zeros(3), steps=steps)
    whole = model(images).exp()[:, :1].detach()
    falling = contribution.flatten(1).sort(dim=1, descending=True).values
    for curve, order in ((found.morf, falling), (found.lerf, falling.flip(1))):
        lost = torch.cat([torch.zeros(3, 1), order.cumsum(dim=1)], dim=1)[:, :: 16 // steps]
        torch.testing.assert_close(curve, whole - lost, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.srg, found.insertion - found.deletion)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_a_perfect_map_gains_most_and_its_reverse_loses_as_much(seed: int) -> None:
    model, images, contribution = _linear(seed)
    random = _maps((4, 4), batch=3, seed=seed)
    gains = [
        faithfulness_curves(model, images, heatmap, _zeros(3)).srg for heatmap in (contribution, random, -contribution)
    ]
    assert (gains[0] > gains[1]).all()
    assert (gains[1] > gains[2]).all()
    torch.testing.assert_close(gains[2], -gains[0], atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from(["mean", "blur"]), st.sampled_from(GRIDS))
def test_the_negated_map_swaps_the_curves(seed: int, steps: int, replacement: Any, sizes: Any) -> None:
    size, grid = sizes
    model, images, heatmap, target = _model(size), _images(size), _maps(grid, seed=seed), torch.tensor([0, 1])
    one, other = (
        faithfulness_curves(model, images, sign * heatmap, target, steps=steps, replacement=replacement)
        for sign in (1, -1)
    )
    torch.testing.assert_close(one.morf, other.lerf)
    torch.testing.assert_close(one.lerf, other.morf)
    torch.testing.assert_close(one.srg, -other.srg)
    scaled = faithfulness_curves(model, images, 3 * heatmap + 1, target, steps=steps, replacement=replacement)
    torch.testing.assert_close(scaled.srg, one.srg)  # only the order counts


def test_shares_are_of_whole_patches() -> None:
    size, grid = (6, 6), (3, 3)
    found = faithfulness_curves(_model(size), _images(size), _maps(grid), _zeros(2), steps=4)
    assert (found.shares * 9).tolist() == pytest.approx([0, 2, 5, 7, 9])  # 2.25, 4.5, 6.75
    curve = found.shares.square()[None]
    assert float(area_under_curve(curve, found.shares)) == pytest.approx(reference.area(curve[0].tolist(), 9), abs=1e-6)


@pytest.mark.parametrize("replacement", ["mean", "blur"])
def test_nothing_of_a_patch_is_left_in_a_flat_image(replacement: Any) -> None:
    size = (8, 8)
    images = torch.full((1, 2, *size), 0.3)
    found = faithfulness_curves(_model(size), images, _maps((4, 4), 1), _zeros(1), replacement=replacement)
    torch.testing.assert_close(found.morf, found.morf[:, :1].expand_as(found.morf))  # up to the edge


@pytest.mark.parametrize(("steps", "batch", "images"), [(16, 64, 4), (1, 3, 5), (8, 1, 2), (5, 1000, 3), (16, 32, 0)])
def test_the_number_of_forwards_is_known_beforehand(steps: int, batch: int, images: int) -> None:
    model = _model((8, 8)).eval()
    sizes: list[int] = []

    def forward(some: Tensor) -> Tensor:
        sizes.append(len(some))
        return model(some)

    heatmap = _maps((4, 4), images)
    if images > 1:
        heatmap[0], heatmap[1] = math.nan, 0
    found = faithfulness_curves(
        model, _images((8, 8), images), heatmap, _zeros(images), steps=steps, batch=batch, forward=forward
    )
    rows = 2 * steps * images  # both ends are shared by the two orders
    assert sum(sizes) == rows
    assert len(sizes) == math.ceil(rows / batch)
    assert found.morf.shape == found.lerf.shape == (images, steps + 1)


def test_how_many_go_at_once_does_not_matter() -> None:
    arguments = _model((8, 8)), _images((8, 8), 5), _maps((4, 4), 5), _zeros(5)
    expected = faithfulness_curves(*arguments, batch=1)
    for batch in (3, 64, 1000):
        found = faithfulness_curves(*arguments, batch=batch)
        torch.testing.assert_close(found.morf, expected.morf)
        torch.testing.assert_close(found.lerf, expected.lerf)


def test_a_map_without_an_order_and_one_without_a_value() -> None:
    model, images, target = _model((8, 8)), _images((8, 8), 4), _zeros(4)
    flat = torch.zeros(4, 4, 4)
    by_place = torch.arange(16.0, 0, -1).view(1, 4, 4).expand(4, -1, -1)
    ordered = faithfulness_curves(model, images, by_place, target)
    torch.testing.assert_close(faithfulness_curves(model, images, flat, target).morf, ordered.morf)
    broken = by_place.clone()
    broken[1, 0, 0], broken[2, 3, 3] = math.nan, math.inf
    found = faithfulness_curves(model, images, broken, target)
    for numbers in (found.morf, found.lerf, found.deletion[:, None], found.insertion[:, None], found.srg[:, None]):
        assert numbers.isnan().all(dim=1).tolist() == [False, True, True, False]
        assert not numbers[[0, 3]].isnan().any()
    torch.testing.assert_close(found.srg[[0, 3]], ordered.srg[[0, 3]])


class Noisy(nn.Module):
    """Counts its calls, drops out, and overwrites what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _model((8, 8))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> SimpleNamespace:
        self.calls += 1
        images.mul_(2)
        return SimpleNamespace(logits=self.inner(self.drop(images)))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_is_left_behind(around: Any) -> None:
    model = Noisy().train()
    model.inner.eval()
    with around():
        images, heatmap = _images((8, 8)), _maps((4, 4))
        before, state = images.clone(), torch.get_rng_state()
        found = faithfulness_curves(model, images, heatmap, _zeros(2), replacement="blur")
        again = faithfulness_curves(model, images, heatmap, _zeros(2), replacement="blur")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert torch.equal(found.morf, again.morf)  # no dropout
    assert not found.morf.requires_grad
    assert not found.morf.is_inference()
    assert model.training
    assert model.drop.training
    assert not model.inner.training
    assert float(model.calls) == 0
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_model_of_one_output_is_a_binary_classifier() -> None:
    model, images, heatmap = _model((8, 8), classes=1), _images((8, 8)), _maps((4, 4))
    found = faithfulness_curves(model, images, heatmap, _zeros(2))
    torch.testing.assert_close(found.morf[:, 0], model(images)[:, 0].sigmoid().detach())
    squeezed = faithfulness_curves(model, images, heatmap, _zeros(2), forward=lambda some: model(some)[:, 0])
    assert torch.equal(squeezed.morf, found.morf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("replacement", ["mean", "blur"])
def test_in_another_type(dtype: torch.dtype, replacement: Any) -> None:
    model, images, heatmap, target = _model((8, 8)), _images((8, 8)), _maps((4, 4)), torch.tensor([1, 2])
    expected = faithfulness_curves(model, images, heatmap, target, replacement=replacement)
    found = faithfulness_curves(model.to(dtype), images.to(dtype), heatmap, target.int(), replacement=replacement)
    assert found.morf.dtype == found.srg.dtype == torch.float32
    torch.testing.assert_close(found.srg, expected.srg, atol=0.02, rtol=0)


IMAGES, MAPS, TARGET = _images((8, 8)), _maps((4, 4)), _zeros(2)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"images": IMAGES[0]}, "images: got"),
    ({"images": IMAGES.int()}, "images: got"),
    ({"heatmap": MAPS[:1]}, "heatmap: got"),
    ({"heatmap": MAPS[:, None]}, "heatmap: got"),
    ({"heatmap": MAPS.int()}, "heatmap: got"),
    ({"heatmap": torch.ones(2, 9, 4)}, "heatmap: got"),
    ({"target": TARGET[:1]}, "target: got"),
    ({"target": TARGET.float()}, "target: got"),
    ({"target": TARGET + 3}, "target: got \\[3\\]"),
    ({"target": TARGET - 1}, "target: got \\[-1\\]"),
    ({"steps": 0}, "steps: got"),
    ({"steps": True}, "steps: got"),
    ({"batch": 0}, "batch: got"),
    ({"replacement": "noise"}, "replacement: got 'noise'"),
    ({"forward": lambda some: some}, "model: its output"),
    ({"forward": lambda some: {"features": some}}, "model: its output"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], message: str) -> None:
    arguments = {"images": IMAGES, "heatmap": MAPS, "target": TARGET} | wrong
    with pytest.raises(ValueError, match=message):
        faithfulness_curves(_model((8, 8)), **arguments)


def test_the_result_tells_what_it_is() -> None:
    shares = torch.tensor([0.0, 0.5, 1.0])
    result = Faithfulness(shares, morf=torch.tensor([[1.0, 0.2, 0.0]]), lerf=torch.tensor([[1.0, 0.8, 0.0]]))
    assert result.deletion.tolist() == pytest.approx([0.35])
    assert result.insertion.tolist() == pytest.approx([0.65])
    assert result.srg.tolist() == pytest.approx([0.3])
    assert result.insertion_curve.tolist() == [[0.0, pytest.approx(0.8), 1.0]]


@pytest.mark.parametrize("replacement", ["mean", "blur"])
def test_a_model_that_crops_is_measured_as_it_is_on_the_crop(replacement: str) -> None:
    """What lies around the part that the map covers is neither replaced nor part of the replacement."""
    generator = torch.Generator().manual_seed(5)
    weights, images = torch.randn(12 * 8, 3, generator=generator), torch.randn(2, 1, 18, 14, generator=generator)
    heatmap, target, top, left = torch.rand(2, 3, 2, generator=generator), torch.tensor([0, 2]), 4, 1

    class OnCrop(nn.Module):
        def forward(self, crop: Tensor) -> Tensor:
            return crop.flatten(1) @ weights

    class Crops(nn.Module):
        def forward(self, whole: Tensor) -> Tensor:
            assert torch.equal(
                whole[..., :top, :].flatten(1).unique(dim=0), images[..., :top, :].flatten(1).unique(dim=0)
            )
            return whole[..., top : top + 12, left : left + 8].flatten(1) @ weights

    asked = {"steps": 3, "replacement": replacement}
    crop = images[..., top : top + 12, left : left + 8]
    expected = faithfulness_curves(OnCrop(), crop, heatmap, target, **asked)
    found = faithfulness_curves(Crops(), images, heatmap, target, area=(top, left, top + 12, left + 8), **asked)
    torch.testing.assert_close(found.morf, expected.morf)
    torch.testing.assert_close(found.lerf, expected.lerf)
