"""The tap sees every attention call under the model's own name, keeps fused kernels, and changes nothing."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_attngrad.attention import (
    ATTN_LRP,
    PLAIN,
    AttentionTap,
    ExplicitAttentionCall,
    FusedAttentionCall,
)
from lightning_attngrad.attention.embedding import find_embedding
from tests.zoo import ZOO

NAMES = {
    "vit": ("blocks.0.attn", "blocks.1.attn"),
    "siglip": ("blocks.0.attn", "blocks.1.attn", "attn_pool"),
    "torchvision": (
        "encoder.layers.encoder_layer_0.self_attention",
        "encoder.layers.encoder_layer_1.self_attention",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_calls_carry_the_model_s_own_names(name: str) -> None:
    model = ZOO[name].build()
    with AttentionTap(model) as tap, torch.no_grad():
        model(ZOO[name].images())
    assert tuple(call.name for call in tap.calls) == NAMES[name]


def test_compiled_models_keep_their_names() -> None:
    model = torch.compile(ZOO["vit"].build(), backend="eager")
    with torch.compiler.set_stance("force_eager"), AttentionTap(model) as tap, torch.no_grad():
        model(ZOO["vit"].images())
    assert tuple(call.name for call in tap.calls) == NAMES["vit"]


@pytest.mark.parametrize("name", ZOO)
def test_outputs_are_the_same_under_the_tap(name: str) -> None:
    model, images = ZOO[name].build(), ZOO[name].images()
    with torch.no_grad():
        plain = _tensor(model(images))
        with AttentionTap(model) as tap:
            tapped = _tensor(model(images))
    assert tap.calls
    # nn.MultiheadAttention is computed from its weights, everything else by the very same calls.
    torch.testing.assert_close(tapped, plain, rtol=0, atol=1e-5 if name == "torchvision" else 0)


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_fused_kernels_stay_fused() -> None:
    model, images = ZOO["vit"].build(), ZOO["vit"].images()

    def operators(tapped: bool) -> list[str]:
        with torch.no_grad(), _Operators() as operators:
            if tapped:
                with AttentionTap(model):
                    model(images)
            else:
                model(images)
        return [name for name in operators.seen if "attention" in name or "softmax" in name]

    plain = operators(tapped=False)
    assert plain
    assert operators(tapped=True) == plain
    assert not any("softmax" in name for name in plain)


def test_no_module_is_hooked_patched_or_replaced() -> None:
    model = ZOO["vit"].build()
    before = [(name, id(module), dict(vars(module))) for name, module in model.named_modules()]
    functions = (F.scaled_dot_product_attention, F.softmax, F.layer_norm, F.multi_head_attention_forward)
    with AttentionTap(model, start="attention") as tap:
        model(ZOO["vit"].images())
        inside = [(name, id(module), dict(vars(module))) for name, module in model.named_modules()]
        assert (F.scaled_dot_product_attention, F.softmax, F.layer_norm, F.multi_head_attention_forward) == functions
    assert tap.calls
    for (_, first, attributes), (_, second, attributes_inside) in zip(before, inside, strict=True):
        assert first == second
        assert attributes.keys() == attributes_inside.keys()
        assert not attributes_inside["_forward_hooks"]
        assert not attributes_inside["_forward_pre_hooks"]
        assert "forward" not in attributes_inside


class _OneCall(nn.Module):
    """Grouped-query, masked or causal attention on given tensors."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, **self.options)


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MASK = torch.rand(5, 6, generator=torch.Generator().manual_seed(9)) > 0.4
MASK[:, 0] = True


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"attn_mask": MASK},
        {"attn_mask": MASK[None, None]},
        {"attn_mask": MASK[:1][None, None].expand(2, 1, 1, 6)},
        {"attn_mask": _random(2, 1, 5, 6, seed=4)},
        {"attn_mask": _random(5, 6, seed=4), "scale": 2.0},
        {"is_causal": True},
        {"enable_gqa": True},
        {"enable_gqa": True, "is_causal": True, "scale": 0.7},
    ],
    ids=lambda options: "+".join(options) or "plain",
)
def test_probabilities_and_gradient_are_rebuilt_whatever_the_arguments(options: dict[str, object]) -> None:
    key_heads = 2 if options.get("enable_gqa") else 4
    query = _random(2, 4, 5, 8, seed=1)
    key, value = _random(2, key_heads, 6, 8, seed=2), _random(2, key_heads, 6, 8, seed=3)
    model = _OneCall(**options)
    with AttentionTap(model, start="attention") as tap:
        output = model(query, key, value)
    (call,) = tap.calls
    assert isinstance(call, FusedAttentionCall)
    assert call.shape == (2, 4, 5, 6)

    # The oracle: with v the identity, the kernel's own output is A; G by its definition.
    identity = torch.eye(6).expand(2, key_heads, 6, 6)
    arguments = {"scale": 8**-0.5, **options}  # the default scale belongs to 8 channels, not to the identity's 6
    expected = F.scaled_dot_product_attention(query, key, identity, **arguments)
    blocks = torch.cat([call.attention(rows) for rows in call.blocks(memory_budget=1)], dim=2)
    torch.testing.assert_close(blocks, expected, rtol=1e-5, atol=1e-6)

    gradient = _random(*output.shape, seed=7)
    rebuilt = torch.cat([call.attention_gradient(rows, gradient) for rows in call.blocks(memory_budget=1)], dim=2)
    whole_value = value.repeat_interleave(4 // key_heads, dim=1)
    torch.testing.assert_close(rebuilt, gradient @ whole_value.mT, rtol=1e-5, atol=1e-6)


def test_a_query_that_sees_no_key_attends_to_nothing() -> None:
    mask = MASK.clone()
    mask[2] = False
    model = _OneCall(attn_mask=mask)
    with AttentionTap(model) as tap:
        model(_random(1, 1, 5, 8, seed=1), _random(1, 1, 6, 8, seed=2), _random(1, 1, 6, 8, seed=3))
    attention = tap.calls[0].attention(slice(0, 5))
    assert torch.equal(attention[0, 0, 2], torch.zeros(6))
    assert torch.isfinite(attention).all()


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 1), (3, 11)])
@pytest.mark.parametrize("budget", [1, 4_000, 10**9])
def test_blocks_cover_the_rows_once_within_the_budget(start: int, stop: int | None, budget: int) -> None:
    model = _OneCall()
    tokens = _random(2, 3, 17, 8, seed=1)
    with AttentionTap(model) as tap:
        model(tokens, tokens, tokens)
    call = tap.calls[0]
    blocks = list(call.blocks(budget, start, stop))
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(start, stop or 17))
    bytes_per_row = 2 * 3 * 17 * 4 * 2
    assert all((block.stop - block.start) * bytes_per_row <= max(budget, bytes_per_row) for block in blocks)


