"""Gradient-guided attention by the published matrix recursion, everything of size N×N kept.

    R₀ = 1,   R ← R + mean_h C(A_l, G_l)·R   for l = 1 … L        (Chefer et al., arXiv 2103.15679)

The map of a model that pools its tokens with the weights r_L is the row r_Lᵀ R − r_Lᵀ on the patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.references.recorded_attention import RecordedCall, record_attention
from tests.zoo import ZooModel, logits_of

CORRECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "positive": lambda a, g: (a * g).clamp(min=0),
    "negative": lambda a, g: (-a * g).clamp(min=0),
    "absolute": lambda a, g: (a * g).abs(),
    "signed": lambda a, g: a * g,
    "transfer": lambda a, g: a * (g - (a * g).sum(-1, keepdim=True)),
}


@dataclass(frozen=True)
class Reading:
    """What a naive forward and backward pass found.

    Attributes:
        attention: A of each call, (B, H, N, N).
        gradients: G of each call, (B, H, N, N).
        logits: (B, C).
    """

    attention: list[Tensor]
    gradients: list[Tensor]
    logits: Tensor


Objective = Callable[[Tensor, list[RecordedCall]], Tensor]


def logit(target: Tensor) -> Objective:
    """Φ = z_t."""
    return lambda logits, calls: logits[torch.arange(len(logits)), target]


def margin(target: Tensor) -> Objective:
    """Φ = z_t − max_{j≠t} z_j."""

    def phi(logits: Tensor, calls: list[RecordedCall]) -> Tensor:
        values = []
        for row, t in zip(logits, target.tolist(), strict=True):
            rivals = torch.cat([row[:t], row[t + 1 :]])
            values.append(row[t] - rivals.max())
        return torch.stack(values)

    return phi


def contrast(target: Tensor, against: int) -> Objective:
    """Φ = z_a − z_b."""
    return lambda logits, calls: logits[torch.arange(len(logits)), target] - logits[:, against]


def mixture(weights: Tensor) -> Objective:
    """Φ = Σ_c w_c z_c."""
    return lambda logits, calls: (logits * weights.to(logits)).sum(-1)


def region(model: ZooModel, mask: Tensor) -> Objective:
    """Φ = Σ_i w_i mean_h Σ_{j in mask} A_L[h, i, j], with w the pooling weights.

    Args:
        model: Tells w; with attention pooling the last call has the one query row.
        mask: (B, N) of 0 and 1, prefix tokens included.
    """

    def phi(logits: Tensor, calls: list[RecordedCall]) -> Tensor:
        attention = calls[-1].probabilities.mean(1)  # (B, N, N)
        rows = torch.ones(1).to(attention) if model.pooling == "attention" else model.pooling_weights()
        return torch.einsum("i,bij,bj->b", rows.to(attention), attention, mask.to(attention))

    return phi


def read(module: nn.Module, images: Tensor, objective: Objective) -> Reading:
    """One forward pass with all of A kept, one backward pass to all of G."""
    with torch.enable_grad(), record_attention() as calls:
        logits = logits_of(module(images))
        phi = objective(logits, calls)
    gradients = torch.autograd.grad(
        phi.sum(), [call.probabilities for call in calls], allow_unused=True, materialize_grads=True
    )
    return Reading([call.probabilities.detach() for call in calls], list(gradients), logits.detach())


def propagate(model: ZooModel, corrected: list[Tensor]) -> Tensor:
    """The row that the classifier reads of the matrix recursion, less its start: (B, N).

    Args:
        model: Tells the pooling.
        corrected: mean_h C(A, G) of each call, first call first, (B, N, N); (B, 1, N) for a pooling call.
    """
    start = model.pooling_weights(corrected[0].dtype)
    pool = None
    if model.pooling == "attention":
        *corrected, pool = corrected
    relevance = torch.eye(model.tokens, dtype=start.dtype).expand(len(corrected[0]), -1, -1)
    for matrix in corrected:
        relevance = relevance + matrix @ relevance
    if pool is not None:
        return (pool @ relevance)[:, 0]
    return start @ relevance - start


def increments(model: ZooModel, corrected: list[Tensor]) -> Tensor:
    """What each call added to the row, first call first: (B, L, N). Their sum is `propagate`."""
    row = model.pooling_weights(corrected[0].dtype).expand(len(corrected[0]), 1, -1)
    added = []
    for matrix in reversed(corrected):
        step = matrix if matrix.shape[-2] == 1 else row @ matrix
        row = row + step
        added.append(step[:, 0])
    return torch.stack(added[::-1], 1)


def corrected_calls(reading: Reading, correction: str) -> list[Tensor]:
    """mean_h C(A, G) of each call, (B, N, N)."""
    rule = CORRECTIONS[correction]
    return [rule(a, g).mean(1) for a, g in zip(reading.attention, reading.gradients, strict=True)]


def guided_tokens(model: ZooModel, reading: Reading, correction: str) -> Tensor:
    """The map on all tokens, (B, N)."""
    return propagate(model, corrected_calls(reading, correction))


def patches(model: ZooModel, tokens: Tensor) -> Tensor:
    """Patch tokens (…, N) → the grid (…, h, w)."""
    return tokens[..., model.prefix :].unflatten(-1, model.grid)
