"""What an attention tap tells whoever follows tensors through a model beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lightning_attngrad.attention.call import AttentionCall


@dataclass(frozen=True, eq=False)
class SeenAttention:
    """An attention call as the model wrote it, and how what it wrote lies in rows, heads and tokens.

    The three functions only move, repeat and leave out elements, so that they serve tensors of anything.

    Attributes:
        call: with probabilities (R, H, N, M).
        asks: where the queries are: the query of a fused kernel as given, or the matrix that multiplies the values.
        value: as given.
        output: as the model gets it.
        of_rows: a tensor shaped like ``asks`` → (R, H, N, ·).
        of_keys: a tensor shaped like ``value`` → (R, H, M, ·); heads repeated where several share theirs.
        to_output: (R, H, N, d) → shaped like ``output``.
    """

    call: AttentionCall
    asks: Tensor
    value: Tensor
    output: Tensor
    of_rows: Callable[[Tensor], Tensor]
    of_keys: Callable[[Tensor], Tensor]
    to_output: Callable[[Tensor], Tensor]


class AttentionWatcher(Protocol):
    """Is told of every attention call while it happens, and of what functions give the model."""

    def attending(self) -> AbstractContextManager[object]:
        """Entered around the product of probabilities and values, or the fused kernel, and nothing else."""

    def attended(self, seen: SeenAttention) -> None:
        """Called after it, with the call recorded."""

    def returned(self, number: int, output: Tensor) -> None:
        """Called with every tensor that a function of torch gives the model, and how many there were."""
