"""What ``explain`` holds: only its result after the call, nothing of size N×N during it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_attngrad.explain import Explanation, explain
from tests.methods import OF_ANY_MODEL
from tests.zoo import ZOO


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation made, the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in made)])
        return result


def storage_bytes(explanation: Explanation) -> int:
    """Bytes behind the tensors of a result, storages that several of them share counted once."""
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for name, value in vars(explanation).items()
        if isinstance(value, Tensor) and name != "images"  # the caller's own, for figures
    }
    return sum(storages.values())


@pytest.mark.parametrize("name", ["vit", "vit_unfused"])
@pytest.mark.parametrize("method", sorted(OF_ANY_MODEL))
def test_only_the_result_is_held_after_the_call(method: str, name: str) -> None:
    model, images = ZOO[name].build(), ZOO[name].images()
    explain(model, images, 1, method=method)  # what libraries cache on their first call is no matter of the second
    gc.collect()
    gc.disable()  # a reference cycle would hold the graph until the collector happens to run
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            explanation = explain(model, images, 1, method=method)
    finally:
        gc.enable()
    events = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = sum(size for size in events if size > 0)
    assert allocated > 10 * storage_bytes(explanation), "the profiler saw no activations"
    assert sum(events) == storage_bytes(explanation)
    assert explanation.images is not None
    assert explanation.images.data_ptr() == images.data_ptr()


ALL_CORRECTIONS = ("positive", "negative", "absolute", "signed", "transfer")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gradient_guided", {}),
        ("gradient_guided", {"correction": ALL_CORRECTIONS}),
        ("guided_relevance", {}),
        ("raw_attention", {}),
        ("rollout", {}),
    ],
)
def test_blocks_keep_to_the_budget(method: str, options: dict[str, Any]) -> None:
    """Room for a few rows of one head: then nothing is as large as the attention of even one head, N×N."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=96, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    tokens = 24 * 24 + 1
    small, large = 8 * tokens * 8, 8 * 2**20
    with LargestTensor() as within_budget:
        explanation = explain(model, images, 1, method=method, memory_budget=small, **options)
    assert within_budget.elements < tokens**2 / 2
    with LargestTensor() as with_room:
        unbounded = explain(model, images, 1, method=method, memory_budget=large, **options)
    if method in ("gradient_guided", "guided_relevance", "rollout"):
        assert with_room.elements >= tokens**2, "what is asserted above would hold for any budget"
    largest = float(unbounded.heatmap.abs().max())
    torch.testing.assert_close(explanation.heatmap, unbounded.heatmap, rtol=0, atol=1e-5 * largest)
