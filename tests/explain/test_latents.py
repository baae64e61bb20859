"""Latents that read the image and then each other, as a Perceiver's do: the plain recursion over latents and pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import UnsupportedModelError
from lightning_attngrad.explain import explain

WIDTH, LATENTS, CLASSES = 16, 5, 3


class Latents(nn.Module):
    """Two rounds: latents read the image, then each other; their mean is classified."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Linear(3 * 16, WIDTH)
        self.latents = nn.Parameter(torch.randn(1, LATENTS, WIDTH))
        self.place = nn.Parameter(torch.randn(1, 4 * 6, WIDTH))
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)) for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.kept: list[Tensor] = []
        self.by_hand = False

    def attend(self, layer: nn.Module, asking: Tensor, read: Tensor) -> Tensor:
        q, k, v = (project(of)[:, None] for project, of in zip(layer, (asking, read, read), strict=True))
        if not self.by_hand:
            return F.scaled_dot_product_attention(q, k, v)[:, 0]
        self.kept.append((q @ k.mT * WIDTH**-0.5).softmax(dim=-1))
        return (self.kept[-1] @ v)[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.patches(F.pixel_unshuffle(images, 4).flatten(2).mT) + self.place
        latents = self.latents.expand(len(images), -1, -1)
        for read, mix in zip(self.layers[::2], self.layers[1::2], strict=True):
            latents = latents + self.attend(read, latents, pixels)
            latents = latents + self.attend(mix, latents, latents)
        return self.head(latents.mean(dim=1))


MODEL = Latents().double().eval()
IMAGES = torch.randn(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([2, 0])


def kept() -> tuple[list[Tensor], list[Tensor]]:
    """A and G of the four calls, (B, 1, N, M), first call first."""
    model = Latents().double().eval()
    model.by_hand = True
    phi = model(IMAGES).gather(1, TARGET[:, None]).sum()
    return model.kept, list(torch.autograd.grad(phi, model.kept))


def test_gradient_guided_goes_through_the_latents() -> None:
    c = [(a * g).clamp(min=0)[:, 0] for a, g in zip(*kept(), strict=True)]
    row = torch.full((2, 1, LATENTS), 1 / LATENTS, dtype=torch.float64)
    row = row + row @ c[3]
    expected = row @ c[2]
    row = row + row @ c[1]
    expected = expected + row @ c[0]
    found = explain(MODEL, IMAGES, TARGET, method="gradient_guided").heatmap
    torch.testing.assert_close(found.double(), expected.view(2, 4, 6), rtol=1e-5, atol=1e-9)


def test_rollout_goes_through_the_latents() -> None:
    a = [matrix[:, 0] for matrix in kept()[0]]
    row = torch.full((2, 1, LATENTS), 1 / LATENTS, dtype=torch.float64)
    row = (row + row @ a[3]) / 2
    expected, row = row @ a[2] / 2, row / 2
    row = (row + row @ a[1]) / 2
    expected = expected + row @ a[0]  # what latents are before they have read anything is no part of the image
    found = explain(MODEL, IMAGES, TARGET, method="rollout").heatmap
    torch.testing.assert_close(found.double(), expected.view(2, 4, 6), rtol=1e-5, atol=1e-9)


def test_raw_attention_that_reads_no_patch_is_refused_and_not_drawn_as_nothing() -> None:
    with pytest.raises(UnsupportedModelError, match=r"reads only tokens that lie nowhere on the image.*'rollout'"):
        explain(MODEL, IMAGES, TARGET, method="raw_attention")
