"""Products of two tensors, in every spelling that torch has for them, as labels of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.attention.arrangement import Arrangement, Labels


@dataclass(frozen=True, eq=False)
class Product:
    """A product of two tensors that is summed over labels.

    Attributes:
        operands: as given.
        labels: of the axes of each operand.
        output: of the axes of the product.
        rows: labels that are known to be a batch; None where only the operands tell.
        compute: the model's own call, of other operands.
    """

    operands: tuple[Tensor, Tensor]
    labels: tuple[Labels, Labels]
    output: Labels
    rows: Labels | None
    compute: Callable[[Tensor, Tensor], Tensor]

    def attention(self, side: int, keys: frozenset[int]) -> Arrangement | None:
        """How it reads as attention, with the probabilities on one side and their keys along these axes.

        None where the keys are not what is summed over.
        """
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
        rows, queries = self._rows_and_queries(matrix, value, of_keys)
        return Arrangement(matrix, value, self.output, rows, queries, of_keys, sizes)

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


def _matmul(func: Callable[..., Any], first: Any, second: Any, *args: Any, **kwargs: Any) -> Product | None:
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return None
    return _matrix_product(first, second, lambda one, other: func(one, other, *args, **kwargs))


def _matrix_product(first: Tensor, second: Tensor, compute: Callable[[Tensor, Tensor], Tensor]) -> Product | None:
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

#: What reads the arguments of each function that multiplies.
PRODUCTS: dict[Callable[..., Any], _Read] = {
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), _matmul),
    torch.einsum: _einsum,
}
