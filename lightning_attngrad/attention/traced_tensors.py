"""Where the elements of a tensor lie that a model computes, for a batch of any size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_attngrad.attention.lattices import NotPlacedError, PlaceReader
from lightning_attngrad.attention.places import TensorPlaces, TokenPlaces


class TracedTensors:
    """Places of the tensors that the functions of torch gave a model in one traced pass.

    Args:
        reader: of the pass.
        ids: of the elements of each tensor, by its number.
        batch: number of traced images.
    """

    def __init__(self, reader: PlaceReader, ids: Mapping[int, Tensor], batch: int) -> None:
        self._reader, self._batch = reader, batch
        self._lines: dict[int, _Line] = {}
        self._read: dict[int, tuple[TokenPlaces, int | None] | None] = {}  # by the line that they were read off
        self._known: dict[tuple[int, int], TensorPlaces | None] = {}
        same: dict[Hashable, _Line] = {}
        for number, of_tensor in ids.items():
            key = (of_tensor.data_ptr(), of_tensor.shape, of_tensor.stride())
            if key not in same:
                same[key] = _line(of_tensor)
            self._lines[number] = same[key]

    def places(self, number: int | None, batch: int) -> TensorPlaces | None:
        """Places of the tensor of this number for so many images; None where they are not known."""
        line = None if number is None else self._lines.get(number)
        if line is None:
            return None
        key = id(line), batch
        if key not in self._known:
            self._known[key] = self._places(line, batch)
        return self._known[key]

    def _places(self, line: _Line, batch: int) -> TensorPlaces | None:
        found = self._tokens(line)
        if found is None:
            return None
        tokens, stride = found
        if batch != self._batch:
            if stride is None or self._batch < 2:
                return None
            tokens = of_batch(tokens, stride, self._batch, batch)
        owners = None
        if stride is not None:
            owners = torch.arange(len(tokens.image), device=tokens.image.device) // stride % batch
        padded = bool((tokens.place < 0).any())
        return TensorPlaces(line.channel_axis, _turned(tokens), owners, padded)

    def holds_for(self, number: int | None, batch: int) -> bool:
        """Whether places for so many images follow from those of the traced ones, if there are any."""
        line = None if number is None else self._lines.get(number)
        found = None if line is None else self._tokens(line)
        return found is None or batch == self._batch or (self._batch > 1 and found[1] is not None)

    def _tokens(self, line: _Line) -> tuple[TokenPlaces, int | None] | None:
        """T rows of one token, (T, 1, 1), and after how many of them the next image follows."""
        if id(line) not in self._read:
            self._read[id(line)] = self._place(line.ids)
        return self._read[id(line)]

    def _place(self, ids: Tensor) -> tuple[TokenPlaces, int | None] | None:
        try:
            tokens = self._reader.tokens(ids.view(-1, 1, 1))
        except NotPlacedError:
            return None
        return None if tokens.grid is None else (tokens, stride_of(tokens, tokens, self._batch))


@dataclass(frozen=True, eq=False)
class _Line:
    """What is kept of a tensor.

    Attributes:
        channel_axis: along which its places repeat, counted from the end; None where there is none.
        ids: of its tokens in order, channels left out, (T,).
    """

    channel_axis: int | None
    ids: Tensor


def _line(ids: Tensor) -> _Line:
    for axis in range(ids.dim() - 1, 0, -1):
        if ids.shape[axis] > 1 and bool((ids == ids.narrow(axis, 0, 1)).all()):
            return _Line(axis - ids.dim(), ids.select(axis, 0).flatten().clone())
    return _Line(None, ids.flatten().clone())


def stride_of(queries: TokenPlaces, keys: TokenPlaces, batch: int) -> int | None:
    """After how many rows the next image follows, round and round; None where a row has tokens of several images."""
    images = keys.image if len(keys.image) >= len(queries.image) else queries.image
    rows = len(images)
    most = images.amax(dim=(1, 2))
    least = torch.where(images >= 0, images, batch).amin(dim=(1, 2))
    known = most >= 0
    if batch < 2 or bool((most != least)[known].any()):
        return None
    numbers = torch.arange(rows, device=images.device)
    for stride in range(rows // batch, 0, -1):  # mostly image after image
        if rows % (stride * batch) == 0 and bool((numbers // stride % batch == most)[known].all()):
            return stride
    return None


def of_batch(tokens: TokenPlaces, stride: int, traced: int, batch: int) -> TokenPlaces:
    """Rows of ``batch`` images, in the order in which those of ``traced`` images lie."""
    place = tokens.place.unflatten(0, (-1, traced, stride))[:, :1]  # (outer, 1, stride, G, N)
    place = place.expand(-1, batch, *place.shape[2:])
    image = torch.arange(batch, device=place.device).view(1, -1, 1, 1, 1).expand_as(place)
    image = torch.where(place >= 0, image, -1)
    return replace(tokens, image=image.flatten(0, 2), place=place.flatten(0, 2))


def _turned(tokens: TokenPlaces) -> TokenPlaces:
    """T rows of one token, (T, 1, 1), as one row of T tokens, (1, 1, T)."""
    return replace(tokens, image=tokens.image.permute(2, 1, 0), place=tokens.place.permute(2, 1, 0), in_order=False)
