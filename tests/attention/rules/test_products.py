"""Products: gates and statistics are constants, equals share; relevance adds up whichever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import CONSERVATIVE, AttentionTap
from tests.attention.rules.under_rules import numbers, relevance

TOKENS, MAPS = numbers(2, 5, 8), numbers(2, 8, 3, 4)
FIRST, SECOND = numbers(8, 8, seed=1), numbers(8, 8, seed=2)


def _squeeze_and_excite(x: Tensor) -> Tensor:
    weights = x.mean((2, 3), keepdim=True)
    weights = torch.conv2d(F.relu(torch.conv2d(weights, FIRST[:, :, None, None])), SECOND[:, :, None, None])
    return x * weights.sigmoid()


def _efficient_channel_attention(x: Tensor) -> Tensor:
    weights = F.conv1d(x.mean((2, 3)).unsqueeze(1), FIRST[:1, None, :3], padding=1).sigmoid()
    return x * weights.view(2, 8, 1, 1).expand_as(x)


def _spatial_gate(x: Tensor) -> Tensor:
    gate = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
    return x * F.hardsigmoid(F.interpolate(gate.mean(1, keepdim=True), size=x.shape[-2:]))


def _selective_kernel(x: Tensor) -> Tensor:
    paths = torch.stack([x, x.roll(1, 3)], dim=1)  # (B, 2, C, h, w)
    attention = torch.softmax(paths.mean((3, 4), keepdim=True), dim=1)
    return (paths * attention).sum(1)


def _linear_attention(x: Tensor) -> Tensor:
    query, key, value = F.relu(x @ FIRST), F.relu(x @ SECOND), x
    read = query @ (key.mT @ value)
    return read / ((query * key.sum(1, keepdim=True)).sum(-1, keepdim=True) + 1e-6)


def _focal_modulation(x: Tensor) -> Tensor:
    return (x @ FIRST) * (x @ SECOND)


OF_TOKENS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": lambda x: F.silu(x @ FIRST) * (x @ SECOND),
    "swiglu by multiply": lambda x: torch.multiply(F.silu(x @ FIRST), x @ SECOND),
    "swiglu in place": lambda x: F.silu(x @ FIRST).mul_(x @ SECOND),
    "geglu": lambda x: (x @ FIRST).mul(F.gelu(x @ SECOND)),
    "glu": lambda x: F.glu(torch.cat([x @ FIRST, x @ SECOND], dim=-1)),
    "glu by hand": lambda x: (x @ FIRST) * (x @ SECOND).sigmoid(),
    "gate to the power of nothing": lambda x: (x @ FIRST) * (1 - (x @ SECOND).sigmoid()),
    "gate by hard sigmoid": lambda x: (x @ FIRST) * F.hardsigmoid(x @ SECOND),
    "gate by tanh": lambda x: (x @ FIRST) * torch.tanh(x @ SECOND),
    "gate of a tanh": lambda x: torch.tanh(x @ FIRST) * torch.sigmoid(x @ SECOND),
    "tanh times tanh": lambda x: torch.tanh(x @ FIRST) * torch.tanh(x @ SECOND),
    "gate of a gated": lambda x: (x @ FIRST) * (x @ SECOND).sigmoid() * x.sigmoid(),
    "softmax gate": lambda x: (x @ FIRST) * F.softmax(x @ SECOND, dim=-1),
    "modulation": _focal_modulation,
    "star of relu6": lambda x: F.relu6(x @ FIRST) * (x @ SECOND),
    "layer scale": lambda x: (x @ FIRST) * numbers(8, seed=3),
    "linear attention": _linear_attention,
    "scores by einsum": lambda x: torch.einsum("bnd,bmd->bnm", x @ FIRST, x @ SECOND),
    "scores by einsum with a list": lambda x: torch.einsum("bnd,bmd->bnm", [x @ FIRST, x @ SECOND]),
    "scores by bmm": lambda x: torch.bmm(x @ FIRST, (x @ SECOND).mT),
    "scores by baddbmm": lambda x: torch.baddbmm(
        torch.zeros(2, 5, 5, dtype=torch.float64), x @ FIRST, (x @ SECOND).mT, alpha=0.5
    ),
    "addcmul": lambda x: torch.addcmul(x, x @ FIRST, x @ SECOND, value=0.5),
    "outer product": lambda x: x.mean(1, keepdim=True) * x.mean(2, keepdim=True),
    "attention pooling by hand": lambda x: (x * F.softmax(x @ FIRST[:, :1], dim=1)).sum(1),
}
OF_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "squeeze and excite": _squeeze_and_excite,
    "efficient channel attention": _efficient_channel_attention,
    "spatial gate": _spatial_gate,
    "selective kernel": _selective_kernel,
    "sampled where it says itself": lambda x: F.grid_sample(
        x, torch.tanh(x[:, :2].permute(0, 2, 3, 1)), align_corners=False
    ),
    "max pool": lambda x: F.max_pool2d(x, 2),
}


@pytest.mark.parametrize("name", OF_TOKENS | OF_MAPS)
def test_relevance_adds_up(name: str) -> None:
    function, inputs = (OF_TOKENS | OF_MAPS)[name], TOKENS if name in OF_TOKENS else MAPS
    found, output = relevance(function, inputs)
    torch.testing.assert_close(output, function(inputs.clone()), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.flatten(1).sum(1), output.flatten(1).sum(1), rtol=1e-10, atol=1e-11)


def _gradients(
    function: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor
) -> tuple[Tensor | None, ...]:
    factors = first.clone().requires_grad_(), second.clone().requires_grad_()
    with AttentionTap(nn.Identity(), rules=CONSERVATIVE):
        output = function(*factors)
    return torch.autograd.grad(output.sum(), factors, allow_unused=True)


@pytest.mark.parametrize(
    "gate",
    [
        torch.sigmoid,
        F.hardsigmoid,
        torch.tanh,
        lambda y: F.softmax(y, dim=-1),
        lambda y: 1 - 0.5 * y.sigmoid(),
        lambda y: F.relu6(y + 3) / 6,
        lambda y: y.sigmoid().view(5, 16).view(2, 5, 8).transpose(1, 2).contiguous().transpose(1, 2),
    ],
)
def test_a_gate_receives_nothing_and_what_it_multiplies_all(gate: Callable[[Tensor], Tensor]) -> None:
    to_first, to_gate = _gradients(lambda x, y: x * gate(y), TOKENS, numbers(2, 5, 8, seed=4))
    assert to_gate is None
    torch.testing.assert_close(to_first, gate(numbers(2, 5, 8, seed=4)))


def test_equals_receive_half_each() -> None:
    other = numbers(2, 5, 8, seed=4)
    to_first, to_second = _gradients(torch.mul, TOKENS, other)
    torch.testing.assert_close(to_first, other / 2)
    torch.testing.assert_close(to_second, TOKENS / 2)


def test_a_bounded_activation_that_is_not_shifted_is_no_gate() -> None:
    to_first, to_second = _gradients(lambda x, y: F.relu6(x) * y, TOKENS, numbers(2, 5, 8, seed=4))
    assert to_first is not None
    assert to_second is not None


@pytest.mark.parametrize("shape", [(2, 1, 8), (2, 5, 1), (8,), (1, 5, 8)])
def test_a_smaller_factor_is_a_constant(shape: tuple[int, ...]) -> None:
    smaller = numbers(*shape, seed=4)
    for function in (torch.mul, lambda x, y: x * y.expand_as(x), lambda x, y: y * x):
        to_first, to_smaller = _gradients(function, TOKENS, smaller)
        assert to_smaller is None
        torch.testing.assert_close(to_first, smaller.expand_as(TOKENS))


def test_what_divides_is_a_constant() -> None:
    divisor = 2 + numbers(2, 5, 8, seed=4).square()
    to_first, to_divisor = _gradients(lambda x, y: x / y, TOKENS, divisor)
    assert to_divisor is None
    torch.testing.assert_close(to_first, 1 / divisor)
