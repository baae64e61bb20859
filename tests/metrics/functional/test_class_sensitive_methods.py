"""What methods claim: maps that depend on the class, and that have nothing to do with those of redrawn weights.

Measured on the demo's model, fine-tuned on digits for a few steps. Maps of one redraw have a pattern in common,
whatever the image, and it may happen to agree or disagree with where digits lie: one redraw says little (a
correlation of ±0.3 over images is usual), so the mean is over several.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_attngrad as attngrad
from lightning_attngrad.demo.data import DIGIT_MEAN, DIGIT_STD, load_digits
from lightning_attngrad.demo.models import demo_vision_transformer, load_backbone
from lightning_attngrad.explain import METHODS
from lightning_attngrad.metrics.functional import class_sensitivity, sanity_check
from tests.methods import OF_ANY_MODEL

STEPS, BATCH, IMAGES, REDRAWS = 60, 64, 24, 8
CLASS_SENSITIVE = [name for name in OF_ANY_MODEL if METHODS[name].class_sensitive]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """The model, images that it has not seen, and its two most probable classes of each (B, 2)."""
    (pixels, labels), (unseen, truth) = load_digits()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = demo_vision_transformer()
        load_backbone(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(STEPS):
            chosen = torch.randint(len(pixels), (BATCH,), generator=generator)
            loss = F.cross_entropy(model((pixels[chosen] - DIGIT_MEAN) / DIGIT_STD), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    images = (unseen[:200] - DIGIT_MEAN) / DIGIT_STD
    with torch.no_grad():
        logits = model(images)
    assert float((logits.argmax(dim=1) == truth[:200]).float().mean()) > 0.8
    return model, images[:IMAGES], logits[:IMAGES].topk(2, dim=1).indices


def test_some_methods_claim_it() -> None:
    assert {"guided_relevance", "attn_lrp", "conservative", "grad_cam"} <= set(CLASS_SENSITIVE)
    assert not {"raw_attention", "rollout", "gradient_guided"} & set(CLASS_SENSITIVE)


@pytest.mark.parametrize("method", CLASS_SENSITIVE)
def test_maps_depend_on_the_class_and_on_the_weights(trained: tuple[nn.Module, Tensor, Tensor], method: str) -> None:
    model, images, classes = trained
    maps = attngrad.explain(model, images, classes, method=method).heatmap
    assert float(class_sensitivity(maps[:, 0], maps[:, 1]).nanmean()) > 0.45
    redrawn = torch.stack([sanity_check(model, images, classes[:, 0], method, seed=seed) for seed in range(REDRAWS)])
    assert -0.3 < float(redrawn.nanmean()) < 0.2


@pytest.mark.parametrize("method", ["raw_attention", "rollout"])
def test_attention_alone_knows_no_class(trained: tuple[nn.Module, Tensor, Tensor], method: str) -> None:
    model, images, classes = trained
    maps = attngrad.explain(model, images, classes, method=method).heatmap
    assert float(class_sensitivity(maps[:, 0], maps[:, 1]).abs().max()) < 1e-6
    assert float(sanity_check(model, images, classes[:, 0], method, "head").min()) > 1 - 1e-6
