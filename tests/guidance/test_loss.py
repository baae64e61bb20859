"""The loss against its definition, against finite differences, and cut into blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.attention import AttentionTap, FusedAttentionCall
from lightning_attngrad.guidance import PlausiblePairs, attention_guidance_loss, capture_attention
from tests.guidance.attending import HEADS, WIDTH, Cross, Explicit, Multihead, Shared
from tests.references.guidance import guidance_loss, probabilities_of

BATCH, QUERIES, KEYS = 3, 5, 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, QUERIES, WIDTH).double(), torch.randn(BATCH, KEYS, WIDTH).double()


def some_pairs() -> Tensor:
    """The second image has no plausible pair at all, nor has one query of the first."""
    plausible = torch.rand(BATCH, QUERIES, KEYS) < 0.4
    plausible[1] = False
    plausible[0, 2] = False
    plausible[2, 0] = True
    return plausible


def captured(layer: nn.Module, given: tuple[Tensor, Tensor]) -> Any:
    with capture_attention(layer) as calls:
        layer(*given)
    return calls


def from_all_of_a(layer: Cross, given: tuple[Tensor, Tensor]) -> Tensor:
    query, key = layer.heads(layer.q(given[0])), layer.heads(layer.k(given[1]))
    key = key[:, :1] if isinstance(layer, Shared) else key
    return probabilities_of(query, key, query.shape[-1] ** -0.5)


@pytest.mark.parametrize("largest", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", [Cross, Explicit, Shared])
def test_it_is_the_definition_and_so_is_its_gradient(kind: type[Cross], largest: float) -> None:
    layer, given, plausible = kind().double(), tokens(), some_pairs()
    learning = [*layer.q.parameters(), *layer.k.parameters()]
    found = attention_guidance_loss(captured(layer, given), plausible, largest=largest)
    expected, mass = guidance_loss(from_all_of_a(layer, given), plausible, largest=largest)
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-12)
    assert float(found.mass_inside) == pytest.approx(float(mass), rel=1e-12)
    assert float(found.mass_inside + found.mass_outside) == pytest.approx(1)
    wanted = torch.autograd.grad(expected, learning)
    for ours, theirs in zip(torch.autograd.grad(found.loss, learning), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert max(float(gradient.abs().max()) for gradient in wanted) > 1e-3


def test_what_is_neither_inside_nor_outside_is_left_out() -> None:
    layer, given = Cross().double(), tokens()
    inside = torch.zeros(BATCH, 1, KEYS, dtype=torch.bool)
    inside[..., 1:3] = True
    outside = torch.zeros_like(inside)
    outside[..., 4:] = True
    found = attention_guidance_loss(captured(layer, given), PlausiblePairs(inside, outside))
    every = [mask.expand(-1, QUERIES, -1) for mask in (inside, outside)]
    expected, mass = guidance_loss(from_all_of_a(layer, given), every[0], outside=every[1])
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-12)
    assert float(found.mass_inside) == pytest.approx(float(mass), rel=1e-12)


def test_chosen_queries_are_those_of_the_definition() -> None:
    layer, given, plausible = Cross().double(), tokens(), some_pairs()
    chosen = torch.tensor([0, 3])
    found = attention_guidance_loss(captured(layer, given), PlausiblePairs(plausible[:, chosen], queries=chosen))
    expected, _ = guidance_loss(from_all_of_a(layer, given)[:, :, chosen], plausible[:, chosen])
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-12)
    found.loss.backward()
    assert layer.q.weight.grad is not None


def test_rows_of_one_image_are_averaged_together() -> None:
    """Windows: an image has several rows, and each image counts the same."""
    layer, given, plausible = Cross().double(), tokens(), some_pairs()
    plausible[1, 1, 2] = True
    windows = PlausiblePairs(plausible, images=torch.tensor([0, 0, 1]), batch=2)
    found = attention_guidance_loss(captured(layer, given), windows)
    attention = from_all_of_a(layer, given)
    one = torch.cat([attention[0], attention[1]], dim=1)[None]  # (1, H, 2·N, M)
    of_one, _ = guidance_loss(one, torch.cat([plausible[0], plausible[1]])[None])
    of_other, _ = guidance_loss(attention[2:], plausible[2:])
    assert float(found.loss) == pytest.approx(float((of_one + of_other) / 2), rel=1e-12)


def fused(query: Tensor, key: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> FusedAttentionCall:
    return FusedAttentionCall("attn", query, query, key, key, mask, causal, query.shape[-1] ** -0.5)


@pytest.mark.parametrize("largest", [0.0, 1.0])
def test_finite_differences(largest: float) -> None:
    plausible = some_pairs()
    query = torch.randn(BATCH, HEADS, QUERIES, 4, dtype=torch.float64, requires_grad=True)
    key = torch.randn(BATCH, HEADS, KEYS, 4, dtype=torch.float64, requires_grad=True)

    def loss(query: Tensor, key: Tensor) -> Tensor:
        return attention_guidance_loss(fused(query, key), plausible, largest=largest, memory_budget=300).loss

    assert torch.autograd.gradcheck(loss, (query, key), eps=1e-6, atol=1e-7)


def test_block_by_block_equals_whole() -> None:
    layer, given, plausible = Cross().double(), tokens(), some_pairs()
    learning = [*layer.q.parameters(), *layer.k.parameters()]
    outcomes = []
    for budget in (1, 10**9):  # single rows, and all at once
        calls = captured(layer, given)
        assert len(list(calls[0].blocks(budget))) == (QUERIES if budget == 1 else 1)
        found = attention_guidance_loss(calls, plausible, memory_budget=budget)
        outcomes.append([found.loss, found.mass_inside, *torch.autograd.grad(found.loss, learning)])
    for rows, whole in zip(*outcomes, strict=True):
        assert torch.allclose(rows, whole, rtol=1e-12, atol=1e-14)


def test_nothing_of_the_size_of_all_probabilities_is_kept() -> None:
    tokens_of_it, budget = 400, 2**18
    query, key = (torch.randn(1, 4, tokens_of_it, 8, requires_grad=True) for _ in range(2))
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            sizes.extend(
                one.numel() for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, Tensor)
            )
            return output

    with Watch():
        attention_guidance_loss(fused(query, key), torch.arange(tokens_of_it) < 9, memory_budget=budget).loss.backward()
    assert query.grad is not None
    assert key.grad is not None
    assert max(sizes) < 4 * tokens_of_it**2 / 8


def test_keys_that_the_model_hides_cannot_be_asked_for() -> None:
    query, key = (torch.randn(1, HEADS, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    hidden = torch.ones(4, 4, dtype=torch.bool).tril()
    plausible = torch.zeros(1, 4, 4, dtype=torch.bool)
    plausible[0, 0, 3] = True  # the first query never sees the last key
    plausible[0, 3, :2] = True
    expected, _ = guidance_loss(probabilities_of(query, key, 0.5, hidden)[:, :, 3:], plausible[:, 3:])
    for call in (fused(query, key, hidden), fused(query, key, causal=True)):
        found = attention_guidance_loss(call, plausible)
        assert float(found.loss) == pytest.approx(float(expected) / 2)  # of two queries that are asked, one can answer
        gradient = torch.autograd.grad(found.loss, query)[0]
        assert gradient.isfinite().all()
        assert not gradient[:, :, 0].any()


def test_a_batch_is_the_mean_of_its_parts() -> None:
    """So two processes, and two halves of an accumulated gradient, have the gradient of the whole."""
    layer, given, plausible = Cross().double(), tokens(), some_pairs()
    whole = attention_guidance_loss(captured(layer, given), plausible).loss
    parts = [
        attention_guidance_loss(captured(layer, (given[0][i : i + 1], given[1][i : i + 1])), plausible[i : i + 1]).loss
        for i in range(BATCH)
    ]
    assert float(whole) == pytest.approx(float(torch.stack(parts).mean()), rel=1e-12)


def test_however_little_there_is_inside_it_is_finite() -> None:
    query = torch.full((1, 1, 1, 1), 400.0, requires_grad=True)
    key = torch.tensor([1.0, -1.0]).view(1, 1, 2, 1).requires_grad_()
    call = FusedAttentionCall("attn", query, query, key, key, None, False, 1.0)
    found = attention_guidance_loss(call, torch.tensor([False, True]))
    assert float(found.loss) == pytest.approx(1600)
    found.loss.backward()
    assert key.grad is not None
    assert key.grad.isfinite().all()
    assert key.grad.abs().min() > 0


def test_no_query_with_a_plausible_key() -> None:
    layer, given = Cross(), [each.float() for each in tokens()]
    found = attention_guidance_loss(captured(layer, (given[0], given[1])), torch.zeros(KEYS, dtype=torch.bool))
    found.loss.backward()
    assert float(found.loss) == 0
    assert torch.isnan(found.mass_inside)
    assert layer.q.weight.grad is not None
    assert not layer.q.weight.grad.any()


@pytest.mark.parametrize("kind", [Cross, Explicit])
def test_under_autocast_it_is_computed_in_float32(kind: type[Cross]) -> None:
    layer, plausible = kind(), some_pairs()
    given = [each.float() for each in tokens()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        calls = captured(layer, (given[0], given[1]))
        found = attention_guidance_loss(calls, plausible)
    assert calls[0].tensor.dtype == torch.bfloat16
    assert found.loss.dtype == torch.float32
    exact = attention_guidance_loss(captured(layer, (given[0], given[1])), plausible)
    assert float(found.loss) == pytest.approx(float(exact.loss), rel=0.02)
    found.loss.backward()
    assert layer.q.weight.grad is not None
    wanted = torch.autograd.grad(exact.loss, layer.q.weight)[0]
    assert torch.nn.functional.cosine_similarity(layer.q.weight.grad.flatten(), wanted.flatten(), dim=0) > 0.99


def test_several_calls_and_masks_by_name() -> None:
    layers = nn.ModuleDict({"one": Multihead(), "two": Multihead()})
    one, other = (each.float() for each in tokens())
    plausible = some_pairs()

    def calls() -> Any:
        with capture_attention(layers) as found:
            layers["two"](layers["one"](one, other), other)
        return found

    each = [attention_guidance_loss(call, plausible).loss for call in calls()]
    assert float(attention_guidance_loss(calls(), plausible).loss) == pytest.approx(float(sum(each)) / 2)
    named = attention_guidance_loss(calls(), {"two.attn": plausible})
    assert float(named.loss) == pytest.approx(float(each[1]))


@pytest.mark.parametrize(
    ("plausible", "says"),
    [
        (torch.ones(KEYS + 1, dtype=torch.bool), r"plausible: got \(7,\) for the attention of 'attention.0'"),
        (torch.ones(KEYS), "expected a bool tensor"),
        ({"other": torch.ones(KEYS, dtype=torch.bool)}, "no captured call is named"),
        ([torch.ones(KEYS, dtype=torch.bool)] * 2, "got 2 masks for 1 calls"),
    ],
)
def test_masks_that_do_not_fit_are_refused(plausible: Any, says: str) -> None:
    one, other = (each.float() for each in tokens())
    calls = captured(Cross(), (one, other))
    calls[0].name = "attention.0"
    with pytest.raises(ValueError, match=says):
        attention_guidance_loss(calls, plausible)


def test_calls_that_no_gradient_reaches_are_refused() -> None:
    one, other = (each.float() for each in tokens())
    plausible = some_pairs()
    with pytest.raises(ValueError, match="calls: got none"):
        attention_guidance_loss([], plausible)
    frozen = Cross().requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="no gradient leads to the attention"):
        attention_guidance_loss(captured(frozen, (one, other)), plausible)
    layer = Explicit()
    with AttentionTap(layer) as tap:
        layer(one, other)
    with torch.no_grad():  # a number is all that is wanted, and a validation step has no graph
        without_graph = attention_guidance_loss(captured(layer, (one, other)), plausible)
    assert not without_graph.loss.requires_grad
    assert float(without_graph.loss) > 0
    assert float(attention_guidance_loss(tap.calls, plausible).loss) == pytest.approx(float(without_graph.loss))
