"""A gradient that is NaN or infinite is an error that names the images; a map that is truly zero is a map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import (
    NonFiniteError,
    NonFiniteGradientError,
    NonFiniteOutputError,
    explain,
)
from tests.methods import OF_ANY_MODEL
from tests.zoo import ZOO

VIT = ZOO["vit"]


class _GradientOf(torch.autograd.Function):
    """The identity, whose gradient is multiplied by one number an image."""

    @staticmethod
    def forward(ctx, tensor: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (factors,) = ctx.saved_tensors
        return gradient * factors.view(-1, *[1] * (gradient.dim() - 1)), None


class Broken(nn.Module):
    """A model whose outputs are finite, and whose gradient is not for some of the images."""

    def __init__(self, factors: list[float], where: str, name: str = "vit") -> None:
        super().__init__()
        self.vit, self.factors, self.where = ZOO[name].build(), torch.tensor(factors), where
        if where == "first block":
            block = self.vit.get_submodule(ZOO[name].first_block)
            block.register_forward_hook(lambda module, args, output: _GradientOf.apply(output, self.factors))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.vit(images)
        return _GradientOf.apply(logits, self.factors) if self.where == "logits" else logits


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("name", ["vit", "vit_unfused", "siglip", "vit_mean"])
def test_a_gradient_that_is_not_finite_is_an_error_with_the_numbers(name: str, method: str, value: float) -> None:
    images = ZOO[name].images(batch=4)
    with pytest.raises(NonFiniteGradientError, match=r"for 2 of 4 images \(number 1, 3, counted from 0\)") as error:
        explain(Broken([1, value, 1, value], "logits", name), images, 1, method=method)
    assert error.value.images == (1, 3)
    assert "Broken gives finite outputs" in str(error.value)


@pytest.mark.parametrize("method", ["gradient_guided", "guided_relevance", "conservative", "attn_lrp"])
def test_also_where_it_breaks_half_way(method: str) -> None:
    with pytest.raises(NonFiniteGradientError) as error:
        explain(Broken([1, float("nan")], "first block"), VIT.images(), [0, 1], method=method)
    assert error.value.images == (1,)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_the_other_images_of_the_batch_are_not_named(method: str) -> None:
    healthy = explain(Broken([1, 1], "logits"), VIT.images(), 1, method=method)
    torch.testing.assert_close(healthy.heatmap, explain(VIT.build(), VIT.images(), 1, method=method).heatmap)


class ZeroHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = VIT.build()
        nn.init.zeros_(self.vit.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_a_zero_initialised_classifier_gives_a_map_and_no_error(method: str) -> None:
    explanation = explain(ZeroHead(), VIT.images(), 1, method=method)
    assert bool(explanation.zero_gradient.all())
    assert bool(torch.isfinite(explanation.heatmap).all())


def test_both_errors_are_of_one_kind_and_name_images() -> None:
    images = VIT.images(batch=3)
    images[2] = torch.nan
    with pytest.raises(NonFiniteError, match="for 1 of 3 images") as error:
        explain(VIT.build(), images)
    assert isinstance(error.value, NonFiniteOutputError)
    assert error.value.images == (2,)
    assert issubclass(NonFiniteGradientError, NonFiniteError)
    assert issubclass(NonFiniteError, ValueError)


def test_many_images_are_counted_and_some_named() -> None:
    with pytest.raises(NonFiniteGradientError, match=r"for 12 of 12 images \(number 0, 1, 2, 3, 4, 5, 6, 7, …"):
        explain(Broken([float("nan")] * 12, "logits"), VIT.images(batch=12), 1)
