"""The pieces that backward rules are made of: the same values, another gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def differentiable(value: Any) -> bool:
    """Whether a gradient is going to pass through this value."""
    return isinstance(value, Tensor) and value.requires_grad


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same values; the gradient that passes is multiplied by ``factor``."""
    return cast(Tensor, _ScaleGradient.apply(tensor, factor)) if tensor.requires_grad else tensor


def contiguous_gradient(tensor: Tensor) -> Tensor:
    """The same tensor; the gradient that passes is made contiguous."""
    if tensor.requires_grad:
        tensor.register_hook(Tensor.contiguous)  # of its values as they are now, whatever overwrites them
    return tensor


def constant_ratio(input: Tensor, output: Tensor, *, at_zero: float) -> Tensor:  # noqa: A002
    """The values of ``output``; backwards ``input`` times their ratio, held constant: ``x·stop(f(x)/x)``.

    Args:
        input: x, in the graph.
        output: f(x), of the same shape.
        at_zero: the ratio where x is zero, f'(0).
    """
    return secant(input, output, at_zero=at_zero)


def secant(
    input: Tensor,  # noqa: A002
    output: Tensor,
    *,
    at_zero: float,
    of_zero: Tensor | float = 0.0,
    kind: type[Activation] | None = None,
) -> Tensor:
    """The values of ``output``; backwards ``f(0) + x·stop((f(x) − f(0))/x)``: f(0) is a constant, like a bias.

    Args:
        input: x, in the graph.
        output: f(x), of the same shape.
        at_zero: the ratio where x is zero, f'(0).
        of_zero: f(0).
        kind: what a factor that f gave is in a product, see :mod:`products`; None for nothing in particular.
    """
    return cast(Tensor, (kind or Activation).apply(input, [output.detach()], at_zero, of_zero))


def in_place(rule: Callable[..., Tensor], function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The rule for the spelling of a function that overwrites its first argument: it is overwritten here as well."""

    def overwrite(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        if not any(map(differentiable, (input, *args, *kwargs.values()))):
            return function(input, *args, **kwargs)
        # A copy goes in: what the rule keeps for the way back must not be overwritten with it.
        return input.copy_(rule(input.clone(), *args, **kwargs))

    return overwrite


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class Activation(torch.autograd.Function):
    """``f(0) + x·stop((f(x) − f(0))/x)``, with the ratio's limit f'(0) where x is zero."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, given: list[Tensor], at_zero: float, of_zero: Tensor | float) -> Tensor:
        (output,) = given  # in a list, so that autograd does not take it for an input: models may overwrite it
        rise = output if isinstance(of_zero, float) and of_zero == 0 else output - of_zero
        ctx.save_for_backward(torch.where(tensor == 0, at_zero, rise / tensor))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (ratio,) = ctx.saved_tensors
        return gradient * ratio, None, None, None


class Bounded(Activation):
    """The same, of a function that is bounded and zero at zero: as a factor a gate, unless the other is more so."""


class Gate(Activation):
    """The same, of a function that is bounded and not zero at zero: as a factor it is a gate."""
