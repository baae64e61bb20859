"""The judges themselves: places on layouts that are known by construction, and refusals where nothing can be known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.families import FAMILIES
from tests.references import traced_maps
from tests.references.attention_products import attention_products
from tests.references.guided import CORRECTIONS
from tests.references.occlusion import Undecided, places
from tests.zoo import ZOO, logits_of, randomise

SOME = ["timm/swin_tiny_patch4_window7_224", "timm/levit_conv_128s", "timm/mvitv2_base_cls", "transformers/hiera"]


@pytest.mark.parametrize("name", ["vit", "torchvision", "dinov2_registers", "siglip", "hf_vit_eager"])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_traced_maps_are_the_plain_recursion_on_plain_models(name: str, correction: str) -> None:
    from tests.references import guided

    zoo = ZOO[name]
    model, images, target = zoo.build(torch.float64), zoo.images(dtype=torch.float64), torch.tensor([2, 5])
    expected = guided.guided_tokens(zoo, guided.read(model, images, guided.logit(target)), correction)
    found = traced_maps.guided(traced_maps.read(model, images, target), correction)
    torch.testing.assert_close(found, guided.patches(zoo, expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SOME)
def test_recording_changes_nothing(name: str) -> None:
    family = FAMILIES[name]
    model, images = family.build(torch.float64), family.images(dtype=torch.float64)
    with torch.no_grad():
        expected = logits_of(model(images))
        with attention_products() as products:
            found = logits_of(model(images))
    torch.testing.assert_close(found, expected)
    assert products
    for product in products:
        sums = product.probabilities.sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


class Shifted(nn.Module):
    """Windows of 2×2 on 4×6 patches, shifted by one; attention in the middle of each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 24)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.embed(images).permute(0, 2, 3, 1)  # (B, 4, 6, D)
        windows = grid.roll((-1, -1), (1, 2)).unflatten(1, (2, 2)).unflatten(3, (3, 2))
        tokens = windows.transpose(2, 3).reshape(-1, 4, 8)  # (windows, 4, D)
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        read = (query @ key.mT / math.sqrt(8)).softmax(-1) @ value
        back = read.reshape(len(images), 2, 3, 2, 2, 8).transpose(2, 3).reshape(len(images), 4, 6, 8)
        return self.head((grid + back.roll((1, 1), (1, 2))).mean((1, 2)))


def test_places_of_shifted_windows() -> None:
    model = randomise(Shifted(), seed=0)
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    (found,) = places(model, images)
    assert found.key_grid == found.query_grid == (4, 6)
    for number, tokens in enumerate(found.keys):
        image, window = divmod(number, 6)
        top, left = 2 * (window // 3), 2 * (window % 3)
        expected = [
            ("cell", image, (top + down + 1) % 4, (left + right + 1) % 6) for down in (0, 1) for right in (0, 1)
        ]
        assert tokens == expected
        assert found.queries[number] == expected


class Averaged(Shifted):
    """Every token is the mean of the image: there is no place to be found."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).mT
        tokens = tokens.mean(1, keepdim=True) * torch.linspace(1, 2, 24, dtype=tokens.dtype)[:, None]
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        return self.head((tokens + F.scaled_dot_product_attention(query, key, value)).mean(1))


def test_no_place_is_guessed() -> None:
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Undecided):
        traced_maps.read(randomise(Averaged(), seed=0).double(), images.double(), torch.tensor([0, 1]))


def test_carried_keeps_the_sum_and_shares_by_area() -> None:
    cells = torch.arange(6.0, dtype=torch.float64).view(1, 2, 3)
    assert torch.equal(traced_maps.carried(cells, (1, 3)), cells.sum(1, keepdim=True))
    assert torch.equal(traced_maps.carried(cells, (4, 3)), cells.repeat_interleave(2, 1) / 2)
    uneven = traced_maps.carried(cells, (5, 2))
    torch.testing.assert_close(uneven.sum(), cells.sum())
    assert float(uneven[0, 0, 0]) == pytest.approx((0 + 1 / 2) * 2 / 5)
