"""Models of two views, whose tokens of view a attend to those of view b: what is explained is one view or the other."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, PATCH, SIDE = 16, 2, 8, 4
PATCHES = SIDE * SIDE


class Attention(nn.Module):
    """Queries of some tokens, keys and values of others."""

    def __init__(self, explicit: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.explicit = explicit

    def forward(self, queries: Tensor, others: Tensor) -> Tensor:
        q, k, v = (
            part(tokens).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part, tokens in ((self.query, queries), (self.key, others), (self.value, others))
        )
        if self.explicit:
            read = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        else:
            read = F.scaled_dot_product_attention(q, k, v)
        return self.out(read.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, explicit: bool) -> None:
        super().__init__()
        self.norm, self.norm_others = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention(explicit)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, tokens: Tensor, others: Tensor | None = None) -> Tensor:
        queries = self.norm(tokens)
        tokens = tokens + self.attention(queries, queries if others is None else self.norm_others(others))
        return tokens + self.mlp(tokens)


class Matcher(nn.Module):
    """Two images (B, 3, 32, 32) to scores of the 16 patches of b for each of the 4 × 4 patches of a, (B, 16, 4, 4).

    Args:
        encode: one view after the other, or both as one batch.
        both_ways: whether the tokens of b attend to those of a as well.
        explicit: attention as a softmax and a product, instead of the fused kernel.
    """

    def __init__(
        self, encode: Literal["apart", "together"] = "apart", *, both_ways: bool = False, explicit: bool = False
    ) -> None:
        super().__init__()
        self.encode, self.both_ways = encode, both_ways
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn(1, PATCHES, WIDTH))
        self.encoder = Block(explicit)
        self.cross = nn.ModuleList(Block(explicit) for _ in range(2))
        self.head = nn.Linear(WIDTH, PATCHES)

    def tokens(self, images: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(self.embed(images).flatten(2).mT + self.position)
        return encoded

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if self.encode == "together":
            of_a, of_b = self.tokens(torch.cat([a, b])).chunk(2)
        else:
            of_a, of_b = self.tokens(a), self.tokens(b)
        for block in self.cross:
            of_a, of_b = block(of_a, of_b), block(of_b, of_a) if self.both_ways else of_b
        scores: Tensor = self.head(of_a).mT.unflatten(2, (SIDE, SIDE))
        return scores


def views(count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, count, 3, SIDE * PATCH, SIDE * PATCH, generator=generator)
    return a, b
