"""Maps on a GPU, as far as that can be known without one: devices, determinism, types, kernels launched, waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_attngrad.attention import budget
from lightning_attngrad.explain import (
    Contrast,
    Explanation,
    Mixture,
    PixelClass,
    PixelValue,
    QueryBox,
    QueryClass,
    Region,
    Similarity,
    Start,
    attention_step,
    explain,
)
from lightning_attngrad.metrics.functional import head_statistics
from tests.methods import OF_ANY_MODEL
from tests.simulated_gpu.device import SimulatedGpu, on_host
from tests.zoo import CLASSES, ZOO

TARGET = torch.tensor([2, 5])
MODELS = ["vit", "vit_unfused", "vit_registers_mean", "deit_distilled", "siglip", "torchvision", "hf_vit", "eva02"]


def on_gpu(
    name: str, work: Callable[[nn.Module, Tensor, SimulatedGpu], Any], *, float64: bool = False
) -> tuple[Any, SimulatedGpu]:
    """What ``work`` finds on the device, given a model and images that lie there, once its tokens are traced."""
    with SimulatedGpu(float64=float64) as gpu:
        model, images = gpu.move(ZOO[name].build()), gpu.upload(ZOO[name].images())
        work(model, images, gpu)
        gpu.forget()
        return work(model, images, gpu), gpu


def assert_same(found: Explanation, expected: Explanation) -> None:
    for name in ("heatmap", "token_scores", "layers", "logits", "value", "completeness_error", "zero_gradient"):
        one, other = on_host(getattr(found, name)), getattr(expected, name)
        assert (one is None) == (other is None), name
        if other is not None and other.dtype == torch.bool:
            assert torch.equal(one, other), name
        elif other is not None:
            size = 1.0 if name == "completeness_error" else float(other.abs().max())  # itself a share of the output
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * size, msg=name)


def test_the_dearer_mode_is_the_same_on_the_device() -> None:
    expected = explain(ZOO["vit"].build(), ZOO["vit"].images(), TARGET, quality="best")
    found, _ = on_gpu("vit", lambda model, images, gpu: explain(model, images, gpu.upload(TARGET), quality="best"))
    assert_same(found, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_every_method_keeps_to_the_device(name: str, method: str) -> None:
    expected = explain(ZOO[name].build(), ZOO[name].images(), TARGET, method=method)
    found, gpu = on_gpu(name, lambda model, images, gpu: explain(model, images, gpu.upload(TARGET), method=method))
    assert_same(found, expected)
    assert gpu.uploads == 1, "only the target came from the host"
    # Outputs finite, patches in order, classes known, pooled tokens, map finite: each once, whatever the depth.
    assert gpu.number_of_waits <= 5, gpu.waits


PLACES = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) > 0.5
OBJECTIVES: dict[str, tuple[Any, Any]] = {
    "margin": ("margin", TARGET),
    "contrast": (Contrast(1), TARGET),
    "contrast of each": (Contrast([1, 0]), TARGET),
    "mixture": (Mixture([0.5, -1.0, 0.0, 2.0, 0.3, 0.0, 1.0]), None),
    "mixture of some": (Mixture({0: 1.0, 3: -0.5}), None),
    "region": (Region(PLACES), TARGET),
    "function": (lambda output: output.square().sum(dim=1), None),
    "predicted class": ("logit", None),
    "classes": ("logit", [0, 3]),
}


@pytest.mark.parametrize("name", ["vit", "vit_unfused"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_keeps_to_the_device(name: str, objective: str) -> None:
    goal, target = OBJECTIVES[objective]
    asked = {"method": "gradient_guided", "objective": goal}
    expected = explain(ZOO[name].build(), ZOO[name].images(), target, **asked)
    found, _ = on_gpu(name, lambda model, images, gpu: explain(model, images, target, **asked))
    assert_same(found, expected)


EMBEDDINGS = torch.randn(2, CLASSES, generator=torch.Generator().manual_seed(1))
#: Objectives of other outputs than one row an image, and how the model's row (B, 7) becomes such an output.
OF_OTHER_OUTPUTS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "pixel": (PixelClass(3, (10, 20)), lambda row: row[:, :, None, None].repeat(1, 1, 4, 4)),
    "region": (PixelClass(3, PLACES), lambda row: row[:, :, None, None].repeat(1, 1, 4, 4)),
    "predicted": (PixelClass(3), lambda row: torch.stack([row, -row], dim=2).unsqueeze(3)),
    "value": (PixelValue(PLACES), lambda row: row[:, :4].unflatten(1, (2, 2))),
    "query": (QueryClass(1), lambda row: {"logits": row[:, :6].unflatten(1, (2, 3))}),
    "queries": (QueryClass(1, query=[0, 1]), lambda row: {"logits": row[:, :6].unflatten(1, (2, 3))}),
    "box": (QueryBox(1, query=0), lambda row: {"pred_boxes": row[:, None, :4]}),
    "start": (Start().filled(EMBEDDINGS), lambda row: row),
    "vectors": (Similarity(EMBEDDINGS), lambda row: row),
}


@pytest.mark.filterwarnings("ignore:objective. the class is predicted nowhere")
@pytest.mark.parametrize("objective", OF_OTHER_OUTPUTS)
def test_objectives_of_other_outputs_keep_to_the_device(objective: str) -> None:
    goal, shaped = OF_OTHER_OUTPUTS[objective]

    def asked(model: nn.Module, images: Tensor) -> Any:
        return explain(
            model, images, method="gradient_guided", objective=goal, forward=lambda batch: shaped(model(batch))
        )

    expected = asked(ZOO["vit"].build(), ZOO["vit"].images())
    found, _ = on_gpu("vit", lambda model, images, gpu: asked(model, images))
    torch.testing.assert_close(on_host(found.value), expected.value, rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(
        on_host(found.heatmap), expected.heatmap, rtol=1e-4, atol=1e-5 * float(expected.heatmap.abs().max())
    )


@pytest.mark.parametrize("name", ["vit", "vit_unfused", "siglip"])
def test_all_corrections_at_once_keep_to_the_device(name: str) -> None:
    asked = {"method": "gradient_guided", "correction": ["positive", "negative", "absolute", "signed", "transfer"]}
    expected = explain(ZOO[name].build(), ZOO[name].images(), 1, **asked)
    found, gpu = on_gpu(name, lambda model, images, gpu: explain(model, images, 1, **asked))
    assert_same(found, expected)
    one, alone = on_gpu(name, lambda model, images, gpu: explain(model, images, 1, method="gradient_guided"))
    assert one.heatmap.dim() == 3
    assert gpu.number_of_launches < 1.4 * alone.number_of_launches


@pytest.mark.parametrize("combine", ["sum", "product", "gated_sum"])
def test_every_way_to_combine_keeps_to_the_device(combine: str) -> None:
    expected = explain(ZOO["vit"].build(), ZOO["vit"].images(), 1, combine=combine)
    assert_same(on_gpu("vit", lambda model, images, gpu: explain(model, images, 1, combine=combine))[0], expected)


@pytest.mark.parametrize("name", ["vit", "vit_unfused", "torchvision"])
def test_the_attention_step_keeps_to_the_device(name: str) -> None:
    expected = attention_step(ZOO[name].build(), ZOO[name].images(), TARGET, step_sizes=(0.5, 4.0))
    found, _ = on_gpu(
        name, lambda model, images, gpu: attention_step(model, images, gpu.upload(TARGET), step_sizes=(0.5, 4.0))
    )
    torch.testing.assert_close(on_host(found.logits), expected.logits, rtol=1e-4, atol=1e-4)
    assert on_host(found.smallest_step).tolist() == expected.smallest_step.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_head_statistics_keep_to_the_device(name: str) -> None:
    expected = head_statistics(ZOO[name].build(), ZOO[name].images())
    found, gpu = on_gpu(name, lambda model, images, gpu: head_statistics(model, images))
    for field in ("entropy", "distance", "prefix_mass", "high_norm_share"):
        torch.testing.assert_close(on_host(getattr(found, field)), getattr(expected, field), rtol=1e-4, atol=1e-5)
    assert gpu.number_of_waits <= 2


def test_a_wrong_class_and_a_bad_image_are_named_on_the_device_too() -> None:
    with pytest.raises(ValueError, match=r"target: got \[9\]"):
        on_gpu("vit", lambda model, images, gpu: explain(model, images, 9))
    only_the_first = torch.tensor([1.0, torch.nan]).view(2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"for 1 of 2 images \(number 1, counted from 0\)"):
        on_gpu("vit", lambda model, images, gpu: explain(model, images * gpu.upload(only_the_first), 1))


# Kernels ------------------------------------------------------------------------------------------------------


def large_model(depth: int) -> nn.Module:
    """577 tokens in four heads: their attention is 32 MB for a batch of three."""
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=96, patch_size=4, embed_dim=16, depth=depth, num_heads=4, num_classes=3
    ).eval()


def launches(depth: int, method: str | None, memory_budget: int | None = None) -> int:
    """Kernels of a map; without a method, of the model's own forward and backward pass."""
    with SimulatedGpu() as gpu:
        model, images = gpu.move(large_model(depth)), gpu.upload(torch.zeros(3, 3, 96, 96))
        gpu.forget()
        if method is None:
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            model(images.requires_grad_())[:, 1].sum().backward()
        else:
            explain(model, images, 1, method=method, memory_budget=memory_budget)  # traces the tokens, once
            gpu.forget()
            explain(model, images, 1, method=method, memory_budget=memory_budget)
        return gpu.number_of_launches


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_each_layer_costs_few_kernels_whatever_the_number_of_tokens(method: str) -> None:
    """The default budget of a GPU takes a layer in one block: what a map adds to the model's own kernels is bounded."""
    per_layer = (launches(4, method) - launches(2, method)) / 2
    own = (launches(4, None) - launches(2, None)) / 2
    most = {"guided_relevance": 42, "libragrad": 85}.get(method, 35)  # two maps at once; a term for every bias
    assert per_layer <= own + most
    assert launches(2, method) <= launches(2, None) + 2 * most + 200  # and what is done once: pooling, the gate


@pytest.mark.parametrize("method", ["gradient_guided", "guided_relevance", "rollout"])
def test_the_budget_of_a_processor_s_cache_would_cost_hundreds(method: str) -> None:
    assert launches(2, method, memory_budget=budget._OF_A_PROCESSOR) > launches(2, method) + 100


def test_as_many_waits_at_twice_the_depth() -> None:
    waits = []
    for depth in (2, 4):
        with SimulatedGpu() as gpu:
            model, images = gpu.move(large_model(depth)), gpu.upload(torch.zeros(1, 3, 96, 96))
            explain(model, images, 1)
            gpu.forget()
            explain(model, images, 1)
            waits.append(gpu.number_of_waits)
    assert waits[0] == waits[1] <= 5
