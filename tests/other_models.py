"""Small models beside the usual Vision Transformers: post-norm, without one embedding, and without attention."""

from __future__ import annotations

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from tests.zoo import randomise


class PostNormViT(nn.Module):
    """``nn.TransformerEncoderLayer`` with its defaults: nothing is normalised in front of the first attention."""

    def __init__(self, classes: int = 3, *, dropout: float = 0.1, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, stride=8)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) to (B, classes)."""
        tokens = self.embed(images).flatten(2).mT + self.position  # (B, 16, D)
        return self.head(self.encoder(tokens).mean(dim=1))  # type: ignore[no-any-return]


def post_norm_vit(classes: int = 3, seed: int = 0) -> PostNormViT:
    """In evaluation mode, with weights of their own."""
    model = PostNormViT(classes)
    randomise(model, seed)
    return model.eval()


class ViTBesideColours(PostNormViT):
    """Mean colours go to the logits past the tokens: nothing embeds all that the output has of the image."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__(classes)
        self.colours = nn.Linear(3, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) to (B, classes)."""
        return super().forward(images) + self.colours(images.mean(dim=(2, 3)))


def vit_beside_colours(classes: int = 3, seed: int = 0) -> ViTBesideColours:
    """In evaluation mode, with weights of their own."""
    model = ViTBesideColours(classes)
    randomise(model, seed)
    return model.eval()


def tiny_resnet(classes: int = 3) -> ResNet:
    """Four stages of a block each: batch normalisation, and no attention."""
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=classes, channels=(8, 8, 16, 16), stem_width=8)
