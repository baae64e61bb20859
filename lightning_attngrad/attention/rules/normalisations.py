"""Normalisations: ``(x − mean)·stop(1/std)·w + b``, the statistic that divides held constant.

Normalisations that a model writes out, ``x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)``, need no rule of
their own: the factor that is smaller than what it multiplies is a statistic, see :mod:`products`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.rules.gradient import contiguous_gradient


class _LayerNorm(torch.autograd.Function):
    """``(x − mean)·stop(1/std)·w + b``. Keeps 1/std (B, N, 1) where the plain one keeps the whole input."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: Tensor,
        normalized_shape: Sequence[int],
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
        ctx: Any, tensor: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
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


class _GroupNorm(torch.autograd.Function):
    """``(x − mean)·stop(1/std)·w + b`` with mean and std of a group of channels over all places."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        if weight is not None and weight.dtype != tensor.dtype:
            tensor = tensor.to(weight.dtype)
        batch, channels, places = tensor.shape[0], tensor.shape[1], math.prod(tensor.shape[2:])
        output, _, reciprocal_std = torch.native_group_norm(
            tensor.contiguous(), weight, bias, batch, channels, places, groups, eps
        )
        ctx.save_for_backward(*([reciprocal_std] if weight is None else [reciprocal_std, weight]))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        reciprocal_std, *weight = ctx.saved_tensors  # (B, groups)
        if weight:
            gradient = gradient * weight[0].view(-1, *[1] * (gradient.dim() - 2))
        grouped = gradient.reshape(*reciprocal_std.shape, -1)
        centred = grouped - grouped.mean(dim=-1, keepdim=True)
        return centred.mul_(reciprocal_std.unsqueeze(-1)).reshape(gradient.shape), None, None, None, None


def _layer_norm(
    input: Tensor,  # noqa: A002  (the name callers may use)
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001  (torch.layer_norm has it)
) -> Tensor:
    return cast(Tensor, _LayerNorm.apply(input, normalized_shape, weight, bias, eps))


def _rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    return cast(Tensor, _RMSNorm.apply(input, normalized_shape, weight, eps))


def _group_norm(
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001  (torch.group_norm has it)
) -> Tensor:
    return cast(Tensor, _GroupNorm.apply(input, num_groups, weight, bias, eps))


def _instance_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:  # affine
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if input.dim() - 2 not in (1, 2, 3):  # unbatched
        return cast(Tensor, _GroupNorm.apply(input.unsqueeze(0), input.shape[0], weight, bias, eps)).squeeze(0)
    return cast(Tensor, _GroupNorm.apply(input, input.shape[1], weight, bias, eps))


def _normalize(
    input: Tensor,  # noqa: A002
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: Tensor | None = None,  # noqa: ARG001  (torch refuses it for what has a gradient)
) -> Tensor:
    length = torch.linalg.vector_norm(input.detach(), p, dim, keepdim=True)
    return torch.div(input, length.clamp_min(eps))


def batch_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    """``F.batch_norm``, whose gradient is right for a single image as well.

    In evaluation mode it is affine, and needs no rule. But torch (seen in 2.14) mistakes the gradient of a single image
    that comes back through ``flatten(2).transpose(1, 2)`` for one with channels last, and mixes channels and places up.
    """
    output = F.batch_norm(input, *args, **kwargs)
    return contiguous_gradient(output) if len(input) == 1 else output


def torch_batch_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    """``torch.batch_norm``, likewise: its arguments have another order."""
    output = torch.batch_norm(input, *args, **kwargs)
    return contiguous_gradient(output) if len(input) == 1 else output


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.normalize: _normalize,
}
