"""The margin, its soft gradient, and what counts as rewritten."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_attngrad.rewrite import Normalisation
from lightning_attngrad.rewrite.margins import TargetMargin, class_scores, in_type
from tests.references.rewriting import Classifier
from tests.rewrite.models import linear_model, random

PIXELS = Normalisation((0.0,), (1.0,), "a test")


def margin_of(forward: Any, *target: int, normalisation: Normalisation = PIXELS) -> TargetMargin:
    return TargetMargin(forward, normalisation, torch.tensor(target))


def given_logits(*rows: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(rows, dtype=dtype)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_the_margin_is_over_the_largest_other_logit(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, classes, generator=generator)
    target = torch.randint(classes, (4,), generator=generator)
    found = TargetMargin(torch.nn.Identity(), PIXELS, target).of(logits)
    for row in range(4):
        rivals = [float(z) for j, z in enumerate(logits[row]) if j != target[row]]
        assert float(found[row]) == pytest.approx(float(logits[row, target[row]]) - max(rivals), abs=1e-6)


def test_a_tie_or_a_lead_by_rounding_is_not_rewritten() -> None:
    margin = margin_of(None, 1, 1, 1, 1, 1, 1)
    logits = given_logits([0.0, 0.0], [5.0, 5.0], [5.0, 5.0 + 1e-6], [5.0, 4.0], [5.0, 5.001], [-5.001, -5.0])
    assert margin.rewritten(logits).tolist() == [False, False, False, False, True, True]
    # A lead is measured against the largest logit: rounding grows with it.
    assert margin_of(None, 1).rewritten(given_logits([1000.0, 1000.001])).tolist() == [False]


def test_in_half_precision_a_success_leads_by_more_than_its_rounding() -> None:
    """Kernels with and without gradients differ there by up to two roundings (nn.MultiheadAttention)."""
    for dtype, leads in ((torch.bfloat16, 0.125), (torch.float16, 0.02)):
        logits = given_logits([4.0, 4.0 + leads / 2], [4.0, 4.0 + 2 * leads], dtype=dtype)
        assert (logits[:, 1] > logits[:, 0]).all()
        assert margin_of(None, 1, 1).rewritten(logits).tolist() == [False, True]


def test_nan_is_no_success() -> None:
    margin = margin_of(None, 0, 0)
    logits = given_logits([float("nan"), 0.0], [1.0, float("nan")])
    assert margin.rewritten(logits).tolist() == [False, False]


@pytest.mark.parametrize("classes", [2, 5])
def test_the_gradient_is_that_of_the_log_odds(classes: int) -> None:
    model = linear_model(classes, 12).double()
    pixels = random(2, 3, 2, 2).double()
    logits, gradient = margin_of(model, 1, 0).climb(pixels)
    assert torch.equal(logits, model(pixels))
    assert not logits.requires_grad
    assert not gradient.requires_grad
    for row, target in enumerate((1, 0)):
        expected = Classifier(model, target).log_odds_gradient(pixels[row].numpy())
        torch.testing.assert_close(gradient[row], torch.from_numpy(expected))
        # By hand: w_t minus the mean of the others' weights, each as probable as it is among them.
        others = logits[row].scatter(0, torch.tensor(target), -torch.inf).softmax(0)
        by_hand = model.weight[target] - others @ model.weight
        torch.testing.assert_close(gradient[row].flatten(), by_hand.detach())


def test_the_gradient_is_taken_under_no_grad_too() -> None:
    margin, pixels = margin_of(linear_model(3, 12), 1), random(1, 3, 2, 2)
    _, expected = margin.climb(pixels)
    with torch.no_grad():
        assert torch.equal(margin.climb(pixels)[1], expected)
    assert expected.any()


def test_the_normalisation_is_inside_the_gradient() -> None:
    model = linear_model(2, 12)
    normalisation = Normalisation((0.1, 0.2, 0.3), (0.5, 0.25, 0.125), "a test")
    _, gradient = margin_of(model, 1, normalisation=normalisation).climb(random(1, 3, 2, 2))
    per_image = (model.weight[1] - model.weight[0]).detach().view(1, 3, 2, 2)
    torch.testing.assert_close(gradient, per_image / torch.tensor([0.5, 0.25, 0.125])[:, None, None])


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_logits_do_not_overflow(scale: float) -> None:
    model = linear_model(4, 12)
    logits, gradient = margin_of(lambda images: scale * model(images), 2).climb(random(1, 3, 2, 2))
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).all()  # no softmax saturates on the way: the rivals share a gradient of one
    assert torch.isfinite(margin_of(None, 2).of(logits)).all()


def test_the_margin_of_float16_logits_may_be_larger_than_float16() -> None:
    logits = given_logits([-6e4, 6e4], dtype=torch.float16)
    assert margin_of(None, 1).of(logits).tolist() == pytest.approx([1.2e5], rel=1e-2)


@pytest.mark.parametrize(
    "forward",
    [
        lambda images: images.detach().flatten(1),
        lambda images: images.flatten(1).round(),
        lambda images: torch.nn.Parameter(torch.ones(2, 12)) * 1.0,  # a graph that does not reach the images
        lambda images: images.flatten(1) * float("nan"),
        lambda images: (images.flatten(1) - images.flatten(1)).sqrt(),  # an infinite slope
    ],
)
def test_no_gradient_is_zero_and_no_error(forward: Any) -> None:
    _, gradient = margin_of(forward, 1, 2).climb(random(2, 3, 2, 2))
    assert gradient.shape == (2, 3, 2, 2)
    assert not gradient.any()


def test_climbing_leaves_no_gradient_on_the_parameters_and_no_mark_on_the_pixels() -> None:
    model, pixels = linear_model(3, 12), random(1, 3, 2, 2)
    margin_of(model, 1).climb(pixels)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not pixels.requires_grad
    assert not margin_of(model, 1).attempt(pixels).requires_grad


@pytest.mark.parametrize("target", [[0, 3], [-1, 0]])
def test_a_class_that_is_not_there_is_refused(target: list[int]) -> None:
    margin = margin_of(linear_model(3, 12), *target)
    with pytest.raises(ValueError, match=r"target: got \[.*\]; the model's classes are 0 to 2"):
        margin.climb(random(2, 3, 2, 2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: {"logits": logits},
        lambda logits: UserDict(logits=logits),
        lambda logits: (logits, None),
        lambda logits: [logits],
    ],
)
def test_outputs_with_logits_are_read(wrap: Any) -> None:
    model, pixels = linear_model(3, 12), random(2, 3, 2, 2)
    assert torch.equal(class_scores(lambda images: wrap(model(images)), PIXELS, pixels), model(pixels))


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (None, r"\(NoneType\)"),
        ({"scores": torch.ones(2, 3)}, r"\(dict\)"),
        (torch.ones(2), r"\(shape \(2, 1\)\)"),
        (torch.ones(3, 2), r"\(shape \(3, 2\)\)"),
        (torch.ones(2, 1), r"\(shape \(2, 1\)\)"),
        (torch.ones(2, 3, 4), r"\(shape \(2, 3, 4\)\)"),
    ],
)
def test_other_outputs_are_refused(output: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"model: its output {got} is not one row of logits an image, .*classifier"):
        class_scores(lambda images: output, PIXELS, random(2, 3, 2, 2))


def test_the_model_is_given_images_of_its_own_type() -> None:
    seen = []
    in_type(seen.append, torch.bfloat16)(random(1, 3, 2, 2))
    assert seen[0].dtype == torch.bfloat16
