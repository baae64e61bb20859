"""The middle of what a token reads, against an oracle that brightens one row or column of pixels after the other.

The stems here are linear, with the same weight everywhere in a kernel: what a token changes by is then as large above
the middle of what it reads as below it.
"""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from lightning_attngrad.attention import KnownPlaces, equal_cells
from lightning_attngrad.explain import explain
from tests.attention.test_tracing import Blocks, images_of, traced
from tests.families import FAMILIES
from tests.zoo import logits_of

SIZE = (64, 96)


class Beside(nn.Module):
    """A convolution beside the pooling that is its shortcut, as CoAtNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.pool = nn.Conv2d(3, 16, 4, 4), nn.AvgPool2d(2)
        self.branch = nn.Conv2d(16, 16, 3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        found = self.wide(images)
        return self.pool(found) + self.branch(found) / (9 * 16 * 0.01)  # as much of one as of the other


class Unfolded(nn.Module):
    """Overlapping patches cut by ``unfold``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 49, 16)

    def forward(self, images: Tensor) -> Tensor:
        cut = F.unfold(images, 7, stride=4, padding=3)
        grid = (images.shape[-2] // 4, images.shape[-1] // 4)
        return self.linear(cut.mT).mT.unflatten(-1, grid)


STEMS = {
    "kernel 7, stride 4": lambda: nn.Conv2d(3, 16, 7, 4, 3),
    "three of kernel 3, stride 2": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
    ),
    "a ResNet's": lambda: nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.AvgPool2d(3, 2, 1), nn.Conv2d(8, 16, 3, 1, 1)),
    "padded as TensorFlow does": lambda: nn.Sequential(Conv2dSame(3, 8, 3, 2), Conv2dSame(8, 16, 3, 2)),
    "kernel 16, stride 8, without padding": lambda: nn.Conv2d(3, 16, 16, 8),
    "overlapping patches, unfolded": Unfolded,
    "dilated": lambda: nn.Conv2d(3, 16, 5, 4, 4, dilation=2),
    "patches that are merged": lambda: nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, 16, 2, 2)),
    "a branch beside its shortcut": Beside,
}


def model_with(stem: nn.Module) -> Blocks:
    with torch.no_grad():
        for parameter in stem.parameters():
            parameter.fill_(0.01)
    return Blocks(embed=stem)


def middles_by_brightening(stem: nn.Module, axis: int) -> tuple[Tensor, Tensor]:
    """Middles in pixels of what the tokens read along an axis (−2 or −1), and which of them read no padding."""
    length = SIZE[axis]
    moved = []
    with torch.no_grad():
        dark = stem(torch.zeros(1, 3, *SIZE))
        for place in range(length):
            images = torch.zeros(1, 3, *SIZE)
            images.select(axis, place).fill_(1)
            moved.append((stem(images) - dark).abs().sum(dim=1)[0].sum(dim=-1 if axis == -2 else -2))
    response = torch.stack(moved)  # (pixels, tokens)
    pixels = torch.arange(length)[:, None] + 0.5
    total = response.sum(0)
    return (response * pixels).sum(0) / total, total > 0.999 * total.max()


