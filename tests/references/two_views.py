"""Gradient-guided attention of a matcher of two views, as matrices over the tokens of both; nothing of the library's.

With Ē = mean_h (A ⊙ ∂Φ/∂A)⁺ of each call, in float64, and each call's additions passed on to what its keys have read:
tokens of a take from those of b by Ē_cross, and these have taken from one another by Ē_encoder. Relevance begins at one
token of a, which stays what it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from tests.two_views import Attention, Matcher


def attention_and_gradients(
    matcher: Matcher, a: Tensor, b: Tensor, score: Callable[[Tensor], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Of each call, in the order in which they run: probabilities and ∂Σ score / ∂ probabilities, (B, H, N, M)."""
    model = copy.deepcopy(matcher).double().eval()
    seen: list[Tensor] = []

    def attend(self: Attention, queries: Tensor, others: Tensor) -> Tensor:
        batch, width = len(queries), self.query.out_features // 2
        heads = []
        for head in range(2):
            part = slice(head * width, (head + 1) * width)
            q, k, v = self.query(queries)[..., part], self.key(others)[..., part], self.value(others)[..., part]
            heads.append((torch.einsum("bnd,bmd->bnm", q, k) / width**0.5, v))
        probabilities = torch.stack([scores for scores, _ in heads], dim=1).softmax(dim=-1)
        probabilities.retain_grad()
        seen.append(probabilities)
        read = torch.cat([torch.einsum("bnm,bmd->bnd", probabilities[:, i], v) for i, (_, v) in enumerate(heads)], -1)
        assert len(read) == batch
        return self.out(read)

    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = attend.__get__(module)  # type: ignore[method-assign]
    score(model(a.double(), b.double())).sum().backward()
    return [(one.detach(), torch.zeros_like(one) if one.grad is None else one.grad) for one in seen]


def map_of_view_b(matcher: Matcher, a: Tensor, b: Tensor, score: Callable[[Tensor], Tensor], token: int) -> Tensor:
    """Of a score that is read from one token of a, each view encoded apart, attention from a to b alone: (B, M)."""
    _, encoder, *cross = (
        (attention * gradient).clamp_min(0).mean(dim=1)
        for attention, gradient in attention_and_gradients(matcher, a, b, score)
    )
    begin = torch.eye(encoder.shape[1], dtype=torch.float64)
    return sum((one @ (begin + encoder))[:, token] for one in cross)
