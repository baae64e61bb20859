"""Under somebody's autocast the model runs as it does there, and the map is computed in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_attngrad import Region, attention_step, explain
from lightning_attngrad.metrics.functional import head_statistics
from tests.methods import OF_ANY_MODEL
from tests.zoo import ZOO

TARGET = torch.tensor([2, 5])
MODELS = ["vit", "vit_unfused", "vit_mean", "siglip", "torchvision"]


def _in_bfloat16(name: str) -> dict[str, object]:
    model = ZOO[name].build()

    def forward(batch: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)

    return {"model": model, "images": ZOO[name].images(), "forward": forward}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_a_map_is_the_same_inside_autocast_as_outside_of_it(name: str, method: str) -> None:
    arguments = _in_bfloat16(name)
    expected = explain(**arguments, target=TARGET, method=method)
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(**arguments, target=TARGET, method=method)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.heatmap, expected.heatmap)


@pytest.mark.parametrize("name", ["vit", "vit_unfused"])
def test_so_is_whatever_else_is_read_from_attention(name: str) -> None:
    arguments = _in_bfloat16(name)
    mask = torch.ones(ZOO[name].grid)
    mask[1:] = 0

    def read() -> list[Tensor]:
        region = explain(**arguments, target=TARGET, method="gradient_guided", objective=Region(mask))
        statistics = head_statistics(**arguments)
        step = attention_step(**arguments, target=TARGET, step_sizes=(0.5,))
        return [region.heatmap, region.value, statistics.entropy, statistics.distance, step.logits, step.heatmaps]

    expected = read()
    with torch.autocast("cpu", torch.bfloat16):
        found = read()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_function_of_the_output_runs_under_the_caller_s_autocast() -> None:
    """It may multiply the model's bfloat16 output with something in float32, as only autocast lets it."""
    prototypes = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(ZOO["vit"].build(), ZOO["vit"].images(), objective=lambda output: (output @ prototypes)[:, 0])
    assert found.heatmap.dtype == torch.float32
    assert float(found.heatmap.abs().max()) > 0
