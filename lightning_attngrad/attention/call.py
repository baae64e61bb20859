"""One attention call of a forward pass, and what can be rebuilt from it a block of rows at a time."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_attngrad.attention.budget import default_memory_budget

#: What is added to a score hides a key if it is less: a probability that is e⁵⁰ times smaller.
_HIDES = -50.0
_BYTES_PER_PROBABILITY = 2 * 4  # float32 probabilities and their gradient, both (B, H, rows, M)


@dataclass(eq=False)
class AttentionCall(ABC):
    """One attention call: B images, H heads, N query tokens that read from M key tokens.

    The probabilities ``A`` (B, H, N, M) and their gradient ``G`` are rebuilt for a block of rows at a time, so
    nothing of size N×M is kept (METHODS: ``A = softmax(QKᵀ·s + mask)``, ``G = (∂Φ/∂O) Vᵀ``).

    Attributes:
        name: the model's own name for the place, such as ``blocks.3.attn``.
        tensor: the tensor of the autograd graph whose gradient :meth:`attention_gradient` needs.
        token_norms: (B, N) lengths of the tokens that enter the last normalisation before the call; None without one.
    """

    name: str
    tensor: Tensor
    token_norms: Tensor | None = field(default=None, init=False)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """``(B, H, N, M)``: images, heads, query tokens, key tokens."""

    @abstractmethod
    def attention(self, rows: slice) -> Tensor:
        """Probabilities of these query tokens, (B, H, rows, M), outside graph and autocast, at least float32."""

    @abstractmethod
    def attention_gradient(self, rows: slice, gradient: Tensor) -> Tensor:
        """Gradient at the probabilities of these query tokens, (B, H, rows, M).

        Args:
            rows: the query tokens.
            gradient: what autograd delivered at :attr:`tensor`.
        """

    @abstractmethod
    def part(self, images: slice, heads: slice) -> AttentionCall:
        """The same call, of these images and heads only."""

    @property
    def is_self_attention(self) -> bool:
        """Whether queries and keys are the same tokens (a pooling call has fewer queries)."""
        return self.shape[2] == self.shape[3]

    def parts(self, memory_budget: int | None = None, rows: int | None = None) -> Iterator[tuple[slice, slice]]:
        """Cut the call into images and heads whose temporaries fit the budget with all (or so many) rows at once.

        The budget is in bytes; None is that of :func:`default_memory_budget`. Where not even one head of one image
        fits, it is to be cut further, into :meth:`blocks` of rows. Few rows of many heads would read all their keys
        and values again for every block.
        """
        batch, heads, queries, keys = self.shape
        fitting = self._budget(memory_budget) // ((queries if rows is None else rows) * keys * _BYTES_PER_PROBABILITY)
        for images in _even_slices(0, batch, fitting // heads):
            for of_heads in _even_slices(0, heads, fitting):
                yield images, of_heads

    def blocks(self, memory_budget: int | None = None, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """Cut the query tokens ``start … stop`` into blocks whose temporaries fit the budget, see :meth:`parts`."""
        batch, heads, queries, keys = self.shape
        fitting = self._budget(memory_budget) // (batch * heads * keys * _BYTES_PER_PROBABILITY)
        yield from _even_slices(start, queries if stop is None else stop, fitting)

    def _budget(self, memory_budget: int | None) -> int:
        return default_memory_budget(self.tensor.device) if memory_budget is None else memory_budget


@dataclass(frozen=True)
class Cut:
    """A block of an attention call: r of its rows, h of its heads, n of its query tokens."""

    rows: slice
    heads: slice
    block: slice

    def of(self, weights: Tensor) -> Tensor:
        """Weights (R, K, G, N) of these, (r, K, g, n)."""
        return weights[self.rows, :, self.heads if weights.shape[2] > 1 else slice(None), self.block]


@dataclass(eq=False)
class FusedAttentionCall(AttentionCall):
    """A call of ``scaled_dot_product_attention``; :attr:`tensor` is its output (B, H, N, d).

    Attributes:
        query: (B, H, N, d), in the graph like key and value.
        key: (B, H or fewer, M, d); fewer heads under grouped-query attention.
        value: (B, H or fewer, M, d).
        mask: boolean (True takes part) or additive, broadcastable to (B, H, N, M).
        is_causal: whether a query sees only keys up to its own position.
        scale: factor of the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[-2]

    def scores(self, rows: slice | Tensor) -> Tensor:
        """What the softmax is taken of, (B, H, rows, M), outside graph and autocast, at least float32.

        Args:
            rows: the query tokens, a slice or their numbers (rows,) int64.
        """
        with outside_autocast(self.query.device):
            scores = _times_transposed(_at_least_float32(self.query[:, :, rows]) * self.scale, self.key)
        if self.mask is not None:  # (B, H, rows, M)
            mask = self.mask.detach()
            mask = mask if mask.dim() < 2 or mask.shape[-2] == 1 else mask[..., rows, :]
            if mask.dtype == torch.bool:
                scores.masked_fill_(~mask, -torch.inf)
            else:
                scores += mask
        if self.is_causal:
            queries = torch.arange(self.shape[2], device=scores.device)[rows]
            keys = torch.arange(scores.shape[-1], device=scores.device)
            scores.masked_fill_(keys > queries[:, None], -torch.inf)
        return scores

    def hidden(self, rows: slice | Tensor) -> Tensor | None:
        """Which keys the model's own mask hides from these queries, broadcastable to (B, H, rows, M); None is none.

        Masks that are added hide by a large negative number: −∞, the least of a type, or −100 as Swin has it.
        """
        if self.mask is None:
            return None
        mask = self.mask if self.mask.dim() < 2 or self.mask.shape[-2] == 1 else self.mask[..., rows, :]
        return ~mask if mask.dtype == torch.bool else mask.detach() < _HIDES

    def attention(self, rows: slice) -> Tensor:
        scores = self.scores(rows)
        blind = scores.isneginf().all(-1, keepdim=True) if self.mask is not None else None
        torch.softmax(scores, dim=-1, out=scores)
        # A row that sees no key at all gives zeros in the fused kernels, NaN in a plain softmax.
        return scores if blind is None else scores.masked_fill_(blind, 0.0)

    def attention_gradient(self, rows: slice, gradient: Tensor) -> Tensor:
        with outside_autocast(self.value.device):
            return _times_transposed(_at_least_float32(gradient[:, :, rows]), self.value)

    def part(self, images: slice, heads: slice) -> FusedAttentionCall:
        return replace(
            self,
            query=self.query[images, heads],
            key=_for_heads(self.key[images], heads, self.shape[1]),
            value=_for_heads(self.value[images], heads, self.shape[1]),
            mask=None if self.mask is None else self.mask.expand(self.shape)[images, heads],
        )


