"""Where the elements of a tensor lie that a model computes, told by its shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightning_attngrad.attention import EmbeddedPlaces, Grid, ImagePlaces, TokenPlaces
from lightning_attngrad.explain.forward_pass import ForwardPass


def places_of_form(shape: Sequence[int], forward: ForwardPass, device: torch.device) -> EmbeddedPlaces | None:
    """Where the tokens of a tensor lie.

    Those of a map (B, D, h, w) or (B, h, w, D) are its rows and columns. Tokens lie where as many do whose places were
    traced: those of the embedding in the same form, or what an attention call reads or asks for, one row an image.

    Args:
        shape: of the tensor.
        forward: the pass that it belongs to.
        device: that it lies on.

    Returns:
        Its places; None where they are not known.
    """
    embedding, known = forward.tap.embedding, forward.places
    if embedding is not None and known.embedding is not None and _same_form(embedding.shape, shape, known.embedding):
        return known.embedding
    if shape[0] != forward.batch:
        return None
    if len(shape) == 4:
        axis = _channel_axis(shape, forward.image_size)
        if axis is None:
            return None
        height, width = (size for number, size in enumerate(shape[1:], -3) if number != axis)
        return EmbeddedPlaces(axis, _in_reading_order((height, width), known, device))
    if len(shape) == 3:
        for call in reversed(known.calls):
            for tokens in (call.queries, call.keys):
                if tokens.place.shape == (forward.batch, 1, shape[1]):
                    one_row = TokenPlaces(tokens.image.reshape(1, 1, -1), tokens.place.reshape(1, 1, -1), tokens.grid)
                    return EmbeddedPlaces(-1, one_row)
    return None


def _same_form(embedding: Sequence[int], other: Sequence[int], places: EmbeddedPlaces) -> bool:
    """Whether a tensor is shaped like the embedding, channels apart."""
    if len(embedding) != len(other):
        return False
    shapes = [list(embedding), list(other)]
    for shape in shapes:
        del shape[places.channel_axis]
    return shapes[0] == shapes[1]


def _channel_axis(shape: Sequence[int], image_size: Grid) -> int | None:
    """Which axis of (B, D, h, w) or (B, h, w, D) is D: the two others have the proportions of the image, nearly."""

    def distortion(grid: Grid) -> float:
        return abs(math.log(image_size[0] / grid[0]) - math.log(image_size[1] / grid[1]))

    _, first, second, third = shape
    last, front = distortion((first, second)), distortion((second, third))
    axis, grid, least = (-1, (first, second), last) if last < front else (-3, (second, third), front)
    # Rounding up and padding to whole windows move a side by a cell or so.
    return axis if least <= 1.5 / min(grid) and grid[0] <= image_size[0] and grid[1] <= image_size[1] else None


def _in_reading_order(grid: Grid, known: ImagePlaces, device: torch.device) -> TokenPlaces:
    """(1, 1, B·h·w): all images, row by row."""
    cells = grid[0] * grid[1]
    numbers = torch.arange(known.batch * cells, device=device)
    return TokenPlaces((numbers // cells).view(1, 1, -1), (known.slots + numbers % cells).view(1, 1, -1), grid)
