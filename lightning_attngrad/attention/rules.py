"""Backward rules that make gradient × input conserve relevance, applied while a tap is active.

The forward pass is the model's own; only what flows backwards changes (METHODS §3):

=====================  ==========================================  ==============  ==========
rule                   forward written as                          conservative    attn_lrp
=====================  ==========================================  ==============  ==========
LayerNorm              ``(x − mean)·stop(1/std)·w + b``            yes             yes
activation             ``x·stop(f(x)/x)``                          yes             yes
attention, constant    ``O = stop(A) V``                           yes             –
attention, uniform     gradient at v halved, at q and k quartered  –               yes
product of two         each factor receives half the gradient      yes             yes
=====================  ==========================================  ==============  ==========

Sources: Ali et al., arXiv 2202.07304 (conservative); Achtibat et al., AttnLRP, arXiv 2402.05602.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class BackwardRules:
    """Which rules replace the plain gradient.

    Attributes:
        linearise: LayerNorm, RMSNorm, activations and products of two activations pass relevance on whole.
        attention: ``exact`` is the plain gradient, ``constant`` holds the probabilities fixed, ``uniform``
            shares the gradient between the factors of each product.
    """

    linearise: bool = False
    attention: Literal["exact", "constant", "uniform"] = "exact"


PLAIN = BackwardRules()
CONSERVATIVE = BackwardRules(linearise=True, attention="constant")
ATTN_LRP = BackwardRules(linearise=True, attention="uniform")


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same values; the gradient that passes is multiplied by ``factor``."""
    return cast(Tensor, _ScaleGradient.apply(tensor, factor)) if tensor.requires_grad else tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class _LayerNorm(torch.autograd.Function):
    """``(x − mean)·stop(1/std)·w + b``. Keeps 1/std (B, N, 1) where the plain one keeps the whole input."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        normalized_shape: tuple[int, ...],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        if weight is not None and weight.dtype != tensor.dtype:
            tensor = tensor.to(weight.dtype)  # what autocast does with a LayerNorm
        output, _, reciprocal_std = torch.native_layer_norm(tensor, normalized_shape, weight, bias, eps)
        ctx.save_for_backward(*([reciprocal_std] if weight is None else [reciprocal_std, weight]))
        ctx.dimensions = tuple(range(-len(normalized_shape), 0))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        reciprocal_std, *weight = ctx.saved_tensors
        if weight:
            gradient = gradient * weight[0]
        centred = gradient - gradient.mean(dim=ctx.dimensions, keepdim=True)
        return centred.mul_(reciprocal_std), None, None, None, None


class _RMSNorm(torch.autograd.Function):
    """``x·stop(1/rms)·w``. The values are torch's own; 1/rms is taken in float32, where squares do not overflow."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None, eps: float | None
    ) -> Tensor:
        dimensions = tuple(range(-len(normalized_shape), 0))
        wide = tensor if tensor.dtype == torch.float64 else tensor.float()
        reciprocal = wide.square().mean(dim=dimensions, keepdim=True)
        reciprocal = reciprocal.add_(torch.finfo(tensor.dtype).eps if eps is None else eps).rsqrt_()
        ctx.save_for_backward(*([reciprocal] if weight is None else [reciprocal, weight]))
        return F.rms_norm(tensor, normalized_shape, weight, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        reciprocal, *weight = ctx.saved_tensors
        if weight:
            gradient = gradient * weight[0]
        return (gradient * reciprocal).to(gradient.dtype), None, None, None


class _Activation(torch.autograd.Function):
    """``x·stop(f(x)/x)``, with the ratio's limit f'(0) where x is zero."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, output: Tensor, at_zero: float) -> Tensor:
        ctx.save_for_backward(torch.where(tensor == 0, at_zero, output / tensor))
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ratio,) = ctx.saved_tensors
        return gradient * ratio, None, None


def _layer_norm(
    input: Tensor,  # noqa: A002  (the name callers may use)
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return cast(Tensor, _LayerNorm.apply(input, normalized_shape, weight, bias, eps))


def _rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    return cast(Tensor, _RMSNorm.apply(input, normalized_shape, weight, eps))


def constant_ratio(input: Tensor, output: Tensor, *, at_zero: float) -> Tensor:  # noqa: A002
    """The values of ``output``; backwards ``input`` times their ratio, held constant: ``x·stop(f(x)/x)``.

    Args:
        input: x, in the graph.
        output: f(x), of the same shape.
        at_zero: the ratio where x is zero, f'(0).
    """
    return cast(Tensor, _Activation.apply(input, output.detach(), at_zero))


def _activation(function: Callable[..., Tensor], at_zero: float) -> Callable[..., Tensor]:
    def with_constant_ratio(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        if not input.requires_grad:
            return function(input, *args, **kwargs)
        kwargs.pop("inplace", None)
        with torch.no_grad():
            output = function(input, *args, **kwargs)
        return constant_ratio(input, output, at_zero=at_zero)

    return with_constant_ratio


def _product(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def shared(first: Any, second: Any, *args: Any, **kwargs: Any) -> Tensor:
        if _differentiable(first) and _differentiable(second):
            if _is_sigmoid(first) or _is_sigmoid(second):
                # A gate: as a constant it leaves what it multiplies all its relevance.
                first, second = (factor.detach() if _is_sigmoid(factor) else factor for factor in (first, second))
            else:
                first, second = scale_gradient(first, 0.5), scale_gradient(second, 0.5)
        return function(first, second, *args, **kwargs)

    return shared


def _is_sigmoid(tensor: Tensor) -> bool:
    return tensor.grad_fn is not None and tensor.grad_fn.name().startswith("SigmoidBackward")


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


#: What the functions that a tap sees become under ``linearise``; :func:`backward_rule` adds to it.
LINEARISED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.gelu: _activation(F.gelu, at_zero=0.5),
    F.silu: _activation(F.silu, at_zero=0.5),
    F.mish: _activation(F.mish, at_zero=0.6),
    F.relu: _activation(F.relu, at_zero=0.0),
    torch.relu: _activation(torch.relu, at_zero=0.0),
    torch.mul: _product(torch.mul),
    Tensor.mul: _product(torch.mul),
    Tensor.__mul__: _product(torch.mul),
    Tensor.__rmul__: _product(torch.mul),
}

#: Functions that normalise tokens: a tap reads the embedding at the input of the first.
NORMALISATIONS: set[Callable[..., Any]] = {F.layer_norm, F.rms_norm}

Rule = TypeVar("Rule", bound=Callable[..., Any])


def backward_rule(*functions: Callable[..., Any], normalisation: bool = False) -> Callable[[Rule], Rule]:
    """Decorator: what takes the place of torch functions while relevance is propagated (rules with ``linearise``).

    The decorated function takes their arguments, returns the same values, and decides what flows backwards. What
    does not depend on its input (``detach()``) passes nothing on; relevance is kept where the output is the input
    times something held constant: see :func:`constant_ratio` for activations, and divide by ``scale.detach()`` for
    normalisations. Functions of torch only, in all the spellings that models use (``torch.tanh``, ``Tensor.tanh``):
    what is composed of them in Python is seen as its parts.

    Args:
        functions: functions of torch, such as ``torch.nn.functional.selu``.
        normalisation: whether they normalise tokens, as ``layer_norm`` does: the embedding that relevance is measured
            at is the input of the first normalisation.

    Raises:
        ValueError: without a function, or for one that has a rule.

    Example:
        >>> @backward_rule(F.selu)
        ... def selu(input, inplace=False):
        ...     return constant_ratio(input, F.selu(input.detach()), at_zero=1.05)
        >>> @backward_rule(F.normalize, normalisation=True)
        ... def normalize(input, p=2.0, dim=1, eps=1e-12, out=None):
        ...     return input / torch.linalg.vector_norm(input, p, dim, keepdim=True).clamp_min(eps).detach()
        >>> forget_backward_rule(F.selu, F.normalize)
    """
    if not functions:
        raise ValueError("functions: got none; expected functions of torch, such as torch.nn.functional.selu")
    for function in functions:
        if function in LINEARISED:
            raise ValueError(
                f"functions: {_name(function)} has a backward rule already; forget_backward_rule removes it"
            )

    def register(rule: Rule) -> Rule:
        LINEARISED.update(dict.fromkeys(functions, rule))
        if normalisation:
            NORMALISATIONS.update(functions)
        return rule

    return register


def forget_backward_rule(*functions: Callable[..., Any]) -> None:
    """Propagate through these functions by their plain gradient again.

    Raises:
        ValueError: for a function without a rule.
    """
    for function in functions:
        if LINEARISED.pop(function, None) is None:
            raise ValueError(f"functions: {_name(function)} has no backward rule")
        NORMALISATIONS.discard(function)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
