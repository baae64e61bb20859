"""Entered again inside itself: done once, undone once, by whoever is last."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.state import held_still, module, untouched
from tests.probe.runs import fail


class Norm(nn.Module):
    """Keeps a running centre, a counter and what it saw last, and has a flag for checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("centre", torch.zeros(2))
        self.seen: Tensor | None = torch.zeros(2)
        self.calls = [0]
        self.grad_checkpointing = True
        self.draw = random.Random(0)

    def forward(self, values: Tensor) -> Tensor:
        self.centre += self.linear(values).mean(0)  # of the graph
        self.seen = self.linear(values)
        self.calls[0] += 1
        return self.linear(values) - self.centre + self.draw.random()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Norm(), Norm()
        self.second.linear.requires_grad_(False)
        self.second.eval()

    def forward(self, values: Tensor) -> Tensor:
        return self.second(self.first(values))  # type: ignore[no-any-return]


def state(model: nn.Module) -> Any:
    parts = [part for part in model.modules() if isinstance(part, Norm)]
    return [
        [copy.copy(value) for value in model.state_dict().values()].__repr__(),
        [part.training for part in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [(id(part.centre), id(part.seen), list(part.calls), part.draw.getstate()) for part in parts],
        [part.grad_checkpointing for part in parts],
    ]


def assert_still(model: nn.Module) -> None:
    assert not any(part.training for part in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(part.grad_checkpointing for part in model.modules() if isinstance(part, Norm))


@pytest.mark.parametrize("fails", [False, True])
def test_inside_an_ancestor_and_inside_itself(fails: bool) -> None:
    root = nn.ModuleDict({"model": Model(), "other": nn.BatchNorm1d(2)})
    model, before = root["model"], state(root)
    parameters = [parameter.requires_grad for parameter in root.parameters()]

    def body() -> None:
        with untouched(root):
            assert [parameter.requires_grad for parameter in root.parameters()] == parameters
            for _ in range(2):
                with held_still(model), held_still(model.second), untouched(root), held_still(model):
                    assert_still(model)
                    assert root["other"].weight.requires_grad  # what is not the model's is not constant
                    model(torch.ones(3, 2))
                assert [parameter.requires_grad for parameter in root.parameters()] == parameters
                assert model.first.grad_checkpointing
            if fails:
                fail()

    if fails:
        with pytest.raises(ZeroDivisionError):
            body()
    else:
        body()
    assert state(root) == before


def test_a_model_around_one_that_is_held_and_the_other_way_round() -> None:
    model = Model()
    before = state(model)
    around = nn.Sequential(nn.Dropout(0.5), model)
    with held_still(model.first):
        assert model.training
        with held_still(around):
            assert_still(around)
            around(torch.ones(3, 2))
            assert_still(around)
        assert model.training
        assert around.training
        assert_still(model.first)
    assert state(model) == before
    assert around[0].training


def test_once_held_it_is_not_saved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, saved = Model(), []
    real = module.Belongings

    def counted(*args: Any, **kwargs: Any) -> Any:
        saved.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "Belongings", counted)
    with untouched(model):
        assert len(saved) == 2  # of the modules, and of their hooks
        for _ in range(3):
            with held_still(model), untouched(model.first), held_still(model.first.linear):
                model(torch.ones(3, 2))
        assert len(saved) == 2
    with held_still(model):
        assert len(saved) == 3  # and what was undone is done anew


def test_flags_that_a_body_sets_are_set_aside_for_those_inside() -> None:
    model = Model()
    with held_still(model):
        model.train()
        model.requires_grad_(True)
        with held_still(model):
            assert not any(part.training for part in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
        assert all(part.training for part in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.second.training
    assert not model.second.linear.weight.requires_grad


def test_each_pass_begins_with_the_same_tensors_and_lets_go_of_its_graph() -> None:
    model = Model()
    model.second.calls = model.first.calls
    with untouched(model):
        results, graphs = [], []
        for _ in range(3):
            with held_still(model):
                model.first.draw.seed(1)
                model.second.draw.seed(1)
                values = torch.ones(3, 2, requires_grad=True)
                results.append(model(values).tolist())
                graphs.append(torch._C._WeakTensorRef(model.first.seen))
            assert not model.first.centre.requires_grad
            assert model.first.seen.tolist() == [0, 0]
            assert graphs[-1].expired()
        assert results[0] == results[1] == results[2]


def test_gradients_that_a_body_leaves_are_reported_by_the_outermost() -> None:
    model = nn.Linear(2, 2)

    def body() -> None:
        with untouched(model):
            with untouched(model):
                model(torch.ones(1, 2)).sum().backward()
            assert model.weight.grad is not None
            raise AssertionError("reached")

    with pytest.raises(AssertionError, match="reached"):
        body()
    assert model.weight.grad is None

    def careless() -> None:
        with untouched(model), held_still(model):
            model.requires_grad_(True)
            model(torch.ones(1, 2)).sum().backward()

    with pytest.raises(RuntimeError, match=r"the body wrote to \.grad"):
        careless()
    assert model.weight.grad is None


def test_a_model_that_cannot_be_held_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="has no shape yet"), held_still(model):
        pass
    assert all(part.training for part in model.modules())
    model(torch.ones(1, 3))
    with held_still(model):  # and can be when it has one
        assert not model.training


def test_an_interruption_on_entering_leaves_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    before = state(model)
    gradient = torch.ones(2)
    model.first.linear.bias.grad = gradient
    real = module._set_training
    monkeypatch.setattr(
        module, "_set_training", lambda part, flag: real(part, flag) if part is not model.first else fail()
    )
    with pytest.raises(ZeroDivisionError), held_still(model):
        pass
    monkeypatch.undo()
    assert state(model) == before
    assert model.first.linear.bias.grad is gradient
    with held_still(model):
        assert_still(model)
