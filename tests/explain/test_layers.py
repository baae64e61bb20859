"""The parts of a map sum to the map that is drawn, or there are none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import METHODS, TokenScores, explain, register_method
from lightning_attngrad.explain.conservative import RELEVANCE_PART
from tests.methods import OF_ANY_MODEL
from tests.zoo import ZOO

TARGET = torch.tensor([2, 5])
OPTIONS = [
    *((name, {}) for name in OF_ANY_MODEL),
    ("guided_relevance", {"combine": "sum"}),
    ("guided_relevance", {"combine": "product"}),
    *(("gradient_guided", {"correction": name}) for name in ("negative", "absolute", "signed", "transfer")),
    ("gradient_guided", {"correction": ("positive", "transfer")}),
]
HAVE_LAYERS = {"gradient_guided", "layernorm_statistics", "guided_relevance"}


@pytest.mark.parametrize("name", ["vit", "vit_unfused", "vit_registers_mean", "siglip", "torchvision", "hf_dinov2"])
@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=str)
def test_layers_sum_to_the_heatmap_or_there_are_none(name: str, method: str, options: dict[str, object]) -> None:
    zoo = ZOO[name]
    explanation = explain(zoo.build(), zoo.images(), TARGET, method=method, **options)
    has_layers = method in HAVE_LAYERS and options.get("combine") != "product"
    assert (explanation.layers is not None) == has_layers
    if explanation.layers is None:
        assert explanation.layer_names == ()
        return
    _assert_sums(explanation.layers, explanation.heatmap)
    assert explanation.layers.shape[-3] == len(explanation.layer_names)


def _assert_sums(layers: Tensor, heatmap: Tensor) -> None:
    largest = heatmap.abs().amax(dim=(-2, -1))
    assert bool((largest > 0).all())
    assert bool(((layers.sum(dim=-3) - heatmap).abs().amax(dim=(-2, -1)) < 1e-5 * largest).all())


def test_several_classes_have_the_layers_of_each() -> None:
    zoo = ZOO["vit"]
    explanation = explain(zoo.build(), zoo.images(), [1, 4, 0])
    assert explanation.layers is not None
    assert explanation.layers.shape == (2, 3, 3, *zoo.grid)
    _assert_sums(explanation.layers, explanation.heatmap)


def test_the_parts_of_the_default_map_are_its_layers_and_the_relevance() -> None:
    zoo = ZOO["vit"]
    explanation = explain(zoo.build(), zoo.images(), TARGET)
    assert explanation.layer_names == ("blocks.0.attn", "blocks.1.attn", RELEVANCE_PART)
    assert explanation.layers is not None
    shares = explanation.layers.sum(dim=(-2, -1))  # (B, 3): two halves
    torch.testing.assert_close(shares[:, -1], torch.full((2,), 0.5))
    torch.testing.assert_close(shares[:, :-1].sum(dim=1), torch.full((2,), 0.5))
    relevance = explain(zoo.build(), zoo.images(), TARGET, method="attn_lrp").heatmap.clamp_min(0)
    torch.testing.assert_close(
        explanation.layers[:, -1], relevance / relevance.sum(dim=(-2, -1), keepdim=True) / 2, rtol=1e-4, atol=1e-6
    )


def test_a_layer_that_reads_nothing_has_no_part() -> None:
    """What is said of a layer is about that layer: with its values at zero, it adds nothing to the map."""
    zoo = ZOO["vit"]
    model = zoo.build()
    with torch.no_grad():
        projection = model.get_submodule("blocks.0.attn.qkv")
        assert isinstance(projection, nn.Linear)
        width = projection.in_features
        projection.weight[2 * width :] = 0
        projection.bias[2 * width :] = 0
    layers = explain(model, zoo.images(), TARGET).layers
    assert layers is not None
    assert float(layers[:, 0].abs().max()) == 0
    assert float(layers[:, 1].min(dim=0).values.max()) > 0


def test_a_method_of_one_s_own_names_its_parts() -> None:
    @register_method("halves", source="none")
    def halves(forward, seeds):
        scores = torch.ones(forward.batch, 1, forward.places.tokens)
        layers = torch.stack([scores, scores, scores], dim=2) / 3
        return TokenScores(scores, torch.zeros(forward.batch, dtype=torch.bool), layers=layers, layer_names=names)

    try:
        names: tuple[str, ...] | None = ("left", "right", "middle")
        assert explain(ZOO["vit"].build(), ZOO["vit"].images(), method="halves").layer_names == names
        names = None
        with pytest.raises(ValueError, match="'halves' returned 3 layers and 2 names"):
            explain(ZOO["vit"].build(), ZOO["vit"].images(), method="halves")
    finally:
        del METHODS["halves"]
