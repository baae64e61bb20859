"""``quality="best"``: maps averaged over copies of which half is hidden."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import METHODS, explain
from lightning_attngrad.explain.half_hidden import MOST_ROWS, PAIRS, halves
from lightning_attngrad.explain.question import Question
from tests.bright_objects import scenes, trained
from tests.references.half_hidden import mean_where_it_is_there
from tests.zoo import ZOO, ZooModel, randomise

#: Without maps of a plain ViT: shown on one that has what they need.
OTHERS = {"patch_sum"}


def a_vit() -> nn.Module:
    return randomise(timm.create_model("test_vit", img_size=64, num_classes=5), seed=0).eval()


@pytest.mark.parametrize("method", sorted(set(METHODS) - OTHERS))
def test_each_patch_has_its_mean_over_the_copies_that_hold_it(method: str) -> None:
    model = randomise(timm.create_model("test_vit", img_size=(64, 96), num_classes=5), seed=0).eval()
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"method": method, "target": [1, 4]}
    found = explain(model, images, quality="best", **options)
    grid = (4, 6)
    copies = list(halves(grid, found.area, images))
    for number, image in enumerate(images):
        for panel in (0, 1):

            def map_of(copy: Tensor, panel: int = panel) -> Tensor:
                return explain(model, copy, **options).heatmap[0, panel]

            expected = mean_where_it_is_there(map_of, image, copies, grid)
            torch.testing.assert_close(found.heatmap[number, panel], expected, rtol=1e-4, atol=1e-6)
    if found.layers is not None:
        torch.testing.assert_close(found.layers.sum(dim=2), found.heatmap, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.token_scores[..., -24:].unflatten(-1, grid), found.heatmap)
    assert found.completeness_error is None
    torch.testing.assert_close(found.logits, explain(model, images, **options).logits)  # those of the whole images


@pytest.mark.parametrize("grid", [(4, 6), (37, 37), (7, 56)])
def test_each_piece_is_there_in_one_copy_of_a_pair(grid: tuple[int, int]) -> None:
    images = torch.zeros(1, 3, grid[0] * 4 + 8, grid[1] * 4)
    area = (3, 0, 3 + grid[0] * 4, grid[1] * 4)
    copies = list(halves(grid, area, images))
    assert len(copies) == 2 * PAIRS
    for first, second in zip(copies[::2], copies[1::2], strict=True):
        inside_first, inside_second = first[3 : area[2]], second[3 : area[2]]
        assert bool((inside_first ^ inside_second).all())
        assert 0.4 <= float(inside_first.float().mean()) <= 0.6
        for there in (first, second):
            assert bool(there[:3].all())
            assert bool(there[area[2] :].all())
    # What is hidden is hidden in pieces of a size that does not shrink with the patches.
    changes = (copies[0][3 : area[2]][:, 1:] != copies[0][3 : area[2]][:, :-1]).any(dim=0).sum()
    assert int(changes) < MOST_ROWS


def test_a_batch_gives_what_single_images_give_and_again_the_same() -> None:
    model, images = a_vit(), torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    state = torch.random.get_rng_state()
    found = explain(model, images, quality="best")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(explain(model, images, quality="best").heatmap, found.heatmap)
    for number, image in enumerate(images):
        alone = explain(model, image[None], quality="best")
        torch.testing.assert_close(alone.heatmap[0], found.heatmap[number], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("member", ZOO.values(), ids=ZOO)
def test_best_is_there_for_every_model(member: ZooModel) -> None:
    model, images = member.build(), member.images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another method stands in
        fast, best = explain(model, images), explain(model, images, quality="best")
    assert best.heatmap.shape == fast.heatmap.shape
    assert bool(torch.isfinite(best.heatmap).all())
    assert float(best.heatmap.abs().max()) > 0
    torch.testing.assert_close(best.target, fast.target)


def test_the_maximum_is_on_a_bright_square() -> None:
    model = timm.create_model("test_vit", img_size=(64, 96), num_classes=4)
    torch.manual_seed(0)
    trained(model, (64, 96), 16, 400)
    scene = scenes(12, (64, 96), 16, seed=5)
    assert bool(scene.holds(explain(model, scene.images, scene.classes, quality="best").heatmap).all())


def test_a_question_of_another_quality_is_another() -> None:
    assert Question() == Question() != Question(quality="best")
    assert "quality" not in Question().plain()  # as checkpoints have it
    assert Question(quality="best").signed
    assert not Question(method="gradient_guided").signed


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quality: got 'high'; expected 'fast' or 'best'"):
        explain(a_vit(), torch.rand(1, 3, 64, 64), quality="high")  # type: ignore[arg-type]
