"""Raw attention against `timm.utils.AttentionExtract`, which reads what a model's own softmax gave."""

from __future__ import annotations

import timm
import torch
from timm.models.swin_transformer import window_reverse
from timm.utils import AttentionExtract
from torch import Tensor, nn

from lightning_attngrad.explain import explain
from tests.zoo import randomise

IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def unfused(model: nn.Module) -> nn.Module:
    """What is extracted is the input of a dropout, which a fused kernel does not have."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return randomise(model, seed=1).eval()


def extracted(model: nn.Module) -> list[Tensor]:
    """A of every layer."""
    with torch.no_grad():
        return list(AttentionExtract(model, method="hook")(IMAGES).values())


def test_the_class_token_s_row() -> None:
    model = unfused(
        timm.create_model(
            "vit_tiny_patch16_224", img_size=(32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
        )
    )
    expected = extracted(model)[-1].mean(1)[:, 0]  # (B, 1 + h·w)
    found = explain(model, IMAGES, 0, method="raw_attention")
    torch.testing.assert_close(found.token_scores, expected)
    torch.testing.assert_close(found.heatmap, expected[:, 1:].unflatten(1, (4, 6)))


def test_shifted_windows() -> None:
    """What the tokens of a Swin are read by on average: its windows put together by timm, and shifted back."""
    model = unfused(
        timm.create_model(
            "swin_tiny_patch4_window7_224",
            img_size=(32, 48),
            embed_dim=16,
            depths=(2,),
            num_heads=(2,),
            window_size=4,
            num_classes=5,
        )
    )
    block = model.layers[0].blocks[-1]
    assert block.shift_size == (2, 2)
    read = extracted(model)[-1].mean(1).sum(1)  # (windows × B, M)
    together = window_reverse(read.view(-1, 4, 4, 1), (4, 4), 8, 12)
    expected = torch.roll(together, (2, 2), dims=(1, 2)).squeeze(-1) / (8 * 12)
    torch.testing.assert_close(explain(model, IMAGES, 0, method="raw_attention").heatmap, expected)
