"""What a model itself reads: how much its logit falls when one token alone becomes that of a black image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import AttentionTap, KnownPlaces, equal_cells
from tests.zoo import logits_of


@torch.no_grad()
def token_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """One forward pass for each token that is not the same on all images: (B, h, w), on the grid of the embedding.

    Args:
        model: in evaluation mode, of which the embedding is known.
        images: (B, C, H, W).
        classes: (B,) whose logit is read.
    """
    known = KnownPlaces(model, images, None, lambda output: [logits_of(output)])
    places = known.places.embedding
    assert places is not None
    assert places.channel_axis is not None
    assert places.tokens.grid is not None
    channels, slots, grid = places.channel_axis, known.places.slots, places.tokens.grid
    pass_of = _Passes(model, known.embedding_number)
    whole, tokens = pass_of(images)
    _, black = pass_of(torch.zeros_like(images))
    tokens, black = (given.movedim(channels, -1) for given in (tokens, black))  # (…, D), the T·B tokens in order
    rows, nothing = tokens.flatten(0, -2), black.flatten(0, -2)
    place = places.tokens.place.view(-1).to(rows.device)
    found = torch.zeros(len(images), slots + grid[0] * grid[1])
    changes = (rows != nothing).any(dim=1)
    for one in torch.unique(place[changes & (place >= 0)]).tolist():
        instead = torch.where((place == one)[:, None], nothing, rows)
        logits, _ = pass_of(images, instead.view_as(tokens).movedim(-1, channels))
        found[:, one] = (whole - logits).gather(1, classes[:, None])[:, 0]
    maps = found[:, slots:].unflatten(1, grid)
    edges = known.places.edges.get(grid)
    return maps if edges is None else equal_cells(maps, edges)


class _Passes:
    """Forward passes of a model, with its embedding, or with another in its place."""

    def __init__(self, model: nn.Module, number: int | None) -> None:
        self._model, self._number = model, number

    def __call__(self, images: Tensor, instead: Tensor | None = None) -> tuple[Tensor, Tensor]:
        given = images.clone()  # outside the tap, which would number it
        tap = _Replacing(self._model, self._number, instead)
        with tap:
            output = self._model(given)
        assert tap.seen is not None
        return logits_of(output), tap.seen


class _Replacing(AttentionTap):
    """Gives the model another tensor for the one with a number."""

    def __init__(self, model: nn.Module, number: int | None, instead: Tensor | None) -> None:
        super().__init__(model)
        self.seen: Tensor | None = None
        self._number, self._instead = number, instead

    def _given(self, output: Any) -> Any:
        given = super()._given(output)
        if self.seen is not None or self.numbered.last != self._number:
            return given
        self.seen = given
        return given if self._instead is None else self._instead
