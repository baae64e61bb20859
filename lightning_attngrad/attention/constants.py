"""What a function of torch adds to what the image gave: biases, positions, tokens that are put in front.

Under the backward rules every function is affine in what comes from the image; the constant is what is left where that
is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.rules.gradient import differentiable

_Of = Callable[..., "Tensor | None"]


def constant_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The constant of a call, of a shape that broadcasts to its output; None where it has none that is known.

    Example:
        >>> bias, tokens = torch.tensor([1.0, 2.0]), torch.zeros(1, 3, 2, requires_grad=True)
        >>> constant_of(F.linear, (tokens, torch.eye(2), bias), {})
        tensor([1., 2.])
        >>> constant_of(torch.add, (tokens, bias), {"alpha": 2})
        tensor([2., 4.])
        >>> constant_of(torch.add, (tokens, tokens), {}) is None
        True
    """
    found = _CONSTANTS.get(function)
    return None if found is None else found(*args, **kwargs)


def _bias_last(input: Tensor, *args: Any, bias: Tensor | None = None, **_: Any) -> Tensor | None:  # noqa: A002, ARG001
    """``linear(input, weight, bias)``."""
    return args[1] if len(args) > 1 else bias


def _bias_of_norm(
    input: Tensor,  # noqa: A002, ARG001
    normalized_shape: Any,  # noqa: ARG001
    weight: Tensor | None = None,  # noqa: ARG001
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Tensor | None:
    return bias


def _bias_of_group_norm(
    input: Tensor,  # noqa: A002
    num_groups: int,  # noqa: ARG001
    weight: Tensor | None = None,  # noqa: ARG001
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Tensor | None:
    return None if bias is None else _along_channels(bias, input.dim())


def _bias_of_batch_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None:
        return None if bias is None else _along_channels(bias, input.dim())
    scale = (running_var + eps).rsqrt() if weight is None else weight * (running_var + eps).rsqrt()
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return _along_channels(shift, input.dim())


def _bias_of_convolution(dimensions: int) -> _Of:
    def found(input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor | None:  # noqa: A002, ARG001
        return None if bias is None else bias.view(-1, *[1] * dimensions)

    return found


def _along_channels(values: Tensor, dimensions: int) -> Tensor:
    return values.view(-1, *[1] * (dimensions - 2))


def _added(sign: float, *, swapped: bool = False) -> _Of:
    def found(input: Any, other: Any, *, alpha: float = 1, out: None = None) -> Tensor | None:  # noqa: A002, ARG001
        if swapped:
            input, other = other, input  # noqa: A001
        if differentiable(input) == differentiable(other):
            return None
        moving: Tensor
        moving, still, factor = (input, other, sign * alpha) if differentiable(input) else (other, input, 1.0)
        if isinstance(still, Tensor):
            return torch.mul(still, factor)  # a copy: what works in place may overwrite it
        return moving.new_full((), still * factor)

    return found


def _put_beside(tensors: Any, dim: int = 0, **kwargs: Any) -> Tensor | None:
    dim = kwargs.get("axis", dim)
    if all(map(differentiable, tensors)) or not any(map(differentiable, tensors)):
        return None
    parts = [torch.zeros_like(part) if differentiable(part) else part for part in tensors]
    return torch.cat(parts, dim)


_CONSTANTS: dict[Callable[..., Any], _Of] = {
    F.linear: _bias_last,
    F.layer_norm: _bias_of_norm,
    torch.layer_norm: _bias_of_norm,
    F.group_norm: _bias_of_group_norm,
    torch.group_norm: _bias_of_group_norm,
    F.batch_norm: _bias_of_batch_norm,
    torch.conv1d: _bias_of_convolution(1),
    torch.conv2d: _bias_of_convolution(2),
    torch.conv3d: _bias_of_convolution(3),
    **dict.fromkeys(
        (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__), _added(1.0)
    ),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.sub_, Tensor.__sub__, Tensor.__isub__), _added(-1.0)),
    **dict.fromkeys((torch.rsub, Tensor.__rsub__), _added(-1.0, swapped=True)),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _put_beside),
}
