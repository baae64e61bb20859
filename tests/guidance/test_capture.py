"""What is captured leads into the graph of the step, and the step is the one without, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_attngrad.guidance import attention_guidance_loss, capture_attention
from tests.guidance.attending import WIDTH, Cross, Explicit, MovedAfterDropout, Multihead, Talking
from tests.integration.harness import bytes_of, gradients_of, process_flags

KINDS: dict[str, Callable[[], nn.Module]] = {
    "fused": lambda: Cross(dropout=0.5),
    "explicit": lambda: Explicit(dropout=0.5),
    "multihead": lambda: Multihead(dropout=0.5),
}


def given() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    one = torch.randn(2, 4, WIDTH, generator=generator)
    return one, torch.randn(2, 6, WIDTH, generator=generator)


def step(layer: nn.Module, run: Callable[..., Any], weight: float | None) -> tuple[bytes, list[bytes | None], bytes]:
    """Output, gradients and random numbers of a step; None is without capture."""
    torch.manual_seed(3)
    layer.zero_grad()
    if weight is None:
        output = run(*given())
        loss = output.square().sum()
    else:
        with capture_attention(layer) as calls:
            output = run(*given())
        found = attention_guidance_loss(calls, torch.eye(4, 6) > 0)
        loss = output.square().sum()
        loss = loss + weight * found.loss if weight else loss
    loss.backward()
    return bytes_of(output), gradients_of(layer), bytes_of(torch.get_rng_state())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_step_is_the_step(kind: str, autocast: bool, checkpointed: bool) -> None:
    layer = KINDS[kind]().train()

    def run(*tokens: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return checkpoint(layer, *tokens, use_reentrant=False) if checkpointed else layer(*tokens)

    flags = process_flags()
    without = step(layer, run, None)
    assert step(layer, run, 0.0) == without
    guided = step(layer, run, 1.0)
    assert guided[0] == without[0]
    assert guided[2] == without[2]
    assert guided[1] != without[1]
    assert process_flags() == flags


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_add_up_to_those_of_both_losses(kind: str) -> None:
    layer = KINDS[kind]().train()

    def gradients(loss_of: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(3)
        with capture_attention(layer) as calls:
            output = layer(*given())
        found = attention_guidance_loss(calls, torch.eye(4, 6) > 0)
        loss = loss_of(output.square().sum(), found.loss)
        return list(torch.autograd.grad(loss, list(layer.parameters()), materialize_grads=True))

    both = gradients(lambda task, guidance: task + 0.5 * guidance)
    task, guidance = gradients(lambda task, _: task), gradients(lambda _, guidance: guidance)
    for whole, one, other in zip(both, task, guidance, strict=True):
        assert torch.allclose(whole, one + 0.5 * other, atol=1e-6)


def test_it_is_guided_before_dropout() -> None:
    """The explicit softmax and the fused kernel are the same attention, whatever is dropped behind it."""
    fused, explicit = Cross(dropout=0.5), Explicit(dropout=0.5)
    explicit.load_state_dict(fused.state_dict())
    found = []
    for layer in (fused.train(), explicit.train()):
        with capture_attention(layer) as calls:
            layer(*given())
        found.append(float(attention_guidance_loss(calls, torch.eye(4, 6) > 0).loss))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_gradient_descent_on_it_moves_the_attention_inside() -> None:
    layer = Multihead()
    plausible = torch.eye(4, 6) > 0
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    masses = []
    for _ in range(60):
        with capture_attention(layer) as calls:
            layer(*given())
        found = attention_guidance_loss(calls, plausible)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        masses.append(float(found.mass_inside))
    assert masses[0] < 0.3
    assert masses[-1] > 0.9


@pytest.mark.parametrize("fused", [True, False])
def test_a_model_of_timm(fused: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, attn_drop_rate=0.2, proj_drop_rate=0.2).train()
    for block in model.blocks:
        block.attn.fused_attn = fused
    images = torch.rand(2, 3, 160, 160)
    torch.manual_seed(1)
    without = model(images)
    torch.manual_seed(1)
    with capture_attention(model, layers=["blocks.2.attn"]) as calls:
        captured = model(images)
    assert torch.equal(without, captured)
    assert [call.name for call in calls] == ["blocks.2.attn"]
    plausible = torch.zeros(101, dtype=torch.bool)
    plausible[1:51] = True
    attention_guidance_loss(calls, plausible).loss.backward()
    reached = [block.attn.qkv.weight.grad for block in model.blocks[:4]]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in reached[:3])
    assert reached[3] is None


def test_layers_that_do_not_attend_are_named() -> None:
    layer = Multihead()
    says = r"got \['attention'\], which did not attend; those that did are \['attn'\]"
    with pytest.raises(ValueError, match=says), capture_attention(layer, layers=["attention"]):
        layer(*given())
    with pytest.raises(ValueError, match="expected names of modules"), capture_attention(layer, layers="attn"):
        pass


@pytest.mark.parametrize(
    ("kind", "why"), [(Talking, "is no softmax any more"), (MovedAfterDropout, "is moved about after its dropout")]
)
def test_attention_that_is_no_plain_softmax_is_refused(kind: type[Cross], why: str) -> None:
    layer = kind()
    with pytest.raises(ValueError, match=why), capture_attention(layer):
        layer(*given())


def test_a_compiled_model_is_refused() -> None:
    layer = Cross()
    layer.compile(backend="eager")
    with pytest.raises(ValueError, match="is compiled"), capture_attention(nn.Sequential(layer)):
        pass
    torch.compiler.reset()


def test_checkpointing_that_keeps_no_graph_is_refused() -> None:
    layer = Cross()
    one, other = given()
    with capture_attention(layer) as calls:
        checkpoint(layer, one.requires_grad_(), other, use_reentrant=True)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        attention_guidance_loss(calls, torch.eye(4, 6) > 0)


def test_an_error_in_the_step_leaves_no_mode_behind() -> None:
    flags = process_flags()
    given_too_wide = torch.ones(2, 4, WIDTH + 1)
    layer = Cross()
    with pytest.raises(RuntimeError, match="shapes"), capture_attention(layer):
        layer(given_too_wide, given_too_wide)
    assert process_flags() == flags
