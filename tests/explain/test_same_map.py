"""Same weights, other layout of the tokens: the same map, by every method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.explain import explain
from tests.methods import OF_ANY_MODEL
from tests.zoo import randomise

TARGET = torch.tensor([1, 3])
WIDTH, HEADS, CLASSES, REGISTERS = 32, 2, 5, 2


@dataclass(frozen=True)
class Layout:
    """How a `Written` lays out what it computes.

    Attributes:
        sequence_first: tokens (N, B, D), as `nn.MultiheadAttention` takes them by default.
        class_token: where it stands.
        registers: where they stand.
        linear: patches are cut by reshaping, and embedded by a Linear.
        padding: tokens behind all others that are masked out.
        patch: height and width in pixels.
    """

    sequence_first: bool = False
    class_token: Literal["front", "behind"] = "front"
    registers: Literal["front", "behind"] = "front"
    linear: bool = False
    padding: int = 0
    patch: tuple[int, int] = (8, 8)


class Written(nn.Module):
    """A ViT as people write it, with a class token and two registers; its parameters do not depend on the layout."""

    def __init__(self, layout: Layout, grid: tuple[int, int] = (4, 6), mean: bool = False) -> None:
        super().__init__()
        self.layout, self.mean = layout, mean
        self.embed = nn.Conv2d(3, WIDTH, layout.patch, layout.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.registers = nn.Parameter(torch.zeros(1, REGISTERS, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, math.prod(grid), WIDTH))
        self.blocks = nn.ModuleList(_block() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.cut(images) + self.positions
        tokens, where = self.assembled(patches)
        mask = None
        if self.layout.padding:
            tokens = F.pad(tokens, (0, 0, 0, self.layout.padding))
            mask = torch.ones(1, tokens.shape[1], dtype=torch.bool, device=tokens.device)
            mask[:, -self.layout.padding :] = False
        if self.layout.sequence_first:
            tokens = tokens.transpose(0, 1).contiguous()
        for block in self.blocks:
            tokens = tokens + self.attend(block, block["norm1"](tokens), mask)
            tokens = tokens + block["down"](F.gelu(block["up"](block["norm2"](tokens))))
        if self.layout.sequence_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.norm(tokens)
        pooled = tokens[:, where["patches"]].mean(1) if self.mean else tokens[:, where["class"]].squeeze(1)
        return self.head(pooled)

    def cut(self, images: Tensor) -> Tensor:
        if not self.layout.linear:
            return self.embed(images).flatten(2).mT  # (B, h·w, D)
        height, width = self.layout.patch
        batch, channels = images.shape[:2]
        rows = images.reshape(batch, channels, images.shape[2] // height, height, images.shape[3] // width, width)
        pixels = rows.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * height * width)
        return F.linear(pixels, self.embed.weight.flatten(1), self.embed.bias)

    def assembled(self, patches: Tensor) -> tuple[Tensor, dict[str, slice]]:
        front, behind = [], []
        for name, place in (("class", self.layout.class_token), ("registers", self.layout.registers)):
            token = self.class_token if name == "class" else self.registers
            (front if place == "front" else behind).append((name, token.expand(len(patches), -1, -1)))
        parts = [*front, ("patches", patches), *behind]
        where, begun = {}, 0
        for name, part in parts:
            where[name] = slice(begun, begun + part.shape[1])
            begun += part.shape[1]
        return torch.cat([part for _, part in parts], dim=1), where

    def attend(self, block: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor:
        qkv = block["qkv"](tokens)
        if self.layout.sequence_first:  # (N, B, 3 D): heads folded into the batch
            number, batch, _ = qkv.shape
            query, key, value = (
                part.reshape(number, batch * HEADS, WIDTH // HEADS).transpose(0, 1) for part in qkv.chunk(3, dim=-1)
            )
            scores = torch.bmm(query / math.sqrt(WIDTH // HEADS), key.transpose(1, 2))
            if mask is not None:
                scores = scores.masked_fill(~mask, -math.inf)
            read = torch.bmm(scores.softmax(dim=-1), value)  # (B·H, N, d)
            return block["out"](read.transpose(0, 1).reshape(number, batch, WIDTH))
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return block["out"](read.transpose(1, 2).flatten(2))


def _block() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "norm1": nn.LayerNorm(WIDTH),
            "qkv": nn.Linear(WIDTH, 3 * WIDTH),
            "out": nn.Linear(WIDTH, WIDTH),
            "norm2": nn.LayerNorm(WIDTH),
            "up": nn.Linear(WIDTH, 2 * WIDTH),
            "down": nn.Linear(2 * WIDTH, WIDTH),
        }
    )


def written(layout: Layout, *, mean: bool = False, grid: tuple[int, int] = (4, 6)) -> nn.Module:
    return randomise(Written(layout, grid, mean), seed=4).eval()


def images_of(height: int = 32, width: int = 48) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same_map(
    one: nn.Module,
    other: nn.Module,
    method: str,
    *,
    images: Tensor | None = None,
    forward: Callable[[Tensor], Any] | None = None,
) -> None:
    images = images_of() if images is None else images
    expected = explain(one, images, TARGET, method=method)
    found = explain(other, images, TARGET, method=method, forward=forward)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    close(found.heatmap, expected.heatmap)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    largest = expected.abs().flatten(1).amax(1)
    assert (largest > 0).all(), "a map of zeros proves nothing"
    apart = ((found - expected).abs().flatten(1).amax(1) / largest).max()
    assert apart < 1e-5, f"{apart:.1e} of the map's largest value apart"


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("mean", [False, True], ids=["class token", "mean"])
@pytest.mark.parametrize(
    "layout",
    [
        Layout(sequence_first=True),
        Layout(class_token="behind"),
        Layout(registers="behind"),
        Layout(class_token="behind", registers="behind"),
        Layout(linear=True),
        Layout(padding=5),
        Layout(sequence_first=True, linear=True, class_token="behind", padding=3),
    ],
    ids=lambda layout: " ".join(
        f"{name}={value}" for name, value in vars(layout).items() if value != getattr(Layout(), name)
    ),
)
def test_written_by_hand(layout: Layout, mean: bool, method: str) -> None:
    assert_same_map(written(Layout(), mean=mean), written(layout, mean=mean), method)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_oblong_patches(method: str) -> None:
    by_convolution = written(Layout(patch=(8, 16)), grid=(4, 3))
    by_reshaping = written(Layout(patch=(8, 16), linear=True), grid=(4, 3))
    assert explain(by_convolution, images_of(), TARGET, method=method).heatmap.shape == (2, 4, 3)
    assert_same_map(by_convolution, by_reshaping, method)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("linear", [False, True], ids=["convolution", "reshape"])
def test_an_image_on_its_side(method: str, linear: bool) -> None:
    upright, lying = written(Layout(linear=linear)), written(Layout(linear=linear), grid=(6, 4))
    with torch.no_grad():
        lying.embed.weight.copy_(upright.embed.weight.mT)
        lying.positions.copy_(upright.positions.unflatten(1, (4, 6)).transpose(1, 2).flatten(1, 2))
    expected = explain(upright, images_of(), TARGET, method=method).heatmap
    close(explain(lying, images_of().mT.contiguous(), TARGET, method=method).heatmap, expected.mT)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("batch_first", [False, True], ids=["sequence first", "batch first"])
def test_encoder_layers_of_torch(method: str, batch_first: bool) -> None:
    """``nn.TransformerEncoderLayer``, normalised in front, in either order of tokens, against our own."""
    ours = written(Layout())
    assert_same_map(ours, _OfEncoderLayers(ours, batch_first).eval(), method)


class _OfEncoderLayers(nn.Module):
    def __init__(self, ours: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.ours, self.batch_first = ours, batch_first
        layers = []
        for block in ours.blocks:
            layer = nn.TransformerEncoderLayer(
                WIDTH, HEADS, 2 * WIDTH, 0.0, activation="gelu", batch_first=batch_first, norm_first=True
            )
            layer.norm1, layer.norm2, layer.linear1, layer.linear2 = (
                block[name] for name in ("norm1", "norm2", "up", "down")
            )
            layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias = block["qkv"].weight, block["qkv"].bias
            layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias = block["out"].weight, block["out"].bias
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        tokens, where = self.ours.assembled(self.ours.cut(images) + self.ours.positions)
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        return self.ours.head(self.ours.norm(tokens)[:, where["class"]].squeeze(1))


# Windows --------------------------------------------------------------------------------------------------------


class Windowless(nn.Module):
    """A Swin of one stage whose windows are as large as its grid, computed without any window."""

    def __init__(self, swin: nn.Module) -> None:
        super().__init__()
        self.swin = swin

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.swin.patch_embed(images).flatten(1, 2)  # (B, h·w, D)
        for block in self.swin.layers[0].blocks:
            attention = block.attn
            qkv = attention.qkv(block.norm1(tokens))
            query, key, value = (
                part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
            )
            read = F.scaled_dot_product_attention(
                query, key, value, attn_mask=attention._get_rel_pos_bias(), scale=attention.scale
            )
            tokens = tokens + attention.proj(read.transpose(1, 2).flatten(2))
            tokens = tokens + block.mlp(block.norm2(tokens))
        return self.swin.head.fc(self.swin.norm(tokens).mean(1))


def swin_of_one_stage(window: tuple[int, int], depth: int = 2) -> nn.Module:
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=(32, 48),
        patch_size=4,
        embed_dim=16,
        depths=(depth,),
        num_heads=(2,),
        window_size=window,
        num_classes=CLASSES,
    )
    return randomise(model, seed=2).eval()


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("always_partition", [False, True])
def test_one_window_as_large_as_the_image(method: str, always_partition: bool) -> None:
    swin = swin_of_one_stage((8, 12))
    for block in swin.layers[0].blocks:
        block.always_partition = always_partition
    assert_same_map(Windowless(swin), swin, method)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_the_same_windows_one_image_larger_than_a_padded_one(method: str) -> None:
    """Padding of a window stands for no pixel: the map of a padded Swin keeps the grid of its patches."""
    padded = timm.models.swin_transformer.SwinTransformer(
        img_size=(24, 40), patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, num_classes=CLASSES
    )
    found = explain(randomise(padded, seed=2).eval(), images_of(24, 40), TARGET, method=method)
    assert found.heatmap.shape == (2, 6, 10)
    assert torch.isfinite(found.heatmap).all()
    assert found.heatmap.flatten(1).abs().amax(1).gt(0).all()


# NaFlex ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("pooling", ["naflexvit_base_patch16_gap", "naflexvit_base_patch16_map"])
@pytest.mark.parametrize("padding", [0, 6])
def test_naflex_padded_and_unpadded(method: str, pooling: str, padding: int) -> None:
    model = timm.create_model(
        pooling, patch_size=8, embed_dim=WIDTH, depth=2, num_heads=2, num_classes=CLASSES, embed_proj_type="linear"
    )
    model = randomise(model, seed=3).eval()

    def padded(images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        patches = images.reshape(batch, channels, height // 8, 8, width // 8, 8).permute(0, 2, 4, 3, 5, 1)
        patches = F.pad(patches.reshape(batch, -1, 8 * 8 * channels), (0, 0, 0, padding))
        places = torch.cartesian_prod(torch.arange(height // 8), torch.arange(width // 8))
        coordinates = F.pad(places, (0, 0, 0, padding)).expand(batch, -1, -1)
        valid = (torch.arange(patches.shape[1]) < len(places)).expand(batch, -1)
        return model(patches, patch_coord=coordinates, patch_valid=valid)

    assert_same_map(model, model, method, forward=padded)
