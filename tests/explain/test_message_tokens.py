"""A message that is made of the class token and stands beside it, as in X-CLIP, is a token of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.explain import explain

WIDTH, CLASSES, PATCHES = 16, 3, 24


class Messages(nn.Module):
    """In each of two blocks the class token writes a message that all read, and that is then forgotten."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Linear(3 * 16, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.kept: list[Tensor] = []
        self.by_hand = False

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(F.pixel_unshuffle(images, 4).flatten(2).mT)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1)
        for message, query, key, value in self.layers:
            given = torch.cat([tokens, message(tokens[:, :1])], dim=1)
            q, k, v = (project(given)[:, None] for project in (query, key, value))
            if self.by_hand:
                self.kept.append((q @ k.mT * WIDTH**-0.5).softmax(dim=-1))
                read = self.kept[-1] @ v
            else:
                read = F.scaled_dot_product_attention(q, k, v)
            tokens = (given + read[:, 0])[:, :-1]
        return self.head(tokens[:, 0])


IMAGES = torch.randn(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGET = torch.tensor([2, 0])


def kept() -> tuple[list[Tensor], list[Tensor]]:
    """A and G of both blocks, (B, 26, 26)."""
    model = Messages().double().eval()
    model.by_hand = True
    phi = model(IMAGES).gather(1, TARGET[:, None]).sum()
    return [a[:, 0].detach() for a in model.kept], [g[:, 0] for g in torch.autograd.grad(phi, model.kept)]


def on_patches(rows: Tensor) -> Tensor:
    return rows[:, 1:-1].unflatten(1, (4, 6)).float()


def test_raw_attention_is_the_row_of_the_class_token_alone() -> None:
    model = Messages().double().eval()
    found = explain(model, IMAGES, TARGET, method="raw_attention").heatmap
    torch.testing.assert_close(found, on_patches(kept()[0][-1][:, 0]))
    assert bool((found.sum((1, 2)) < 1).all())


def test_rollout_and_the_guided_recursion_go_on_to_the_token_that_wrote_the_message() -> None:
    model = Messages().double().eval()
    attention, gradient = kept()
    eye = torch.eye(PATCHES + 2, dtype=torch.float64)
    written = eye.clone()
    written[-1] = eye[0]  # what a message has was the class token's before the block

    def map_of(steps: list[Tensor]) -> Tensor:
        return on_patches((steps[1] @ written @ steps[0] @ written)[:, 0])

    rolled = map_of([0.5 * (a + eye) for a in attention])
    torch.testing.assert_close(explain(model, IMAGES, TARGET, method="rollout").heatmap, rolled)
    guided = map_of([eye + (a * g).clamp(min=0) for a, g in zip(attention, gradient, strict=True)])
    torch.testing.assert_close(explain(model, IMAGES, TARGET, method="gradient_guided").heatmap, guided)
