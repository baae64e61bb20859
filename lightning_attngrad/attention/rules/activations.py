"""Activations: ``f(0) + x·stop((f(x) − f(0))/x)``, in every spelling that torch has for them.

ReLU, leaky ReLU, PReLU and the absolute value have no rule: they are linear on either side of zero, so that their plain
gradient is this one. Activations that a model writes out, ``x * torch.sigmoid(1.702 * x)``, are products with a gate,
see :mod:`products`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.rules.gradient import Activation, Bounded, Gate, differentiable, in_place, secant

Function = Callable[..., Any]


def _activation(
    function: Function,
    at_zero: float,
    *,
    offset: bool = False,
    kind: type[Activation] = Activation,
    if_shifted: type[Activation] | None = None,
) -> Function:
    """The rule for an activation.

    Args:
        function: that torch calls it by.
        at_zero: f'(0).
        offset: whether f(0) is not zero.
        kind: what it is as a factor of a product.
        if_shifted: what ``f(x + constant)`` is, as in the hard sigmoid ``relu6(x + 3) / 6``; None for the same.
    """
    position = _position_of_inplace(function)

    def rule(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        if not differentiable(input):
            result: Tensor = function(input, *args, **kwargs)
            return result
        overwrite = bool(kwargs.pop("inplace", False))
        if position is not None and len(args) > position:
            overwrite, args = bool(args[position]), (*args[:position], *args[position + 1 :])
        with torch.no_grad():
            output = function(input.detach(), *args, **kwargs)
            of_zero = function(input.new_zeros(()), *args, **kwargs) if offset else 0.0
        factor = if_shifted if if_shifted is not None and is_shifted(input) else kind
        result = secant(input, output, at_zero=at_zero, of_zero=of_zero, kind=factor)
        return input.copy_(result) if overwrite else result

    return rule


def _position_of_inplace(function: Function) -> int | None:
    """Where ``inplace`` stands among the arguments behind the first."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # built in: it has none
        return None
    return names.index("inplace") - 1 if "inplace" in names else None


def is_shifted(tensor: Tensor) -> bool:
    """Whether a tensor is something plus a constant."""
    node = tensor.grad_fn
    if node is None or not node.name().startswith(("AddBackward", "SubBackward", "RsubBackward")):
        return False
    return sum(earlier is not None for earlier, _ in node.next_functions) == 1


def _clamp(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    return _bounded_by(torch.clamp, input, *args, **kwargs)


def _bounded_by(function: Function, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    """``clamp`` in its spellings; the ratio at zero is 1 where the bounds let zero through."""
    bounds = (*args, *kwargs.values())
    if not differentiable(input) or any(isinstance(bound, Tensor) for bound in bounds):
        result: Tensor = function(input, *args, **kwargs)
        return result
    with torch.no_grad():
        output = function(input.detach(), *args, **kwargs)
        of_zero = function(input.new_zeros(()), *args, **kwargs)
    return secant(input, output, at_zero=1.0, of_zero=of_zero, kind=Gate if is_shifted(input) else None)


def _clamp_min(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    return _bounded_by(torch.clamp_min, input, *args, **kwargs)


def _clamp_max(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    return _bounded_by(torch.clamp_max, input, *args, **kwargs)


def _power(input: Any, exponent: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    """``xᵖ = x·stop(xᵖ⁻¹)`` for p above 0; other powers are no activations."""
    positive = isinstance(exponent, Tensor) or exponent > 0
    if not differentiable(input) or differentiable(exponent) or not positive:
        result: Tensor = torch.pow(input, exponent, **kwargs)
        return result
    output = torch.pow(input.detach(), exponent, **kwargs)
    return secant(input, output, at_zero=1.0 if not isinstance(exponent, Tensor) and exponent == 1 else 0.0)


def _square(input: Tensor) -> Tensor:  # noqa: A002
    return _power(input, 2)


def _sqrt(input: Tensor) -> Tensor:  # noqa: A002
    return secant(input, torch.sqrt(input.detach()), at_zero=0.0) if differentiable(input) else torch.sqrt(input)


def _spellings(name: str) -> tuple[list[Function], list[Function]]:
    """What torch calls a function, and what it calls the one that overwrites its argument."""
    rooms = (F, torch, Tensor)
    return (
        [getattr(room, name) for room in rooms if hasattr(room, name)],
        [getattr(room, name + "_") for room in rooms if hasattr(room, name + "_")],
    )


def _in_all_spellings(names: tuple[str, ...], rule: Function) -> dict[Function, Function]:
    rules: dict[Function, Function] = {}
    for name in names:
        kept, overwritten = _spellings(name)
        rules.update(dict.fromkeys(kept, rule))
        rules.update({function: in_place(rule, function) for function in overwritten})
    return rules


#: f'(0) of activations that are zero at zero.
_ZERO_AT_ZERO = {
    "gelu": 0.5,
    "silu": 0.5,
    "mish": 0.6,
    "hardswish": 0.5,
    "elu": 1.0,
    "selu": 1.0507009873554805,
    "celu": 1.0,
    "softsign": 1.0,
    "tanhshrink": 0.0,
    "softshrink": 0.0,
    "hardshrink": 0.0,
}
#: f'(0) of those that are not: f(0) is a constant of its own, like a bias.
_OFFSET = {"softplus": 0.5, "logsigmoid": 0.5}


def _rules() -> dict[Function, Function]:
    rules: dict[Function, Function] = {}
    for name, at_zero in _ZERO_AT_ZERO.items():
        rules |= _in_all_spellings((name,), _activation(_callable(name), at_zero))
    for name, at_zero in _OFFSET.items():
        rules |= _in_all_spellings((name,), _activation(_callable(name), at_zero, offset=True))
    rules |= _in_all_spellings(("sigmoid",), _activation(torch.sigmoid, 0.25, offset=True, kind=Gate))
    rules |= _in_all_spellings(("hardsigmoid",), _activation(F.hardsigmoid, 1 / 6, offset=True, kind=Gate))
    rules |= _in_all_spellings(("tanh",), _activation(torch.tanh, 1.0, kind=Bounded))
    rules |= _in_all_spellings(("erf",), _activation(torch.erf, 2 / math.sqrt(math.pi), kind=Bounded))
    rules |= _in_all_spellings(("relu6",), _activation(F.relu6, 0.5, if_shifted=Gate))
    rules |= _in_all_spellings(("hardtanh",), _activation(F.hardtanh, 1.0, offset=True, if_shifted=Gate))
    rules |= _in_all_spellings(("clamp", "clip"), _clamp)
    rules |= _in_all_spellings(("clamp_min",), _clamp_min) | _in_all_spellings(("clamp_max",), _clamp_max)
    rules |= _in_all_spellings(("pow",), _power) | {Tensor.__pow__: _power}
    rules |= _in_all_spellings(("square",), _square) | _in_all_spellings(("sqrt",), _sqrt)
    return rules


def _callable(name: str) -> Function:
    function: Function = getattr(F, name)
    return function


RULES: dict[Function, Function] = _rules()
