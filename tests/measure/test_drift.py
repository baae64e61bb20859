"""What an evaluation of drift says in words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_attngrad.measure.drift import Drift, what_moved
from lightning_attngrad.probe import Evaluation


@pytest.mark.parametrize(
    ("layers", "names", "said"),
    [
        ([0.1, 0.3, 0.2], ("first", "second", "relevance"), "the part second (0.30), "),
        # the half of a map of guided_relevance that belongs to no layer is a part, and no layer
        ([0.1, 0.3, 0.9], ("first", "second", "relevance"), "the part relevance (0.90), "),
        ([math.nan, 0.2], ("first", "second"), "the part second (0.20), "),
        ([math.nan, math.nan], ("first", "second"), ""),
        ([], (), ""),
    ],
)
def test_the_part_of_the_map_that_moved_most_is_named(layers: list[float], names: tuple[str, ...], said: str) -> None:
    images = torch.rand(3, 1, 2, 2)
    evaluation = Evaluation(nn.Identity(), nn.Identity(), images, None, images, None, "epoch 3")
    drift = Drift({"spearman": torch.tensor([0.2, 0.5, 0.1])}, {}, torch.tensor(layers), torch.zeros(len(layers)))
    scalars = {"per_class/cat": 0.25, "per_class/dog": math.nan}
    assert what_moved(evaluation, drift, names, scalars) == (
        f"Most of all: {said}the class cat (0.25), the images 1, 0, 2 of 3."
    )
