"""The public function: what it promises about every result, and what it refuses."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.attention import UnsupportedModelError
from lightning_attngrad.explain import NonFiniteOutputError
from lightning_attngrad.rewrite import TARGET_KINDS, Normalisation, UnknownNormalisationError, choose_targets, rewrite
from tests.rewrite.models import (
    ALL_NORMS,
    PIXELS,
    Counted,
    assert_true_report,
    linear_model,
    others,
    random,
    tiny_vit,
)
from tests.zoo import ZOO, logits_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATION = Normalisation(MEAN, STD, "a test")
IMAGES = random(3, 3, 32, 32)


@pytest.mark.parametrize("norm", ALL_NORMS)
@pytest.mark.parametrize("name", ["vit", "siglip", "dinov3", "torchvision", "hf_vit", "hf_dinov2_eager"])
def test_every_success_is_one_of_the_returned_images(name: str, norm: str) -> None:
    zoo = ZOO[name]
    model, pixels = zoo.build(), zoo.images(3).sigmoid()
    images = NORMALISATION.to_images(pixels)
    result = rewrite(model, images, others(model, images), norm=norm, steps=5, mean=MEAN, std=STD)
    assert_true_report(result, model)
    assert result.success.any()
    assert torch.equal(result.images, NORMALISATION.to_images(result.pixels))  # to the last bit
    assert torch.equal(result.original, NORMALISATION.to_pixels(images))
    with torch.no_grad():
        torch.testing.assert_close(result.logits_after, logits_of(model(result.images)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result.logits_before, logits_of(model(images)), rtol=1e-4, atol=1e-4)
    assert result.margin.shape == (6, 3)
    assert result.norm == norm
    assert result.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["vit", "torchvision", "siglip"])
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_successes_in_bfloat16_are_those_of_the_same_forward(name: str, how: str) -> None:
    """torchvision's attention runs on another kernel without gradients, and rounds otherwise there."""
    zoo = ZOO[name]
    model, images = zoo.build(), NORMALISATION.to_images(zoo.images(8).sigmoid())
    if how == "weights":
        model, images = model.bfloat16(), images.bfloat16()

    def forward(batch: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
            return model(batch)

    result = rewrite(model, images, "random", steps=6, mean=MEAN, std=STD, forward=forward)
    assert_true_report(result, forward)
    assert result.success.any()
    assert result.images.dtype == images.dtype
    assert torch.equal(result.images, NORMALISATION.to_images(result.pixels).to(images.dtype))
    assert result.logits_before.dtype == result.logits_after.dtype == result.margin.dtype == torch.float32


@pytest.mark.parametrize("norm", ALL_NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_is_given_images_of_the_type_that_came(dtype: torch.dtype, norm: str) -> None:
    model = tiny_vit().to(dtype)
    result = rewrite(model, IMAGES.to(dtype), "runner_up", norm=norm, steps=3, **PIXELS)
    assert_true_report(result, model)
    assert result.images.dtype == dtype


def test_logits_near_the_end_of_float16_do_not_overflow() -> None:
    def forward(batch: Tensor) -> Tensor:
        logit = 6e4 * torch.tanh(4 * (batch.mean(dim=(1, 2, 3)) - 0.6))  # of float16 up to 65504
        return torch.stack([-logit, logit], dim=1).half()

    result = rewrite(nn.Identity(), 0.2 * random(3, 3, 4, 4), 1, forward=forward, **PIXELS)
    assert float(result.margin.min()) < -1.1e5  # and the margin more
    assert_true_report(result, forward)
    assert result.success.all()
    assert result.health.good.all()


@pytest.mark.parametrize(("size", "channels"), [((32, 48), 3), ((32, 32), 1), ((48, 32), 4)])
@pytest.mark.parametrize("norm", ALL_NORMS)
def test_images_of_any_shape_and_number_of_channels(norm: str, size: tuple[int, int], channels: int) -> None:
    model, images = tiny_vit(img_size=size, in_chans=channels), random(2, channels, *size)
    result = rewrite(model, images * 2 - 1, others(model, images * 2 - 1), norm=norm, steps=4, mean=0.5, std=0.5)
    assert_true_report(result, model)
    assert result.pixels.shape == images.shape


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", TARGET_KINDS)
@pytest.mark.parametrize("norm", ALL_NORMS)
def test_two_and_three_classes_will_do(norm: str, kind: str, classes: int) -> None:
    model = tiny_vit(classes)
    result = rewrite(model, IMAGES, kind, norm=norm, steps=3, **PIXELS)
    assert_true_report(result, model)
    own = model(IMAGES).argmax(1)[result.index]
    assert (result.target != own).all()
    assert len(result.target) == 3 * (classes - 1 if kind == "all" else 1)


def test_all_gives_a_row_for_each_pair_image_by_image() -> None:
    model = linear_model(4, 48)
    images = random(3, 3, 4, 4)
    counted = Counted(model)
    result = rewrite(counted, images, "all", **PIXELS)
    own = model(images).argmax(1).tolist()
    assert result.index.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert result.target.tolist() == [c for image in range(3) for c in range(4) if c != own[image]]
    assert torch.equal(result.original, images[result.index])
    assert_true_report(result, model)
    assert counted.batches == {3, 9}  # one pass over the images, and all their pairs at once: they are few
    assert counted.forwards == 1 + 23
    alone = rewrite(model, images, result.target.view(3, 3)[:, 1], **PIXELS)
    torch.testing.assert_close(result.distance[1::3], alone.distance, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("number", "batches"), [(7, {7, 16, 5}), (20, {20})])
def test_many_rows_are_searched_in_parts(number: int, batches: set[int]) -> None:
    """Of 16 rows, or of as many as there are images, whatever the number of classes."""
    model = linear_model(4, 48)
    images = random(number, 3, 4, 4)
    counted = Counted(model)
    result = rewrite(counted, images, "all", steps=2, **PIXELS)
    assert counted.batches == batches
    assert counted.forwards == 1 + -(-3 * number // max(16, number)) * (2 + 7)
    assert torch.equal(result.original, images[result.index])
    assert result.margin.shape == (3, 3 * number)
    assert_true_report(result, model)


@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_named_targets_are_those_of_the_logits(kind: str) -> None:
    model, images = linear_model(5, 48), random(6, 3, 4, 4)
    result = rewrite(model, images, kind, steps=1, seed=7, **PIXELS)
    assert result.target.tolist() == choose_targets(model(images), kind, seed=7).flatten().tolist()


def test_random_targets_follow_the_seed() -> None:
    model, images = linear_model(9, 48), random(8, 3, 4, 4)
    targets = [rewrite(model, images, steps=1, seed=seed, **PIXELS).target.tolist() for seed in (0, 0, 1)]
    assert targets[0] == targets[1] != targets[2]


TARGET = [2, 0, 1]


@pytest.mark.parametrize(
    "target",
    [torch.tensor(TARGET), torch.tensor(TARGET, dtype=torch.uint8), np.array(TARGET)],
)
def test_targets_of_any_form(target: Any) -> None:
    model, images = linear_model(3, 48), random(3, 3, 4, 4)
    result = rewrite(model, images, target, steps=2, **PIXELS)
    assert result.target.tolist() == TARGET
    assert result.target.dtype == torch.int64


def test_one_class_for_all() -> None:
    model, images = linear_model(3, 48), random(3, 3, 4, 4)
    for target in (1, torch.tensor(1), np.int64(1)):
        assert rewrite(model, images, target, steps=1, **PIXELS).target.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "forwards"),
    [
        ({"target": 1}, 16 + 7),
        ({"target": torch.tensor([1, 0, 2])}, 16 + 7),
        ({"target": "random"}, 1 + 16 + 7),
        ({"target": 1, "radius": 0.1}, 16 + 1),
        ({"target": 1, "steps": 5}, 5 + 7),
    ],
)
def test_passes_are_those_that_were_asked_for(options: dict[str, Any], forwards: int) -> None:
    counted = Counted(linear_model(3, 48))
    rewrite(counted, random(3, 3, 4, 4), **options, **PIXELS)
    assert (counted.forwards, counted.gradients) == (forwards, options.get("steps", 16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"radius": 0.1}, {"target": "random"}])
