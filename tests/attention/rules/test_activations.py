"""Relevance of x·stop(f(x)/x) is f(x), of every activation in every spelling; and the values are torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_attngrad.attention import CONSERVATIVE, AttentionTap
from tests.attention.rules.under_rules import numbers, relevance

Function = Callable[[Tensor], Tensor]

ZERO_AT_ZERO: dict[str, Function] = {
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu module": nn.GELU(),
    "silu": F.silu,
    "silu in place": lambda x: F.silu(x, inplace=True),
    "silu module": nn.SiLU(inplace=True),
    "mish": F.mish,
    "relu": F.relu,
    "relu of torch": torch.relu,
    "relu method": lambda x: x.relu(),
    "relu_": lambda x: x.relu_(),
    "relu in place": lambda x: F.relu(x, inplace=True),
    "relu6": F.relu6,
    "relu6 in place, by position": lambda x: F.relu6(x, True),
    "hardswish": F.hardswish,
    "hardswish in place": nn.Hardswish(inplace=True),
    "hardtanh": F.hardtanh,
    "hardtanh_": lambda x: F.hardtanh_(x, -0.5, 0.5),
    "leaky relu": F.leaky_relu,
    "leaky relu in place": lambda x: F.leaky_relu(x, 0.2, True),
    "elu": F.elu,
    "elu of another slope": lambda x: F.elu(x, alpha=0.5),
    "elu_": F.elu_,
    "selu": F.selu,
    "selu of torch": torch.selu,
    "selu_": torch.selu_,
    "celu": F.celu,
    "celu_": torch.celu_,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3], dtype=x.dtype)),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "tanh": torch.tanh,
    "tanh method": lambda x: x.tanh(),
    "tanh of F": F.tanh,
    "tanh_": lambda x: x.tanh_(),
    "erf": torch.erf,
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp_": lambda x: x.clamp_(min=-0.5),
    "clip": lambda x: torch.clip(x, max=0.5),
    "square": torch.square,
    "squared relu": lambda x: F.relu(x) ** 2,
    "squared relu by pow": lambda x: F.relu(x).pow(2),
    "squared relu by product": lambda x: F.relu(x) * F.relu(x),
    "cube": lambda x: torch.pow(x, 3),
    "root": lambda x: x.abs().sqrt(),
    "star relu": lambda x: 0.8944 * F.relu(x) ** 2,
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "quick gelu, the other way round": lambda x: (1.702 * x).sigmoid() * x,
    "quick gelu in place": lambda x: x.mul_((1.702 * x).sigmoid()),
    "quick gelu by division": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "gelu by erf": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2))),
    "gelu by hand and tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.797885 * (x + 0.044715 * torch.pow(x, 3)))),
    "mish by hand": lambda x: x * torch.tanh(F.softplus(x)),
    "mish by hand, in place": lambda x: x.mul_(F.softplus(x).tanh()),
    "hardswish by relu6": lambda x: x * F.relu6(x + 3) / 6,
    "hardswish by clamp": lambda x: x * ((x + 3).clamp(0, 6) / 6),
    "hardswish by hard sigmoid": lambda x: x * F.hardsigmoid(x),
    "hard mish": lambda x: 0.5 * x * (x + 2).clamp(min=0, max=2),
    "silu by hand": lambda x: x.sigmoid() * x,
    "silu by hand, as operator in place": lambda x: x.__imul__(x.sigmoid()),
}

OFFSET: dict[str, Function] = {
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "sigmoid_": lambda x: x.sigmoid_(),
    "hard sigmoid": F.hardsigmoid,
    "log sigmoid": F.logsigmoid,
    "clamp above zero": lambda x: x.clamp(0.25, 1),
    "star relu with a bias": lambda x: 0.8944 * F.relu(x) ** 2 - 0.4472,
}


@pytest.mark.parametrize("name", ZERO_AT_ZERO)
@given(seed=st.integers(0, 50), scale=st.sampled_from([1e-3, 1.0, 10.0]))
def test_relevance_is_the_value(name: str, seed: int, scale: float) -> None:
    function, inputs = ZERO_AT_ZERO[name], scale * numbers(4, 6, seed=seed)
    found, output = relevance(function, inputs)
    torch.testing.assert_close(output, function(inputs.clone()), rtol=0, atol=0)
    torch.testing.assert_close(found, output, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OFFSET)
@given(seed=st.integers(0, 50))
def test_what_is_there_at_zero_is_a_constant_like_a_bias(name: str, seed: int) -> None:
    function, inputs = OFFSET[name], numbers(4, 6, seed=seed)
    found, output = relevance(function, inputs)
    torch.testing.assert_close(output, function(inputs.clone()), rtol=0, atol=0)
    torch.testing.assert_close(found, output - function(torch.zeros_like(inputs)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["gelu", "silu", "elu", "selu", "celu", "tanh", "hardswish", "softsign", "quick gelu"])
def test_at_zero_the_ratio_is_its_limit(name: str) -> None:
    function = ZERO_AT_ZERO[name]
    inputs = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    with AttentionTap(nn.Identity(), rules=CONSERVATIVE):
        (gradient,) = torch.autograd.grad(function(inputs.clone()).sum(), inputs)
    near = torch.full((3,), 1e-9, dtype=torch.float64)
    torch.testing.assert_close(gradient, function(near.clone()) / near, rtol=1e-6, atol=1e-6)


def test_what_is_overwritten_for_the_model_is_overwritten_under_the_rules() -> None:
    # A pre-activation network may use on its residual path what its activation overwrote.
    def block(x: Tensor) -> Tensor:
        hidden = x + 1
        F.silu(hidden, inplace=True)
        hidden.tanh_()
        return hidden

    inputs = numbers(3, 4)
    _, output = relevance(block, inputs)
    torch.testing.assert_close(output, block(inputs.clone()), rtol=0, atol=0)


def test_without_rules_the_gradient_is_torch_s_own() -> None:
    inputs = numbers(4, 6).requires_grad_()
    beyond_torch = ("quick gelu in place", "mish by hand, in place", "silu by hand, as operator in place")
    for name, function in (ZERO_AT_ZERO | OFFSET).items():
        if name in beyond_torch:  # it overwrites what its own gradient needs
            continue
        with AttentionTap(nn.Identity()):
            (tapped,) = torch.autograd.grad(function(inputs.clone()).sum(), inputs)
        (plain,) = torch.autograd.grad(function(inputs.clone()).sum(), inputs)
        assert torch.equal(tapped, plain)
