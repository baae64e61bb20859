"""Products and quotients of two activations: which factor is a constant, and which passes relevance on.

Of two factors that both come from the image

- one that is a *gate* is a constant, and leaves what it multiplies all its relevance: a sigmoid, hard sigmoid, softmax,
  tanh or erf, also times or plus constants. So ``x * torch.sigmoid(1.702 * x)`` and
  ``x * (1 + torch.erf(x / √2)) / 2`` are activations with a constant ratio;
- one that is *smaller* than the product is a statistic or a gate of all places or channels, and a constant as well:
  ``x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)`` is a normalisation, ``x * weights(x.mean((2, 3)))``
  squeezes and excites, whatever comes between;
- all others, ``silu(a) * b``, are equals: each receives half of the gradient.

What divides is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.rules.gradient import differentiable, in_place, scale_gradient

Function = Callable[..., Any]

#: How surely a tensor is a gate: it may carry content, being zero where its input is; or it hardly can.
_NO_GATE, _ZERO_AT_ZERO, _GATE = range(3)

_GATES = ("GateBackward", "SoftmaxBackward", "SigmoidBackward", "HardsigmoidBackward")
_BOUNDED = ("BoundedBackward", "TanhBackward", "ErfBackward")
_SHIFTS = ("AddBackward", "SubBackward", "RsubBackward")
#: What leaves a gate a gate: constants times or plus it, and its elements moved or copied.
_STILL_A_GATE = (
    *_SHIFTS,
    "MulBackward",
    "DivBackward",
    "NegBackward",
    "ViewBackward",
    "UnsafeViewBackward",
    "ReshapeAliasBackward",
    "ExpandBackward",
    "RepeatBackward",
    "PermuteBackward",
    "TransposeBackward",
    "TBackward",
    "UnsqueezeBackward",
    "SqueezeBackward",
    "SliceBackward",
    "SelectBackward",
    "UnbindBackward",
    "SplitBackward",
    "CloneBackward",
    "ToCopyBackward",
    "UpsampleNearest",
    "UpsampleBilinear",
)


def _gate_kind(tensor: Tensor) -> int:
    """Which of the three a tensor is, told by the graph that it ends."""
    node, shifted = tensor.grad_fn, False
    while node is not None:
        name = node.name().lstrip("_")
        if name.startswith(_GATES):
            return _GATE
        if name.startswith(_BOUNDED):
            return _GATE if shifted else _ZERO_AT_ZERO
        earlier = [before for before, _ in node.next_functions if before is not None]
        if not name.startswith(_STILL_A_GATE) or len(earlier) != 1:
            return _NO_GATE
        shifted = shifted or name.startswith(_SHIFTS)
        node = earlier[0]
    return _NO_GATE


def _is_repeated(factor: Tensor, shape: torch.Size) -> bool:
    """Whether a factor of a product of this shape has fewer elements than it, those that ``expand`` repeats once."""
    distinct = [1 if stride == 0 else size for size, stride in zip(factor.shape, factor.stride(), strict=True)]
    return math.prod(distinct) < shape.numel()


def _shared(first: Tensor, second: Tensor, *, of_elements: bool) -> tuple[Tensor, Tensor]:
    """Two factors with the gradient that each is to receive.

    Args:
        first: a factor.
        second: the other.
        of_elements: whether they are multiplied element by element, so that a smaller one is a statistic.
    """
    constant = [kind == _GATE for kind in (_gate_kind(first), _gate_kind(second))]
    if not any(constant):
        constant = [kind == _ZERO_AT_ZERO for kind in (_gate_kind(first), _gate_kind(second))]
        if all(constant):  # tanh times tanh: one of them is what is gated
            constant = [False, False]
    if not any(constant) and of_elements:
        shape = torch.broadcast_shapes(first.shape, second.shape)
        constant = [_is_repeated(factor, shape) for factor in (first, second)]
        if all(constant):  # an outer product
            constant = [False, False]
    if any(constant):
        first, second = (
            factor.detach() if held else factor for factor, held in zip((first, second), constant, strict=True)
        )
        return first, second
    return scale_gradient(first, 0.5), scale_gradient(second, 0.5)


def _product(function: Function, *, of_elements: bool) -> Function:
    def rule(*args: Any, **kwargs: Any) -> Tensor:
        if len(args) > 1 and differentiable(args[0]) and differentiable(args[1]):
            args = (*_shared(args[0], args[1], of_elements=of_elements), *args[2:])
        result: Tensor = function(*args, **kwargs)
        return result

    return rule


def _swapped(input: Any, other: Any) -> Tensor:  # noqa: A002
    """``other * input``, as Python asks the second factor for it."""
    return _MULTIPLY(other, input)  # type: ignore[no-any-return]


def _matrix_product(input: Any, mat2: Any = None, *, other: Any = None, **kwargs: Any) -> Tensor:  # noqa: A002
    """``matmul`` and ``bmm``, which name their second factor differently."""
    return _MATRIX_PRODUCT(input, other if mat2 is None else mat2, **kwargs)  # type: ignore[no-any-return]


def _divide(input: Any, other: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    if differentiable(input) and differentiable(other):
        other = other.detach()
    return torch.div(input, other, **kwargs)


def _add_product(input: Tensor, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:  # noqa: A002
    if differentiable(tensor1) and differentiable(tensor2):
        tensor1, tensor2 = _shared(tensor1, tensor2, of_elements=True)
    return torch.addcmul(input, tensor1, tensor2, value=value)


def _add_matrix_product(input: Tensor, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:  # noqa: A002
    if differentiable(batch1) and differentiable(batch2):
        batch1, batch2 = _shared(batch1, batch2, of_elements=False)
    return torch.baddbmm(input, batch1, batch2, beta=beta, alpha=alpha)


def _einsum(equation: str, *operands: Any) -> Tensor:
    factors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    if len(factors) == 2 and all(map(differentiable, factors)):
        factors = list(_shared(*factors, of_elements=False))
    return torch.einsum(equation, *factors)


def _gated_linear_unit(input: Tensor, dim: int = -1) -> Tensor:  # noqa: A002
    """``a · stop(sigmoid(b))`` of the halves a and b."""
    if not differentiable(input):
        return F.glu(input, dim)
    content, gate = input.chunk(2, dim)
    return content * gate.detach().sigmoid()


def _sample(input: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
    """Where an image is sampled is a constant where what is sampled is none."""
    return F.grid_sample(input, grid.detach() if differentiable(input) else grid, *args, **kwargs)


_MULTIPLY = _product(torch.mul, of_elements=True)
_MATRIX_PRODUCT = _product(torch.matmul, of_elements=False)

RULES: dict[Function, Function] = {
    **dict.fromkeys((torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__), _MULTIPLY),
    Tensor.__rmul__: _swapped,
    **dict.fromkeys(
        (torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide, Tensor.__truediv__),
        _divide,
    ),
    **{function: in_place(_MULTIPLY, function) for function in (Tensor.mul_, Tensor.multiply_, Tensor.__imul__)},
    **{function: in_place(_divide, function) for function in (Tensor.div_, Tensor.divide_, Tensor.__itruediv__)},
    **dict.fromkeys((torch.addcmul, Tensor.addcmul), _add_product),
    **dict.fromkeys(
        (torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__),
        _matrix_product,
    ),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), _add_matrix_product),
    # Kernels that are made of the image, too.
    **{
        function: _product(function, of_elements=False)
        for function in (torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d, F.linear)
    },
    torch.einsum: _einsum,
    F.glu: _gated_linear_unit,
    F.grid_sample: _sample,
}
