"""A message that is made of the class token and stands beside it, as in X-CLIP, is a token of its own."""

from __future__ import annotations

from typing import Literal, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.explain import UnsupportedModelError, explain

WIDTH, CLASSES, PATCHES = 16, 3, 24


Layout = Literal["behind", "in three parts", "in front", "sequence first"]


class Messages(nn.Module):
    """In each of two blocks the class token writes a message that all read, and that is then forgotten."""

    def __init__(self, layout: Layout = "behind") -> None:
        super().__init__()
        self.layout = layout
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
            given = self.together(tokens, message(tokens[:, :1]))
            q, k, v = (project(given)[:, None] for project in (query, key, value))
            if self.by_hand:
                self.kept.append((q @ k.mT * WIDTH**-0.5).softmax(dim=-1))
                read = self.kept[-1] @ v
            else:
                read = F.scaled_dot_product_attention(q, k, v)
            tokens = given + read[:, 0]
            tokens = tokens[:, 1:] if self.layout == "in front" else tokens[:, :-1]
        return self.head(tokens[:, 0])

    def together(self, tokens: Tensor, message: Tensor) -> Tensor:
        if self.layout == "in three parts":
            return torch.cat([tokens[:, :1], tokens[:, 1:], message], dim=1)
        if self.layout == "in front":
            return torch.cat([message, tokens], dim=1)
        if self.layout == "sequence first":
            return torch.cat([tokens.transpose(0, 1), message.transpose(0, 1)]).transpose(0, 1)
        return torch.cat([tokens, message], dim=1)


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


@pytest.mark.parametrize("layout", get_args(Layout))
def test_raw_attention_is_the_row_of_the_class_token_alone(layout: Layout) -> None:
    model = Messages(layout).double().eval()
    found = explain(model, IMAGES, TARGET, method="raw_attention").heatmap
    torch.testing.assert_close(found, on_patches(kept()[0][-1][:, 0]))
    assert bool((found.sum((1, 2)) < 1).all())


@pytest.mark.parametrize("layout", get_args(Layout))
def test_rollout_and_the_guided_recursion_go_on_to_the_token_that_wrote_the_message(layout: Layout) -> None:
    model = Messages(layout).double().eval()
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


class OfOtherRows(nn.Module):
    """Class tokens that are put in front of tokens come from the rows of other images, as TimeSformer's do."""

    def __init__(self, after_reading: bool, sequence_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.after_reading, self.sequence_first = after_reading, sequence_first
        self.patches = nn.Linear(3 * 16, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(F.pixel_unshuffle(images, 4).flatten(2).mT)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1)
        for number, layer in enumerate(self.layers):
            if number == self.after_reading:
                tokens = self.exchanged(tokens)
            read = layer(tokens)[:, None]
            tokens = tokens + F.scaled_dot_product_attention(read, read, read)[:, 0]
        return self.head(tokens[:, 0])

    def exchanged(self, tokens: Tensor) -> Tensor:
        """Each image gets the class token of the one before it."""
        moved = torch.cat([tokens[-1:, :1], tokens[:-1, :1]])
        if self.sequence_first:
            return torch.cat([moved.transpose(0, 1), tokens[:, 1:].transpose(0, 1)]).transpose(0, 1)
        return torch.cat([moved, tokens[:, 1:]], dim=1)


@pytest.mark.parametrize("sequence_first", [False, True])
@pytest.mark.parametrize("method", ["raw_attention", "rollout", "gradient_guided", "guided_relevance"])
def test_a_constant_belongs_to_the_row_that_it_is_put_into(method: str, sequence_first: bool) -> None:
    model = OfOtherRows(False, sequence_first).double().eval()
    together = explain(model, IMAGES, TARGET, method=method).heatmap
    alone = [explain(model, IMAGES[i : i + 1], TARGET[i : i + 1], method=method).heatmap for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("sequence_first", [False, True])
def test_what_has_read_another_image_is_refused(sequence_first: bool) -> None:
    model = OfOtherRows(True, sequence_first).double().eval()
    with pytest.raises(UnsupportedModelError, match="it mixes the images of a batch"):
        explain(model, IMAGES, TARGET, method="gradient_guided")


class MeanFirst(Messages):
    """After one block its class token begins as the mean of all tokens, as in attention pooling."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(F.pixel_unshuffle(images, 4).flatten(2).mT)
        for number, (_, query, key, value) in enumerate(self.layers):
            if number:
                tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
            q, k, v = (project(tokens)[:, None] for project in (query, key, value))
            tokens = tokens + F.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.head(tokens[:, 0])


def test_a_class_token_that_begins_as_the_mean_of_all_is_drawn() -> None:
    model = MeanFirst().double().eval()
    found = explain(model, IMAGES, TARGET)
    assert found.method == "guided_relevance"
    alone = [explain(model, IMAGES[i : i + 1], TARGET[i : i + 1]).heatmap for i in range(2)]
    torch.testing.assert_close(found.heatmap, torch.cat(alone))
