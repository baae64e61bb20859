"""Forward passes that know which samples their images are of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import ForwardOfRows, after, of_rows
from lightning_attngrad.metrics.functional import faithfulness_curves
from lightning_attngrad.rewrite import rewrite

SHIFTS = torch.tensor([0.0, 3.0, -3.0])


class Shifted(ForwardOfRows):
    """A linear classifier of mean brightness, each sample with a shift of its own."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(self, images: Tensor) -> Any:
        assert len(images) == len(self.rows)
        score = 8 * images.mean(dim=(1, 2, 3)) - 4 + SHIFTS[self.rows]
        return torch.stack([-score, score, 0.5 * score], dim=1)

    def of_rows(self, rows: Tensor) -> Shifted:
        return Shifted(self.rows[rows])


def alone(row: int) -> Any:
    """The same for one sample, which knows no rows."""
    return lambda images: Shifted(torch.full((len(images),), row))(images)


def test_a_pass_of_no_rows_is_itself() -> None:
    assert of_rows(torch.sum, torch.tensor([1])) is torch.sum
    assert after(lambda images: images + 1, torch.sum)(torch.ones(2)) == 4


def test_rows_of_rows_and_of_what_is_changed_before() -> None:
    images = torch.rand(2, 1, 4, 4)
    whole = after(lambda images: images * 0.5, Shifted(torch.tensor([2, 1, 0])))
    picked = of_rows(of_rows(whole, torch.tensor([2, 1])), torch.tensor([1, 1]))
    torch.testing.assert_close(picked(images), alone(1)(images * 0.5))


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_replaced_patches_are_of_the_sample_that_they_were_made_of(batch: int) -> None:
    torch.manual_seed(0)
    images, heatmap, target = torch.rand(3, 1, 4, 4), torch.rand(3, 2, 2), torch.tensor([1, 0, 2])
    forward = Shifted(torch.arange(3))
    found = faithfulness_curves(nn.Identity(), images, heatmap, target, steps=3, batch=batch, forward=forward)
    for row in range(3):
        here = slice(row, row + 1)
        own = faithfulness_curves(nn.Identity(), images[here], heatmap[here], target[here], steps=3, forward=alone(row))
        torch.testing.assert_close(found.morf[here], own.morf)
        torch.testing.assert_close(found.lerf[here], own.lerf)


def test_rewrites_to_all_classes_are_of_the_sample_that_they_were_made_of() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 1, 4, 4)
    options: dict[str, Any] = {"mean": 0.0, "std": 1.0, "steps": 4}
    found = rewrite(nn.Identity(), images, "all", forward=Shifted(torch.arange(3)), **options)
    for row in range(3):
        own = rewrite(nn.Identity(), images[row : row + 1], "all", forward=alone(row), **options)
        torch.testing.assert_close(found.distance[found.index == row], own.distance)
        torch.testing.assert_close(found.logits_after[found.index == row], own.logits_after)