def test_an_output_that_is_not_finite_is_an_error_after_all_passes(options: dict[str, Any], value: float) -> None:
    """Of one image of one process; the others would wait for it."""
    model = linear_model(3, 48)

    def broken(images: Tensor) -> Tensor:
        return torch.cat([model(images[:1]) * value, model(images[1:])])

    passes = []
    for network in (model, broken):
        counted = Counted(nn.Identity())
        images = random(3, 3, 4, 4)
        options = {"target": 1, **options}
        forward = lambda batch, network=network, counted=counted: network(counted(batch))  # noqa: E731
        if network is broken:
            with pytest.raises(NonFiniteOutputError, match="model: Linear gives NaN or infinite outputs for 1 of 3"):
                rewrite(model, images, forward=forward, **options, **PIXELS)
        else:
            rewrite(model, images, forward=forward, **options, **PIXELS)
        passes.append(counted.forwards)
    assert passes[0] == passes[1]


@pytest.mark.parametrize("options", [{"norm": "l0_patches"}, {"top_share": 0.5}])
def test_an_output_that_is_not_finite_is_an_error_with_patches_too(options: dict[str, Any]) -> None:
    model = tiny_vit()
    with pytest.raises(NonFiniteOutputError, match="NaN or infinite outputs for 3 of 3"):
        rewrite(model, IMAGES, 1, forward=lambda batch: model(batch) * float("nan"), steps=2, **options, **PIXELS)


