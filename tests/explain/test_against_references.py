"""Every method against its naive reference, in float32 against float64, on every model of the zoo."""

from __future__ import annotations

import copy
from functools import cache
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.attention import AttentionCall, AttentionTap
from lightning_attngrad.explain import explain
from lightning_attngrad.explain.conservative import CombineName
from lightning_attngrad.explain.objectives import Contrast, Mixture, Region
from tests.references import baselines, guided
from tests.references import relevance as rules
from tests.zoo import ZOO, ZooModel, logits_of

TARGET = torch.tensor([2, 5])
AGAINST = 1
MIXTURE = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3, 0.0, 1.0])
SOME = ["vit", "siglip", "vit_registers_mean", "hf_vit_eager", "deit_distilled"]


def assert_same_map(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Largest difference, relative to the largest value of the expected map of each image."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    largest = expected.abs().flatten(1).amax(1)
    assert (largest > 0).all(), "a map of zeros proves nothing"
    difference = (actual.double() - expected.double()).abs().flatten(1).amax(1) / largest
    assert difference.max() < tolerance, f"differs by {difference.max():.2e} of the map's largest value"


def in_slots(zoo: ZooModel, tokens: Tensor) -> Tensor:
    """Tokens (B, N) with the query of an attention pooling, which no token reads, behind the prefix."""
    if zoo.pooling != "attention":
        return tokens
    return torch.cat([tokens[:, : zoo.prefix], torch.zeros_like(tokens[:, :1]), tokens[:, zoo.prefix :]], dim=1)


@cache
def model_of(name: str) -> nn.Module:
    return ZOO[name].build()


@cache
def reference_model(name: str) -> nn.Module:
    return ZOO[name].build(torch.float64)


@cache
def reading_of(name: str) -> guided.Reading:
    zoo = ZOO[name]
    return guided.read(reference_model(name), zoo.images(dtype=torch.float64), guided.logit(TARGET))


@cache
def relevance_of(name: str, method: str) -> rules.Relevance:
    name = ZOO[name].twin or name
    zoo = ZOO[name]
    images = zoo.images(dtype=torch.float64)
    return rules.relevance(zoo, reference_model(name), images, guided.logit(TARGET), method)


# Gradient-guided attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("correction", guided.CORRECTIONS)
def test_gradient_guided(name: str, correction: str) -> None:
    zoo = ZOO[name]
    explanation = explain(model_of(name), zoo.images(), TARGET, method="gradient_guided", correction=correction)
    corrected = guided.corrected_calls(reading_of(name), correction)
    tokens = guided.propagate(zoo, corrected)
    assert_same_map(explanation.heatmap, guided.patches(zoo, tokens))
    assert_same_map(explanation.token_scores, in_slots(zoo, tokens))
    assert explanation.layers is not None
    assert_same_map(explanation.layers, guided.patches(zoo, guided.increments(zoo, corrected)))
    assert len(explanation.layer_names) == explanation.layers.shape[1]
    assert explanation.heatmap.dtype == torch.float32
    assert explanation.target is not None
    assert explanation.target.tolist() == TARGET.tolist()
    torch.testing.assert_close(explanation.logits, reading_of(name).logits.float(), rtol=1e-4, atol=1e-5)
    assert not explanation.zero_gradient.any()


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("correction", guided.CORRECTIONS)
@pytest.mark.parametrize("objective", ["margin", "contrast", "mixture", "callable"])
def test_objectives(name: str, correction: str, objective: str) -> None:
    zoo = ZOO[name]
    given, expected = {
        "margin": ("margin", guided.margin(TARGET)),
        "contrast": (Contrast(AGAINST), guided.contrast(TARGET, AGAINST)),
        "mixture": (Mixture(MIXTURE), guided.mixture(MIXTURE)),
        "callable": (
            lambda output: logits_of(output).square().sum(-1),
            lambda logits, calls: logits.square().sum(-1),
        ),
    }[objective]
    target = TARGET if objective in ("margin", "contrast") else None
    explanation = explain(
        model_of(name),
        zoo.images(),
        target,
        method="gradient_guided",
        objective=given,
        correction=correction,
    )
    reading = guided.read(reference_model(name), zoo.images(dtype=torch.float64), expected)
    tokens = guided.guided_tokens(zoo, reading, correction)
    assert_same_map(explanation.heatmap, guided.patches(zoo, tokens))


@pytest.mark.parametrize("name", [*SOME, "hf_dinov2", "torchvision", "vit_unfused"])
@pytest.mark.parametrize("correction", guided.CORRECTIONS)
def test_region_objective(name: str, correction: str) -> None:
    zoo = ZOO[name]
    mask = torch.zeros(2, *zoo.grid)
    mask[0, :2, 1:3] = 1
    mask[1, 2:, :2] = 1
    tokens = torch.cat([torch.zeros(2, zoo.prefix), mask.flatten(1)], dim=1)
    explanation = explain(
        model_of(name),
        zoo.images(),
        method="gradient_guided",
        objective=Region(mask.bool()),
        correction=correction,
    )
    reading = guided.read(reference_model(name), zoo.images(dtype=torch.float64), guided.region(zoo, tokens))
    expected = guided.guided_tokens(zoo, reading, correction)
    if correction == "negative" and zoo.pooling == "attention":
        # All that the query reads, it reads with a gradient ≥ 0: nothing speaks against the region.
        assert expected.abs().amax() == explanation.heatmap.abs().amax() == 0
        return
    assert_same_map(explanation.heatmap, guided.patches(zoo, expected))


@pytest.mark.parametrize("name", ["vit_mean", "vit_registers_mean", "hf_dinov2"])
@pytest.mark.parametrize("correction", guided.CORRECTIONS)
def test_increments_far_below_the_pooling_weights_survive(name: str, correction: str) -> None:
    # 1e-9 beside 1/16 is lost in float32 to whoever adds the two.
    zoo = ZOO[name]
    small, exact = copy.deepcopy(model_of(name)), copy.deepcopy(reference_model(name))
    with torch.no_grad():
        for model in (small, exact):
            (model.classifier if name == "hf_dinov2" else model.head).weight.mul_(2.0**-25)
    explanation = explain(small, zoo.images(), TARGET, method="gradient_guided", correction=correction)
    reading = guided.read(exact, zoo.images(dtype=torch.float64), guided.logit(TARGET))
    expected = guided.guided_tokens(zoo, reading, correction)
    assert expected.abs().amax() < 1e-7
    assert_same_map(explanation.heatmap, guided.patches(zoo, expected))


class OptionalAttention(nn.Module):
    """Two layers that call the fused kernel with everything that it accepts, read at the class token."""

    def __init__(self, option: str) -> None:
        super().__init__()
        self.option = option
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.first_token = nn.Parameter(torch.zeros(1, 1, 32))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        key_width = 16 if option == "grouped" else 32
        self.queries = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.keys = nn.ModuleList(nn.Linear(32, key_width) for _ in range(2))
        self.values = nn.ModuleList(nn.Linear(32, key_width) for _ in range(2))
        self.head = nn.Linear(32, 7)

    def options(self, batch: int, dtype: torch.dtype) -> dict[str, object]:
        generator = torch.Generator().manual_seed(3)
        keep = torch.rand(batch, 1, 17, 17, generator=generator) < 0.7
        keep |= torch.eye(17, dtype=torch.bool)
        bias = torch.randn(4, 17, 17, generator=generator).to(dtype)
        return {
            "boolean mask": {"attn_mask": keep},
            "boolean mask of keys": {"attn_mask": keep[:, :, :1]},
            "additive mask": {"attn_mask": bias},
            "causal": {"is_causal": True},
            "scale": {"scale": 0.9},
            "grouped": {"enable_gqa": True},
        }[self.option]

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first_token.expand(len(x), -1, -1), x], dim=1)
        for norm, *projections in zip(self.norms, self.queries, self.keys, self.values, strict=True):
            y = norm(x)
            query, key, value = (p(y).unflatten(-1, (-1, 8)).transpose(1, 2) for p in projections)
            read = nn.functional.scaled_dot_product_attention(query, key, value, **self.options(len(x), x.dtype))
            x = x + read.transpose(1, 2).flatten(2)
        return self.head(x[:, -1 if self.option == "causal" else 0])  # only the last token sees all the others


