"""From the numbered places of one traced pass to places on grids, for a batch of any size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_attngrad.attention.followed import Followed
from lightning_attngrad.attention.obstacles import ReachedCall, find_obstacle
from lightning_attngrad.attention.place_table import PlaceTable
from lightning_attngrad.attention.places import (
    CallPlaces,
    EmbeddedPlaces,
    Grid,
    ImagePlaces,
    TokenPlaces,
)
from lightning_attngrad.attention.weights import UnreadSoftmax

Area = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class SeenCall:
    """One attention call of the traced pass.

    Attributes:
        name: of the call.
        shape: (R, H, N, M).
        queries: ids, (R, H or 1, N).
        keys: ids, (R, H or 1, M).
        kind: as :class:`CallPlaces` has it.
        bit: by which tensors remember that they depend on it.
        reads: the bits that it depends on.
    """

    name: str
    shape: tuple[int, int, int, int]
    queries: Tensor
    keys: Tensor
    kind: Literal["tokens", "channels", "elsewhere"]
    bit: int
    reads: int


class _NotPlacedError(Exception):
    """Tokens that lie on no grid; the message says why."""


@dataclass(frozen=True, eq=False)
class _Lattice:
    """The cells of one family of places.

    Attributes:
        grid: rows and columns.
        cells: (E,) cell of each line of the table; −1 for lines of other families.
        area: that they cover, in pixels.
    """

    grid: Grid
    cells: Tensor
    area: Area


@dataclass(frozen=True, eq=False)
class TracedPlaces:
    """What one traced pass found; :meth:`of_batch` gives it for a number of images.

    Attributes:
        places: of the traced batch.
        chosen: whether tokens were picked by what the images hold, or by chance: it then holds for this pass only.
        strides: for each call, after how many rows the next image follows; None where an image's tokens are no rows.
        embedded_stride: the same of the tokens of the embedding.
        embedding_number: by which a tap knows the embedding; None where the model has none.
        detached: whether no gradient leads from the output to the images.
        moves: of the tap, by which a pass is known that moves its tokens otherwise.
        tensors: how many of them functions gave the model.
    """

    places: ImagePlaces
    chosen: bool
    strides: tuple[int | None, ...]
    embedded_stride: int | None
    embedding_number: int | None = None
    detached: bool = False
    moves: int = 0
    tensors: int = 0
    _known: dict[int, ImagePlaces] = field(default_factory=dict, init=False, repr=False)

    def holds_for(self, batch: int) -> bool:
        """Whether places of so many images follow from those of the traced ones."""
        strides = (*self.strides, self.embedded_stride if self.places.embedding is not None else 1)
        return batch == self.places.batch or (self.places.batch > 1 and None not in strides)

    def of_batch(self, batch: int) -> ImagePlaces:
        """Places of ``batch`` images."""
        if batch not in self._known:
            self._known[batch] = self.places if batch == self.places.batch else self._of_batch(batch)
        return self._known[batch]

    def _of_batch(self, batch: int) -> ImagePlaces:
        found = self.places
        calls = tuple(
            _call_of_batch(call, stride or 1, found.batch, batch)
            for call, stride in zip(found.calls, self.strides, strict=True)
        )
        embedding = found.embedding
        if embedding is not None:
            rows = _turned(_of_batch(_turned(embedding.tokens), self.embedded_stride or 1, found.batch, batch))
            embedding = EmbeddedPlaces(embedding.channel_axis, rows)
        return ImagePlaces(calls, found.slots, found.grid, embedding, found.area, batch, found.obstacle)


def traced_places(
    model_name: str,
    followed: Followed,
    calls: list[SeenCall],
    answer: int,
    embedded: Tensor | None,
    unread: tuple[UnreadSoftmax, ...],
) -> TracedPlaces:
    """Places of all calls, and what stands in the way of a map.

    Args:
        model_name: for messages.
        followed: after the pass.
        calls: in order.
        answer: bits of what the explained output depends on.
        embedded: ids of the embedding.
        unread: softmaxes that no attention call was made of.
    """
    table = followed.table
    reader = _Reader(table)
    placed, strides = [], []
    reached: list[ReachedCall] = []
    for call in calls:
        reads = frozenset(number for number, other in enumerate(calls) if other.bit & call.reads)
        queries, keys, heads, stride = _NOWHERE, _NOWHERE, call.shape[1], None
        reason: str | None = None
        if call.kind == "tokens":
            try:
                queries, keys = reader.tokens(call.queries), reader.tokens(call.keys)
                heads = call.shape[1] if keys.place.shape[1] == 1 else 1
                heads *= _alike(keys)
                stride = _stride(queries, keys, followed.batch)
            except _NotPlacedError as error:
                reason = str(error)
        if call.bit & answer:
            reached.append(ReachedCall(call.name, call.kind, reason))
        strides.append(stride if call.kind == "tokens" else 1)
        counts = bool(call.bit & answer)
        placed.append(CallPlaces(call.name, call.shape, queries, keys, heads, call.kind, reads, counts))
    counting = [place for call, place in zip(calls, placed, strict=True) if call.bit & answer and call.kind == "tokens"]
    grids = [place.keys.grid for place in counting if place.keys.grid is not None]
    grid = max(grids, key=math.prod) if grids else None
    area = reader.areas.get(grid, (0, 0, *table.size)) if grid is not None else (0, 0, *table.size)
    embedding, embedded_stride = (None, None) if embedded is None else _embedded(reader, embedded, followed.batch)
    if grid is None and embedding is not None and embedding.tokens.grid is not None:
        area = reader.areas[embedding.tokens.grid]
    obstacle = find_obstacle(model_name, followed, answer, reached, unread, grid, has_embedding=embedding is not None)
    found = ImagePlaces(tuple(placed), table.slots, grid, embedding, area, followed.batch, obstacle)
    return TracedPlaces(found, followed.chosen, tuple(strides), embedded_stride)


_NOWHERE = TokenPlaces(torch.full((1, 1, 1), -1), torch.full((1, 1, 1), -1), None)


class _Reader:
    """Reads places off ids."""

    def __init__(self, table: PlaceTable) -> None:
        self.areas: dict[Grid, Area] = {}
        self._table = table
        self._lattices: dict[int, _Lattice] = {}

    def tokens(self, ids: Tensor) -> TokenPlaces:
        """Places of ids (R, G, N)."""
        table, lines = self._table, ids.long()
        image = table.images_of(ids).long()
        slot = torch.where(ids > 0, table.slot[lines], -1).long()
        boxed = (ids > 0) & (slot < 0)
        if not bool(boxed.any()):
            place = torch.where(slot >= 0, slot, -1)
            return TokenPlaces(image, place, None)
        families = torch.unique(table.family[lines[boxed]]).tolist()
        lattices = [self._lattice(family) for family in families]
        grids = {lattice.grid for lattice in lattices}
        if len(grids) > 1:
            sizes = " and ".join(f"{height}×{width}" for height, width in sorted(grids))
            raise _NotPlacedError(f"reads tokens of several grids in one sequence ({sizes})")
        grid = lattices[0].grid
        cells = torch.stack([lattice.cells[lines] for lattice in lattices]).amax(0)
        cells, grid = _every_other(cells, boxed, grid)
        self.areas.setdefault(grid, lattices[0].area)
        place = torch.where(boxed, table.slots + cells, torch.where(slot >= 0, slot, -1))
        rows = torch.arange(len(place), device=place.device)[:, None, None]
        order = torch.arange(place.shape[-1], device=place.device)
        in_order = (
            place.shape[1] == 1
            and place.shape[-1] == table.slots + math.prod(grid)
            and bool((place == order).all())
            and bool((image == rows).all())
        )
        return TokenPlaces(image, place, grid, in_order)

    def _lattice(self, family: int) -> _Lattice:
        if family not in self._lattices:
            self._lattices[family] = self._read_lattice(family)
        return self._lattices[family]

    def _read_lattice(self, family: int) -> _Lattice:
        table = self._table
        of_family = (table.family == family) & (table.slot < 0)
        of_family[0] = False
        boxes, images = table.boxes[of_family], table.image[of_family]
        middle = torch.stack([boxes[:, 0] + boxes[:, 1], boxes[:, 2] + boxes[:, 3]], dim=1) / 2
        sizes = torch.stack([boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]], dim=1)
        first = images == images.min()
        rows, height = _levels(middle[:, 0], sizes[:, 0])
        columns, width = _levels(middle[:, 1], sizes[:, 1])
        cells = rows * width + columns
        several = torch.unique(cells[first])
        if len(several) != height * width or int(first.sum()) != height * width:
            raise _NotPlacedError(
                f"reads {int(first.sum())} tokens an image that form no grid ({height} different rows and {width} "
                "different columns): patches were mixed, or cut unevenly, before it"
            )
        if bool(table.covers_image(boxes).all()) and height * width == 1 and bool(table.mixed[of_family].any()):
            raise _NotPlacedError("reads tokens that are each made of the whole image")
        everywhere = torch.full_like(table.family, -1, dtype=torch.long)
        everywhere[of_family] = cells
        edges = boxes[:, 0].min(), boxes[:, 2].min(), boxes[:, 1].max(), boxes[:, 3].max()
        top, left, bottom, right = (round(edge) for edge in torch.stack(edges).tolist())
        return _Lattice((height, width), everywhere, (top, left, bottom, right))


def _every_other(cells: Tensor, boxed: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """Where only every s-th row and column of a grid is left (queries that are every other token): the coarser grid."""
    rows, columns = torch.unique(cells[boxed] // grid[1]), torch.unique(cells[boxed] % grid[1])
    steps, coarse = [], []
    for kept, length in ((rows, grid[0]), (columns, grid[1])):
        between = torch.unique(kept.diff()).tolist()
        step = between[0] if len(between) == 1 and len(kept) == -(-length // between[0]) else 1
        steps.append(step)
        coarse.append(len(kept) if step > 1 else length)
    if steps == [1, 1] or len(torch.unique(cells[boxed])) != len(rows) * len(columns):
        return cells, grid
    row, column = cells // grid[1] // steps[0], cells % grid[1] // steps[1]
    return torch.where(boxed, row * coarse[1] + column, -1), (coarse[0], coarse[1])


def _levels(middles: Tensor, sizes: Tensor) -> tuple[Tensor, int]:
    """Number of each value among the different ones, in rising order, and how many there are."""
    ordered, order = middles.sort()
    rises = ordered.diff() > 0.05 * sizes.amin()
    levels = torch.cat([rises.new_zeros(1), rises]).long()
    number = torch.zeros_like(levels)
    number[order] = levels.cumsum(0)
    return number, int(levels.sum()) + 1


def _alike(tokens: TokenPlaces) -> int:
    """How many rows and heads hold the same tokens: heads that were folded into the rows.

    Raises:
        _NotPlacedError: if it is not the same number for all.
    """
    both = torch.stack([tokens.image, tokens.place], dim=-1).flatten(2).flatten(0, 1)  # (R·G, N·2)
    real = tokens.place.flatten(0, 1).ge(0).any(dim=1)
    _, counts = torch.unique(both[real], dim=0, return_counts=True)
    if not len(counts):
        return 1
    if bool((counts != counts[0]).any()):
        raise _NotPlacedError("reads some tokens more often than others, and not by a number of heads")
    return int(counts[0])


def _stride(queries: TokenPlaces, keys: TokenPlaces, batch: int) -> int | None:
    """After how many rows the next image follows, round and round; None where a row has tokens of several images."""
    images = keys.image if len(keys.image) >= len(queries.image) else queries.image
    rows = len(images)
    most = images.amax(dim=(1, 2))
    least = torch.where(images >= 0, images, batch).amin(dim=(1, 2))
    known = most >= 0
    if batch < 2 or bool((most != least)[known].any()):
        return None
    numbers = torch.arange(rows, device=images.device)
    for stride in range(1, rows // batch + 1):
        if rows % (stride * batch) == 0 and bool((numbers // stride % batch == most)[known].all()):
            return stride
    return None


def _call_of_batch(call: CallPlaces, stride: int, traced: int, batch: int) -> CallPlaces:
    shape = (call.shape[0] // traced * batch, *call.shape[1:])
    if call.kind != "tokens" or call.keys is _NOWHERE:
        return replace(call, shape=shape)
    queries, keys = (_of_batch(side, stride, traced, batch) for side in (call.queries, call.keys))
    return replace(call, shape=shape, queries=queries, keys=keys)


def _of_batch(tokens: TokenPlaces, stride: int, traced: int, batch: int) -> TokenPlaces:
    """Rows of ``batch`` images, in the order in which those of ``traced`` images lie."""
    place = tokens.place.unflatten(0, (-1, traced, stride))[:, :1]  # (outer, 1, stride, G, N)
    place = place.expand(-1, batch, *place.shape[2:])
    image = torch.arange(batch, device=place.device).view(1, -1, 1, 1, 1).expand_as(place)
    image = torch.where(place >= 0, image, -1)
    return replace(tokens, image=image.flatten(0, 2), place=place.flatten(0, 2))


def _embedded(reader: _Reader, ids: Tensor, batch: int) -> tuple[EmbeddedPlaces | None, int | None]:
    """Places of the tokens of a tensor with these ids, and after how many of them the next image follows."""
    channels = [
        axis for axis in range(1, ids.dim()) if ids.shape[axis] > 1 and bool((ids == ids.narrow(axis, 0, 1)).all())
    ]
    if not channels:
        return None, None
    axis = channels[-1]
    try:
        tokens = reader.tokens(ids.select(axis, 0).reshape(-1, 1, 1))
    except _NotPlacedError:
        return None, None
    if tokens.grid is None:
        return None, None
    stride = _stride(tokens, tokens, batch)
    return EmbeddedPlaces(axis - ids.dim(), _turned(tokens)), stride


def _turned(tokens: TokenPlaces) -> TokenPlaces:
    """T rows of one token, (T, 1, 1), as one row of T tokens, (1, 1, T), and the other way round."""
    return replace(tokens, image=tokens.image.permute(2, 1, 0), place=tokens.place.permute(2, 1, 0), in_order=False)
