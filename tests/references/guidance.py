"""The guidance loss as METHODS has it, query by query, from probabilities that are all there: slow, and obvious.

Binary cross-entropy that pushes the attention mass outside the plausible pairs to 0 and the largest value inside to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities_of(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """All of A (B, H, N, M), in the graph; ``mask`` is True where a query may read."""
    scores = query @ key.mT * scale
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1)


def guidance_loss(
    attention: Tensor, inside: Tensor, *, outside: Tensor | None = None, largest: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Loss and mass inside, both scalars.

    Args:
        attention: (B, H, N, M).
        inside: bool (B, N, M).
        outside: likewise; None is what is not inside.
        largest: weight of the second term.
    """
    batch, heads, queries, _ = attention.shape
    losses, masses = [], []
    for image in range(batch):
        of_image = []
        for query in range(queries):
            where = inside[image, query]
            where_not = ~where if outside is None else outside[image, query]
            if not where.any():
                continue
            for head in range(heads):
                row = attention[image, head, query]
                row = row / (row[where].sum() + row[where_not].sum())  # what is neither is left out
                away = torch.nn.functional.binary_cross_entropy(row[where_not].sum().clamp(0, 1), row.new_zeros(()))
                towards = torch.nn.functional.binary_cross_entropy(row[where].max().clamp(0, 1), row.new_ones(()))
                of_image.append(away + largest * towards)
                masses.append((row[where].sum(), image, query))
        losses.append(torch.stack(of_image).mean() if of_image else attention.new_zeros(()))
    # Every image that counts has the same weight, whichever number of its queries counts.
    by_image = [torch.stack([mass for mass, of, _ in masses if of == image]).mean() for image in range(batch)
                if any(of == image for _, of, _ in masses)]  # fmt: skip
    share = torch.stack(by_image).mean() if by_image else attention.new_tensor(torch.nan)
    return torch.stack(losses).mean(), share
