"""Relevance that adds up to the output: gradient × input under the backward rules of ``attention/rules.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention import ATTN_LRP, CONSERVATIVE, TokenLayout
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.guided import stream
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.registry import Options, TokenScores, register_method


@register_method(
    "conservative",
    source="Ali et al., arXiv 2202.07304",
    start="embedding",
    rules=CONSERVATIVE,
    class_sensitive=True,
)
def conservative(forward: ForwardPass, seeds: Seeds, options: Options) -> TokenScores:
    """Embedding × gradient with LayerNorm, activation and attention linearised; without biases it sums to the logit."""
    return _token_relevance(forward, seeds, options)


@register_method(
    "attn_lrp",
    source="Achtibat et al., arXiv 2402.05602",
    start="embedding",
    rules=ATTN_LRP,
    class_sensitive=True,
)
def attn_lrp(forward: ForwardPass, seeds: Seeds, options: Options) -> TokenScores:
    """Embedding × gradient where the factors of each product in the attention share the gradient."""
    return _token_relevance(forward, seeds, options)


@register_method(
    "guided_relevance",
    source="METHODS §3: arXiv 2402.05602 and arXiv 2103.15679 from one backward pass",
    start="embedding",
    rules=ATTN_LRP,
    class_sensitive=True,
)
def guided_relevance(forward: ForwardPass, seeds: Seeds, options: Options) -> TokenScores:
    """Token relevance and the streamed positive map of one backward pass, joined patch by patch.

    Each is first made a share: its positive part over the sum of that over the patches. ``combine="sum"`` is the mean
    of the two, ``"product"`` their geometric mean. ``"gated_sum"`` is the mean too, once the streamed map, which hardly
    depends on the class, has been weighted by ``σ(2 R̃ / rms R̃)``: R̃ is the relevance averaged over neighbouring
    patches while it still has both signs, so that a region that speaks against the class counts for little.
    """
    embedding = _embedding(forward)
    guided, gradient = stream(forward, seeds, options, ("positive",), embedding)
    relevance = _relevance(embedding, gradient)
    prefix = forward.layout.prefix
    attended = guided.scores[:, 0]
    if options.combine == "gated_sum":
        attended = attended * _gate(relevance, forward.layout)
    first = _share_of_patches(relevance.clamp_min(0), prefix)
    second = _share_of_patches(attended, prefix)
    joined = (first * second).sqrt() if options.combine == "product" else (first + second) / 2
    return TokenScores(joined.unsqueeze(1), guided.zero_gradient, layers=guided.layers, relevance=relevance)


def _token_relevance(forward: ForwardPass, seeds: Seeds, options: Options) -> TokenScores:
    embedding = _embedding(forward)
    (gradient,) = torch.autograd.grad(seeds.outputs, embedding, seeds.gradients, retain_graph=options.retain_graph)
    relevance = _relevance(embedding, gradient)
    return TokenScores(relevance.unsqueeze(1), zero_gradient=~gradient.flatten(1).ne(0).any(dim=1), relevance=relevance)


def _embedding(forward: ForwardPass) -> Tensor:
    embedding = forward.tap.embedding
    if embedding is None or embedding.shape[1] != forward.layout.tokens:
        raise ValueError(
            "model: no normalisation of the tokens was seen in front of its first attention, so the embedding that "
            "relevance is measured at is not known; use method='gradient_guided'"
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
    weights = torch.tensor([1.0, 2.0, 1.0], device=relevance.device, dtype=relevance.dtype)
    kernel = torch.outer(weights, weights)[None, None]
    patches = layout.to_grid(relevance).unsqueeze(1)  # (B, 1, h, w)
    total = F.conv2d(torch.ones_like(patches[:1]), kernel, padding=1)
    average = (F.conv2d(patches, kernel, padding=1) / total).flatten(1)
    size = average.square().mean(dim=1, keepdim=True).sqrt()
    gate = torch.where(size > 0, 2 * average / size, 0.0).sigmoid()
    return F.pad(gate, (layout.prefix, 0), value=0.5)


def _share_of_patches(scores: Tensor, prefix: int) -> Tensor:
    """Scores (B, N) divided by their sum over the patches; zero where that is zero."""
    total = scores[:, prefix:].sum(dim=1, keepdim=True)
    return torch.where(total > 0, scores / total, 0.0)
