"""Head statistics against loops over all of A."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.metrics.functional import head_statistics
from tests.references.recorded_attention import record_attention
from tests.zoo import ZOO


def _expected(attention: Tensor, prefix: int, columns: int) -> tuple[Tensor, Tensor]:
    """Entropy and distance, (B, H), one number at a time."""
    batch, heads, tokens, _ = attention.shape
    entropy, distance = torch.zeros(batch, heads), torch.zeros(batch, heads)
    for b in range(batch):
        for h in range(heads):
            rows = attention[b, h]
            entropy[b, h] = sum(
                -sum(float(a) * math.log(float(a)) for a in row if a > 0) / math.log(tokens) for row in rows
            ) / len(rows)
            travelled = []
            for i in range(prefix, tokens):
                here = divmod(i - prefix, columns)
                weights = rows[i, prefix:] / rows[i, prefix:].sum()
                travelled.append(sum(float(w) * math.dist(here, divmod(j, columns)) for j, w in enumerate(weights)))
            distance[b, h] = sum(travelled) / len(travelled)
    return entropy, distance


@pytest.mark.parametrize("name", ["vit", "vit_unfused", "dinov2_registers", "siglip", "torchvision", "hf_vit_eager"])
@pytest.mark.parametrize("budget", [1, 10**8])
def test_equals_loops_over_the_whole_attention(name: str, budget: int) -> None:
    entry = ZOO[name]
    model, images = entry.build(), entry.images()
    statistics = head_statistics(model, images, memory_budget=budget)
    with record_attention() as record:
        model(images)
    recorded = [call.probabilities.detach() for call in record]
    recorded = [attention for attention in recorded if attention.shape[-1] == attention.shape[-2]]
    assert statistics.entropy.shape[:2] == (len(images), len(recorded))
    for layer, attention in enumerate(recorded):
        entropy, distance = _expected(attention, entry.prefix, entry.grid[1])
        torch.testing.assert_close(statistics.entropy[:, layer], entropy, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistics.distance[:, layer], distance, rtol=1e-4, atol=1e-4)


def test_uniform_attention_has_known_numbers() -> None:
    entry = ZOO["vit"]
    model = entry.build()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == 3 * module.in_features:
            nn.init.zeros_(module.weight[: 2 * module.in_features])  # queries and keys: all scores alike
            nn.init.zeros_(module.bias)
    statistics = head_statistics(model, entry.images())
    places = torch.cartesian_prod(*(torch.arange(float(side)) for side in entry.grid))
    torch.testing.assert_close(statistics.entropy, torch.ones_like(statistics.entropy))
    torch.testing.assert_close(
        statistics.distance, torch.full_like(statistics.distance, float(torch.cdist(places, places).mean()))
    )


def test_no_graph_is_made_and_the_model_is_left_alone() -> None:
    entry = ZOO["vit"]
    model = entry.build().train()
    statistics = head_statistics(model, entry.images())
    assert not statistics.entropy.requires_grad
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
