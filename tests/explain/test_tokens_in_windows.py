"""Rows of tokens that are not images: windows that hold copies of one token, images one by one, a vector of numbers."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import timm
import torch
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.attention import UnsupportedModelError

WIDTH, HEADS, SIDE, PATCH = 8, 2, 4, 4
#: Patches of each of the four windows of 2×2, and of the grid of four that lie two apart.
BLOCKS = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
GRIDS = torch.tensor([[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]])


class Attention(nn.Module):
    """Written out, with a residual around it; keeps its matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.matrix = torch.zeros(())

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(tokens)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        self.matrix = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        return tokens + (self.matrix @ value).transpose(1, 2).flatten(2)


class Windows(nn.Module):
    """Two attentions in windows, with a register in each window.

    Args:
        between: what becomes of the registers between the two: their mean goes into each of the other windows, each
            stays in its own, or new ones are put in.
    """

    def __init__(self, between: Literal["mean", "own", "new"]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.registers = nn.ParameterList(nn.Parameter(torch.randn(1, 1, WIDTH)) for _ in range(2))
        self.first, self.second, self.head = Attention(), Attention(), nn.Linear(WIDTH, 3)
        self.between = between

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT  # (B, 16, D)
        batch = len(tokens)
        register = torch.cat([self.registers[0].expand(4 * batch, -1, -1)])  # as einops.pack leaves it
        there = GRIDS if self.between == "mean" else BLOCKS
        windows = self.first(torch.cat([register, tokens[:, BLOCKS].flatten(0, 1)], dim=1))
        register, tokens = torch.cat([windows[:, :1]]), _back(windows[:, 1:], BLOCKS, batch)
        if self.between == "mean":
            register = register.unflatten(0, (batch, 4)).mean(1, keepdim=True).expand(-1, 4, -1, -1).flatten(0, 1)
        elif self.between == "new":
            register = self.registers[1].expand(4 * batch, -1, -1)
        windows = self.second(torch.cat([register, tokens[:, there].flatten(0, 1)], dim=1))
        logits: Tensor = self.head(_back(windows[:, 1:], there, batch).mean(1))
        return logits


def _back(windows: Tensor, places: Tensor, batch: int) -> Tensor:
    """(4·B, 4, D) in windows to (B, 16, D) in reading order."""
    return windows.unflatten(0, (batch, 4)).flatten(1, 2)[:, places.flatten().argsort()]


def images() -> Tensor:
    return torch.randn(
        2, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def by_hand(model: Windows, pixels: Tensor, target: Tensor, new_registers: bool) -> Tensor:
    """``R ← R + C R`` window by window, (B, 4, 4); a register is the mean of its copies, a new one begins anew."""
    logits = model(pixels)
    matrices = [model.first.matrix, model.second.matrix]
    gradients = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), matrices)
    maps = []
    for b in range(len(pixels)):
        patches, register = torch.eye(17, dtype=torch.float64)[1:], torch.eye(17, dtype=torch.float64)[:1]
        for layer, (matrix, gradient) in enumerate(zip(matrices, gradients, strict=True)):
            places = GRIDS if layer and model.between == "mean" else BLOCKS
            if layer and new_registers:
                register = torch.zeros(1, 17, dtype=torch.float64)
            after, copies = patches.clone(), []
            for w, window in enumerate(places):
                carried = (matrix[4 * b + w] * gradient[4 * b + w]).clamp_min(0).mean(0)  # (5, 5)
                relevance = torch.cat([register, patches[window]])
                changed = relevance + carried @ relevance
                copies.append(changed[:1])
                after[window] = changed[1:]
            patches, register = after, torch.stack(copies).mean(0)
        maps.append((patches - torch.eye(17, dtype=torch.float64)[1:]).mean(0)[1:].view(4, 4))
    return torch.stack(maps)


@pytest.mark.parametrize("between", ["mean", "new"])
def test_one_token_in_several_windows_is_the_mean_of_its_copies(between: Literal["mean", "new"]) -> None:
    model, target = Windows(between).double().eval(), torch.tensor([1, 2])
    found = attngrad.explain(model, images(), target, method="gradient_guided")
    expected = by_hand(model, images(), target, new_registers=between == "new")
    torch.testing.assert_close(found.heatmap.double(), expected, rtol=1e-4, atol=1e-9)


