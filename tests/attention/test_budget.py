"""The room for a block of rows follows the device, and how a call is cut follows the room."""

from __future__ import annotations

import pytest
import torch

from lightning_attngrad.attention import AttentionCall, AttentionTap, budget, default_memory_budget
from lightning_attngrad.explain import explain
from tests.zoo import ZOO

MIB = 2**20
GIB = 2**30


def test_a_processor_gets_what_fits_its_cache() -> None:
    assert default_memory_budget(torch.device("cpu")) == 2 * MIB


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (80 * GIB, 512 * MIB),  # an empty card
        (4 * GIB, 512 * MIB),
        (4 * GIB - 1, 256 * MIB),
        (GIB + 12_345, 128 * MIB),  # the same for whatever small allocations are beside it
        (GIB + 23_456_789, 128 * MIB),
        (MIB, 2 * MIB),  # a card that is full: no less than a processor's
        (0, 2 * MIB),
    ],
)
def test_a_gpu_gets_an_eighth_of_what_is_free(monkeypatch: pytest.MonkeyPatch, free: int, expected: int) -> None:
    # There is no GPU to ask: its three numbers are given.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - free // 3, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: free // 3 + 7 * MIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7 * MIB)
    assert default_memory_budget(torch.device("cuda", 0)) == expected


def test_other_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 14 * GIB)
    assert default_memory_budget(torch.device("mps")) == 256 * MIB
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda device: (GIB, 16 * GIB))
    monkeypatch.setattr(torch.xpu, "memory_reserved", lambda device: GIB)
    monkeypatch.setattr(torch.xpu, "memory_allocated", lambda device: 0)
    assert default_memory_budget(torch.device("xpu", 0)) == 256 * MIB
    assert default_memory_budget(torch.device("meta")) == 128 * MIB  # one that does not say what it has left


def test_without_a_budget_a_call_is_cut_as_its_device_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    with AttentionTap(ZOO["vit"].build()) as tap, torch.no_grad():
        ZOO["vit"].build()(ZOO["vit"].images())
    call = tap.calls[0]
    assert list(call.blocks()) == [slice(0, 25)]
    assert list(call.parts()) == [(slice(0, 2), slice(0, 2))]
    monkeypatch.setattr(budget, "_OF_A_PROCESSOR", 1)
    assert len(list(call.blocks())) == 25
    assert len(list(call.parts())) == 4


@pytest.mark.parametrize("method", ["gradient_guided", "guided_relevance", "rollout", "raw_attention"])
def test_explain_takes_the_budget_of_the_device_or_the_one_it_is_given(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    cut: list[int | None] = []
    original = AttentionCall.blocks

    def recorded(self, memory_budget=None, start=0, stop=None):
        cut.append(memory_budget)
        return original(self, memory_budget, start, stop)

    monkeypatch.setattr(AttentionCall, "blocks", recorded)
    model, images = ZOO["vit"].build(), ZOO["vit"].images()
    expected = explain(model, images, 1, method=method).heatmap
    assert set(cut) == {2 * MIB}
    cut.clear()
    torch.testing.assert_close(explain(model, images, 1, method=method, memory_budget=900).heatmap, expected)
    assert set(cut) == {900}
