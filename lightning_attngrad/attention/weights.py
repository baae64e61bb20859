"""What descends from a softmax, followed through a model until it multiplies values.

Whatever a model does to the probabilities of an attention on their way (dropout, masks, gates, mixing over heads,
renormalising, moving axes about), the matrix that multiplies the values in the end is the attention: ``O = A·V`` is
exact with it. So all that has to be known of a descendant is along which of its axes the keys lie.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.axes import (
    Axes,
    aligned,
    axes_over,
    has_keys,
    key_axes,
    merged,
    moved,
    regrouped,
    without,
)

T = TypeVar("T")
Function = Callable[..., Any]


def _read(name: str) -> Function:
    """What a function mode sees where an attribute of a tensor is read."""
    getter: Function = getattr(Tensor, name).__get__
    return getter


SOFTMAX: frozenset[Function] = frozenset(
    {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax, F.gumbel_softmax}
)
LOG_SOFTMAX: frozenset[Function] = frozenset(
    {F.log_softmax, torch.log_softmax, Tensor.log_softmax, torch.special.log_softmax}
)
EXPONENTIAL: frozenset[Function] = frozenset({torch.exp, Tensor.exp, Tensor.exp_})
DIVISION: frozenset[Function] = frozenset(
    {
        torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.div_, Tensor.divide, Tensor.true_divide,
        Tensor.__truediv__, Tensor.__itruediv__,
    }
)  # fmt: skip
SUM: frozenset[Function] = frozenset({torch.sum, Tensor.sum})
MULTIPLICATION: frozenset[Function] = frozenset(
    {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
)

#: The same numbers in the same places.
_COPY: frozenset[Function] = frozenset(
    {
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout,
        Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16,
        Tensor.contiguous, Tensor.clone, torch.clone, Tensor.detach, torch.detach, Tensor.requires_grad_,
        _read("data"), Tensor.cuda, Tensor.cpu, Tensor.view_as,
    }
)  # fmt: skip
#: Axes are permuted, cut, left out or expanded.
_MOVE: frozenset[Function] = frozenset(
    {
        torch.permute, Tensor.permute, torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes,
        torch.swapdims, Tensor.swapdims, torch.movedim, Tensor.movedim, torch.moveaxis, Tensor.moveaxis,
        torch.t, Tensor.t, torch.adjoint, Tensor.adjoint, _read("mT"), _read("T"), _read("mH"),
        _read("H"), torch.unbind, Tensor.unbind, torch.chunk, Tensor.chunk, torch.split, Tensor.split,
        torch.select, Tensor.select, torch.narrow, Tensor.narrow, Tensor.__getitem__, Tensor.expand,
        Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to,
    }
)  # fmt: skip
#: The same numbers in the same order.
_RESHAPE: frozenset[Function] = frozenset(
    {
        torch.reshape, Tensor.reshape, Tensor.reshape_as, Tensor.view, torch.flatten, Tensor.flatten,
        torch.unflatten, Tensor.unflatten, torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze,
        torch.ravel, Tensor.ravel,
    }
)  # fmt: skip
#: Axes get longer, by more of the same kind.
_RESIZE: frozenset[Function] = frozenset({torch.cat, torch.concat, torch.concatenate, F.pad})
_AVERAGE: frozenset[Function] = frozenset({*SUM, torch.mean, Tensor.mean})
#: Axes behind that of the channels.
_CONVOLUTION: dict[Function, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


@dataclass(eq=False)
class Softmax:
    """A softmax that was seen.

    Attributes:
        name: of the module that computed it.
        shape: of its probabilities.
        axis: that it was taken over.
        calls_before: how many attention calls had been recorded.
        offset: number of the attention call whose addition to the scores it took, or None.
        met: name of the function in which what descends from it met another tensor and could not be followed.
        read: whether an attention call was made of it.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    calls_before: int
    offset: int | None = None
    met: str | None = None
    read: bool = False

    @property
    def is_square(self) -> bool:
        """Whether it has as many rows as keys: then it is hardly anything but attention."""
        if len(self.shape) < 3 or self.axis < len(self.shape) - 2:
            return False
        return self.shape[-1] == self.shape[-2] > 1


