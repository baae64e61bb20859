"""Small layers that attend, in the spellings that models have, each with dropout that a capture must not disturb."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS = 8, 2


class Cross(nn.Module):
    """Queries of one set of tokens (B, N, D), keys and values of another (B, M, D)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dropout = dropout

    def heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        attended = self.attend(self.heads(self.q(one)), self.heads(self.k(other)), self.heads(self.v(other)))
        return attended.transpose(1, 2).flatten(2)


class Explicit(Cross):
    """A softmax, its dropout, and a product."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attention = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
        return F.dropout(attention, self.dropout, self.training) @ value


class MovedAfterDropout(Cross):
    """What is dropped from cannot be found any more."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attention = (query @ key.mT).softmax(dim=-1)
        return F.dropout(attention, 0.5).flatten(0, 1) @ value.flatten(0, 1)


class Talking(Cross):
    """Heads that are mixed behind the softmax."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attention = (query @ key.mT).softmax(dim=-1)
        return (0.7 * attention + 0.3 * attention.flip(1)) @ value


class Shared(Cross):
    """Heads of the queries that share a head of the keys."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key[:, :1], value[:, :1], enable_gqa=True)


class Multihead(nn.Module):
    """The layer that computes its attention inside torch."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, dropout=dropout, batch_first=True)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.attn(one, other, other, need_weights=False)[0]
