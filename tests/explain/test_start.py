"""What stays of each image's own starting embedding: the formula, and that it has a map at the very start."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lightning_attngrad import explain
from lightning_attngrad.explain import Question, Start
from tests.zoo import randomise

METHODS = (None, "gradient_guided", "attn_lrp")


def backbone(pool: str = "token") -> nn.Module:
    """Features without a classifier, behind a LayerNorm, or a mean over tokens behind one."""
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, global_pool=pool
    )
    return randomise(model, 1).eval()


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module) -> nn.Module:
    """The same model a little later."""
    later = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return later


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_cosine_around_the_mean_with_its_length_held(method: str | None) -> None:
    model = backbone()
    with torch.no_grad():
        starting = model(images())
    later, centre = trained(model), starting.mean(dim=0)

    def formula(embedding: Tensor) -> Tensor:
        direction = F.normalize(starting - centre, dim=1)
        return ((embedding - centre) * direction).sum(dim=1) / (embedding - centre).detach().norm(dim=1)

    found = explain(later, images(), objective=Start().filled(starting), method=method)
    expected = explain(later, images(), objective=formula, method=method)
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        cosine = F.cosine_similarity(later(images()) - centre, starting - centre, dim=1)
    torch.testing.assert_close(found.value, cosine)
    assert bool((cosine < 0.999).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_there_is_a_map_at_the_start_where_a_plain_cosine_has_none(pool: str, method: str | None) -> None:
    model = backbone(pool)
    with torch.no_grad():
        starting = model(images())
    plain = explain(model, images(), objective=lambda e: F.cosine_similarity(e, starting, dim=1), method="attn_lrp")
    found = explain(model, images(), objective=Start().filled(starting), method=method)
    torch.testing.assert_close(found.value, torch.ones(4))
    largest = found.heatmap.abs().flatten(1).amax(dim=1)
    assert bool((largest > 1e4 * plain.heatmap.abs().amax()).all())
    assert not found.zero_gradient.any()


def test_some_images_keep_their_own_start_and_the_centre_of_all() -> None:
    model = backbone()
    with torch.no_grad():
        question = Question(objective=Start().filled(model(images())))
    later = trained(model)
    every = question.explain(later, images())
    last = question.of_images(torch.tensor([2, 3])).explain(later, images()[2:])
    torch.testing.assert_close(last.heatmap, every.heatmap[2:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(last.value, every.value[2:])


def test_alone_it_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="which only monitors know: AttentionMapMonitor") as refused:
        explain(backbone(), images(), objective="start")
    assert "task=Similarity(vectors)" in str(refused.value)
    with pytest.raises(ValueError, match=re.escape("'logit' or 'margin' or 'start', or one with arguments")):
        explain(backbone(), images(), objective="beginning")


def test_pooled_features_are_read_as_rows() -> None:
    class Pooled(nn.Module):
        """Ends as convolutional backbones and lightly-train's embeddings do: (B, D, 1, 1)."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone()

        def forward(self, images: Tensor) -> Tensor:
            return self.backbone(images)[:, :, None, None]

    model = Pooled()
    with torch.no_grad():
        starting = model.backbone(images())
    later = trained(model)
    found = explain(later, images(), objective=Start().filled(starting))
    expected = explain(later.backbone, images(), objective=Start().filled(starting))
    torch.testing.assert_close(found.heatmap, expected.heatmap)
    assert found.heatmap.abs().amax() > 0


def test_what_cannot_be_compared_is_refused() -> None:
    model = backbone()
    with torch.no_grad():
        starting = model(images())
    alike = Start().filled(starting[:1].expand(4, -1) * (1 + 1e-7))
    with pytest.raises(ValueError, match="the starting embeddings of the images are all alike"):
        explain(model, images(), objective=alike)
    with pytest.raises(ValueError, match=re.escape("are (4, 32), and those of the start of the run (4, 16)")):
        explain(model, images(), objective=Start().filled(starting[:, :16]))
    with pytest.raises(ValueError, match=re.escape("no embeddings (4, D) are in its output")):
        explain(
            model,
            images(),
            objective=Start().filled(starting),
            forward=model.forward_features,
        )
