"""Products of two tensors, in every spelling that torch has for them, as labels of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.arrangement import Arrangement, Labels
from lightning_attngrad.attention.axes import Axes, Part, has_keys, key_axes


@dataclass(frozen=True, eq=False)
class Product:
    """A product of two tensors that is summed over labels.

    Attributes:
        operands: as given.
        labels: of the axes of each operand.
        output: of the axes of the product.
        rows: labels that are known to be a batch; None where only the operands tell.
        compute: the model's own call, of other operands.
        never: sides on which no probabilities can be read.
    """

    operands: tuple[Tensor, Tensor]
    labels: tuple[Labels, Labels]
    output: Labels
    rows: Labels | None
    compute: Callable[[Tensor, Tensor], Tensor]
    never: frozenset[int] = frozenset()

    def attention(self, side: int, keys: Sequence[int]) -> Arrangement | None:
        """How it reads as attention, with the probabilities on one side and their keys along these axes.

        None where the keys are not what is summed over.
        """
        if side in self.never:
            return None
        matrix, value = self.labels[side], self.labels[1 - side]
        if len(set(matrix)) < len(matrix) or len(set(value)) < len(value):
            return None  # a diagonal
        of_keys = tuple(matrix[axis] for axis in sorted(keys))
        if not of_keys or any(label in self.output or label not in value for label in of_keys):
            return None
        sizes: dict[str, int] = {}
        for tensor, labels in zip(self.operands, self.labels, strict=True):
            for label, size in zip(labels, tensor.shape, strict=True):
                sizes[label] = max(size, sizes.get(label, 1))
        summed = {label for label in matrix if label in value and label not in self.output and sizes[label] == 1}
        of_keys = tuple(label for label in matrix if label in {*of_keys, *summed})
        rows, queries = self._rows_and_queries(matrix, value, of_keys)
        return Arrangement(matrix, value, self.output, rows, queries, of_keys, sizes)

    def mixed(self, side: int, axes: Axes) -> Axes | None:
        """Axes of the product where it leaves every key of the operand alone (a linear map over heads).

        Args:
            side: of the operand.
            axes: of the operand.

        Returns:
            None where keys are summed over, or met by the other operand.
        """
        matrix, other = self.labels[side], self.labels[1 - side]
        by_label = dict(zip(matrix, axes, strict=True))
        of_keys = [label for label, axis in by_label.items() if has_keys((axis,))]
        if len(by_label) < len(matrix) or any(label in other or label not in self.output for label in of_keys):
            return None
        sizes = dict(zip(other, self.operands[1 - side].shape, strict=True))
        return tuple(
            by_label.get(label) or ((Part(sizes[label], False),) if sizes.get(label, 1) > 1 else ())
            for label in self.output
        )

    def multiply(self, side: int, matrix: Tensor, value: Tensor, arrangement: Arrangement) -> Tensor:
        """The product, as the model computes it, of a matrix that has axes ``arrangement.matrix``."""
        if arrangement.matrix == self.labels[side]:
            return self.compute(*((matrix, value) if side == 0 else (value, matrix)))
        numbers = {label: number for number, label in enumerate(arrangement.sizes)}
        matrix_axes, value_axes, output_axes = (
            [numbers[label] for label in labels]
            for labels in (arrangement.matrix, arrangement.value, arrangement.output)
        )
        product: Tensor = torch.einsum(matrix, matrix_axes, value, value_axes, output_axes)
        return product

    def chained(self, first: Axes, second: Axes) -> Axes | None:
        """Axes of the product of two attentions, ``A₁·A₂``: keys of the one are rows of the other, whose keys stay."""
        for side, axes, others in ((0, first, second), (1, second, first)):
            of_keys = {label for label, axis in zip(self.labels[side], axes, strict=True) if has_keys((axis,))}
            summed = set(self.labels[0]) & set(self.labels[1]) - set(self.output)
            stays = self.mixed(1 - side, others)
            if key_axes(axes) and of_keys == summed and stays is not None:
                return stays
        return None

    def _rows_and_queries(self, matrix: Labels, value: Labels, keys: Labels) -> tuple[Labels, Labels]:
        free = tuple(label for label in matrix if label not in keys)
        if self.rows is not None:
            return self.rows, tuple(label for label in free if label not in self.rows)
        queries = tuple(label for label in free if label in self.output and label not in value)
        if len(queries) > 1 and len(free) - len(queries) < 2:
            queries = queries[1:]  # heads that share their values
        rows = tuple(label for label in free if label not in queries)
        channels = tuple(label for label in value if label not in matrix)
        if len(channels) > 1 and channels[0] == value[0] == self.output[0]:
            rows = (channels[0], *rows)  # images that share their probabilities
        return rows, queries


def _matmul(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Product | None:
    taken, rest = _take(2, args, kwargs)
    if taken is None:
        return None
    return _matrix_product(*taken, lambda one, other: func(one, other, **rest))


def _added_matmul(func: Callable[..., Any], added: Any, *args: Any, **kwargs: Any) -> Product | None:
    taken, rest = _take(2, args, kwargs)
    if taken is None:
        return None
    product = _matrix_product(*taken, lambda one, other: func(added, one, other, **rest))
    if func in (torch.addbmm, Tensor.addbmm):  # adds up its batch
        return replace(product, output=product.output[1:])
    return product


def _linear(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Product | None:
    bias = (args[2:] or (kwargs.get("bias"),))[0]
    taken, _ = _take(2, args, kwargs)
    if taken is None or taken[1].dim() != 2:
        return None
    product = _matrix_product(taken[0], taken[1].mT, lambda one, other: func(one, other, bias))
    return replace(product, operands=taken, labels=(product.labels[0], ("m", "k")), never=frozenset({1}))


def _tensordot(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Product | None:
    taken, _ = _take(2, args, kwargs)
    dims = args[2] if len(args) > 2 else kwargs.get("dims", 2)
    if taken is None or isinstance(dims, Tensor):
        return None
    of_first, of_second = [
        [f"{name}{axis}" for axis in range(each.dim())] for name, each in zip("nm", taken, strict=True)
    ]
    pairs = zip(range(-dims, 0), range(dims), strict=True) if isinstance(dims, int) else zip(*dims, strict=True)
    for one, other in pairs:
        of_second[other] = of_first[one]
    output = tuple(label for label in (*of_first, *of_second) if (label in of_first) != (label in of_second))
    return Product(
        taken, (tuple(of_first), tuple(of_second)), output, None, lambda one, other: func(one, other, dims=dims)
    )


def _take(
    count: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor] | None, dict[str, Any]]:
    """The two tensors that a function multiplies, by place or by name, and the other arguments by name."""
    named = {name: value for name, value in kwargs.items() if name in _NAMES}
    rest = {name: value for name, value in kwargs.items() if name not in _NAMES}
    found = (*args[:count], *(named[name] for name in _NAMES if name in named))
    if len(found) < count or not all(isinstance(tensor, Tensor) for tensor in found[:count]):
        return None, rest
    return (found[0], found[1]), rest


def _matrix_product(first: Tensor, second: Tensor, compute: Callable[[Tensor, Tensor], Tensor]) -> Product:
    batch = tuple(f"b{axis}" for axis in reversed(range(max(first.dim(), second.dim()) - 2)))
    of_first = (*batch[len(batch) - first.dim() + 2 :], "n", "k") if first.dim() > 1 else ("k",)
    of_second = (*batch[len(batch) - second.dim() + 2 :], "k", "m") if second.dim() > 1 else ("k",)
    output = (*batch, *(("n",) if first.dim() > 1 else ()), *(("m",) if second.dim() > 1 else ()))
    return Product((first, second), (of_first, of_second), output, batch, compute)


def _einsum(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Product | None:
    equation, operands = _as_equation(*args)
    if equation is None or len(operands) != 2:
        return None
    given, arrow, output = equation.replace(" ", "").partition("->")
    of_first, comma, of_second = given.partition(",")
    if not comma or "," in of_second:
        return None
    labels = [
        _without_ellipsis(each, operand.dim()) for each, operand in zip((of_first, of_second), operands, strict=True)
    ]
    if arrow:
        longest = max((each for each in labels), key=lambda each: sum(label.startswith("…") for label in each))
        ellipsis = tuple(label for label in longest if label.startswith("…"))
        head, dots, tail = output.partition("...")
        of_output = (*head, *(ellipsis if dots else ()), *tail)
    else:
        of_output = _implied(labels)
    return Product(
        (operands[0], operands[1]),
        (labels[0], labels[1]),
        of_output,
        None,
        lambda one, other: func(equation, one, other, **kwargs),
    )


def _as_equation(*args: Any) -> tuple[str | None, Sequence[Tensor]]:
    """An equation and its operands, of all three ways to call ``einsum``."""
    if args and isinstance(args[0], str):
        operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        return args[0], operands
    operands, lists = args[0 : len(args) // 2 * 2 : 2], args[1::2]
    if not operands or not all(isinstance(each, list | tuple) for each in lists):
        return None, ()
    spelt = [_spelt(each) for each in lists]
    equation = ",".join(spelt)
    return (equation + "->" + _spelt(args[-1]) if len(args) % 2 else equation), operands


def _spelt(numbers: Sequence[Any]) -> str:
    """Letters for numbers, as torch orders them: A–Z, then a–z."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return "".join("..." if number is Ellipsis else letters[number] for number in numbers)