@dataclass(frozen=True)
class UnreadSoftmax:
    """A softmax that no attention call was made of, though it may have been an attention.

    Attributes:
        name: of the module that computed it.
        shape: of its probabilities.
        axis: that it was taken over.
        calls_before: how many attention calls had been recorded before it.
        met: name of the function in which what descends from it met another tensor and could not be followed; None
            where it met none that a function mode sees (a kernel of its own, or nothing at all).
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    calls_before: int
    met: str | None


@dataclass(frozen=True, eq=False)
class Weights:
    """What is known of a tensor that descends from a softmax.

    Attributes:
        softmaxes: that it descends from.
        axes: where its keys lie.
        is_copy: whether it holds the probabilities themselves, unchanged.
        is_log: whether it is a logarithm of them as yet.
        met_tokens: whether it met another tensor of its size, elementwise.
        summed: axes that were summed over to get it, of size 1 now.
    """

    softmaxes: frozenset[Softmax]
    axes: Axes
    is_copy: bool = True
    is_log: bool = False
    met_tokens: bool = False
    summed: tuple[int, ...] = ()

    @property
    def keys(self) -> tuple[int, ...]:
        """Axes of its keys; none where an axis holds more than keys."""
        return key_axes(self.axes) or ()

    def joined(self, others: Sequence[tuple[Tensor, Weights]]) -> Weights:
        """The same, which descends from others as well."""
        softmaxes = self.softmaxes.union(*(each.softmaxes for _, each in others))
        return replace(self, softmaxes=softmaxes, is_copy=False)

    def changed(self, of: Sequence[Weights], axes: Axes) -> Weights:
        """What a matrix product of weights, with itself among them, is known of."""
        return Weights(
            softmaxes=frozenset().union(*(each.softmaxes for each in of)),
            axes=axes,
            is_copy=False,
            met_tokens=any(each.met_tokens for each in of),
        )

    def met(self, func: Function) -> None:
        """Note that it met another tensor in a way that cannot be read."""
        for softmax in self.softmaxes:
            softmax.met = softmax.met or getattr(func, "__name__", str(func)).strip("_")

    def was_read(self) -> None:
        """Note that it multiplied values."""
        for softmax in self.softmaxes:
            softmax.read = True


@dataclass(eq=False)
class Facts(Generic[T]):
    """What is known of tensors, for as long as each of them lives. Keeps none alive."""

    _known: dict[int, tuple[weakref.ref[Tensor], T]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, value: Any) -> T | None:
        """What is known of this tensor; None of anything else."""
        entry = self._known.get(id(value))
        return entry[1] if entry is not None and entry[0]() is value else None

    def add(self, tensor: Tensor, fact: T) -> None:
        """Know this of a tensor from now on."""
        known, key = self._known, id(tensor)
        known[key] = (weakref.ref(tensor, lambda _: known.pop(key, None)), fact)

    def forget(self, tensor: Tensor) -> None:
        """Know nothing of it any more."""
        self._known.pop(id(tensor), None)

    def clear(self) -> None:
        """Know nothing."""
        self._known.clear()

    def any_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether something is known of an argument of a call."""
        known = self._known
        for argument in args:
            if id(argument) in known or (
                isinstance(argument, list | tuple) and any(id(item) in known for item in argument)
            ):
                return True
        return bool(kwargs) and any(id(argument) in known for argument in kwargs.values())


@dataclass(frozen=True, eq=False)
class Exponentials:
    """Exponentials of scores: divided by their own sum they are a softmax."""


@dataclass(frozen=True, eq=False)
class SummedExponentials:
    """The sum of exponentials over one axis, which stays with size 1."""

    of: Exponentials
    axis: int


def softmaxed(softmax: Softmax, is_log: bool) -> Weights:
    """What comes out of a softmax."""
    return Weights(frozenset({softmax}), axes_over(softmax.shape, [softmax.axis]), is_log=is_log)


