"""Where tokens lie is read off the forward pass; what is no single grid is refused by name."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_attngrad.attention import AttentionTap, TokenLayout, UnsupportedModelError, infer_layout
from tests.zoo import ZOO


def layout_of(model: nn.Module, images: Tensor) -> TokenLayout:
    with AttentionTap(model) as tap, torch.no_grad():
        model(images)
    return infer_layout(tap, type(model).__name__, images)


@pytest.mark.parametrize("name", ZOO)
def test_prefix_and_grid_of_every_model(name: str) -> None:
    entry = ZOO[name]
    assert layout_of(entry.build(), entry.images()) == TokenLayout(prefix=entry.prefix, grid=entry.grid)


@pytest.mark.parametrize(("size", "grid"), [((32, 48), (4, 6)), ((48, 16), (6, 2)), ((30, 41), (4, 6))])
def test_images_of_other_shapes(size: tuple[int, int], grid: tuple[int, int]) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=1,
        num_heads=2,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    ).eval()
    assert layout_of(model, torch.rand(1, 3, *size)) == TokenLayout(prefix=1, grid=grid)


class _ReshapedPatches(nn.Module):
    """Patches cut by reshaping and a linear layer: no convolution to read the grid from."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(1, prefix, 16)) if prefix else None
        self.embed = nn.Linear(3 * 8 * 8, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        patches = nn.functional.unfold(images, 8, stride=8).mT
        tokens = self.embed(patches)
        if self.prefix is not None:
            tokens = torch.cat([self.prefix.expand(len(images), -1, -1), tokens], dim=1)
        return self.layer(tokens)[:, 0]


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_patches_without_a_convolution(prefix: int) -> None:
    model = _ReshapedPatches(prefix).eval()
    assert layout_of(model, torch.rand(2, 3, 32, 48)) == TokenLayout(prefix=prefix, grid=(4, 6))


def test_scores_become_maps() -> None:
    layout = TokenLayout(prefix=2, grid=(2, 3))
    scores = torch.arange(16.0).view(2, 8)
    assert layout.tokens == 8
    assert layout.to_grid(scores).tolist()[0] == [[2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("resnet10t", 32, "made no attention call"),
        ("swin_tiny_patch4_window7_224", 224, "hierarchical or works in windows"),
        ("pvt_v2_b0", 64, "hierarchical or works in windows"),
        ("xcit_nano_12_p16_224", 224, "XCiT|Xcit"),
    ],
)
def test_other_models_are_refused_by_name_with_what_is_supported(name: str, size: int, says: str) -> None:
    model = timm.create_model(name, num_classes=2).eval()
    with pytest.raises(UnsupportedModelError, match=says) as error:
        layout_of(model, torch.rand(1, 3, size, size))
    assert type(model).__name__ in str(error.value)
    assert "Supported are plain Vision Transformers" in str(error.value)