def test_the_constants_of_a_timm_model_are_found() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=3).eval()
    pixels = random(2, 3, 32, 32)
    found = rewrite(model, pixels * 2 - 1, 1, steps=2)
    torch.testing.assert_close(found.original, pixels)
    given = rewrite(model, pixels * 2 - 1, 1, steps=2, mean=(0.5,) * 3, std=0.5 * np.ones(3))
    assert torch.equal(found.distance, given.distance)


def test_a_model_that_normalises_by_itself_takes_pixels() -> None:
    model = tiny_vit()
    inside = nn.Sequential(Inside(), model)
    pixels = random(2, 3, 32, 32)
    pixels[:, 0, 0, :2] = torch.tensor([0.0, 1.0])
    target = others(inside, pixels)
    outside = rewrite(model, NORMALISATION.to_images(pixels), target, steps=5, mean=MEAN, std=STD)
    for images in (pixels, (pixels - 0.5) * 1.04 + 0.5):  # the second a little outside, as after a bicubic resize
        result = rewrite(inside, images, target, steps=5)
        assert_true_report(result, inside)
        assert torch.equal(result.images, result.pixels)
        assert torch.equal(result.original, images.clamp(0, 1))
    torch.testing.assert_close(rewrite(inside, pixels, target, steps=5).distance, outside.distance, rtol=1e-3, atol=0)


class Inside(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return NORMALISATION.to_images(images)


def test_a_doubt_about_the_normalisation_says_what_to_pass() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=3)
    counted = Counted(model)
    for images, message in (
        (0.2 + 0.5 * IMAGES, r"Pass mean=0, std=1 if the model takes pixels in \[0, 1\]"),
        (5 * IMAGES, "does not fit; pass the mean and std, in units of"),
    ):
        with pytest.raises(UnknownNormalisationError, match=message):
            rewrite(counted, images, 1)
    with pytest.raises(UnknownNormalisationError, match="pass the mean and std with which"):
        rewrite(counted, 5 * IMAGES, 1, mean=0.5, std=0.5)
    assert counted.forwards == 0


def test_outputs_with_logits_and_inputs_by_keyword() -> None:
    model = linear_model(3, 48)

    class Keyword(nn.Module):
        def forward(self, *, pixel_values: Tensor) -> Any:
            return SimpleNamespace(logits=model(pixel_values))

    images = random(3, 3, 4, 4)
    expected = rewrite(model, images, 1, steps=3, **PIXELS)
    keyword = Keyword()
    found = rewrite(keyword, images, 1, steps=3, forward=lambda batch: keyword(pixel_values=batch), **PIXELS)
    assert torch.equal(found.images, expected.images)


