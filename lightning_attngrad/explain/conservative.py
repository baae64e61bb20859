"""Relevance that adds up to the output: gradient × input under the backward rules of ``attention/rules.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention import ATTN_LRP, CONSERVATIVE, NoEmbeddingError, TokenLayout
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.guided import stream
from lightning_attngrad.explain.objectives import Seeds
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
    embedding = _embedding(forward)
    guided, gradient = stream(forward, seeds, ("positive",), embedding)
    relevance = _relevance(embedding, gradient)
    streamed, layers = guided.scores, guided.layers  # (B, 1, N), (B, 1, L, N)
    assert layers is not None
    if options.combine == "gated_sum":
        gate = _gate(relevance, forward.layout).unsqueeze(1)
        streamed, layers = streamed * gate, layers * gate.unsqueeze(1)
    of_relevance = relevance.clamp_min(0).unsqueeze(1)
    prefix = forward.layout.prefix
    first = _share_of(of_relevance, _sum_of_patches(of_relevance, prefix))
    second = _share_of(streamed, _sum_of_patches(streamed, prefix))
    if options.combine == "product":
        return TokenScores((first * second).sqrt(), guided.zero_gradient, relevance=relevance)
    of_layers = _share_of(layers, _sum_of_patches(streamed, prefix).unsqueeze(2))
    return TokenScores(
        (first + second) / 2,
        guided.zero_gradient,
        layers=torch.cat([of_layers, first.unsqueeze(2)], dim=2) / 2,
        layer_names=(*(call.name for call in forward.tap.calls), RELEVANCE_PART),
        relevance=relevance,
    )


def _token_relevance(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    embedding = _embedding(forward)
    gradient = seeds.gradient_at(embedding)
    relevance = _relevance(embedding, gradient)
    return TokenScores(relevance.unsqueeze(1), zero_gradient=~gradient.flatten(1).ne(0).any(dim=1), relevance=relevance)


def _embedding(forward: ForwardPass) -> Tensor:
    embedding = forward.tap.embedding
    if embedding is None or embedding.shape[1] != forward.layout.tokens:
        raise NoEmbeddingError(
            "model: no normalisation of the tokens was seen in front of its first attention, so the embedding that "
            "relevance is measured at is not known. Use method='gradient_guided', or register the function that "
            "normalises with attention.backward_rule(function, normalisation=True)"
        )
    return embedding


def _relevance(embedding: Tensor, gradient: Tensor) -> Tensor:
    """Embedding × gradient summed over channels, (B, N), at least float32."""
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    return (embedding.detach().to(dtype) * gradient.to(dtype)).sum(dim=-1)


def _gate(relevance: Tensor, layout: TokenLayout) -> Tensor:
    """``σ(2 R̃ / rms R̃)`` of each patch, from 0 (speaks against the class) to 1; ½ at prefix tokens; (B, N).

    R̃ is the relevance (B, N) averaged over a patch and its neighbours with weights 1, 2, 1 along rows and columns, a
    Gaussian of variance ½ patch²; on the border over the neighbours that exist. The root mean square is over patches.
    """
    patches = layout.to_grid(relevance)  # (B, h, w)
    average = _neighbourhood(patches) / _neighbourhood(torch.ones_like(patches[:1]))
    average = average.flatten(1)
    size = average.square().mean(dim=1, keepdim=True).sqrt()
    gate = torch.where(size > 0, 2 * average / size, 0.0).sigmoid()
    return F.pad(gate, (layout.prefix, 0), value=0.5)


def _neighbourhood(patches: Tensor) -> Tensor:
    """Sum over each patch and its neighbours, weighted 1, 2, 1 along rows and columns; (B, h, w).

    Sums of shifted copies: a convolution would round to TensorFloat-32 on a GPU.
    """
    padded = F.pad(patches, (1, 1, 1, 1))
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return columns[..., :-2, :] + 2 * columns[..., 1:-1, :] + columns[..., 2:, :]


def _sum_of_patches(scores: Tensor, prefix: int) -> Tensor:
    """(…, N) → (…, 1), without prefix tokens."""
    return scores[..., prefix:].sum(dim=-1, keepdim=True)


def _share_of(scores: Tensor, total: Tensor) -> Tensor:
    """Scores divided by a total; zero where that is zero, and not finite where they are not."""
    return torch.where(total == 0, 0.0, scores / total)
