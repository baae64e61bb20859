"""What attacks of other libraries do to a model in training, and this one does not (docs: benchmarks/rewriting)."""

from __future__ import annotations

import contextlib
import copy
import random as python_random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.rewrite import Rewrite, rewrite
from tests.rewrite.models import PIXELS, assert_true_report, random, tiny_vit
from tests.state.checkpointed import WAYS, Vit

SEARCHES: dict[str, dict[str, Any]] = {
    "linf": {"norm": "linf"},
    "l2": {"norm": "l2"},
    "l0": {"norm": "l0"},
    "l0_patches": {"norm": "l0_patches"},
    "radius": {"radius": 0.05},
    "top share": {"top_share": 0.5},
    "all": {"target": "all"},
}
IMAGES = random(2, 3, 32, 32)


class InTraining(nn.Module):
    """Dropout and batch norm, whose statistics move with every pass in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.vit = tiny_vit(4, drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(self.norm(images))


def in_training() -> InTraining:
    """With a block frozen in evaluation mode, and gradients of a step that is under way."""
    torch.manual_seed(0)
    model = InTraining().train()
    model.vit.blocks[0].eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 != 0)
        parameter.grad = torch.full_like(parameter, 0.5) if number % 2 else None
    return model


def state_of(model: nn.Module) -> dict[str, Any]:
    modules = list(model.modules())
    return {
        "modes": [module.training for module in modules],
        "attributes": [set(vars(module)) for module in modules],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        "frozen": [parameter.requires_grad for parameter in model.parameters()],
        "identities": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.sum().item()) for p in model.parameters()],
        "versions": [tensor._version for tensor in (*model.parameters(), *model.buffers())],
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "python": python_random.getstate(),
    }


def assert_untouched(model: nn.Module, weights: dict[str, Tensor], before: dict[str, Any]) -> None:
    after = state_of(model)
    for name, value in before.items():
        assert after[name] == value, name
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("search", SEARCHES)
def test_a_model_in_training_is_left_as_it_was(search: str) -> None:
    model, images = in_training(), IMAGES.clone()
    weights, before = copy.deepcopy(model.state_dict()), state_of(model)
    result = rewrite(model, images, **{"target": "random", "steps": 2, **SEARCHES[search]}, **PIXELS)
    assert_untouched(model, weights, before)
    assert torch.equal(images, IMAGES)
    assert not images.requires_grad
    assert images.grad is None
    assert len(result.images) == (6 if search == "all" else 2)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("last", [1, 2, 5])
def test_an_error_half_way_leaves_it_as_it_was(search: str, last: int) -> None:
    model = in_training()
    weights, before = copy.deepcopy(model.state_dict()), state_of(model)
    calls = []

    def forward(images: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == last:
            raise RuntimeError("lost")
        return model(images)

    options = {"target": "random", "steps": 3, **SEARCHES[search]}
    with pytest.raises(RuntimeError, match="lost"):
        rewrite(model, IMAGES, forward=forward, **options, **PIXELS)
    assert_untouched(model, weights, before)


@pytest.mark.parametrize("search", SEARCHES)
def test_every_pass_is_one_of_evaluation(search: str) -> None:
    model = in_training()
    modes = set()
    for module in model.modules():
        module.register_forward_hook(lambda module, inputs, output: modes.add(module.training))
    result = rewrite(model, IMAGES, **{"target": "random", "steps": 2, **SEARCHES[search]}, **PIXELS)
    assert modes == {False}
    assert_true_report(result, model.eval())  # so what it found is true of the model as it validates


def same(one: Rewrite, other: Rewrite) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.distance, other.distance)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("search", SEARCHES)
def test_the_caller_s_gradient_mode_does_not_matter(search: str, around: Callable[[], Any]) -> None:
    model = tiny_vit(3)
    options = {"steps": 2, **SEARCHES[search], **PIXELS}
    target = {} if search == "all" else {"target": torch.tensor([1, 2])}
    expected = rewrite(model, IMAGES, **target, **options)
    with around():
        # Images, targets and constants that were made there, and so can enter no graph.
        given = {name: value.clone() for name, value in target.items()}
        constants = {"mean": torch.zeros(3), "std": torch.ones(3)}
        found = rewrite(model, IMAGES.clone(), **{**options, **given, **constants})
    assert same(found, expected)
    for tensor in (found.images, found.pixels, found.distance, found.logits_after, found.margin):
        assert not tensor.requires_grad
        assert not tensor.is_inference()


@pytest.mark.parametrize("search", SEARCHES)
def test_frozen_parameters_do_not_matter(search: str) -> None:
    options = {"target": "random", "steps": 2, **SEARCHES[search], **PIXELS}
    frozen = tiny_vit(3).requires_grad_(False)
    assert same(rewrite(frozen, IMAGES, **options), rewrite(tiny_vit(3), IMAGES, **options))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("way", WAYS)
def test_activation_checkpointing_does_not_matter(way: str, search: str) -> None:
    options = {"target": "random", "steps": 2, **SEARCHES[search], **PIXELS}
    model = WAYS[way]().train()
    found, expected = rewrite(model, IMAGES, **options), rewrite(Vit(), IMAGES, **options)
    torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.margin, expected.margin, rtol=0, atol=1e-5)
    assert all(module.training for module in model.modules())


def test_the_global_streams_do_not_matter() -> None:
    model = in_training()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        python_random.seed(seed)
        results.append(rewrite(model, IMAGES, "random", steps=2, **PIXELS))
    assert torch.equal(results[0].target, results[1].target)
    assert same(*results)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_model_that_works_in_place_reaches_nothing_of_the_caller_s(normalised: bool) -> None:
    model = tiny_vit(3)

    def in_place(images: Tensor) -> Tensor:
        return model(images.sub_(0.5).div_(0.25))

    images = IMAGES * 2 - 0.5 if normalised else IMAGES.clone()
    constants = {"mean": 0.25, "std": 0.5} if normalised else PIXELS
    given = images.clone()
    expected = rewrite(model, images, 1, steps=3, forward=lambda batch: model((batch - 0.5) / 0.25), **constants)
    found = rewrite(model, images, 1, steps=3, forward=in_place, **constants)
    assert torch.equal(images, given)
    torch.testing.assert_close(found.pixels, expected.pixels, rtol=0, atol=1e-5)
    assert found.images.data_ptr() != found.pixels.data_ptr()


@pytest.mark.parametrize("search", SEARCHES)
def test_nothing_of_the_model_is_held(search: str) -> None:
    model = tiny_vit(3)
    held: list[Any] = []
    model.blocks[1].register_forward_hook(lambda *_: held.append(torch._C._WeakTensorRef(_[2])))
    result = rewrite(model, IMAGES, **{"target": "random", "steps": 2, **SEARCHES[search]}, **PIXELS)
    assert len(held) > 3
    assert all(reference.expired() for reference in held)
    assert result.images.grad_fn is None


@pytest.mark.parametrize("context", [contextlib.nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_autocast_around_the_call_is_left_on(context: Callable[[], Any]) -> None:
    with context():
        before = torch.is_autocast_enabled("cpu")
        rewrite(tiny_vit(3), IMAGES, 1, steps=2, **PIXELS)
        assert torch.is_autocast_enabled("cpu") == before
