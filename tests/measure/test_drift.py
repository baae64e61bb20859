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
        # the half of a map of guided_relevance that belongs to no layer is none
        ([0.1, 0.3, 0.9], ("first", "second", "relevance"), "the layer second (0.30), "),
        ([math.nan, 0.2], ("first", "second"), "the layer second (0.20), "),
        ([math.nan, math.nan], ("first", "second"), ""),
        ([], (), ""),
    ],
)
def test_the_layer_that_moved_most_is_a_layer(layers: list[float], names: tuple[str, ...], said: str) -> None:
    images = torch.rand(3, 1, 2, 2)
    evaluation = Evaluation(nn.Identity(), nn.Identity(), images, None, images, None, "epoch 3")
    drift = Drift({"spearman": torch.tensor([0.2, 0.5, 0.1])}, {}, torch.tensor(layers), torch.zeros(len(layers)))
    scalars = {"per_class/cat": 0.25, "per_class/dog": math.nan}
    assert what_moved(evaluation, drift, names, scalars) == (
        f"Most of all: {said}the class cat (0.25), the images 1, 0, 2 of 3."
    )
