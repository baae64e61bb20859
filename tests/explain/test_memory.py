"""What ``explain`` holds: only its result after the call, nothing of size N×N during it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_attngrad.explain import METHODS, Explanation, explain
from tests.zoo import ZOO, ZooModel

FUSED = ZOO["vit"]


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
        for value in vars(explanation).values()
        if isinstance(value, Tensor)
    }
    return sum(storages.values())


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.mark.parametrize("name", ["vit", "vit_unfused"] if "vit_unfused" in ZOO else ["vit"])
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
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert max(event.nbytes() for event in events) > 0, "the profiler saw no allocation"
    assert sum(event.nbytes() for event in events) == storage_bytes(explanation)
