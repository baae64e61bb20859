"""Changes confined to the patches that a map ranks highest, and as few of them as will do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_attngrad.explain import explain
from lightning_attngrad.rewrite import Normalisation, Rewrite, rewrite
from lightning_attngrad.rewrite.margins import TargetMargin
from lightning_attngrad.rewrite.patches import PatchRanking, fewest_patches, rank_patches
from lightning_attngrad.rewrite.search import Search
from tests.references import rewriting as reference
from tests.rewrite.models import PIXELS, Counted, Linear, assert_true_report, others, random, tiny_vit
from tests.zoo import ZOO


def ranks_like(*grid: int, rows: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(grid[0] * grid[1], generator=generator).view(grid) for _ in range(rows)])


@pytest.mark.parametrize("name", ["vit", "siglip", "vit_mean"])
def test_ranks_are_the_order_of_the_map(name: str) -> None:
    model, images = ZOO[name].build(), ZOO[name].images()
    target = torch.tensor([2, 5])
    ranks = rank_patches(model, images, target, model).ranks
    heatmap = explain(model, images, target, method="gradient_guided").heatmap
    assert ranks.dtype == torch.int64
    for row in range(2):
        expected = reference.ranks_of(heatmap[row].double().numpy())
        assert np.array_equal(ranks[row].numpy(), expected)


def test_equal_patches_are_ranked_in_reading_order() -> None:
    model = tiny_vit()
    with torch.no_grad():
        model.head.weight.zero_()
    ranks = rank_patches(model, random(1, 3, 32, 32), torch.tensor([1]), model).ranks
    assert ranks.flatten().tolist() == list(range(16))


@pytest.mark.parametrize(
    ("grid", "patch"), [((4, 4), (8, 8)), ((4, 6), (8, 8)), ((37, 37), (14, 14)), ((3, 5), (7, 2))]
)
def test_masks_are_the_first_patches_of_the_ranking(grid: tuple[int, int], patch: tuple[int, int]) -> None:
    ranks = ranks_like(*grid)
    number = torch.tensor([1.0, 0.6 * ranks[0].numel()])
    mask = PatchRanking(ranks, (grid[0] * patch[0], grid[1] * patch[1])).top(number.ceil())
    assert mask.dtype == torch.bool
    assert mask.shape == (2, 1, grid[0] * patch[0], grid[1] * patch[1])
    for row in range(2):
        expected = reference.mask_of(ranks[row].numpy(), int(number[row].ceil()), patch)
        assert np.array_equal(mask[row, 0].numpy(), expected)


@pytest.mark.parametrize(
    ("grid", "size"), [((4, 4), (32, 32)), ((4, 6), (32, 48)), ((4, 4), (35, 38)), ((7, 3), (64, 50))]
)
def test_the_share_is_that_of_the_patches_that_were_free(grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Also where the grid does not divide the image, so that patches have no whole number of pixels."""
    ranking, original = PatchRanking(ranks_like(*grid), size), random(2, 3, *size)
    total = ranking.total
    for number in range(total + 1):
        free = ranking.top(torch.full((2,), number))
        changed = torch.where(free, original + 1, original)
        assert ranking.share_changed(changed, original).tolist() == pytest.approx([number / total] * 2)


def test_the_share_goes_down_to_the_last_patch_that_changed() -> None:
    ranks, original = ranks_like(4, 4, rows=1), random(1, 3, 32, 32)
    pixels = original.clone()
    for rank in (2, 9):  # one pixel of one channel each
        row, column = (ranks[0] == rank).nonzero()[0].tolist()
        pixels[0, 1, 8 * row + 7, 8 * column] += 0.5
    expected = reference.share_changed(original[0].numpy(), pixels[0].numpy(), ranks[0].numpy(), (8, 8))
    assert float(PatchRanking(ranks, (32, 32)).share_changed(pixels, original)) == expected == 10 / 16


class Cropped(torch.nn.Module):
    """Sees the middle of an image only."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images[..., 4:36, 8:40])


@pytest.mark.parametrize("options", [{"norm": "l0_patches"}, {"norm": "linf", "top_share": 0.25}])
def test_patches_lie_where_the_model_looks(options: dict[str, object]) -> None:
    """What is rewritten of a larger image is what would be of the part that the model sees."""
    model, images = tiny_vit(), random(2, 3, 40, 56)
    seen = images[..., 4:36, 8:40].contiguous()
    target = others(model, seen)
    found = rewrite(Cropped(model), images, target, **options, **PIXELS)
    expected = rewrite(model, seen, target, **options, **PIXELS)
    assert_true_report(found, Cropped(model))
    assert found.success.all()
    torch.testing.assert_close(found.distance, expected.distance)
    torch.testing.assert_close(found.pixels[..., 4:36, 8:40], expected.pixels)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("number", [1, 3, 7, 12, 16])
def test_the_fewest_patches_of_a_linear_model_are_found(number: int, seed: int) -> None:
    """Each patch gains what its pixels have room for: the first k that gain enough are known."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 8, 8, generator=generator)
    original, ranks = random(1, 3, 8, 8, seed=seed), ranks_like(4, 4, rows=1, seed=seed)
    gain = (weight.abs() * torch.where(weight > 0, 1 - original[0], original[0])).sum(0)
    gain = gain.view(4, 2, 4, 2).sum((1, 3)).flatten()[ranks.flatten().argsort()]  # in the order of the ranking
    need = float(gain[: number - 1].sum() + 0.5 * gain[number - 1])
    bias = -(weight * original[0]).sum() - need
    model = Linear(torch.stack([torch.zeros(192), weight.flatten()]), torch.stack([torch.zeros(()), bias]))
    search = Search(TargetMargin(model, Normalisation((0.0,), (1.0,), ""), torch.tensor([1])), original)
    fewest_patches(search, PatchRanking(ranks, (8, 8)), 16, None)
    assert float(search.cost) * 16 == number