def softmax_dim(func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Axis that a softmax is taken over, of its arguments behind the first; None where it is left to torch."""
    if func is F.gumbel_softmax:
        dim = args[3] if len(args) > 3 else kwargs.get("dim", -1)
    else:
        dim = args[0] if args else kwargs.get("dim")
    return dim if isinstance(dim, int) else None


def tensors_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a call."""
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from (item for item in argument if isinstance(item, Tensor))


def follow(
    func: Function,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    given: Sequence[tuple[Tensor, Weights]],
    others: Sequence[Tensor],
    output: Tensor,
) -> Weights | None:
    """What is known of a tensor that a function made of weights; None where they cannot be followed into it.

    Args:
        func: the function.
        args: of its call.
        kwargs: of its call.
        given: weights among its arguments.
        others: tensors among its arguments that are no weights and no parameters.
        output: what it made, or one of several.
    """
    first, known = given[0]
    axes = _axes_after(func, args, kwargs, given, output)
    if axes is None or not has_keys(axes):
        return None
    if others and not _only_weights_span(given, output):
        return None  # tokens that are weighted each, rather than weights that are changed
    if func in _CONVOLUTION and (known.met_tokens or has_keys((known.axes[-1 - _CONVOLUTION[func]],))):
        return None  # channels of an image, not heads
    dims = reduced(args, kwargs, first.dim()) if func in SUM else ()
    return Weights(
        softmaxes=frozenset().union(*(each.softmaxes for _, each in given)),
        axes=axes,
        is_copy=len(given) == 1 and known.is_copy and (func in _COPY or func in _MOVE or func in _RESHAPE),
        is_log=all(each.is_log for _, each in given) and func not in EXPONENTIAL,
        met_tokens=any(each.met_tokens for _, each in given)
        or any(other.shape == output.shape and other.is_floating_point() for other in others),
        summed=dims if output.dim() == first.dim() else (),
    )


def _axes_after(
    func: Function,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    given: Sequence[tuple[Tensor, Weights]],
    output: Tensor,
) -> Axes | None:
    tensor, weights = given[0]
    if func in _RESHAPE or func in _MOVE:
        return regrouped(weights.axes, output.shape) if func in _RESHAPE else moved(weights.axes, tensor, output)
    if func in _AVERAGE:
        return without(weights.axes, reduced(args, kwargs, tensor.dim()), keep=output.dim() == tensor.dim())
    if func in DIVISION and len(given) == 2 and given[1][1].summed and tensor.shape == output.shape:
        return axes_over(tensor.shape, given[1][1].summed)  # normalised anew, over other axes
    if func is F.normalize and _argument(args, kwargs, 1, "p", 2.0) == 1:
        return axes_over(tensor.shape, [_argument(args, kwargs, 2, "dim", 1)])
    if output.dim() == max(each.dim() for each in tensors_of(args, kwargs)) or func is Tensor.repeat:
        return _elementwise(given, output, resized=func in _RESIZE)
    return None


def _elementwise(given: Sequence[tuple[Tensor, Weights]], output: Tensor, resized: bool) -> Axes | None:
    found: Axes | None = None
    for operand, each in given:
        axes = aligned(each.axes, operand.shape, output.shape, resized)
        found = axes if found is None or axes is None else merged(found, axes)
        if found is None:
            return None
    return found


def _only_weights_span(given: Sequence[tuple[Tensor, Weights]], output: Tensor) -> bool:
    """Whether the result is as large as the weights themselves make it."""
    try:
        return bool(torch.broadcast_shapes(*(tensor.shape for tensor, _ in given)) == output.shape)
    except RuntimeError:
        return True  # they were not broadcast: concatenated, padded, convolved


def reduced(args: tuple[Any, ...], kwargs: Mapping[str, Any], axes: int) -> tuple[int, ...]:
    """Axes that a reduction is taken over."""
    dims = _argument(args, kwargs, 1, "dim", kwargs.get("axis"))
    if dims is None or isinstance(dims, bool):
        return tuple(range(axes))
    return tuple(dim % axes for dim in ((dims,) if isinstance(dims, int) else dims))


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)
