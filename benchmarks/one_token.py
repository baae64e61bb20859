"""What a model itself reads: how much its logit falls when one token alone becomes that of a black image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import AttentionTap, KnownPlaces, equal_cells
from tests.bright_objects import Scenes
from tests.zoo import logits_of


class Tokens:
    """The tokens in front of the first attention of a model, and passes in which some are those of a black image.

    Args:
        model: in evaluation mode, of which the embedding is known.
        images: (B, C, H, W), as many and as large as those of every pass.

    Attributes:
        slots: number S of tokens that lie nowhere.
        grid: of the others.
        place: (B·T,) of each token: its slot, or S + its cell; −1 for padding.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        known = KnownPlaces(_forgetting(model), images, None, lambda output: [logits_of(output)])
        embedding = known.places.embedding
        assert embedding is not None
        assert embedding.channel_axis is not None
        assert embedding.tokens.grid is not None
        self.slots, self.grid = known.places.slots, embedding.tokens.grid
        self.place, self._image = embedding.tokens.place.flatten(), embedding.tokens.image.flatten()
        self._model, self._number, self._channels = model, known.embedding_number, embedding.channel_axis
        self._area, self._edges = known.places.area, known.places.edges.get(self.grid)

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and the tokens in the form that :meth:`replaced` takes."""
        return self._run(images, None)

    def replaced(self, images: Tensor, tokens: Tensor, black: Tensor, which: Tensor) -> Tensor:
        """Logits (B, K) when of all tokens ``which`` (B·T,) bool are the black ones."""
        kept, others = tokens.movedim(self._channels, -1), black.movedim(self._channels, -1)  # (…, D)
        instead = torch.where(which.view(*kept.shape[:-1], 1), others, kept)
        return self._run(images, instead.movedim(-1, self._channels))[0]

    def map(self, values: Tensor) -> Tensor:
        """Values (B, S + h·w) by place as a map (B, h, w), drawn as the library draws."""
        maps = values[:, self.slots :].unflatten(1, self.grid)
        return maps if self._edges is None else equal_cells(maps, self._edges)

    def on_square(self, scene: Scenes) -> Tensor:
        """Which tokens overlap the square of their image, (B·T,) bool."""
        overlaps = []
        for axis, begins in enumerate((scene.top, scene.left)):
            equal = torch.linspace(self._area[axis], self._area[axis + 2], self.grid[axis] + 1)
            edges = equal if self._edges is None else self._edges[axis]
            overlaps.append((edges[1:] > begins[:, None]) & (edges[:-1] < begins[:, None] + scene.side))  # (B, h)
        cells = (overlaps[0][:, :, None] & overlaps[1][:, None]).flatten(1)  # (B, h·w)
        placed = self.place >= self.slots
        return placed & cells[self._image.clamp_min(0), (self.place - self.slots).clamp_min(0)]

    def _run(self, images: Tensor, instead: Tensor | None) -> tuple[Tensor, Tensor]:
        given = images.clone()  # outside the tap, which would number it
        tap = _Replacing(self._model, self._number, instead)
        with tap:
            output = _forgetting(self._model)(given)
        seen = tap.seen
        assert seen is not None
        tap.release()
        return logits_of(output), seen


@torch.no_grad()
def token_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """One forward pass for each token that is not the same on all images: (B, h, w), on the grid of the embedding.

    Args:
        model: in evaluation mode, of which the embedding is known.
        images: (B, C, H, W).
        classes: (B,) whose logit is read.
    """
    tokens_of = Tokens(model, images)
    whole, tokens = tokens_of.read(images)
    _, black = tokens_of.read(torch.zeros_like(images))
    changes = (tokens != black).movedim(tokens_of._channels, -1).any(dim=-1).flatten()
    found = torch.zeros(len(images), tokens_of.slots + tokens_of.grid[0] * tokens_of.grid[1])
    for one in torch.unique(tokens_of.place[changes & (tokens_of.place >= 0)]).tolist():
        logits = tokens_of.replaced(images, tokens, black, tokens_of.place == one)
        found[:, one] = (whole - logits).gather(1, classes[:, None])[:, 0]
    return tokens_of.map(found)


def _forgetting(model: nn.Module) -> nn.Module:
    """Without what it keeps while it evaluates, of weights that are trained here (LeViT's attention biases)."""
    return model.train().eval()


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
        # A copy: a model that goes on in place would change what was seen.
        return given.clone() if self._instead is None else self._instead