def bad(**options: Any) -> dict[str, Any]:
    return {"model": tiny_vit(3), "images": IMAGES, "target": 1, **PIXELS, **options}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(model=lambda images: images), TypeError, "model: got function; expected a torch.nn.Module"),
        (bad(model=nn.Flatten(0)), ValueError, r"model: its output \(shape \(9216,\)\) is not one row of logits"),
        (bad(images=IMAGES[0]), ValueError, r"images: got torch.float32 \(3, 32, 32\); expected a floating-point"),
        (bad(images=(255 * IMAGES).byte()), ValueError, r"images: got torch.uint8 .*normalised for the model"),
        (bad(images=IMAGES[:0]), ValueError, r"images: got torch.float32 \(0, 3, 32, 32\)"),
        (bad(images=IMAGES[..., :0]), ValueError, r"images: got torch.float32 \(3, 3, 32, 0\)"),
        (bad(images=IMAGES.numpy()), ValueError, "images: got ndarray"),
        (bad(images=IMAGES * float("nan")), ValueError, "images: got NaN or infinite values"),
        (bad(target="first"), ValueError, "target: got 'first'; expected a class, or one of random, runner_up"),
        (bad(target=3), ValueError, r"target: got \[3\]; the model's classes are 0 to 2"),
        (bad(target=[0, 1, -1]), ValueError, r"target: got \[-1, 0, 1\]; the model's classes are 0 to 2"),
        (
            bad(target=torch.tensor([0, 1])),
            ValueError,
            r"target: got torch.int64 of shape \(2,\) for 3 images; expected",
        ),
        (bad(target=[[[0]], [[1]], [[2]]]), ValueError, r"of shape \(3, 1, 1\) for 3 images"),
        (bad(target=1.0), ValueError, "target: got torch.float32 .*expected one of random, .*, an int"),
        (bad(target=[True, False, True]), ValueError, "target: got torch.bool"),
        (bad(target=None), ValueError, "target: got None; expected one of random, runner_up"),
        (bad(target=["a", "b", "c"]), ValueError, r"target: got \['a', 'b', 'c'\]; expected one of random"),
        (bad(target=10**30), ValueError, "target: got 1000000.*; expected one of random"),
        (bad(norm="l1"), ValueError, "norm: got 'l1'; expected one of linf, l2, l0, l0_patches"),
        (bad(steps=0), ValueError, "steps: got 0; expected a number of gradients, 16 or more"),
        (bad(steps=2.5), ValueError, "steps: got 2.5"),
        (bad(steps=True), ValueError, "steps: got True"),
        (bad(radius=0), ValueError, "radius: got 0; expected a finite number above 0"),
        (bad(radius=-0.1), ValueError, "radius: got -0.1"),
        (bad(radius=float("nan")), ValueError, "radius: got nan"),
        (bad(radius=float("inf"), norm="l2"), ValueError, "radius: got inf"),
        (bad(radius="4/255"), ValueError, "radius: got '4/255'"),
        (bad(radius=True), ValueError, "radius: got True"),
        (
            bad(radius=8),
            ValueError,
            r"radius: got 8; expected a change of a pixel in \[0, 1\], such as 4/255, at most 1",
        ),
        (bad(radius=0.5, norm="l0"), ValueError, "radius: got 0.5; expected a number of pixels, 1 or more"),
        (bad(radius=1.5, norm="l0_patches"), ValueError, "radius: got 1.5; expected a share of the patches, at most 1"),
        (bad(radius=0.01, norm="l0_patches"), ValueError, "radius: got 0.01; expected 0.0625 or more"),
        (bad(top_share=0), ValueError, "top_share: got 0; expected a finite number above 0"),
        (bad(top_share=1.1), ValueError, "top_share: got 1.1; at most 1"),
        (
            bad(top_share=0.5, norm="l0_patches"),
            ValueError,
            "top_share: got 0.5; norm='l0_patches' looks for the share",
        ),
        (bad(std=None), ValueError, "mean, std: got mean=0.0 and std=None; expected both, or neither"),
        (bad(mean=None), ValueError, "mean, std: got mean=None and std=1.0"),
        (bad(std=0.0), ValueError, r"std: got \(0.0,\) .*; expected positive numbers"),
        (bad(mean=[0.5, 0.5], std=[1, 1]), ValueError, "mean, std: got 2 numbers each .*images have 3 channels; pass"),
        (bad(mean="grey"), ValueError, "mean, std: got mean='grey' .*expected numbers, one a channel"),
    ],
)
def test_bad_input_is_named_with_what_would_do(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        rewrite(**arguments)
    assert re.match(r"(model|images|target|norm|steps|radius|top_share|mean|std)[,:]", str(raised.value))


@pytest.mark.parametrize("options", [{"norm": "l0_patches"}, {"top_share": 0.5}])
def test_patches_need_a_map(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        rewrite(linear_model(3, 3072), IMAGES, 1, **options, **PIXELS)


def test_the_public_names() -> None:
    assert attngrad.rewrite is rewrite
    assert {"rewrite", "Rewrite"} <= set(dir(attngrad))