def _without_ellipsis(labels: str, axes: int) -> Labels:
    head, dots, tail = labels.partition("...")
    hidden = axes - len(head) - len(tail) if dots else 0
    return (*head, *(f"…{axis}" for axis in reversed(range(hidden))), *tail)


def _implied(labels: Sequence[Labels]) -> Labels:
    every = [label for each in labels for label in each]
    ellipsis = dict.fromkeys(sorted((label for label in every if label.startswith("…")), reverse=True))
    once = sorted(label for label in every if not label.startswith("…") and every.count(label) == 1)
    return (*ellipsis, *once)


_Read = Callable[..., "Product | None"]

#: Names of the two tensors, first ones first.
_NAMES = ("input", "batch1", "mat1", "a", "tensor", "other", "mat2", "batch2", "vec", "vec2", "weight", "b")

#: What reads the arguments of each function that multiplies.
PRODUCTS: dict[Callable[..., Any], _Read] = {
    **dict.fromkeys(
        (
            torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.linalg.matmul,
            torch.bmm, Tensor.bmm, torch.mm, Tensor.mm, torch.mv, Tensor.mv,
        ),
        _matmul,
    ),
    **dict.fromkeys(
        (
            torch.baddbmm, Tensor.baddbmm, Tensor.baddbmm_, torch.addbmm, Tensor.addbmm,
            torch.addmm, Tensor.addmm, Tensor.addmm_,
        ),
        _added_matmul,
    ),
    F.linear: _linear,
    torch.einsum: _einsum,
    torch.tensordot: _tensordot,
}  # fmt: skip