@pytest.mark.parametrize("name", STEMS)
def test_cells_lie_around_the_middle_of_what_a_token_reads(name: str) -> None:
    model = model_with(STEMS[name]())
    places = traced(model, images_of(*SIZE)).places
    assert places.grid is not None
    for number, axis in enumerate((-2, -1)):
        if places.grid not in places.edges:  # as good as equal
            assert name in ("patches that are merged", "a branch beside its shortcut")
            (middles, inner), side = middles_by_brightening(model.embed, axis), SIZE[axis] / places.grid[number]
            equal = (torch.arange(places.grid[number]) + 0.5) * side
            assert 0.1 < float((middles - equal)[inner].abs().max()) / side < 0.3
            continue
        edges = places.edges[places.grid][number]
        assert edges[0] == 0
        assert edges[-1] == SIZE[axis]
        middles, inner = middles_by_brightening(model.embed, axis)
        assert int(inner.sum()) > len(inner) // 2
        both = inner[1:] & inner[:-1]
        between = (middles[1:] + middles[:-1]) / 2
        torch.testing.assert_close(edges[1:-1][both], between[both], rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224"])
def test_patches_side_by_side_are_the_cells_of_the_map_to_the_bit(name: str) -> None:
    family = FAMILIES[name]
    model, images = family.build(), family.images()
    assert not KnownPlaces(model, images, None, lambda output: [logits_of(output)]).places.edges
    found = explain(model, images, 1)
    cells = found.heatmap.shape[1] * found.heatmap.shape[2]
    assert torch.equal(found.heatmap.flatten(1), found.token_scores[:, -cells:])


def test_of_every_other_token_the_middles_are_those_of_what_is_left() -> None:
    model = timm.create_model("levit_128s", embed_dim=(32, 32, 32), key_dim=8, depth=(1, 1, 1), num_heads=(2, 2, 2))
    places = KnownPlaces(model.eval(), torch.rand(2, 3, 224, 224), None, lambda output: [output]).places
    assert places.edges[14, 14][0][:3].tolist() == [0, 8.5, 24.5]  # middles 0.5, 16.5, 32.5
    assert places.edges[7, 7][0][:3].tolist() == [0, 16.5, 48.5]  # middles 0.5, 32.5, 64.5


def test_a_map_has_on_each_cell_what_the_tokens_read_there() -> None:
    model, images = Blocks(embed=STEMS["kernel 7, stride 4"]()), images_of(*SIZE)
    found = explain(model, images, 1, method="gradient_guided")
    tokens = found.token_scores.view(2, 16, 24)
    assert found.heatmap.shape == tokens.shape
    assert float((tokens - found.heatmap).abs().max()) > 0.01 * float(tokens.max())
    between = 0.625 * tokens[:, :-1] + 0.375 * tokens[:, 1:]  # the next token's middle is 1.5 pixels further up
    across = 0.625 * between[:, :, :-1] + 0.375 * between[:, :, 1:]
    torch.testing.assert_close(found.heatmap[:, :-1, :-1], across)
    places = KnownPlaces(model, images, None, lambda output: [output]).places
    torch.testing.assert_close(found.heatmap, equal_cells(tokens, places.edges[16, 24]))
    assert found.layers is not None
    torch.testing.assert_close(found.layers.sum(dim=1), found.heatmap)


class Pointed(nn.Module):
    """Reads overlapping windows most in their middles; its one class is what its tokens hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(*(nn.Conv2d(2, 2, 3, 2, 1, bias=False) for _ in range(3)))
        self.values = nn.Linear(2, 2)
        with torch.no_grad():
            for convolution in self.embed:
                convolution.weight.copy_(torch.tensor([[1.0, 2.0, 1.0]]) * torch.tensor([[1.0], [2.0], [1.0]]))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).mT
        values = self.values(tokens)
        tokens = tokens + 1e-6 * F.scaled_dot_product_attention(values, values, values)
        return tokens.square().sum(dim=1) * torch.ones(1, 2)


def test_one_bright_pixel_anywhere_is_drawn_around_where_it_is() -> None:
    model = Pointed()
    rows, columns = torch.arange(8) * 8 + 4.0, torch.arange(12) * 8 + 4.0
    beside = []
    for row in range(8, 48):
        images = torch.zeros(1, 2, 64, 96)
        column = (row * 7) % 72 + 8
        images[..., row, column] = 1
        heatmap = explain(model, images, 1, method="conservative").heatmap[0]
        shares = heatmap / heatmap.sum()
        beside.append((shares.sum(1) @ rows - (row + 0.5), shares.sum(0) @ columns - (column + 0.5)))
    apart = torch.tensor(beside)
    assert float(apart.abs().max()) < 4
    assert bool((apart.mean(dim=0).abs() < 0.5).all())  # 3.5, were the cells drawn side by side from the corner on
