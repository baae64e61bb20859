"""The references must themselves be right: against the untouched model, finite differences and each other."""

from __future__ import annotations

import pytest
import torch

from tests.references import guided
from tests.references.recorded_attention import record_attention
from tests.references.relevance import relevance
from tests.zoo import ZOO, logits_of

TARGET = torch.tensor([2, 5])


@pytest.mark.parametrize("name", ZOO)
def test_recording_changes_nothing_and_sees_every_call(name: str) -> None:
    zoo = ZOO[name]
    model, images = zoo.build(torch.float64), zoo.images(dtype=torch.float64)
    plain = logits_of(model(images))
    reading = guided.read(model, images, guided.logit(TARGET))
    # Hugging Face's eager attention drops to float32 in its softmax, the recording does not.
    torch.testing.assert_close(reading.logits, plain, rtol=1e-5, atol=1e-6)
    depth = 3 if name == "vit_deep" else 2
    rows = [zoo.tokens] * depth + [1] * (zoo.pooling == "attention")
    assert [a.shape[-2:] for a in reading.attention] == [(n, zoo.tokens) for n in rows]
    for attention, gradient in zip(reading.attention, reading.gradients, strict=True):
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention.sum(-1)))
        assert gradient.abs().amax() > 1e-6


@pytest.mark.parametrize("name", ["vit", "vit_unfused", "beit", "siglip", "torchvision", "hf_vit_eager"])
def test_attention_gradient_is_the_finite_difference(name: str) -> None:
    zoo = ZOO[name]
    model, images = zoo.build(torch.float64), zoo.images(dtype=torch.float64)
    reading = guided.read(model, images, guided.logit(TARGET))
    for number, (attention, gradient) in enumerate(zip(reading.attention, reading.gradients, strict=True)):
        direction = torch.randn(attention.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        values = []
        for step in (1e-5, -1e-5):
            # With gradients on: without them nn.MultiheadAttention takes its fast path, which calls nothing.
            with torch.enable_grad(), record_attention({number: step * direction}) as calls:
                values.append(guided.logit(TARGET)(logits_of(model(images)), calls).sum().detach())
        measured = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), measured, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("correction", guided.CORRECTIONS)
def test_row_recursion_is_a_row_of_the_matrix_recursion(name: str, correction: str) -> None:
    zoo = ZOO[name]
    reading = guided.read(zoo.build(torch.float64), zoo.images(dtype=torch.float64), guided.logit(TARGET))
    corrected = guided.corrected_calls(reading, correction)
    whole = guided.propagate(zoo, corrected)
    torch.testing.assert_close(guided.increments(zoo, corrected).sum(1), whole, rtol=1e-9, atol=1e-14)
    assert guided.patches(zoo, whole).abs().amax() > 0


@pytest.mark.parametrize("name", [n for n in ZOO if ZOO[n].twin is None])
def test_rules_change_the_gradient_and_not_the_logits(name: str) -> None:
    zoo = ZOO[name]
    model, images = zoo.build(torch.float64), zoo.images(dtype=torch.float64)
    plain = relevance(zoo, model, images, guided.logit(TARGET), "plain")
    for method in ("conservative", "attn_lrp"):
        found = relevance(zoo, model, images, guided.logit(TARGET), method)
        torch.testing.assert_close(found.reading.logits, plain.reading.logits, rtol=1e-9, atol=1e-10)
        assert (found.tokens - plain.tokens).abs().amax() > 1e-3


@pytest.mark.parametrize("name", [n for n in ZOO if ZOO[n].twin is not None])
def test_twins_are_the_same_function(name: str) -> None:
    zoo = ZOO[name]
    twin = ZOO[zoo.twin]
    images = zoo.images()
    torch.testing.assert_close(logits_of(zoo.build()(images)), logits_of(twin.build()(images)), rtol=1e-4, atol=1e-5)