@pytest.mark.parametrize("correction", guided.CORRECTIONS)
@pytest.mark.parametrize(
    "option", ["boolean mask", "boolean mask of keys", "additive mask", "causal", "scale", "grouped"]
)
def test_options_of_the_fused_kernel(option: str, correction: str) -> None:
    zoo = ZooModel(option, lambda: OptionalAttention(option), prefix=1)
    explanation = explain(
        zoo.build(), zoo.images(), TARGET, method="gradient_guided", correction=correction, memory_budget=9000
    )
    images = zoo.images(dtype=torch.float64)
    reading = guided.read(zoo.build(torch.float64), images, guided.logit(TARGET))
    corrected = guided.corrected_calls(reading, correction)
    if option == "causal":  # read the matrix recursion at the last token
        whole = torch.eye(17, dtype=torch.float64)
        for matrix in corrected:
            whole = whole + matrix @ whole
        assert_same_map(explanation.token_scores, whole[:, -1] - torch.eye(17)[-1])
    else:
        assert_same_map(explanation.token_scores, guided.propagate(zoo, corrected))


@pytest.mark.parametrize("name", ZOO)
def test_attention_call_rebuilds_attention_and_gradient(name: str) -> None:
    zoo, model, reading = ZOO[name], model_of(name), reading_of(name)
    rebuilt: list[tuple[Tensor, Tensor]] = []

    def keep(call: AttentionCall, gradient: Tensor) -> None:
        # A budget of one byte cuts the rows into blocks of one: every block boundary is exercised.
        blocks = list(call.blocks(1))
        assert len(blocks) == call.shape[2]
        rebuilt.append(
            (
                torch.cat([call.attention(rows) for rows in blocks], dim=2),
                torch.cat([call.attention_gradient(rows, gradient) for rows in blocks], dim=2),
            )
        )

    with AttentionTap(model, start="attention") as tap:
        phi = guided.logit(TARGET)(logits_of(model(zoo.images())), [])
    tap.on_gradient = keep
    torch.autograd.grad(phi.sum(), tap.calls[0].tensor)
    tap.release()
    assert len(rebuilt) == len(reading.attention)
    for (attention, gradient), a, g in zip(rebuilt[::-1], reading.attention, reading.gradients, strict=True):
        assert_same_map(attention, a)
        assert_same_map(gradient, g)
        corrected = {c: rule(attention, gradient) for c, rule in guided.CORRECTIONS.items()}
        scale = corrected["absolute"].amax()
        torch.testing.assert_close(
            corrected["transfer"].sum(-1) / scale, torch.zeros(attention.shape[:-1]), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(corrected["positive"] - corrected["negative"], corrected["signed"])


@pytest.mark.parametrize("name", ["vit", "vit_registers_mean", "siglip", "hf_dinov2", "beit"])
@pytest.mark.parametrize("memory_budget", [1, 20_000])
def test_blocks_of_rows_change_nothing(name: str, memory_budget: int) -> None:
    zoo = ZOO[name]
    for correction in guided.CORRECTIONS:
        explanation = explain(
            model_of(name),
            zoo.images(),
            TARGET,
            method="gradient_guided",
            correction=correction,
            memory_budget=memory_budget,
        )
        tokens = guided.guided_tokens(zoo, reading_of(name), correction)
        assert_same_map(explanation.heatmap, guided.patches(zoo, tokens))


# Relevance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("method", ["conservative", "attn_lrp"])
def test_relevance(name: str, method: str) -> None:
    zoo, expected = ZOO[name], relevance_of(name, method)
    explanation = explain(model_of(name), zoo.images(), TARGET, method=method)
    assert_same_map(explanation.token_scores, in_slots(zoo, expected.tokens))
    assert_same_map(explanation.heatmap, guided.patches(zoo, expected.tokens))
    assert explanation.completeness_error is not None
    missing = (expected.tokens.sum(-1) - expected.phi).abs() / expected.phi.abs()
    torch.testing.assert_close(explanation.completeness_error.double(), missing, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("combine", get_args(CombineName))
def test_guided_relevance(name: str, combine: str) -> None:
    zoo = ZOO[name]
    expected = rules.guided_relevance(zoo, relevance_of(name, "attn_lrp"), combine)
    explanation = explain(model_of(name), zoo.images(), TARGET, method="guided_relevance", combine=combine)
    assert explanation.method == "guided_relevance"
    # The geometric mean has an infinite slope at zero: a relevance of rounding size moves it more than 1e-5.
    assert_same_map(explanation.heatmap, expected, 1e-4 if combine == "product" else 1e-5)


def test_the_default_is_the_gated_sum() -> None:
    zoo = ZOO["vit"]
    expected = rules.guided_relevance(zoo, relevance_of("vit", "attn_lrp"), "gated_sum")
    assert_same_map(explain(model_of("vit"), zoo.images(), TARGET).heatmap, expected)


# Baselines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_raw_attention(name: str) -> None:
    zoo = ZOO[name]
    expected = guided.patches(zoo, baselines.raw_attention(zoo, reading_of(name)))
    assert_same_map(explain(model_of(name), zoo.images(), TARGET, method="raw_attention").heatmap, expected)


@pytest.mark.parametrize("name", ZOO)
def test_rollout(name: str) -> None:
    zoo = ZOO[name]
    expected = guided.patches(zoo, baselines.rollout(zoo, reading_of(name)))
    assert_same_map(explain(model_of(name), zoo.images(), TARGET, method="rollout").heatmap, expected)


@pytest.mark.parametrize("name", ZOO)
def test_grad_cam(name: str) -> None:
    zoo = ZOO[name]
    images = zoo.images(dtype=torch.float64)
    expected = baselines.grad_cam(zoo, reference_model(name), images, guided.logit(TARGET))
    assert_same_map(explain(model_of(name), zoo.images(), TARGET, method="grad_cam").heatmap, expected)
