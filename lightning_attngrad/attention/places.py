"""Where on the image the tokens of every attention call lie, and how relevance is carried from grid to grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Grid = tuple[int, int]
#: Top, left, bottom, right in pixels.
Area = tuple[int, int, int, int]
#: Where the h rows of cells of a grid begin, and the last one ends, in pixels, (h + 1,); the same of its columns.
Edges = tuple[Tensor, Tensor]


class UnsupportedModelError(ValueError):
    """The model has no attention that can be read as one map over the image."""


class NoAttentionError(UnsupportedModelError):
    """The model attends to nothing: what of it can be explained is what needs no attention."""


@dataclass(frozen=True, eq=False)
class TokenPlaces:
    """Places of a set of tokens: R rows of N tokens, once (G = 1) or for each head (G = H).

    A place is one number: ``0 … S−1`` for a token that lies nowhere on the image (class, register, query tokens; S of
    them in the model), ``S + row·w + column`` for one that lies on cell (row, column) of ``grid``, and −1 for padding.

    Attributes:
        image: (R, G, N) int64, to which image of the batch each token belongs; −1 for padding.
        place: (R, G, N) int64.
        grid: rows and columns (h, w) of the cells; None where no token lies on the image.
        in_order: whether row r is image r and token n has place n: nothing has to be moved.
    """

    image: Tensor
    place: Tensor
    grid: Grid | None
    in_order: bool = False


@dataclass(frozen=True, eq=False)
class CallPlaces:
    """Places of one attention call, whose probabilities are (R, H, N, M).

    Attributes:
        name: of the call.
        shape: (R, H, N, M).
        queries: of the N query tokens.
        keys: of the M key tokens.
        heads: how many matrices are averaged for a query token: H, or more where heads are folded into the rows.
        kind: ``tokens`` read from tokens. ``channels``: channels read from channels, and every token stays where it
            is. ``elsewhere``: nothing that it reads comes from the image.
        reads: numbers of the earlier calls whose output it reads, directly or through other calls.
        counts: whether the output depends on it.
        values_of: numbers of the earlier calls whose output its values read, directly or through other calls.
    """

    name: str
    shape: tuple[int, int, int, int]
    queries: TokenPlaces
    keys: TokenPlaces
    heads: int
    kind: Literal["tokens", "channels", "elsewhere"]
    reads: frozenset[int]
    counts: bool = True
    values_of: frozenset[int] = frozenset()

    @cached_property
    def copies(self) -> Tensor | None:
        """How often each query token stands in the call, (R, G, N): a class token that is put into every window does.

        Heads that were folded into the rows are no copies. None where each token stands there once.
        """
        image, place = self.queries.image, self.queries.place
        if self.queries.in_order or not place.numel():
            return None
        numbers = torch.where(place < 0, -1, image * (place.max() + 1) + place)
        _, which, counts = torch.unique(numbers, return_inverse=True, return_counts=True)
        folded = self.heads // (self.shape[1] if self.keys.place.shape[1] == 1 else 1)
        copies = torch.where(place < 0, 1, counts[which] // folded)
        return copies if bool((copies > 1).any()) else None


@dataclass(frozen=True, eq=False)
class TensorPlaces:
    """Places of the tokens of a tensor that the model computes.

    Attributes:
        channel_axis: of the tensor, counted from the end (−1 for (B, N, D), −3 for (B, D, h, w)); None where channels
            of one token lie apart (patches that are about to be merged): every element is then a token.
        tokens: R = 1 row of all the tensor's T tokens in order, channels left out.
        owners: to which image each token belongs, padding included, (T,) int64; None where that of padding is not
            known.
        padded: whether there is any padding.
    """

    channel_axis: int | None
    tokens: TokenPlaces
    owners: Tensor | None = None
    padded: bool = False


@dataclass(frozen=True, eq=False)
class ImagePlaces:
    """Places of everything that a forward pass on a batch of images of one size attends to.

    Attributes:
        calls: the attention calls, first call first.
        slots: number S of tokens that lie nowhere on the image.
        grid: the finest grid of the calls' keys, on which maps of the attention are drawn; None without any.
        embedding: of the tokens at which relevance is measured; None where they are not known.
        area: top, left, bottom, right in pixels of the part of the images that the model sees.
        batch: number of images B.
        obstacle: why maps of the attention cannot be drawn; None where they can.
        edges: of the cells of grids whose tokens do not read equal parts of the area, see :func:`equal_cells`.
    """

    calls: tuple[CallPlaces, ...]
    slots: int
    grid: Grid | None
    embedding: TensorPlaces | None
    area: Area
    batch: int
    obstacle: UnsupportedModelError | None = None
    edges: Mapping[Grid, Edges] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """How many numbers a map on :attr:`grid` has: S + h·w."""
        return self.slots + (math.prod(self.grid) if self.grid is not None else 0)


def carry(values: Tensor, to: Grid) -> Tensor:
    """Cells (…, h, w) on another grid over the same area, (…, h', w'); the sum is kept.

    A cell shares what it has among the cells that it overlaps, by area.

    Example:
        >>> carry(torch.tensor([[4.0, 8.0]]), (2, 2))
        tensor([[2., 4.],
                [2., 4.]])
        >>> carry(torch.tensor([[2.0, 4.0], [2.0, 4.0]]), (1, 2))
        tensor([[4., 8.]])
    """
    height, width = values.shape[-2:]
    if (height, width) == to:
        return values
    rows, columns = _overlap(height, to[0], values), _overlap(width, to[1], values)
    return torch.einsum("ih,...hw,jw->...ij", rows, values, columns)


def equal_cells(values: Tensor, edges: Edges) -> Tensor:
    """What lies on h × w equal parts of an area, of cells (…, h, w) with other edges: means by area, (…, h, w).

    The middle of what a token of a convolutional stem reads is not the middle of an equal part: with kernel 3, stride 2
    and padding 1 it is half a pixel further up and to the left, and behind four of these half a token. Its cell reaches
    half-way to its neighbours', and the outermost ones to the edge of what is seen. Equal values stay equal; the sum is
    kept but for what the outermost cells cover more or less.

    Example:
        >>> edges = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.5, 4.0])
        >>> equal_cells(torch.tensor([[4.0, 8.0]]), edges)
        tensor([[5., 8.]])
    """
    rows, columns = (_of_equal(of_axis.to(values)) for of_axis in edges)
    return torch.einsum("ih,...hw,jw->...ij", rows, values, columns)


def means_of_cells(pixels: Tensor, edges: Edges) -> Tensor:
    """Mean of pixels (…, H, W), which cover what the edges do, over each cell, (…, h, w).

    Example:
        >>> edges = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0, 4.0])
        >>> means_of_cells(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), edges)
        tensor([[1.0000, 0.6667]])
    """
    shares = []
    for of_axis, length in zip(edges, pixels.shape[-2:], strict=True):
        of_pixels = _shared(of_axis.to(pixels), _equal(of_axis.to(pixels), length))  # (h, H)
        shares.append(of_pixels / of_pixels.sum(dim=1, keepdim=True))
    return torch.einsum("ih,...hw,jw->...ij", shares[0], pixels, shares[1])


def _of_equal(edges: Tensor) -> Tensor:
    """Which share of each of as many equal parts of a length each part with these edges has: (equal, parts)."""
    equal = _equal(edges, len(edges) - 1)
    return _shared(equal, edges) / equal.diff()[:, None]


def _equal(edges: Tensor, count: int) -> Tensor:
    """Edges of so many equal parts of the same length, (count + 1,)."""
    parts = torch.linspace(0, 1, count + 1, device=edges.device, dtype=edges.dtype)
    return edges[0] + parts * (edges[-1] - edges[0])


def _shared(one: Tensor, other: Tensor) -> Tensor:
    """Length that each part between edges (n + 1,) shares with each between others (m + 1,): (n, m)."""
    end = torch.minimum(one[1:, None], other[1:])
    return (end - torch.maximum(one[:-1, None], other[:-1])).clamp_min(0)


def _overlap(source: int, target: int, like: Tensor) -> Tensor:
    """Which share of each of ``source`` equal parts of a length lies in each of ``target``: (target, source)."""
    begins = torch.arange(source, device=like.device, dtype=like.dtype) * target
    lands = torch.arange(target, device=like.device, dtype=like.dtype)[:, None] * source
    shared = torch.minimum(begins + target, lands + source) - torch.maximum(begins, lands)
    return shared.clamp_min(0) / target
