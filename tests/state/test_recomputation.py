from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._composable import checkpoint_activation
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint

from lightning_attngrad.state import held_still
from lightning_attngrad.state.recomputation import no_recomputation
from tests.probe.runs import fail
from tests.state.checkpointed import WAYS, Vit

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def names() -> list[Any]:
    """What torch looks up when it checkpoints."""
    return [
        dict(vars(torch_checkpoint)),
        dict(vars(checkpoint_activation)),
        dict(vars(torch_checkpoint.CheckpointFunction)),
    ]


def train(model: Vit) -> tuple[int, list[Tensor]]:
    """Passes through the first block in a step, and the gradients."""
    model.runs = 0
    images = IMAGES.clone().requires_grad_()  # the reentrant kind asks for an input with a gradient
    model(images).square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    return model.runs, gradients


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_recomputed_inside_and_all_is_afterwards(way: str) -> None:
    model, before = WAYS[way](), names()
    runs, gradients = train(model)
    assert runs == 2, "this way does not checkpoint"
    model.runs = 0
    with held_still(model):
        images = IMAGES.clone().requires_grad_()
        logits = model(images)
        (gradient,) = torch.autograd.grad(logits.square().sum(), images)
        assert model.runs == 1
        expected = IMAGES.clone().requires_grad_()
        plain = Vit()
        torch.testing.assert_close(logits, plain(expected), rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient, torch.autograd.grad(plain(expected).square().sum(), expected)[0])
    assert names() == before
    runs, afterwards = train(model)
    assert runs == 2
    assert all(torch.equal(one, other) for one, other in zip(gradients, afterwards, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_an_error_or_another_body_inside_leaves_nothing_exchanged(way: str) -> None:
    model, before = WAYS[way](), names()
    flags = [dict(vars(module)) for module in model.modules()]

    def body() -> None:
        with held_still(model):
            with held_still(model.blocks), no_recomputation():
                model.blocks(torch.rand(1, 17, 32))
            assert names() != before
            model(IMAGES)
            fail()

    with pytest.raises(ZeroDivisionError):
        body()
    assert names() == before
    assert [dict(vars(module)) for module in model.modules()] == flags
    assert train(model)[0] == 2


def test_an_error_in_what_is_checkpointed_reaches_the_caller() -> None:
    for use_reentrant in (True, False):
        with pytest.raises(ZeroDivisionError), no_recomputation():
            checkpoint(lambda _: fail(), torch.ones(1, requires_grad=True), use_reentrant=use_reentrant)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_another_thread_goes_on_checkpointing(use_reentrant: bool) -> None:
    runs: list[str] = []

    def squared(tokens: Tensor) -> Tensor:
        runs.append(threading.current_thread().name)
        return tokens * tokens

    def step() -> None:
        checkpoint(squared, torch.ones(1, requires_grad=True), use_reentrant=use_reentrant).sum().backward()

    with no_recomputation():
        other = threading.Thread(target=step, name="other")
        other.start()
        other.join()
        step()
    assert runs == ["other", "other", threading.current_thread().name]


def in_two_threads(first: Callable[[], None], second: Callable[[], None]) -> None:
    """Run both; an error in either is one here."""
    errors: list[BaseException] = []

    def run(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors


def test_two_threads_that_hold_one_model_put_it_back_when_both_are_done() -> None:
    model, before = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), names()
    entered, left = threading.Event(), threading.Event()

    def first() -> None:
        with held_still(model):
            assert entered.wait(30)
        left.set()

    def second() -> None:
        with held_still(model):
            entered.set()
            assert left.wait(30)  # the one that came first is gone
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())

    in_two_threads(first, second)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert names() == before
