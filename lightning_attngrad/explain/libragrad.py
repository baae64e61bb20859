"""LibraGrad with FullGrad+ (Mehri et al., arXiv 2411.16760), as METHODS §4 has it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.attention import LIBRAGRAD, Grid, UnsupportedModelError
from lightning_attngrad.explain.embedded import embedding_of, token_relevance, without_gradient
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.placing import carry_tokens, scatter_tokens
from lightning_attngrad.explain.registry import TokenScores, register_method


@register_method(
    "libragrad",
    source="Mehri et al., arXiv 2411.16760: FullGrad+ under LibraGrad's rules",
    start="embedding",
    rules=LIBRAGRAD,
    signed=True,
    follows_attention=False,
)
def libragrad(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """Embedding × gradient of each token, and bias × gradient of every layer behind it at that token.

    The gradient is balanced: attention probabilities, 1/std of normalisations, gates and the ratio of activations are
    constants, and factors of a product share it. What is added to padding, or to what is pooled (the classifier's bias)
    belongs to no token of the image: it is in the sum, and not in the map. With it everything sums to the output,
    biases or not.
    """
    embedding, _, grid = embedding_of(forward)
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    collected = _Constants(forward, grid, dtype, embedding.device)
    forward.tap.on_constant = collected
    try:
        gradient = seeds.gradient_at(embedding)
    finally:
        forward.tap.on_constant = None
    relevance = token_relevance(embedding, gradient, forward.places) + collected.tokens
    return TokenScores(
        relevance.unsqueeze(1),
        without_gradient(gradient, forward.places),
        relevance=torch.cat([relevance, collected.nowhere.unsqueeze(1)], dim=1),
        grid=grid,
    )


class _Constants:
    """Constant × gradient, summed over channels and layers while autograd runs backwards.

    Attributes:
        tokens: at each token, (B, S + h·w), or 0.0 as long as there is nothing.
        nowhere: at no token of the image, (B,).
    """

    def __init__(self, forward: ForwardPass, grid: Grid, dtype: torch.dtype, device: torch.device) -> None:
        self._forward, self._grid = forward, grid
        self.tokens: Tensor | float = 0.0
        self.nowhere = torch.zeros(forward.batch, device=device, dtype=dtype)

    @torch.no_grad()
    def __call__(self, name: str, constant: Tensor, gradient: Tensor, number: int) -> None:
        forward = self._forward
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        product = gradient.to(dtype) * constant.to(dtype)
        places = forward.known.of_tensor(number)
        if places is not None and places.owners is not None:
            of_tokens = product if places.channel_axis is None else product.sum(dim=places.channel_axis)
            of_tokens, tokens = of_tokens.flatten(), places.tokens
            state = scatter_tokens(of_tokens.view(1, 1, 1, -1), tokens, forward.places.slots, forward.batch).squeeze(1)
            self.tokens = self.tokens + carry_tokens(state, forward.places.slots, tokens.grid, self._grid)
            if places.padded:
                at_padding = of_tokens * (tokens.place.flatten() < 0)
                self.nowhere = self.nowhere.index_add(0, places.owners, at_padding.to(self.nowhere.dtype))
        elif len(product) == forward.batch and sum(size > 1 for size in product.shape[1:]) <= 1:  # pooled
            self.nowhere = self.nowhere + product.flatten(1).sum(dim=1)
        else:
            raise UnsupportedModelError(
                f"model: what {name!r} adds has shape {tuple(product.shape)} for {forward.batch} images, and which of "
                "it belongs to which token could not be followed: libragrad credits every bias to a token. Use "
                "method='conservative', which does without biases"
            )
