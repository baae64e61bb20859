"""Finds where the tokens of every attention call lie on the image, by following the model's own data movement.

One plain forward pass is run in which attention is cut: an output token lies where its query lies. No family of models
is known by name. What is found for a few images holds for any number of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_attngrad.attention.embedding import find_embedding
from lightning_attngrad.attention.followed import FUSED, Followed
from lightning_attngrad.attention.module_names import ModuleNames
from lightning_attngrad.attention.movement import NOT_FOLLOWED, Movement
from lightning_attngrad.attention.place_table import compressed
from lightning_attngrad.attention.places import UnsupportedModelError
from lightning_attngrad.attention.tap import AttentionTap
from lightning_attngrad.attention.traced import SeenCall, TracedPlaces, traced_places
from lightning_attngrad.attention.watching import SeenAttention

Kind = Literal["tokens", "channels", "elsewhere"]
#: Copies of one token differ by no more than so much of the largest value: products round them otherwise.
_ROUNDING = 1e-3


class _Watcher:
    """Takes down the places of every call that a tap sees."""

    def __init__(self) -> None:
        self.movement: Movement
        self.followed: Followed
        self.calls: list[SeenCall] = []
        self.outputs: dict[int, Tensor] = {}  # ids of what functions gave the model, by number

    def attending(self) -> contextlib.AbstractContextManager[object]:
        return self.movement.paused()

    def returned(self, number: int, output: Tensor) -> None:
        ids = self.followed.ids_of(output) if output.is_floating_point() else None
        if ids is not None:
            self.outputs[number] = ids

    @torch.no_grad()
    def attended(self, seen: SeenAttention) -> None:
        followed, name, shape = self.followed, seen.call.name, seen.call.shape
        reads, values_read, bit = followed.reads(seen.output), followed.reads(seen.value), followed.new_bit()
        followed.depend(seen.output, bit)
        kind: Kind = "elsewhere"
        queries = keys = torch.zeros((), dtype=torch.int32, device=seen.output.device).expand(1, 1, 1)
        with self.movement.paused():
            try:
                kind, queries, keys = self._place(seen)
            except NOT_FOLLOWED as error:
                followed.report(f"an attention whose tokens could not be followed ({error})", seen.output, module=name)
        if followed.table.lies_on_image(keys):
            followed.on_image |= bit
        keys = followed.table.sources_of(keys)  # what is read from a message comes from the token that wrote it
        self.calls.append(SeenCall(name, shape, _same_heads(queries), _same_heads(keys), kind, bit, reads, values_read))

    def _place(self, seen: SeenAttention) -> tuple[Kind, Tensor, Tensor]:
        """What attends, and ids of the queries (R, H, N) and keys (R, H, M); the output lies where the queries do."""
        followed, table, shape = self.followed, self.followed.table, seen.call.shape
        asks, values = followed.ids_or_nothing(seen.asks), followed.ids_or_nothing(seen.value)
        asks, values = seen.of_rows(asks), seen.of_keys(values)  # (R, H, N, ·), (R, H, M, ·)
        kind = _kind(values)
        if kind == "channels":  # every token stays where it is
            queries = keys = torch.zeros_like(values[:1, :1, :1, 0])
            moved = table.reduce(values, (2,)).narrow(2, 0, 1)  # (R, H, 1, d)
        else:
            keys = _one(table.reduce(values, (3,)), 3).expand(*shape[:2], shape[3])
            queries = self._queries(asks, keys, shape, self._asked_from_beside(seen, keys))
            moved = queries.unsqueeze(-1)
        if kind == "tokens" and table.holds_context(keys):
            if table.lies_on_image(keys):  # among other tokens
                maker = followed.maker_of(keys)
                followed.report(FUSED, seen.output, module=seen.call.name if maker is None else maker)
            else:
                what = "attention to a context of all tokens (efficient or linear attention)"
                followed.report(what, seen.output, module=seen.call.name)
        if kind == "tokens" and _differ_by_window(table.slot, keys, seen.of_keys(seen.value)):
            what = "messenger or register tokens, of which each window (or frame) keeps its own"
            followed.report(what, seen.output, module=seen.call.name)
        if kind != "elsewhere":
            followed.put(seen.output, seen.to_output(moved.expand(*shape[:3], values.shape[3])))
        return kind, queries, keys

    def _asked_from_beside(self, seen: SeenAttention, keys: Tensor) -> bool:
        """Whether what asks has anything of what is given beside the images, such as the tokens of another view.

        What a model has kept outside its parameters and buffers looks as if it were, and is the same for every image.
        """
        if not self.followed.is_beside(seen.asks):
            return False
        asks, images = seen.of_rows(seen.asks), self.followed.table.images_of(keys).amax(dim=(1, 2))  # (R,)
        others = images != images[0]
        return not bool(others.any()) or bool((asks[others] != asks[:1]).any())

    def _queries(self, asks: Tensor, keys: Tensor, shape: tuple[int, int, int, int], from_beside: bool) -> Tensor:
        """Ids of the queries, (R, H, N): where their own scores say, or where the keys of the same tokens lie.

        What asks and comes from nothing of the image is scores of positions with positions, by the very tokens that are
        read; from another image, beside it, it is that image's tokens, as many as they may be.
        """
        table = self.followed.table
        of_tokens = compressed(asks)
        along_keys = of_tokens.shape[2] == 1 and of_tokens.shape[3] == shape[3] > 1  # scores of keys with queries
        queries = _one(table.reduce(asks, (3,)), 3) if not along_keys else torch.zeros_like(keys[..., :1])
        queries = queries.expand(*shape[:3])
        if shape[2] == shape[3]:
            elsewhere = bool((queries != keys).any()) and self._of_other_tokens(queries, keys)
            if elsewhere or (bool(queries.eq(0).all()) and not from_beside):
                return keys
        if bool(queries.eq(0).all()) and bool(keys.gt(0).any()):  # asked by nothing of the image: tokens of their own
            images, families = table.images_of(keys).amax(dim=(1, 2)), table.families  # (R,)
            slots = table.new_slots(images, shape[2], mixed=along_keys and not from_beside)
            self.followed.note_makers(families)
            return slots[:, None].expand(*shape[:3])
        return queries

    def _of_other_tokens(self, queries: Tensor, keys: Tensor) -> bool:
        """Whether queries were made elsewhere for the tokens that are read: their boxes are others."""
        boxes, slot = self.followed.table.boxes, self.followed.table.slot
        both = (queries > 0) & (keys > 0) & (slot[queries.long()] < 0) & (slot[keys.long()] < 0)
        one, two = boxes[queries[both].long()], boxes[keys[both].long()]
        return bool(one.numel()) and bool(((one - two).abs() > 1e-3).any())


def _kind(values: Tensor) -> Kind:
    """What is attended to, by the ids of the values (R, H, M, d): tokens differ along M, channels do not.

    Keys that all lie at one place are no tokens either: channels, or experts among which a token chooses.
    """
    if not bool(values.gt(0).any()):
        return "elsewhere"
    if values.shape[2] == 1:
        return "tokens"
    kept = compressed(values)
    return "channels" if kept.shape[2] == 1 or bool((kept == kept[:, :, :1]).all()) else "tokens"


def _differ_by_window(slot: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether a token that lies nowhere (``slot`` by id) is another one in each of the windows that it is read in.

    It is one token while it was only put there, or is what all of its copies were averaged to; no longer where each has
    read its own window. Heads may be folded into the rows: they follow in the same order in every window.

    Args:
        slot: of the table.
        keys: ids (R, H, M).
        values: (R, H, M, d).
    """
    rows = keys.flatten(0, 1)  # (R·H, M)
    nowhere = (rows > 0) & (slot[rows.long()] >= 0)
    if not bool(nowhere.any()):
        return False
    different, window, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    if len(different) == 1 or bool((counts != counts[0]).any()):
        return False
    by_window = window.argsort(stable=True).view(len(different), -1)  # (W, heads)
    columns = nowhere.any(0).nonzero().flatten()
    tokens = different[:, columns]  # (W, few)
    alone = (tokens.unsqueeze(2) == tokens.unsqueeze(1)).sum(2) == 1  # a wide token in parts stands there several times
    there = nowhere[by_window[:, 0]][:, columns] & alone
    if not bool(there.any()):
        return False
    _, token = torch.unique(tokens[there], return_inverse=True)
    vectors = values.flatten(0, 1)[:, columns][by_window].transpose(1, 2)[there].flatten(1).float()
    any_copy = torch.zeros(int(token.max()) + 1, dtype=torch.long, device=token.device)
    any_copy[token] = torch.arange(len(token), device=token.device)
    apart = (vectors - vectors[any_copy[token]]).abs().amax()
    return bool(apart > _ROUNDING * vectors.abs().amax())