def test_a_rollout_keeps_its_sum() -> None:
    """It would not, if each copy took all that its token has."""
    found = attngrad.explain(Windows("mean").double().eval(), images(), method="rollout").token_scores
    torch.testing.assert_close(found.sum(-1), torch.ones(2, dtype=found.dtype), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", ["gradient_guided", "rollout", "raw_attention", "guided_relevance"])
def test_tokens_that_each_window_keeps_for_itself_are_refused(method: str) -> None:
    model = Windows("own").double().eval()
    with pytest.raises(
        UnsupportedModelError,
        match=r"'second' tokens mix by messenger or register tokens, of which each window \(or frame\) keeps its own",
    ):
        attngrad.explain(model, images(), torch.tensor([0, 1]), method=method)
    assert attngrad.explain(model, images(), torch.tensor([0, 1]), method="attn_lrp").heatmap.isfinite().all()


# Rows of a batch ------------------------------------------------------------------------------------------------


class ImageByImage(nn.Module):
    """Puts together what it computes one image at a time.

    Args:
        net: a ViT of timm.
        where: what is put together.
    """

    def __init__(self, net: nn.Module, where: Literal["patches", "tokens", "class tokens", "logits"]) -> None:
        super().__init__()
        self.net, self.where = net, where

    def forward(self, images: Tensor) -> Any:
        net: Any = self.net
        each = [images[i : i + 1] for i in range(len(images))]
        if self.where == "logits":
            return torch.cat([net(image) for image in each])
        if self.where == "patches":
            tokens = net.norm_pre(net._pos_embed(torch.cat([net.patch_embed(image) for image in each])))
            return net.forward_head(net.norm(net.blocks(tokens)))
        tokens = [net.forward_features(image) for image in each]
        if self.where == "tokens":
            return net.forward_head(torch.cat(tokens))
        return net.head(net.fc_norm(torch.cat([of_image[:, 0] for of_image in tokens])))


@pytest.mark.parametrize("where", ["patches", "tokens", "class tokens", "logits"])
def test_images_that_are_computed_one_by_one_are_not_mixed(where: Any) -> None:
    net = timm.create_model("test_vit", num_classes=3, img_size=32, patch_size=8).eval()
    pixels, target = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2])
    found = attngrad.explain(ImageByImage(net, where).eval(), pixels, target, method="gradient_guided")
    expected = attngrad.explain(net, pixels, target, method="gradient_guided")
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=1e-4, atol=1e-7)


class Gated(nn.Module):
    """Attention whose tokens are scaled by a number each, a product of a matrix with a vector.

    Args:
        written: as ``tokens @ vector``, or as a linear layer to one channel.
    """

    def __init__(self, written: Literal["vector", "matrix"]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.patches, self.attention = nn.Conv2d(3, WIDTH, PATCH, PATCH), Attention()
        self.scale, self.head, self.written = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, 3), written

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT.contiguous()  # of which torch takes one product, of all rows
        gate = tokens @ self.scale if self.written == "vector" else (tokens @ self.scale[:, None]).squeeze(-1)
        logits: Tensor = self.head(self.attention(tokens * gate.tanh().unsqueeze(-1)).mean(1))
        return logits


@pytest.mark.parametrize("method", ["gradient_guided", "grad_cam", "libragrad", "rollout"])
def test_a_product_with_a_vector_keeps_its_rows_where_they_are(method: str) -> None:
    maps = [
        attngrad.explain(Gated(written).double().eval(), images(), torch.tensor([0, 1]), method=method).heatmap
        for written in ("vector", "matrix")
    ]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-5, atol=1e-9)


# One token in parts ---------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """A class token as wide as two, which attends in two parts; a layer over its whole width mixes these.

    Args:
        again: whether they attend once more afterwards.
    """

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.patches, self.token = nn.Conv2d(3, WIDTH, PATCH, PATCH), nn.Parameter(torch.randn(1, 2, WIDTH))
        self.first, self.widen, self.second = Attention(), nn.Linear(2 * WIDTH, 2 * WIDTH), Attention()
        self.head, self.again = nn.Linear(2 * WIDTH, 3), again

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        tokens = self.first(torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1))
        wide = self.widen(tokens[:, :2].flatten(1))
        if self.again:
            wide = self.second(torch.cat([wide.unflatten(1, (2, -1)), tokens[:, 2:]], dim=1))[:, :2].flatten(1)
        logits: Tensor = self.head(wide)
        return logits


def test_a_token_whose_parts_are_mixed_may_be_read_but_not_attend_again() -> None:
    target = torch.tensor([0, 1])
    assert attngrad.explain(Wide(again=False).double().eval(), images(), target, method="rollout").heatmap.any()
    with pytest.raises(UnsupportedModelError, match="in 'widen' tokens mix by fusing several into one"):
        attngrad.explain(Wide(again=True).double().eval(), images(), target, method="gradient_guided")
