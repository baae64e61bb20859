"""A model that hides its gradients is shown to be ill, not robust."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.rewrite import rewrite
from tests.rewrite.models import ALL_NORMS, PIXELS, assert_true_report, linear_model, others, random, tiny_vit

IMAGES = random(3, 3, 4, 4)
MODEL = linear_model(3, 48).requires_grad_(False)
TARGET = others(MODEL, IMAGES)


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_an_honest_model_is_healthy(norm: str) -> None:
    result = rewrite(MODEL, IMAGES, TARGET, norm=norm, **PIXELS)
    assert result.success.all()
    assert result.health.good.all()
    assert result.health.zero_gradient.tolist() == [0.0] * 3


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_an_honest_transformer_is_healthy(norm: str) -> None:
    model, images = tiny_vit(), random(4, 3, 32, 32)
    result = rewrite(model, images, others(model, images), norm=norm, **PIXELS)
    assert result.health.good.all()


class Masked(nn.Module):
    """A linear model behind something that hides its gradient."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.model, self.kind = MODEL, kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "quantised":
            images = (images * 8).round() / 8
        elif self.kind == "detached":
            images = images.detach()
        elif self.kind == "not a number":
            images = images + 0 * (images - images).sqrt()
        logits = self.model(images)
        return 5 * (1000 * logits).softmax(1) if self.kind == "saturated" else logits


@pytest.mark.parametrize("kind", ["quantised", "detached", "saturated", "not a number"])
@pytest.mark.parametrize(
    ("norm", "radius"), [("linf", None), ("linf", 0.1), ("l2", None), ("l2", 0.1), ("l0", None), ("l0", 1)]
)
def test_a_masked_gradient_shows(radius: float | None, norm: str, kind: str) -> None:
    result = rewrite(Masked(kind), IMAGES, TARGET, norm=norm, radius=radius, **PIXELS)
    assert_true_report(result, Masked(kind))
    assert not result.success.any()  # and so the model looks robust, but:
    assert (result.health.zero_gradient > 0).all()
    assert not result.health.good.any()
    assert result.health.huge_radius.any() == (radius is not None)


@pytest.mark.parametrize("kind", ["quantised", "saturated"])
def test_a_masked_gradient_shows_with_patches_too(kind: str) -> None:
    model, images = tiny_vit(), random(2, 3, 32, 32)

    def forward(batch: Tensor) -> Tensor:
        logits = model((batch * 8).round() / 8 if kind == "quantised" else batch)
        return 5 * (1000 * logits).softmax(1) if kind == "saturated" else logits

    result = rewrite(model, images, others(model, images), norm="l0_patches", forward=forward, steps=4, **PIXELS)
    assert (result.health.zero_gradient > 0).all()
    assert not result.health.good.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_a_gradient_that_is_only_faint_is_followed(norm: str) -> None:
    """Behind a softmax of logits 60 apart it is of 1e-26, and its square 0 in float32."""

    def forward(images: Tensor) -> Tensor:
        logit = 200 * images.mean(dim=(1, 2, 3)) - 62
        return 2 * torch.stack([torch.zeros_like(logit), logit], dim=1).softmax(1)

    result = rewrite(nn.Identity(), torch.full((1, 3, 4, 4), 0.01), 1, norm=norm, forward=forward, **PIXELS)
    assert (result.health.zero_gradient < 0.5).all()
    assert result.success.all()


class Backwards(torch.autograd.Function):
    """Its gradient points the wrong way: everywhere, or everywhere but at one place."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, honest_at: float) -> Tensor:
        ctx.save_for_backward(images)
        ctx.honest_at = honest_at
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        return torch.where(images == ctx.honest_at, gradient, -gradient), None


def led_astray(honest_at: float) -> Callable[[Tensor], Tensor]:
    def forward(images: Tensor) -> Tensor:
        brightness = Backwards.apply(images, honest_at).mean(dim=(1, 2, 3))
        return torch.stack([torch.full_like(brightness, 0.7), brightness], dim=1)

    return forward


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_a_gradient_that_points_the_wrong_way_shows(norm: str) -> None:
    forward = led_astray(honest_at=-1.0)
    result = rewrite(nn.Identity(), torch.full((2, 3, 4, 4), 0.25), 1, norm=norm, forward=forward, **PIXELS)
    assert not result.success.any()
    assert not result.health.huge_radius.any()
    assert not result.health.good.any()
    assert torch.equal(result.logits_after, result.logits_before)  # the original is what came closest


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_single_step_that_does_better_shows(norm: str) -> None:
    """The gradient is right at the image itself, and leads back from everywhere else."""
    forward = led_astray(honest_at=0.25)
    result = rewrite(nn.Identity(), torch.full((2, 3, 4, 4), 0.25), 1, norm=norm, forward=forward, steps=4, **PIXELS)
    assert_true_report(result, forward)
    assert result.success.all()  # by that single step
    assert not result.health.beats_one_step.any()
    assert not result.health.good.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_single_step_that_does_better_shows_at_a_fixed_radius(norm: str) -> None:
    forward = led_astray(honest_at=0.25)
    options = {"norm": norm, "radius": {"linf": 0.2, "l2": 0.2 * 48**0.5}[norm], "steps": 4}
    result = rewrite(nn.Identity(), torch.full((2, 3, 4, 4), 0.25), 1, forward=forward, **options, **PIXELS)
    assert not result.health.beats_one_step.any()
    assert result.logits_after[:, 1].tolist() == pytest.approx([0.45] * 2)  # the first step is what came closest


def test_flags_belong_to_their_row() -> None:
    """Half of the batch is masked."""

    def forward(images: Tensor) -> Tensor:
        masked = torch.arange(len(images)) % 2 == 0
        return MODEL(torch.where(masked[:, None, None, None], images.detach(), images))

    images = IMAGES[:1].expand(4, -1, -1, -1)
    result = rewrite(nn.Identity(), images, int(TARGET[0]), forward=forward, **PIXELS)
    assert result.health.zero_gradient.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert result.health.good.tolist() == [False, True, False, True]


@pytest.mark.parametrize("norm", ALL_NORMS)
def test_health_has_a_row_for_each_row(norm: str) -> None:
    model, images = tiny_vit(3), random(2, 3, 32, 32)
    health = rewrite(model, images, "all", norm=norm, steps=2, **PIXELS).health
    for flag in (health.unconverged, health.huge_radius, health.beats_one_step, health.good):
        assert (flag.shape, flag.dtype) == ((4,), torch.bool)
    assert health.zero_gradient.shape == (4,)
