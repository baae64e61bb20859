"""LibraGrad's FullGrad+ (arXiv 2411.16760) as a sum over everything that a forward pass adds, all of it kept.

Under the rules of `conservative` every layer is affine in the tokens, y = J x + b, so that for any objective that is
linear in the logits Φ = Σ_tokens x·∂Φ/∂x + Σ_layers b·∂Φ/∂y. Both are split by token; what is added to a pooled vector
(the classifier's bias) belongs to none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.references import guided
from tests.references.recorded_attention import patched
from tests.references.relevance import relevance_rules
from tests.zoo import ZooModel, logits_of


@dataclass(frozen=True)
class FullGradient:
    """Terms of the sum.

    Attributes:
        tokens: x·∂Φ/∂x of each token of the embedding, (B, N).
        biases: b·∂Φ/∂y of all layers at each token, (B, N).
        rest: of layers behind the pooling, (B,).
        phi: the objective, (B,).
    """

    tokens: Tensor
    biases: Tensor
    rest: Tensor
    phi: Tensor


def full_gradient(model: ZooModel, module: nn.Module, images: Tensor, objective: guided.Objective) -> FullGradient:
    """The terms for one of the zoo's models."""
    assert model.twin is None, "take the fused twin: it has the same mathematics"
    embeddings: list[Tensor] = []
    added: list[tuple[Tensor, Tensor]] = []  # outputs, and the bias in each
    linear = F.linear

    def recorded_linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = linear(tokens, weight, bias)
        if bias is not None:
            added.append((output, bias))
        return output

    def keep_embedding(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        embeddings.append(inputs[0].detach().requires_grad_())
        return (embeddings[0], *inputs[1:])

    def keep_norm(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if norm.bias is not None:
            added.append((output, norm.bias))

    handles = [module.get_submodule(model.first_block).register_forward_pre_hook(keep_embedding)]
    try:
        with torch.enable_grad(), relevance_rules(module, "conservative") as calls:
            # Behind the rules, so that the output is the one that they made.
            norms = [child for child in module.modules() if isinstance(child, nn.LayerNorm)]
            handles += [norm.register_forward_hook(keep_norm) for norm in norms]
            with patched((F, "linear", recorded_linear)):
                phi = objective(logits_of(module(images)), calls)
    finally:
        for handle in handles:
            handle.remove()
    added = [(output, bias) for output, bias in added if output.requires_grad]
    at_embedding, *at_outputs = torch.autograd.grad(
        phi.sum(), [embeddings[0], *(output for output, _ in added)], allow_unused=True
    )
    tokens = (embeddings[0].detach() * at_embedding).sum(-1)
    # Without a gradient is what stands in front of the embedding, or behind it for queries and keys alone.
    with_gradient = [(bias, at) for (_, bias), at in zip(added, at_outputs, strict=True) if at is not None]
    terms = [(at * bias).sum(-1) for bias, at in with_gradient]
    biases, rest = _by_token(terms, tokens.detach(), phi.detach())
    return FullGradient(tokens, biases, rest, phi.detach())


def _by_token(terms: list[Tensor], tokens: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of terms of tokens (B, N), and of terms of vectors, (B,) or (B, 1)."""
    biases, rest = torch.zeros_like(tokens), torch.zeros_like(phi)
    for term in terms:
        if term.shape == tokens.shape:
            biases += term
        elif term.numel() == tokens.numel():  # (N, B), or (N·B,): nn.MultiheadAttention has tokens first
            biases += term.reshape(tokens.T.shape).T
        else:
            rest += term.reshape(len(phi), -1).sum(-1)
    return biases, rest
