"""How probabilities, values and their product lie in rows, heads, queries, keys and channels, whatever their axes.

Axes carry labels as in ``einsum``. What is done with the labels says what an axis is: one that probabilities and
values share and the product lacks is of keys, one that only probabilities and product have is of queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Arrangement:
    """Axes of an attention call, by label.

    Attributes:
        matrix: labels of the probabilities as the model holds them.
        value: of the values.
        output: of the product.
        rows: labels that become R and H, see :func:`row_sizes`.
        queries: that become N.
        keys: that become M.
        sizes: of every label.
    """

    matrix: Labels
    value: Labels
    output: Labels
    rows: Labels
    queries: Labels
    keys: Labels
    sizes: Mapping[str, int]

    @property
    def is_plain(self) -> bool:
        """Whether the matrix lies as (R, H, N, M) does, but for axes that are flattened or left out."""
        return self.matrix == (*self.rows, *self.queries, *self.keys)

    def of_rows(self, matrix: Tensor) -> Tensor:
        """(R, H, N, M) from a tensor shaped like the probabilities."""
        laid_out = _laid_out(matrix, self.matrix, (*self.rows, *self.queries, *self.keys), self.sizes)
        return laid_out.reshape(*self._row_sizes(), self._size(self.queries), self._size(self.keys))

    def of_keys(self, value: Tensor) -> Tensor:
        """(R, H, M, ·) from a tensor shaped like the values."""
        channels = tuple(label for label in self.value if label not in (*self.rows, *self.keys))
        laid_out = _laid_out(value, self.value, (*self.rows, *self.keys, *channels), self.sizes)
        return laid_out.reshape(*self._row_sizes(), self._size(self.keys), self._size(channels))

    def to_output(self, tokens: Tensor) -> Tensor:
        """Shaped like the product, from (R, H, N, d). Where rows were added up to the product: the first of them."""
        channels = tuple(label for label in self.output if label not in (*self.rows, *self.queries))
        labels = (*self.rows, *self.queries, *channels)
        tokens = tokens.reshape([self.sizes[label] for label in labels])
        for axis, label in reversed(list(enumerate(labels))):
            if label not in self.output:
                tokens = tokens.select(axis, 0)
        kept = [label for label in labels if label in self.output]
        return tokens.permute([kept.index(label) for label in self.output])

    def for_every_row(self) -> Arrangement:
        """The same for a matrix that :meth:`expand` made."""
        return replace(self, matrix=(*(label for label in self.rows if label not in self.matrix), *self.matrix))

    def expand(self, matrix: Tensor) -> Tensor:
        """The matrix once for all rows that share it, so that each gets a gradient of its own. An alias otherwise."""
        return matrix.expand([self.sizes[label] for label in self.for_every_row().matrix])

    def _row_sizes(self) -> tuple[int, int]:
        return row_sizes([self.sizes[label] for label in self.rows])

    def _size(self, labels: Labels) -> int:
        return math.prod(self.sizes[label] for label in labels)


@dataclass(frozen=True)
class FusedArrangement:
    """Axes of a call of a fused kernel: (…, N, d), (…, M, d) and (…, M, e) give (…, N, e).

    Attributes:
        leading: sizes of the axes in front of tokens and channels.
        groups: how many heads share their keys and values.
    """

    leading: torch.Size
    groups: int

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> FusedArrangement:
        """Of the arguments of a call."""
        groups = query.shape[-3] // key.shape[-3] if enable_gqa else 1
        if groups > 1:
            return cls(query.shape[:-2], groups)
        return cls(torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2]), 1)

    def of_scores(self, scores: Tensor) -> Tensor:
        """(…, N, M) from (R, H, N, M)."""
        return scores.reshape(*self.leading, *scores.shape[-2:])

    def of_rows(self, query: Tensor) -> Tensor:
        """(R, H, N, ·) from a tensor shaped like the query, or like the output."""
        return four_dimensional(query, self.leading)

    def of_keys(self, value: Tensor) -> Tensor:
        """(R, H, M, ·) from a tensor shaped like the values."""
        return four_dimensional(self._for_every_head(value), self.leading)

    def grouped_keys(self, value: Tensor) -> Tensor:
        """The same, with shared heads left shared where rows and heads lie apart."""
        if self.groups > 1 and len(self.leading) == 2:
            return value.expand(self.leading[0], -1, -1, -1)
        return self.of_keys(value)

    def of_mask(self, mask: Tensor) -> Tensor:
        """Broadcastable to (R, H, N, M), from a mask that is broadcastable to (…, N, M)."""
        if mask.dim() < 3 or len(self.leading) == 2:
            return mask
        return four_dimensional(mask, self.leading)

    def to_output(self, shape: torch.Size) -> Callable[[Tensor], Tensor]:
        """A function from (R, H, N, d) to a tensor shaped like the output."""
        return lambda tokens: tokens.reshape(shape)

    def _for_every_head(self, value: Tensor) -> Tensor:
        return value if self.groups == 1 else value.repeat_interleave(self.groups, dim=-3)


def row_sizes(sizes: list[int] | torch.Size) -> tuple[int, int]:
    """R and H of leading axes: two are rows and heads, any other number is rows with a single head."""
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (math.prod(sizes), 1)


def four_dimensional(tensor: Tensor, leading: torch.Size | None = None) -> Tensor:
    """(R, H, N, d) from a tensor (…, N, d), its leading axes first expanded to ``leading``."""
    leading = tensor.shape[:-2] if leading is None else leading
    return tensor.expand(*leading, *tensor.shape[-2:]).reshape(*row_sizes(leading), *tensor.shape[-2:])


def _laid_out(tensor: Tensor, labels: Labels, wanted: Labels, sizes: Mapping[str, int]) -> Tensor:
    """Axes brought into the order ``wanted``; those that the tensor lacks are added, and expanded."""
    tensor = tensor.permute([labels.index(label) for label in wanted if label in labels])
    for axis, label in enumerate(wanted):
        if label not in labels:
            tensor = tensor.unsqueeze(axis)
    return tensor.expand([sizes[label] for label in wanted])