def _one(ids: Tensor, dim: int) -> Tensor:
    """Without a dimension along which ids repeat."""
    return ids.narrow(dim, 0, 1).squeeze(dim)


def _same_heads(ids: Tensor) -> Tensor:
    """(R, H, N), or (R, 1, N) where every head has the same tokens."""
    first = ids[:, :1]
    return first.contiguous() if ids.shape[1] == 1 or bool((ids == first).all()) else ids.contiguous()


def trace(
    model: nn.Module,
    images: Tensor,
    forward: Callable[[Tensor], Any],
    *,
    answers: Callable[[Any], Iterable[Tensor]],
) -> TracedPlaces:
    """Run ``forward`` on images (B, C, H, W) once, and find the places of all its attention calls.

    Args:
        model: whose module names the calls are known by.
        images: as the model takes them; not changed.
        forward: from images to the model's output.
        answers: the tensors of the output that may be explained.
    """
    watcher = _Watcher()
    tap = AttentionTap(model, start="images", watcher=watcher)
    with torch.enable_grad():
        images = tap.begin_at(images.detach().clone())
    own = [*model.parameters(), *model.buffers()]
    followed = watcher.followed = Followed(
        images, tap.calling_module, own, ModuleNames(model).names, tap.running_module
    )
    movement = watcher.movement = Movement(followed)
    # The graph says through which tensor all goes that the output has of the image; it keeps no activations.
    graph_only = torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda kept: kept)
    try:
        with torch.enable_grad(), graph_only, movement, tap:
            output = forward(images)
        outputs = list(answers(output))
        bits = 0
        for tensor in outputs:
            bits |= followed.reads(tensor)
        ends = [tensor for tensor in outputs if tensor.requires_grad]
        number = find_embedding(tap.numbered.nodes, ends, tap.first_reads) if ends else None
        traced = traced_places(
            type(model).__name__, followed, watcher.calls, bits, watcher.outputs, number, tap.unread_softmaxes
        )
        return replace(traced, moves=tap.moves, count=tap.numbered.last, detached=not ends)
    except NotImplementedError as error:
        if "FlexAttention" not in str(error):
            raise
        raise UnsupportedModelError(
            f"{type(model).__name__}: flex attention has no gradient here ({error}). Let the model use torch's own "
            'attention: attn_implementation="sdpa" in Hugging Face'
        ) from error
    finally:
        tap.release()
