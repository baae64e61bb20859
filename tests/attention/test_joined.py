"""The backward pass of attention that is taken over: the kernel's own gradients, and each block read once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_attngrad.attention import AttentionCall, AttentionTap, Cut, joined
from lightning_attngrad.explain import explain

SCALE = 0.3


def three(tokens: int = 100, keys: int = 120, dtype: torch.dtype = torch.float32, **shape: int) -> list[Tensor]:
    """Queries, keys and values (2, 3, ·, 8), laid out as a model's qkv is: heads inside tokens."""
    made = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, count, 3, shape.get("width", 8), generator=made, dtype=dtype).transpose(1, 2).requires_grad_()
        for count in (tokens, keys, keys)
    ]


class Keeps:
    """A reader that keeps all of it."""

    def __init__(self, call: AttentionCall, memory_budget: int) -> None:
        self.memory_budget = memory_budget
        self.attention, self.product = (torch.full(call.shape, torch.nan, dtype=call.tensor.dtype) for _ in range(2))
        self.blocks, self.finished = 0, False

    def read(self, cut: Cut, attention: Tensor, product: Tensor, spare: Tensor) -> None:
        assert not self.finished
        assert self.attention[cut.rows, cut.heads, cut.block].isnan().all()  # never twice
        self.attention[cut.rows, cut.heads, cut.block] = attention
        self.product[cut.rows, cut.heads, cut.block] = product
        spare.fill_(torch.nan)  # it is the reader's
        self.blocks += 1

    def finish(self) -> None:
        self.finished = True


class Attention(nn.Module):
    """Nothing but an attention."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=SCALE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("budget", [1, 60_000, 2**22], ids=["row by row", "some rows", "all at once"])
def test_gradients_are_the_kernel_s_and_every_block_is_read_once(dtype: torch.dtype, budget: int) -> None:
    operands = three(dtype=dtype)
    expected = F.scaled_dot_product_attention(*operands, scale=SCALE)
    towards = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    expected_gradients = torch.autograd.grad(expected, operands, towards)
    kept: list[Keeps] = []

    def reader(call: AttentionCall, gradient: Tensor) -> Keeps:
        assert torch.equal(gradient, towards)
        kept.append(Keeps(call, budget))
        return kept[-1]

    with AttentionTap(Attention()) as tap:
        output = Attention()(*operands)
        tap.on_blocks = reader
    assert torch.equal(output, expected)
    gradients = torch.autograd.grad(output, operands, towards)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, **tolerance)
    query, key, value = (tensor.detach() for tensor in operands)
    attention = (query @ key.mT * SCALE).softmax(dim=-1)
    torch.testing.assert_close(kept[0].attention, attention, **tolerance)
    torch.testing.assert_close(kept[0].product, attention * (towards @ value.mT), **tolerance)
    assert kept[0].finished
    assert (kept[0].blocks > 1) == (budget < 2**22)


def test_where_nobody_reads_the_backward_pass_is_the_kernel_s_bit_for_bit() -> None:
    operands = three()
    plain = torch.autograd.grad(F.scaled_dot_product_attention(*operands, scale=SCALE).square().sum(), operands)
    with AttentionTap(Attention()) as tap:
        output = Attention()(*operands)
    tap.on_blocks = lambda _call, _gradient: None
    for found, expected in zip(torch.autograd.grad(output.square().sum(), operands), plain, strict=True):
        assert torch.equal(found, expected)


def test_a_second_backward_pass_through_the_same_graph_reads_again() -> None:
    operands, kept = three(), []
    with AttentionTap(Attention()) as tap:
        output = Attention()(*operands)
        tap.on_blocks = lambda call, _gradient: kept.append(Keeps(call, 2**20)) or kept[-1]  # type: ignore[func-returns-value]
    first = torch.autograd.grad(output.sum(), operands, retain_graph=True)
    second = torch.autograd.grad(output.sum(), operands)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert len(kept) == 2
    assert torch.equal(kept[0].product, kept[1].product)


UNJOINED: dict[str, Callable[[], list[Tensor]]] = {
    "few pairs": lambda: three(tokens=10, keys=10),
    "half precision": lambda: three(dtype=torch.bfloat16),
    "no graph": lambda: [tensor.detach() for tensor in three()],
    "values of another width": lambda: [*three()[:2], three(width=4)[2]],
}


@pytest.mark.parametrize("name", UNJOINED)
def test_left_to_torch(name: str) -> None:
    assert not joined.is_joinable(*UNJOINED[name](), None, False, SCALE)


def test_left_to_torch_where_another_kernel_is_chosen_or_scores_are_masked() -> None:
    operands = three()
    assert joined.is_joinable(*operands, None, False, SCALE)
    assert not joined.is_joinable(*operands, torch.ones(100, 120, dtype=torch.bool), False, SCALE)
    assert not joined.is_joinable(*operands, None, True, SCALE)
    with sdpa_kernel(SDPBackend.MATH):
        assert not joined.is_joinable(*operands, None, False, SCALE)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "pvt_v2_b0"])
@pytest.mark.parametrize("method", ["gradient_guided", "guided_relevance"])
@pytest.mark.parametrize("correction", ["positive", "transfer"])
def test_maps_are_those_of_the_plain_way(
    name: str, method: str, correction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    options = {"correction": correction} if method == "gradient_guided" else {}
    seen: list[int] = []
    shared = joined._shared
    monkeypatch.setattr(joined, "_shared", lambda *given: seen.append(1) or shared(*given))  # type: ignore[func-returns-value]
    monkeypatch.setattr(joined, "FEWEST_PAIRS", 1)
    found = explain(model, images, 2, method=method, **options)
    assert seen
    seen.clear()
    monkeypatch.setattr(joined, "FEWEST_PAIRS", 10**12)
    expected = explain(model, images, 2, method=method, **options)
    assert not seen
    scale = expected.heatmap.abs().max()
    assert scale > 0
    torch.testing.assert_close(found.heatmap / scale, expected.heatmap / scale, rtol=0, atol=1e-5)
    assert torch.equal(found.logits, expected.logits)


def test_nothing_is_kept_alive_once_the_tap_is_released() -> None:
    operands = three()
    with AttentionTap(Attention()) as tap:
        output = Attention()(*operands)
    tap.on_blocks = lambda call, _gradient: Keeps(call, 2**20)
    tap.release()
    assert tap.on_blocks is None
    assert torch.autograd.grad(output.sum(), operands)[0].isfinite().all()
