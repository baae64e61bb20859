"""From the numbered places of one traced pass to places on grids, for a batch of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_attngrad.attention.followed import Followed
from lightning_attngrad.attention.lattices import NotPlacedError, PlaceReader
from lightning_attngrad.attention.obstacles import ReachedCall, find_obstacle
from lightning_attngrad.attention.places import (
    CallPlaces,
    ImagePlaces,
    TensorPlaces,
    TokenPlaces,
)
from lightning_attngrad.attention.traced_tensors import TracedTensors, of_batch, stride_of
from lightning_attngrad.attention.weights import UnreadSoftmax


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
        values_read: the bits that its values depend on.
    """

    name: str
    shape: tuple[int, int, int, int]
    queries: Tensor
    keys: Tensor
    kind: Literal["tokens", "channels", "elsewhere"]
    bit: int
    reads: int
    values_read: int


@dataclass(frozen=True, eq=False)
class TracedPlaces:
    """What one traced pass found; :meth:`of_batch` gives it for a number of images.

    Attributes:
        places: of the traced batch.
        chosen: whether tokens were picked by what the images hold, or by chance: it then holds for this pass only.
        strides: for each call, after how many rows the next image follows; None where an image's tokens are no rows.
        tensors: places of what functions gave the model.
        embedding_number: by which a tap knows the embedding; None where the model has none.
        detached: whether no gradient leads from the output to the images.
        moves: of the tap, by which a pass is known that moves its tokens otherwise.
        count: how many tensors functions gave the model.
    """

    places: ImagePlaces
    chosen: bool
    strides: tuple[int | None, ...]
    tensors: TracedTensors
    embedding_number: int | None
    detached: bool = False
    moves: int = 0
    count: int = 0
    _known: dict[int, ImagePlaces] = field(default_factory=dict, init=False, repr=False)

    def holds_for(self, batch: int) -> bool:
        """Whether places of so many images follow from those of the traced ones."""
        calls_hold = batch == self.places.batch or (self.places.batch > 1 and None not in self.strides)
        return calls_hold and self.tensors.holds_for(self.embedding_number, batch)

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
        embedding = _embedding(self.tensors, self.embedding_number, batch)
        return ImagePlaces(calls, found.slots, found.grid, embedding, found.area, batch, found.obstacle, found.edges)


def traced_places(
    model_name: str,
    followed: Followed,
    calls: list[SeenCall],
    answer: int,
    outputs: Mapping[int, Tensor],
    embedding_number: int | None,
    unread: tuple[UnreadSoftmax, ...],
) -> TracedPlaces:
    """Places of all calls, and what stands in the way of a map.

    Args:
        model_name: for messages.
        followed: after the pass.
        calls: in order.
        answer: bits of what the explained output depends on.
        outputs: ids of what functions gave the model, by number.
        embedding_number: which of them is the embedding; None where the model has none.
        unread: softmaxes that no attention call was made of.
    """
    table = followed.table
    reader = PlaceReader(table)
    placed, strides = [], []
    reached: list[ReachedCall] = []
    for call in calls:
        reads, values_of = (_numbers(calls, bits) for bits in (call.reads, call.values_read))
        queries, keys, heads, stride = _NOWHERE, _NOWHERE, call.shape[1], None
        reason: str | None = None
        if call.kind == "tokens":
            try:
                queries, keys = reader.tokens(call.queries), reader.tokens(call.keys)
                heads = call.shape[1] if keys.place.shape[1] == 1 else 1
                heads *= _alike(keys)
                stride = stride_of(queries, keys, followed.batch)
            except NotPlacedError as error:
                reason = str(error)
        if call.bit & answer:
            reached.append(ReachedCall(call.name, call.kind, reason))
        strides.append(stride if call.kind == "tokens" else 1)
        counts = bool(call.bit & answer)
        placed.append(CallPlaces(call.name, call.shape, queries, keys, heads, call.kind, reads, counts, values_of))
    counting = [place for call, place in zip(calls, placed, strict=True) if call.bit & answer and call.kind == "tokens"]
    grids = [place.keys.grid for place in counting if place.keys.grid is not None]
    grid = max(grids, key=math.prod) if grids else None
    area = reader.areas.get(grid, (0, 0, *table.size)) if grid is not None else (0, 0, *table.size)
    tensors = TracedTensors(reader, outputs, followed.batch)
    embedding = _embedding(tensors, embedding_number, followed.batch)
    if grid is None and embedding is not None and embedding.tokens.grid is not None:
        area = reader.areas[embedding.tokens.grid]
    obstacle = find_obstacle(model_name, followed, answer, reached, unread, grid, has_embedding=embedding is not None)
    found = ImagePlaces(tuple(placed), table.slots, grid, embedding, area, followed.batch, obstacle, reader.edges)
    return TracedPlaces(found, followed.chosen, tuple(strides), tensors, embedding_number)


def _numbers(calls: list[SeenCall], bits: int) -> frozenset[int]:
    return frozenset(number for number, call in enumerate(calls) if call.bit & bits)


_NOWHERE = TokenPlaces(torch.full((1, 1, 1), -1), torch.full((1, 1, 1), -1), None)


def _embedding(tensors: TracedTensors, number: int | None, batch: int) -> TensorPlaces | None:
    """Places of the embedding, whose tokens are each at one place."""
    places = tensors.places(number, batch)
    return None if places is None or places.channel_axis is None else places


def _alike(tokens: TokenPlaces) -> int:
    """How many rows and heads hold the same tokens: heads that were folded into the rows.

    Raises:
        NotPlacedError: if it is not the same number for all.
    """
    both = torch.stack([tokens.image, tokens.place], dim=-1).flatten(2).flatten(0, 1)  # (R·G, N·2)
    real = tokens.place.flatten(0, 1).ge(0).any(dim=1)
    _, counts = torch.unique(both[real], dim=0, return_counts=True)
    if not len(counts):
        return 1
    if bool((counts != counts[0]).any()):
        raise NotPlacedError("reads some tokens more often than others, and not by a number of heads")
    return int(counts[0])


def _call_of_batch(call: CallPlaces, stride: int, traced: int, batch: int) -> CallPlaces:
    shape = (call.shape[0] // traced * batch, *call.shape[1:])
    if call.kind != "tokens" or call.keys is _NOWHERE:
        return replace(call, shape=shape)
    queries, keys = (of_batch(side, stride, traced, batch) for side in (call.queries, call.keys))
    return replace(call, shape=shape, queries=queries, keys=keys)