def shared(result: Rewrite, model: torch.nn.Module, patch: tuple[int, int] = (8, 8)) -> list[float]:
    """The share of the patches of each row by the naive reference."""
    shares = []
    for row in range(len(result.pixels)):
        image, target = result.original[row : row + 1], result.target[row : row + 1]
        heatmap = explain(model, image, target, method="gradient_guided").heatmap[0]
        ranks = reference.ranks_of(heatmap.double().numpy())
        shares.append(reference.share_changed(image[0].numpy(), result.pixels[row].numpy(), ranks, patch))
    return shares


def test_the_share_that_is_reported_is_the_share_that_changed() -> None:
    model, images = tiny_vit(img_size=(32, 48)), random(6, 3, 32, 48)
    result = rewrite(model, images, others(model, images), norm="l0_patches", **PIXELS)
    assert_true_report(result, model)
    assert result.success.all()
    assert result.distance.tolist() == pytest.approx(shared(result, model))
    assert ((result.distance * 24 - (result.distance * 24).round()).abs() < 1e-5).all()
    assert 0 < result.distance.min() < result.distance.max() <= 1


def test_an_image_of_the_class_needs_no_patch() -> None:
    model, images = tiny_vit(), random(2, 3, 32, 32)
    result = rewrite(model, images, model(images).argmax(1), norm="l0_patches", steps=2, **PIXELS)
    assert result.distance.tolist() == [0.0, 0.0]
    assert torch.equal(result.pixels, result.original)


@pytest.mark.parametrize(("radius", "number"), [(1 / 16, 1), (2.6 / 16, 2), (3 / 16, 3), (1.0, 16)])
def test_a_radius_is_a_share_that_is_never_exceeded(radius: float, number: int) -> None:
    model, images = tiny_vit(), random(4, 3, 32, 32)
    result = rewrite(model, images, others(model, images), norm="l0_patches", radius=radius, steps=4, **PIXELS)
    assert_true_report(result, model)
    shares = shared(result, model)
    assert max(shares) == number / 16
    assert (result.distance[result.success] <= radius).all()
    assert result.distance[result.success].tolist() == [s for s, won in zip(shares, result.success, strict=True) if won]


def test_a_share_of_no_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"radius: got 0.06; expected 0.0625 or more, a share of the 16 patches"):
        rewrite(tiny_vit(), random(1, 3, 32, 32), 1, norm="l0_patches", radius=0.06, **PIXELS)


def test_29_of_100_patches_are_29() -> None:
    """0.29 · 100 is 28.999… in binary."""
    model, images = tiny_vit(img_size=80), random(1, 3, 80, 80)
    result = rewrite(model, images, others(model, images), norm="l0_patches", radius=0.29, steps=1, **PIXELS)
    assert shared(result, model) == [0.29]


@pytest.mark.parametrize("radius", [None, 0.3])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("share", "number"), [(0.25, 4), (0.01, 1), (1.0, 16)])
def test_nothing_changes_outside_the_top_share(share: float, number: int, norm: str, radius: float | None) -> None:
    model, images = tiny_vit(), random(3, 3, 32, 32)
    target = others(model, images)
    result = rewrite(model, images, target, norm=norm, steps=6, top_share=share, radius=radius, **PIXELS)
    assert_true_report(result, model)
    ranks = rank_patches(model, result.original, target, model).ranks
    free = torch.from_numpy(np.stack([reference.mask_of(rank.numpy(), number, (8, 8)) for rank in ranks]))[:, None]
    changed = result.pixels != result.original
    assert not (changed & ~free).any()
    assert (changed & free).any()


def test_fewer_patches_need_a_larger_change() -> None:
    model, images = tiny_vit(), random(4, 3, 32, 32)
    target = others(model, images)
    few, half, free = (
        rewrite(model, images, target, norm="l2", top_share=share, **PIXELS).distance for share in (0.25, 0.5, None)
    )
    assert (few > 0.95 * half).all()  # of each an upper bound is found
    assert (half > 0.95 * free).all()
    assert few.mean() > 1.03 * half.mean() > 1.06 * free.mean()


@pytest.mark.parametrize("options", [{"norm": "l0_patches"}, {"top_share": 0.5}, {"norm": "l0_patches", "radius": 0.5}])
def test_every_image_costs_the_same_passes(options: dict[str, object]) -> None:
    """Of which one, with its own gradient, is for the map, and one, once for a model, to trace its tokens."""
    model, images = tiny_vit(), random(2, 3, 32, 32)
    counts = set()
    for target in (model(images).argmax(1), others(model, images)):
        counted = Counted(model)
        rewrite(counted, images, target, steps=3, **options, **PIXELS)
        counts.add((counted.forwards, counted.gradients))
    assert counts == {(3 + 2 + (1 if "radius" in options else 7), 3)}
