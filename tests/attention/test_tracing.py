"""Where tokens are traced to, on layouts whose places are known by construction; every place is compared one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, window_partition
from torch import Tensor, nn

from lightning_attngrad.attention import NoAttentionError, UnsupportedModelError
from lightning_attngrad.attention.movement_rules import RULES
from lightning_attngrad.attention.traced import TracedPlaces
from lightning_attngrad.attention.tracing import trace
from lightning_attngrad.state import held_still

PADDING = -1


def traced(model: nn.Module, images: Tensor, forward: Callable[[Tensor], Any] | None = None) -> TracedPlaces:
    with held_still(model):
        return trace(model, images, forward or model, answers=lambda output: [output])


def images_of(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """Two attention layers over tokens that ``lay_out`` makes of a grid of patches; parts are replaced below."""

    width, patch = 16, 8

    def __init__(self, **layout: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, self.width, self.patch, self.patch)
        self.extra = nn.Parameter(torch.randn(3, self.width))
        self.qkv = nn.ModuleList(nn.Linear(self.width, 3 * self.width) for _ in range(2))
        self.head = nn.Linear(self.width, 5)
        for name, part in layout.items():
            setattr(self, name, part)

    def lay_out(self, images: Tensor) -> Tensor:
        return self.embed(images).flatten(2).mT

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.lay_out(images)
        for layer, projection in enumerate(self.qkv):
            query, key, value = projection(tokens).unsqueeze(1).chunk(3, dim=-1)
            tokens = tokens + self.attend(layer, query, key, value).squeeze(1)
        return self.head(tokens.mean(dim=1))


def places_of(found: TracedPlaces, call: int = 0) -> list[list[int]]:
    """Cells of the keys of each row; −1 for padding, and slots as −2, −3, …"""
    keys, slots = found.places.calls[call].keys, found.places.slots
    place = torch.where(keys.place >= slots, keys.place - slots, torch.where(keys.place < 0, PADDING, -2 - keys.place))
    return place[:, 0].tolist()


CELLS = list(range(24))  # a grid of 4 × 6 on images of 32 × 48


def test_patches_of_a_convolution() -> None:
    found = traced(Blocks(), images_of(32, 48))
    assert found.places.grid == (4, 6)
    assert found.places.area == (0, 0, 32, 48)
    assert found.places.slots == 0
    assert places_of(found) == places_of(found, 1) == [CELLS, CELLS]
    assert all(call.keys.in_order and call.queries.in_order for call in found.places.calls)
    assert found.places.calls[1].reads == {0}
    assert not found.places.calls[0].reads


class CutByReshaping(Blocks):
    def lay_out(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        cut = images.view(batch, 3, height // 8, 8, width // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 192)
        return F.linear(cut, self.embed.weight.flatten(1), self.embed.bias)


class Oblong(Blocks):
    def __init__(self) -> None:
        super().__init__(embed=nn.Conv2d(3, 16, (16, 4), (16, 4)))


class Stem(Blocks):
    """Overlapping convolutions with padding, as convolutional stems have them."""

    def __init__(self) -> None:
        super().__init__(
            embed=nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 7, 2, 3),
                nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 16, 1),
            )
        )  # fmt: skip


class Overlapping(Blocks):
    def __init__(self) -> None:
        super().__init__(embed=nn.Conv2d(3, 16, 12, 8, 2))


class EvenKernel(Blocks):
    """A kernel of two behind a border that is padded for it on one side, as with "same" padding."""

    def lay_out(self, images: Tensor) -> Tensor:
        patches = self.embed(images)
        return F.conv2d(F.pad(patches, (1, 0, 1, 0)), self.kernel).flatten(2).mT

    def __init__(self) -> None:
        super().__init__(kernel=nn.Parameter(torch.randn(16, 16, 2, 2)))


class Unfolded(Blocks):
    """Soft split of T2T: patches that overlap, cut by ``unfold``."""

    def lay_out(self, images: Tensor) -> Tensor:
        return F.linear(F.unfold(images, 8, stride=8).mT, self.embed.weight.flatten(1))


@pytest.mark.parametrize(
    ("model", "grid"),
    [
        (CutByReshaping, (4, 6)),
        (Oblong, (2, 12)),
        (Stem, (4, 6)),
        (Overlapping, (4, 6)),
        (Unfolded, (4, 6)),
        (EvenKernel, (4, 6)),
    ],
)
def test_other_ways_to_cut_patches(model: Callable[[], nn.Module], grid: tuple[int, int]) -> None:
    found = traced(model(), images_of(32, 48))
    assert found.places.obstacle is None
    assert found.places.grid == grid
    assert found.places.area == (0, 0, 32, 48)
    assert places_of(found) == [list(range(24))] * 2


def test_tokens_sequence_first() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 8, 8)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False)
            self.token = nn.Parameter(torch.randn(1, 1, 16))

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.embed(images).flatten(2).permute(2, 0, 1)
            return self.encoder(torch.cat([tokens, self.token.expand(-1, tokens.shape[1], -1)]))[-1]

    found = traced(SequenceFirst().eval(), images_of(32, 48))
    assert places_of(found) == [[*CELLS, -2]] * 2
    assert found.places.slots == 1


class ExtraTokens(Blocks):
    """A class token in front, registers behind; one of them is written into its place."""

    def lay_out(self, images: Tensor) -> Tensor:
        patches = super().lay_out(images)
        first = self.extra[:1].expand(len(patches), 1, -1)
        tokens = torch.cat([first, patches, torch.zeros_like(first), torch.zeros_like(first)], dim=1)
        tokens[:, -2] = self.extra[1]
        return tokens


def test_prefix_tokens_registers_and_padding() -> None:
    found = traced(ExtraTokens(), images_of(32, 48))
    assert found.places.slots == 2
    assert places_of(found) == [[-2, *CELLS, -3, PADDING]] * 2


class PaddedSequence(Blocks):
    def lay_out(self, images: Tensor) -> Tensor:
        return F.pad(super().lay_out(images), (0, 0, 0, 6))


def test_padded_tokens_stand_for_nothing() -> None:
    assert places_of(traced(PaddedSequence(), images_of(32, 48))) == [[*CELLS, *[PADDING] * 6]] * 2


class Shuffled(Blocks):
    def lay_out(self, images: Tensor) -> Tensor:
        return super().lay_out(images)[:, torch.tensor(self.order)]


def test_a_fixed_order_is_followed() -> None:
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3)).tolist()[:20]
    found = traced(Shuffled(order=order), images_of(32, 48))
    assert places_of(found) == [order, order]
    assert not found.chosen


class RandomOrder(Blocks):
    def lay_out(self, images: Tensor) -> Tensor:
        patches = super().lay_out(images)
        kept = torch.rand(patches.shape[:2]).argsort(dim=1)[:, :9]
        self.kept = kept
        return patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, self.width))


def test_an_order_that_is_drawn_is_followed_and_said() -> None:
    model = RandomOrder()
    kept: list[Tensor] = []
    model.embed.register_forward_hook(lambda *_: kept.append(torch.get_rng_state()))
    found = traced(model, images_of(32, 48))
    assert found.chosen
    torch.set_rng_state(kept[0])
    assert places_of(found) == torch.rand(2, 24).argsort(dim=1)[:, :9].tolist()


class Cropped(Blocks):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[..., 4:36, 10:58])


def test_a_crop_is_the_part_that_the_model_sees() -> None:
    found = traced(Cropped(), images_of(48, 64))
    assert found.places.area == (4, 10, 36, 58)
    assert places_of(found) == [CELLS, CELLS]


class Resized(Blocks):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.interpolate(images, (32, 48), mode="bilinear", antialias=True))


@pytest.mark.parametrize("size", [(50, 70), (20, 30)])
def test_resizing_inside_the_forward(size: tuple[int, int]) -> None:
    found = traced(Resized(), images_of(*size))
    assert found.places.area == (0, 0, *size)
    assert places_of(found) == [CELLS, CELLS]


@pytest.mark.parametrize("size", [(64, 96), (72, 88), (40, 104)])
def test_swin_windows_with_shift_and_padding(size: tuple[int, int]) -> None:
    """Against timm's own windows of a grid of cell numbers."""
    window = 4
    model = SwinTransformer(
        img_size=size, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=window, num_classes=5
    )
    grid = (size[0] // 4, size[1] // 4)
    found = traced(model, images_of(*size))
    assert found.places.obstacle is None
    assert found.places.grid == grid
    cells = torch.arange(grid[0] * grid[1]).view(1, *grid, 1).expand(2, -1, -1, -1)
    for call, shift in enumerate((0, window // 2)):
        rolled = torch.roll(cells, (-shift, -shift), (1, 2))
        padded = F.pad(rolled, (0, 0, 0, -grid[1] % window, 0, -grid[0] % window), value=PADDING)
        expected = window_partition(padded, (window, window)).flatten(1)
        assert places_of(found, call) == expected.tolist()
        owners = torch.arange(2).repeat_interleave(len(expected) // 2)[:, None].expand_as(expected)
        assert torch.equal(
            found.places.calls[call].keys.image[:, 0], owners.where(expected >= 0, torch.tensor(PADDING))
        )


def test_patches_that_merge_with_padding_are_patches_of_the_coarser_grid() -> None:
    """7×7 patches, padded to 8×8 and merged: the last one is made of a single patch and of padding."""
    model = SwinTransformer(
        img_size=28, patch_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=7, num_classes=5
    )
    found = traced(model, images_of(28, 28))
    assert found.places.obstacle is None
    assert [call.keys.grid for call in found.places.calls] == [(7, 7), (4, 4)]
    assert places_of(found, 1) == [list(range(16))] * 2


def test_levit_keeps_every_other_token_as_a_coarser_grid() -> None:
    model = timm.create_model("levit_128s", num_classes=3)
    found = traced(model, images_of(224, 224))
    grids = [(call.queries.grid, call.keys.grid) for call in found.places.calls]
    assert ((7, 7), (14, 14)) in grids
    assert grids[-1] == ((4, 4), (4, 4))
    assert all(call.keys.in_order for call in found.places.calls)


def test_channels_that_attend_to_channels_are_told_apart() -> None:
    model = timm.create_model("xcit_nano_12_p16_224", num_classes=3)
    kinds = [call.kind for call in traced(model, images_of(224, 224)).places.calls]
    assert kinds == ["channels"] * 12 + ["tokens"] * 2


class ChoosesAnExpert(Blocks):
    """A soft choice among the channels of a token: a softmax times values in which no token reads another."""

    def lay_out(self, images: Tensor) -> Tensor:
        tokens = super().lay_out(images)
        experts = tokens.unflatten(-1, (4, 4))  # (B, N, E, D)
        weights = experts.mean(-1).softmax(-1)
        return torch.einsum("bne,bned->bnd", weights, experts).repeat(1, 1, 4)


def test_a_choice_among_experts_is_no_attention_between_tokens() -> None:
    kinds = [call.kind for call in traced(ChoosesAnExpert(), images_of(32, 48)).places.calls]
    assert kinds[-2:] == ["tokens", "tokens"]
    assert "tokens" not in kinds[:-2]


def test_what_does_not_reach_the_output_does_not_count() -> None:
    class WithTeacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = Blocks(), Blocks()

        def forward(self, images: Tensor) -> Tensor:
            self.teacher(images)
            return self.student(images)

    calls = traced(WithTeacher(), images_of(32, 48)).places.calls
    assert [(call.name, call.counts) for call in calls] == [
        ("teacher", False), ("teacher#2", False), ("student", True), ("student#2", True),
    ]  # fmt: skip


def test_learned_queries_are_tokens_of_their_own() -> None:
    found = traced(
        timm.create_model("vit_base_patch16_siglip_224", img_size=32, embed_dim=32, depth=1, num_heads=2),
        images_of(32, 32),
    )
    pooling = found.places.calls[-1]
    assert pooling.queries.grid is None
    assert pooling.queries.place.flatten().tolist() == [0, 0]
    assert found.places.slots == 1


# How it goes on with another batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "twins_svt_small", "hiera_tiny_224", "samvit_base_patch16_224"]
)
def test_places_of_two_images_hold_for_any_number(name: str, batch: int) -> None:
    options = {"img_size": 64} if name.startswith("sam") else {}
    model = timm.create_model(name, num_classes=3, **options)
    images = images_of(64, 64, 5) if options else images_of(224, 224, 5)
    of_two, of_more = traced(model, images[:2]), traced(model, images[:batch])
    assert of_two.holds_for(batch)
    for known, seen in zip(of_two.of_batch(batch).calls, of_more.places.calls, strict=True):
        assert known.shape == seen.shape
        for side in ("queries", "keys"):
            assert torch.equal(getattr(known, side).place, getattr(seen, side).place)
            assert torch.equal(getattr(known, side).image, getattr(seen, side).image)
    known_embedding, embedding = of_two.of_batch(batch).embedding, of_more.places.embedding
    assert known_embedding is not None
    assert embedding is not None
    assert torch.equal(known_embedding.tokens.place, embedding.tokens.place)
    assert torch.equal(known_embedding.tokens.image, embedding.tokens.image)


# What is refused ------------------------------------------------------------------------------------------------------


class LinearAttentionBetween(Blocks):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if layer == 1:
            return super().attend(layer, query, key, value)
        return query.relu() @ (key.relu().mT @ value)


class MixesTokens(Blocks):
    def __init__(self) -> None:
        super().__init__(mix=nn.Linear(24, 24))

    def lay_out(self, images: Tensor) -> Tensor:
        tokens = super().lay_out(images)
        return tokens + self.mix(tokens.mT).mT


class FourierMixing(Blocks):
    def lay_out(self, images: Tensor) -> Tensor:
        tokens = super().lay_out(images)
        return tokens + torch.fft.fft(tokens, dim=1).real


class Neighbours(Blocks):
    def lay_out(self, images: Tensor) -> Tensor:
        tokens = super().lay_out(images)
        return tokens + tokens.roll(1, dims=1)


class AcrossImages(Blocks):
    def lay_out(self, images: Tensor) -> Tensor:
        tokens = super().lay_out(images)
        return tokens + tokens.roll(1, dims=0)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (LinearAttentionBetween, "a product of tokens with tokens that is no softmax attention"),
        (MixesTokens, "a layer that mixes all tokens"),
        (FourierMixing, "the operation _fft"),
        (Neighbours, "form no grid"),
        (AcrossImages, "mixes the images of a batch"),
    ],
)
def test_what_stands_in_the_way_is_said(model: Callable[[], nn.Module], says: str) -> None:
    obstacle = traced(model(), images_of(32, 48)).places.obstacle
    assert isinstance(obstacle, UnsupportedModelError)
    assert says in str(obstacle)


def test_gates_and_statistics_of_the_whole_image_mix_no_tokens() -> None:
    class Gated(Blocks):
        def lay_out(self, images: Tensor) -> Tensor:
            tokens = super().lay_out(images)
            return tokens * tokens.mean(dim=1, keepdim=True).sigmoid() + tokens.amax(dim=(1, 2), keepdim=True)

    found = traced(Gated(), images_of(32, 48))
    assert found.places.obstacle is None
    assert places_of(found) == [CELLS, CELLS]


def test_a_gate_over_cells_that_the_border_cuts_is_one_of_the_whole_image() -> None:
    """7×7 patches to 4×4: the cell in the corner is a quarter of the others, and the mean is not its own."""

    class Merged(Blocks):
        def lay_out(self, images: Tensor) -> Tensor:
            merged = self.merge(self.embed(images))
            return (merged * merged.mean(dim=(2, 3), keepdim=True).sigmoid()).flatten(2).mT

    found = traced(Merged(merge=nn.Conv2d(16, 16, 3, 2, 1)), images_of(56, 56))
    assert found.places.obstacle is None
    assert found.places.grid == (4, 4)
    assert places_of(found) == [list(range(16))] * 2


@pytest.mark.parametrize("name", ["resnet10t", "test_convnext", "mixer_s32_224"])
def test_models_without_attention_have_an_embedding_all_the_same(name: str) -> None:
    found = traced(timm.create_model(name, num_classes=3), images_of(224, 224))
    assert found.places.obstacle is not None
    assert found.embedding_number is not None
    assert found.places.embedding is not None
    assert found.places.embedding.tokens.grid is not None


def test_a_model_that_attends_to_nothing() -> None:
    assert isinstance(traced(timm.create_model("resnet10t"), images_of(64, 64)).places.obstacle, NoAttentionError)


def test_an_operation_that_cannot_be_followed_is_named_and_the_model_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(followed: object, step: object) -> None:
        raise IndexError("nobody thought of it")

    monkeypatch.setitem(RULES, torch.ops.aten.hardswish, cannot)

    class WithHardswish(Blocks):
        def lay_out(self, images: Tensor) -> Tensor:
            return F.hardswish(super().lay_out(images))

    obstacle = traced(WithHardswish(), images_of(32, 48)).places.obstacle
    assert "aten.hardswish" in str(obstacle)
    assert "nobody thought of it" in str(obstacle)
