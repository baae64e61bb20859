"""Relevance at the embedding: embedding × gradient, placed on the image."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.attention import Grid, ImagePlaces, NoEmbeddingError, TensorPlaces
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.placing import scatter_tokens


def embedding_of(forward: ForwardPass) -> tuple[Tensor, TensorPlaces, Grid]:
    """The tensor at which relevance is measured, where its tokens lie, and on which grid.

    Raises:
        NoEmbeddingError: if that is not known.
    """
    embedding, places = forward.tap.embedding, forward.places.embedding
    if embedding is None or places is None or places.tokens.grid is None or places.channel_axis is None:
        raise NoEmbeddingError(
            "model: where on the image the tokens lie that enter its first layer was not found (shuffled, mixed, or "
            "cut unevenly), so relevance cannot be placed. Use method='gradient_guided', which needs the places of its "
            "attention alone"
        )
    return embedding, places, places.tokens.grid


def token_relevance(embedding: Tensor, gradient: Tensor, places: ImagePlaces) -> Tensor:
    """Embedding × gradient summed over channels, at least float32: a state (B, S + h·w) on the embedding's own grid.

    Args:
        embedding: of the form that the model gives it.
        gradient: at it.
        places: with those of the embedding.

    Example:
        >>> from lightning_attngrad.attention import TokenPlaces
        >>> tokens = TokenPlaces(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[1, 2, 1, 2]]]), (1, 2))
        >>> places = ImagePlaces((), 1, None, TensorPlaces(-1, tokens), (0, 0, 8, 16), 2)
        >>> token_relevance(torch.arange(8.0).view(2, 2, 2), torch.ones(2, 2, 2), places)  # one slot in front
        tensor([[ 0.,  1.,  5.],
                [ 0.,  9., 13.]])
    """
    assert places.embedding is not None
    assert places.embedding.channel_axis is not None
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    product = embedding.detach().to(dtype) * gradient.to(dtype)
    of_tokens = product.sum(dim=places.embedding.channel_axis).reshape(1, 1, 1, -1)
    return scatter_tokens(of_tokens, places.embedding.tokens, places.slots, places.batch).squeeze(1)


def without_gradient(gradient: Tensor, places: ImagePlaces) -> Tensor:
    """Which images have no gradient at the embedding, (B,) bool."""
    assert places.embedding is not None
    assert places.embedding.channel_axis is not None
    reached = gradient.ne(0).any(dim=places.embedding.channel_axis).reshape(1, 1, 1, -1)
    state = scatter_tokens(reached.to(torch.float32), places.embedding.tokens, places.slots, places.batch)
    return state.flatten(1).sum(dim=1) == 0
