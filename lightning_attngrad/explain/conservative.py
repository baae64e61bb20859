"""Relevance that adds up to the output: gradient × input under the backward rules of ``attention/rules.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention import ATTN_LRP, CONSERVATIVE, Grid
from lightning_attngrad.explain.embedded import embedding_of, token_relevance, without_gradient
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.guided import stream
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.placing import carry_tokens
from lightning_attngrad.explain.registry import TokenScores, register_method

CombineName = Literal["sum", "product", "gated_sum"]
#: The part of ``guided_relevance`` that is no layer's.
RELEVANCE_PART = "relevance"


@dataclass(frozen=True)
class GuidedRelevanceOptions:
    """Options of ``guided_relevance``.

    Args:
        combine: the ``sum`` or the ``product`` of its two maps, or the ``gated_sum``, in which relevance also decides
            how much the other map counts in a region.

    Raises:
        ValueError: for another name.
    """

    combine: CombineName = "gated_sum"

    def __post_init__(self) -> None:
        if self.combine not in get_args(CombineName):
            raise ValueError(f"combine: got {self.combine!r}; expected one of {', '.join(get_args(CombineName))}")


@register_method(
    "conservative",
    source="Ali et al., arXiv 2202.07304",
    start="embedding",
    rules=CONSERVATIVE,
    signed=True,
    follows_attention=False,
    class_sensitive=True,
)
def conservative(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """Embedding × gradient with LayerNorm, activation and attention linearised; without biases it sums to the logit."""
    return _token_relevance(forward, seeds)


@register_method(
    "attn_lrp",
    source="Achtibat et al., arXiv 2402.05602",
    start="embedding",
    rules=ATTN_LRP,
    signed=True,
    follows_attention=False,
    class_sensitive=True,
)
def attn_lrp(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """Embedding × gradient where the factors of each product in the attention share the gradient."""
    return _token_relevance(forward, seeds)


@register_method(
    "guided_relevance",
    source="METHODS §3: arXiv 2402.05602 and arXiv 2103.15679 from one backward pass",
    start="embedding",
    rules=ATTN_LRP,
    options=GuidedRelevanceOptions,
    class_sensitive=True,
)
def guided_relevance(forward: ForwardPass, seeds: Seeds, options: GuidedRelevanceOptions) -> TokenScores:
    """Token relevance and the streamed positive map of one backward pass, joined patch by patch.

    Each is first made a share: its positive part over the sum of that over the patches. ``combine="sum"`` is the mean
    of the two, ``"product"`` their geometric mean. ``"gated_sum"`` is the mean too, once the streamed map, which hardly
    depends on the class, has been weighted by ``σ(2 R̃ / rms R̃)``: R̃ is the relevance averaged over neighbouring
    patches while it still has both signs, so that a region that speaks against the class counts for little.

    Both sums are made of parts, which are the map's ``layers``: what each attention call added to the streamed half,
    and last, named ``relevance``, the other half, which belongs to no layer. A product has no such parts.
    """
    embedding, _, own_grid = embedding_of(forward)
    slots, grid = forward.places.slots, _finer(own_grid, forward.places.grid)
    guided, gradient = stream(forward, seeds, ("positive",), embedding)
    relevance = token_relevance(embedding, gradient, forward.places)  # (B, N)
    on_grid = carry_tokens(relevance, slots, own_grid, grid)
    assert guided.layers is not None
    streamed = carry_tokens(guided.scores, slots, forward.places.grid, grid)  # (B, 1, N)
    layers = carry_tokens(guided.layers, slots, forward.places.grid, grid)  # (B, 1, L, N)
    if options.combine == "gated_sum":
        gate = _gate(on_grid, slots, grid).unsqueeze(1)
        streamed, layers = streamed * gate, layers * gate.unsqueeze(1)
    of_relevance = on_grid.clamp_min(0).unsqueeze(1)
    first = _share_of(of_relevance, _sum_of_patches(of_relevance, slots))
    second = _share_of(streamed, _sum_of_patches(streamed, slots))
    if options.combine == "product":
        return TokenScores((first * second).sqrt(), guided.zero_gradient, relevance=relevance, grid=grid)
    of_layers = _share_of(layers, _sum_of_patches(streamed, slots).unsqueeze(2))
    names = guided.layer_names or tuple(call.name for call in forward.tap.calls)
    return TokenScores(
        (first + second) / 2,
        guided.zero_gradient,
        layers=torch.cat([of_layers, first.unsqueeze(2)], dim=2) / 2,
        layer_names=(*names, RELEVANCE_PART),
        relevance=relevance,
        grid=grid,
    )


def _token_relevance(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    embedding, _, grid = embedding_of(forward)
    gradient = seeds.gradient_at(embedding)
    relevance = token_relevance(embedding, gradient, forward.places)
    return TokenScores(
        relevance.unsqueeze(1), without_gradient(gradient, forward.places), relevance=relevance, grid=grid
    )


def _finer(one: Grid, other: Grid | None) -> Grid:
    """Of two grids over the same area the one with more cells."""
    return one if other is None or one[0] * one[1] >= other[0] * other[1] else other


def _gate(relevance: Tensor, slots: int, grid: Grid) -> Tensor:
    """``σ(2 R̃ / rms R̃)`` of each patch, from 0 (speaks against the class) to 1; ½ at tokens that lie nowhere; (B, N).

    R̃ is the relevance (B, N) averaged over a patch and its neighbours with weights 1, 2, 1 along rows and columns, a
    Gaussian of variance ½ patch²; on the border over the neighbours that exist. The root mean square is over patches.
    """
    patches = relevance[:, slots:].unflatten(1, grid)  # (B, h, w)
    average = _neighbourhood(patches) / _neighbourhood(torch.ones_like(patches[:1]))
    average = average.flatten(1)
    size = average.square().mean(dim=1, keepdim=True).sqrt()
    gate = torch.where(size > 0, 2 * average / size, 0.0).sigmoid()
    return F.pad(gate, (slots, 0), value=0.5)


def _neighbourhood(patches: Tensor) -> Tensor:
    """Sum over each patch and its neighbours, weighted 1, 2, 1 along rows and columns; (B, h, w).

    Sums of shifted copies: a convolution would round to TensorFloat-32 on a GPU.
    """
    padded = F.pad(patches, (1, 1, 1, 1))
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return columns[..., :-2, :] + 2 * columns[..., 1:-1, :] + columns[..., 2:, :]


def _sum_of_patches(scores: Tensor, slots: int) -> Tensor:
    """(…, N) → (…, 1), without tokens that lie nowhere."""
    return scores[..., slots:].sum(dim=-1, keepdim=True)


def _share_of(scores: Tensor, total: Tensor) -> Tensor:
    """Scores divided by a total; zero where that is zero, and not finite where they are not."""
    return torch.where(total == 0, 0.0, scores / total)
