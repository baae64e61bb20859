"""Relevance of all tokens of an image, and how an attention call takes from it and adds to it, by places.

The relevance of everything on one grid is a *state*, (B, K, S + h·w): K maps side by side, first the S slots (tokens
that lie nowhere on the image), then the cells of the grid in reading order. On no grid at all it is the slots alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.places import Area, CallPlaces, Grid, ImagePlaces, TokenPlaces, carry, means_of_cells


def gather_tokens(state: Tensor, places: TokenPlaces, slots: int) -> Tensor:
    """What a state has at the places of a call's tokens; 0 at padding.

    Args:
        state: (B, K, S + h·w) on the grid of ``places``; (B, K, S) where that has none.
        places: R rows of N tokens, once or for each head.
        slots: S.

    Returns:
        (R, K, G, N).

    Example:
        >>> state = torch.tensor([[[7.0, 1.0, 2.0]]])  # one slot, a grid of one row and two cells
        >>> place = torch.tensor([[[2, 0, -1]]])
        >>> gather_tokens(state, TokenPlaces(place.sign().clamp_max(0), place, (1, 2)), slots=1)
        tensor([[[[2., 7., 0.]]]])
    """
    if places.in_order:
        return state[..., : places.place.shape[-1]].unsqueeze(2)
    tokens = slots + _cells(places.grid)
    by_token = state.transpose(1, 2).flatten(0, 1)  # (B·tokens, K)
    by_token = F.pad(by_token, (0, 0, 0, 1))  # padding reads from a row of zeros behind
    return by_token[_flat(places, tokens, len(state))].permute(0, 3, 1, 2)


def gather_queries(state: Tensor, call: CallPlaces, slots: int) -> Tensor:
    """What a state has at the query tokens of a call, (R, K, G, N); a token that stands there several times shares it.

    Each copy then counts as in their mean: a class token that was put into every window, and is their mean afterwards.

    Example:
        >>> once = TokenPlaces(torch.zeros(2, 1, 2).long(), torch.tensor([[[0, 1]], [[0, 2]]]), (1, 2))  # two windows
        >>> call = CallPlaces("attn", (2, 1, 2, 2), once, once, heads=1, kind="tokens", reads=frozenset())
        >>> gather_queries(torch.tensor([[[8.0, 1.0, 2.0]]]), call, slots=1).squeeze()
        tensor([[4., 1.],
                [4., 2.]])
    """
    rows = gather_tokens(state, call.queries, slots)
    return rows if call.copies is None else rows / call.copies.unsqueeze(1)


def scatter_tokens(values: Tensor, places: TokenPlaces, slots: int, batch: int) -> Tensor:
    """Values of a call's tokens as a state: they add up where several tokens lie on one place; padding is dropped.

    Args:
        values: (R, K, G, N).
        places: of the tokens.
        slots: S.
        batch: number of images B.

    Returns:
        (B, K, S + h·w) on the grid of ``places``; (B, K, S) where that has none.

    Example:
        >>> place = torch.tensor([[[2, 0, -1, 2]]])
        >>> places = TokenPlaces(place.sign().clamp_max(0), place, (1, 2))
        >>> scatter_tokens(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), places, slots=1, batch=1)
        tensor([[[2., 0., 5.]]])
    """
    tokens = slots + _cells(places.grid)
    if places.in_order:
        missing = tokens - values.shape[-1]
        return F.pad(values.squeeze(2), (0, missing)) if missing else values.squeeze(2)
    by_token = values.new_zeros(batch * tokens + 1, values.shape[1])  # padding is added to a row behind
    by_token.index_add_(0, _flat(places, tokens, batch).flatten(), values.permute(0, 2, 3, 1).flatten(0, 2))
    state: Tensor = by_token[:-1].unflatten(0, (batch, tokens))
    return state.transpose(1, 2)


def carry_tokens(state: Tensor, slots: int, source: Grid | None, to: Grid | None) -> Tensor:
    """A state (…, S + h·w) on another grid, (…, S + h'·w'), see :func:`carry`; slots stay as they are.

    Example:
        >>> carry_tokens(torch.tensor([9.0, 4.0, 8.0]), slots=1, source=(1, 2), to=(2, 2))
        tensor([9., 2., 4., 2., 4.])
    """
    if source == to:
        return state
    in_front = state[..., :slots]
    if to is None:
        return in_front
    if source is None:
        return F.pad(in_front, (0, _cells(to)))
    return torch.cat([in_front, carry(state[..., slots:].unflatten(-1, source), to).flatten(-2)], dim=-1)


def row_images(places: TokenPlaces) -> Tensor:
    """To which image of the batch each row belongs, (R,) int64; −1 where a row is all padding."""
    return places.image.flatten(1).amax(dim=1)


def sum_by_image(values: Tensor, places: TokenPlaces, batch: int) -> Tensor:
    """Sum over the rows (R, …) of each image, (B, …)."""
    if places.in_order:
        return values
    images = row_images(places)
    total = values.new_zeros(batch + 1, *values.shape[1:])
    return total.index_add_(0, torch.where(images < 0, batch, images), values)[:-1]


def in_cells(masks: Tensor, grid: Grid, places: ImagePlaces) -> Tensor:
    """Which part of what each token of a grid reads lies in masks, (B, h, w).

    Args:
        masks: (B, H, W) float, of the part of the images that the model sees, see :func:`within_area`.
        grid: of the tokens.
        places: of the model.

    Example:
        >>> places = ImagePlaces((), 0, (1, 2), None, (0, 0, 1, 4), 1)
        >>> in_cells(torch.tensor([[[1.0, 1.0, 1.0, 0.0]]]), (1, 2), places)
        tensor([[[1.0000, 0.5000]]])
    """
    edges = places.edges.get(grid)
    if edges is not None:
        return means_of_cells(masks, edges)
    cells, pixels = grid[0] * grid[1], masks.shape[-2] * masks.shape[-1]
    return carry(masks, grid) * (cells / pixels)


def within_area(pixels: Tensor, area: Area) -> Tensor:
    """The part of images or masks (…, H, W) that a map covers; what is smaller than that part lies on a grid over it.

    Args:
        pixels: of the image's size, or of another grid.
        area: top, left, bottom, right in pixels, see :attr:`ImagePlaces.area`.

    Example:
        >>> within_area(torch.arange(16).view(4, 4), (1, 1, 3, 3))
        tensor([[ 5,  6],
                [ 9, 10]])
        >>> within_area(torch.eye(2), (1, 1, 3, 3)).shape
        torch.Size([2, 2])
    """
    top, left, bottom, right = area
    if pixels.shape[-2] < bottom or pixels.shape[-1] < right:
        return pixels
    return pixels[..., top:bottom, left:right]


def _cells(grid: Grid | None) -> int:
    return 0 if grid is None else grid[0] * grid[1]


def _flat(places: TokenPlaces, tokens: int, batch: int) -> Tensor:
    """Numbers of the tokens among those of the whole batch, (R, G, N); padding has the one behind the last."""
    padding = torch.minimum(places.image, places.place) < 0
    return torch.where(padding, batch * tokens, places.image * tokens + places.place)
