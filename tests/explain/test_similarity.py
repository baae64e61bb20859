"""Likeness to vectors: the same as a linear head where it is one, and as CLIP's own logits."""

from __future__ import annotations

import re

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lightning_attngrad import Similarity, explain, rewrite
from tests.beyond import clip, texts
from tests.zoo import randomise


def batch() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", [None, "gradient_guided", "attn_lrp", "conservative"])
def test_prototypes_are_a_linear_head(method: str | None) -> None:
    head = randomise(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5), 1
    ).eval()
    nn.init.zeros_(head.head.bias)
    vectors = head.head.weight.detach().clone()
    bare = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0).eval()
    bare.load_state_dict(head.state_dict(), strict=False)
    expected = explain(head, batch(), 3, method=method)
    found = explain(bare, batch(), 3, method=method, objective=Similarity(vectors, cosine=False))
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.target is not None


@pytest.mark.parametrize("method", [None, "gradient_guided", "attn_lrp", "conservative"])
def test_text_vectors_are_the_logits_of_clip(method: str | None) -> None:
    """Their lengths are divided by in the model there, and outside of it here: the way back is the same."""
    model, ids = clip(), texts()
    expected = explain(
        model, batch(), 1, method=method, forward=lambda images: model(input_ids=ids, pixel_values=images)
    )
    with torch.no_grad():
        vectors, scale = model.get_text_features(input_ids=ids).pooler_output, float(model.logit_scale.exp())
    found = explain(
        model,
        batch(),
        1,
        method=method,
        objective=Similarity(vectors, ("a", "b", "c"), scale=scale),
        forward=lambda images: model.get_image_features(pixel_values=images),
    )
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.heatmap, expected.heatmap, rtol=1e-4, atol=1e-5 * float(expected.heatmap.abs().max())
    )
    assert found.heatmap.abs().max() > 0


def test_images_are_rewritten_to_another_text() -> None:
    model, ids = clip(), texts()
    with torch.no_grad():
        vectors = model.get_text_features(input_ids=ids).pooler_output
    likeness = Similarity(vectors, scale=20.0)
    run = lambda images: model.get_image_features(pixel_values=images)  # noqa: E731
    now = explain(model, batch(), objective=likeness, forward=run).logits.argmax(dim=1)
    target = (now + 1) % 3
    pixels = batch().sigmoid()
    found = rewrite(model, pixels, target, forward=run, task=likeness, steps=16)
    assert found.success.all()
    scores = likeness.scores(run(found.images), 2)
    assert scores.argmax(dim=1).tolist() == target.tolist()


def test_it_is_said_once() -> None:
    likeness = Similarity(torch.eye(16)[:3])
    run = lambda images: clip().get_image_features(pixel_values=images)  # noqa: E731
    one = explain(clip(), batch(), 1, forward=run, objective=likeness)
    other = explain(clip(), batch(), 1, forward=run, task=likeness)
    assert torch.equal(one.heatmap, other.heatmap)
    with pytest.raises(ValueError, match=re.escape("objective: got Similarity(…) beside task=")):
        explain(clip(), batch(), 1, forward=run, objective=likeness, task="multiclass")