@dataclass(eq=False)
class ExplicitAttentionCall(AttentionCall):
    """A softmax followed by a matrix product; :attr:`tensor` is the probabilities as the model holds them.

    Attributes:
        probabilities: the same, (B, H, N, M), outside the graph.
    """

    probabilities: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, heads, queries, keys = self.probabilities.shape
        return batch, heads, queries, keys

    def attention(self, rows: slice) -> Tensor:
        return _at_least_float32(self.probabilities[:, :, rows]).clone()

    def attention_gradient(self, rows: slice, gradient: Tensor) -> Tensor:
        return _at_least_float32(gradient[:, :, rows]).clone()

    def part(self, images: slice, heads: slice) -> ExplicitAttentionCall:
        return replace(self, probabilities=self.probabilities[images, heads])


def outside_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Arithmetic in the types that the tensors have, whatever autocast the caller stands in."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        off: contextlib.AbstractContextManager[object] = torch.autocast(kind, enabled=False)
        return off
    return contextlib.nullcontext()


def _even_slices(start: int, stop: int, most: int) -> Iterator[slice]:
    """Cut ``start … stop`` into slices of at most ``most`` (at least 1) and of like length: no small remainder."""
    count = -(-(stop - start) // max(1, most))
    for index in range(count):
        yield slice(start + (stop - start) * index // count, start + (stop - start) * (index + 1) // count)


def _for_heads(keys: Tensor, heads: slice, query_heads: int) -> Tensor:
    """The keys (or values) that these query heads read; under grouped-query attention once for each of them."""
    shared = query_heads // keys.shape[1]
    return keys[:, heads] if shared == 1 else keys[:, [head // shared for head in range(heads.start, heads.stop)]]


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Outside the graph, with half precision widened: products of small numbers would vanish in it."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _times_transposed(rows: Tensor, keys: Tensor) -> Tensor:
    """``rows @ keysᵀ``, (B, H, rows, M), where under grouped-query attention several heads share one key head."""
    keys = _at_least_float32(keys)
    shared = rows.shape[1] // keys.shape[1]
    if shared == 1:
        return rows @ keys.transpose(-1, -2)
    grouped: Tensor = rows.unflatten(1, (keys.shape[1], shared))  # (B, key heads, shared, rows, d)
    return (grouped @ keys.unsqueeze(2).transpose(-1, -2)).flatten(1, 2)