class _Explicit(nn.Module):
    """Softmax attention as people write it."""

    def __init__(self, softmax: str, product: str) -> None:
        super().__init__()
        self.softmax, self.product = softmax, product
        self.module = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        scores = tokens @ tokens.mT
        attention = {
            "functional": lambda: F.softmax(scores, dim=-1, dtype=torch.float32).to(tokens.dtype),
            "method": lambda: scores.softmax(-1),
            "torch": lambda: torch.softmax(scores, dim=3),
            "module": lambda: self.module(scores),
        }[self.softmax]()
        attention = self.dropout(attention)
        return {
            "operator": lambda: attention @ tokens,
            "matmul": lambda: torch.matmul(attention, tokens),
            "einsum": lambda: torch.einsum("bhij,bhjd->bhid", attention, tokens),
        }[self.product]()


@pytest.mark.parametrize("softmax", ["functional", "method", "torch", "module"])
@pytest.mark.parametrize("product", ["operator", "matmul", "einsum"])
def test_explicit_softmax_is_seen_in_all_its_spellings(softmax: str, product: str) -> None:
    model = _Explicit(softmax, product).eval()
    tokens = _random(2, 3, 5, 4, seed=1)
    with AttentionTap(nn.Sequential(model), start="attention") as tap:
        model(tokens)
    (call,) = tap.calls
    assert isinstance(call, ExplicitAttentionCall)
    assert call.name == "0"  # the layer, not the nn.Softmax inside it
    torch.testing.assert_close(call.attention(slice(0, 5)), (tokens @ tokens.mT).softmax(-1))


def test_a_softmax_that_is_no_attention_is_passed_by() -> None:
    class Gates(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.softmax(dim=-1) * tokens + F.softmax(tokens, dim=1) @ tokens.mT

    model = Gates()
    with AttentionTap(model) as tap:
        model(_random(2, 3, 4, 4, seed=1))
    assert tap.calls == []


def test_gradients_are_delivered_last_call_first_and_only_while_somebody_listens() -> None:
    model, images = ZOO["vit"].build(), ZOO["vit"].images()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    order: list[str] = []
    with AttentionTap(model, start="attention") as tap:
        output = model(images)
    tap.on_gradient = lambda call, gradient: order.append(call.name)
    torch.autograd.grad(output.sum(), tap.calls[0].tensor, retain_graph=True)
    assert order == ["blocks.1.attn", "blocks.0.attn"]
    calls = list(tap.calls)
    tap.release()
    torch.autograd.grad(output.sum(), calls[0].tensor)
    assert order == ["blocks.1.attn", "blocks.0.attn"]


def test_without_a_start_no_graph_is_made() -> None:
    model = ZOO["vit"].build().requires_grad_(False)
    with AttentionTap(model) as tap:
        output = model(ZOO["vit"].images())
    assert not output.requires_grad
    assert not any(call.tensor.requires_grad for call in tap.calls)


def test_rules_change_the_way_back_and_not_the_values() -> None:
    model, images = ZOO["vit"].build().requires_grad_(False), ZOO["vit"].images()
    gradients, outputs = [], []
    tap = AttentionTap(model, start="images")
    begin = tap.begin_at(images.clone())
    with tap:
        output = model(begin)
    number = find_embedding(tap.numbered.nodes, [output], tap.first_reads)
    for rules in (PLAIN, ATTN_LRP):
        with AttentionTap(model, start="embedding", embedding_number=number, rules=rules) as tap:
            output = model(images)
        outputs.append(output.detach())
        gradients.append(torch.autograd.grad(output[:, 0].sum(), tap.embedding)[0])
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.1)


@pytest.mark.parametrize(
    "name",
    ["vit_base_patch16_clip_224", "swin_tiny_patch4_window7_224", "hiera_tiny_224", "levit_128s", "pvt_v2_b0"],
)
def test_families_beyond_the_supported_are_still_seen(name: str) -> None:
    model = timm.create_model(name, num_classes=2).eval().requires_grad_(False)
    with AttentionTap(model) as tap:
        model(torch.rand(1, 3, 224, 224))
    assert len(tap.calls) >= 4
    assert all("attn" in call.name or "attention" in call.name for call in tap.calls)


def _tensor(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits
