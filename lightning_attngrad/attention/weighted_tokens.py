"""Attention written out: tokens times their weights, then a sum over the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_attngrad.attention.arrangement import Arrangement, Labels
from lightning_attngrad.attention.weights import Weights


@dataclass(frozen=True, eq=False)
class WeightedTokens:
    """Tokens that were each multiplied with their weight: summed over the keys they are ``A·V``.

    Attributes:
        weights: what is known of the matrix.
        matrix: the weights as the model holds them.
        factor: an alias of them, which was multiplied.
        value: the tokens.
        labels: of the axes of the matrix, of the values, and of the tokens that were multiplied.
    """

    weights: Weights
    matrix: Tensor
    factor: Tensor
    value: Tensor
    labels: tuple[Labels, Labels, Labels]

    def summed(self, dims: Sequence[int], keep: bool) -> Arrangement | None:
        """How their sum over these axes reads as attention; None where keys remain."""
        matrix, value, tokens = self.labels
        keys = tuple(matrix[axis] for axis in self.weights.keys)
        if not keys or not set(keys) <= {tokens[axis] for axis in dims}:
            return None
        output = tuple(
            f"kept {label}" if axis in dims else label for axis, label in enumerate(tokens) if keep or axis not in dims
        )
        sizes = dict.fromkeys((*matrix, *output), 1)
        for labels, tensor in ((matrix, self.matrix), (value, self.value)):
            for label, size in zip(labels, tensor.shape, strict=True):
                sizes[label] = max(size, sizes.get(label, 1))
        queries = tuple(label for label in matrix if label not in tokens)
        rows = tuple(label for label in matrix if label not in (*keys, *queries))
        return Arrangement(matrix, value, output, rows, queries, keys, sizes)


def weighted_tokens(weights: Weights, matrix: Tensor, value: Tensor) -> tuple[Labels, Labels, Labels] | None:
    """Labels of weights, tokens and their elementwise product; None unless there is one axis of channels.

    Where whole maps are weighted (two axes and more), it is branches that are mixed and not tokens.
    """
    rank = max(matrix.dim(), value.dim())
    tokens = tuple(f"a{axis}" for axis in range(rank))
    of_matrix = list(tokens[rank - matrix.dim() :])
    of_value = tokens[rank - value.dim() :]
    sizes = dict(zip(of_matrix, matrix.shape, strict=True))
    channels = [label for label, size in zip(of_value, value.shape, strict=True) if size > sizes.get(label, 1)]
    if len(channels) != 1 or weights.is_log or any(label not in of_value for label in of_matrix):
        return None
    return tuple(f"one {label}" if label in channels else label for label in of_matrix), of_value, tokens
