"""Follows places through a forward pass, on the operations of torch's dispatcher below the functions that models call.

Of those a forward pass has a few dozen kinds, however its model is written. Values are the model's own; the ids of
places travel beside them, moved by the operation itself where it only moves, else by the rules of ``movement_rules``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_attngrad.attention.followed import Followed
from lightning_attngrad.attention.movement_rules import (
    MERGES,
    RULES,
    Step,
    elementwise,
    joined,
    merged,
    repeating,
    unknown,
)

aten = torch.ops.aten

#: Operations that only move elements, beside the views.
_MOVES = {
    aten.clone, aten._to_copy, aten._unsafe_view, aten.reshape, aten._reshape_copy, aten.contiguous, aten.roll,
    aten.flip, aten.repeat, aten.index, aten._unsafe_index, aten.index_select, aten.gather, aten.take_along_dim,
    aten.constant_pad_nd, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.unfold_copy,
    aten.rot90, aten.repeat_interleave, aten.narrow_copy, aten.select_copy, aten.slice_copy, aten.masked_select,
    aten.lift_fresh, aten.lift_fresh_copy, aten.view_copy, aten.permute_copy, aten.expand_copy,
}  # fmt: skip
#: The same, which torch has for floating point only.
_FLOATING_MOVES = {
    aten.im2col, aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d, aten.replication_pad1d,
    aten.replication_pad2d, aten.replication_pad3d,
}  # fmt: skip
#: What a rule ends in that meets arguments which nobody thought of.
NOT_FOLLOWED = (RuntimeError, IndexError, ValueError, TypeError, KeyError, AttributeError, StopIteration)
_IN_PLACE = {aten._to_copy, aten.clone, aten.contiguous, aten.lift_fresh}
#: Their results choose: which elements an index then takes depends on the images, or on chance.
_CHOICES = {aten.sort, aten.argsort, aten.topk, aten.nonzero, aten.randperm, aten.multinomial, aten.randint}
_INDEXING = {aten.index, aten.index_select, aten.gather, aten.take_along_dim}
_WITHOUT_PLACE = {
    aten.zeros_like, aten.ones_like, aten.empty_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_empty,
    aten.new_full, aten.rand_like, aten.randn_like, aten.histc, aten.bincount, aten._local_scalar_dense, aten.equal,
    aten.is_nonzero, aten.allclose, aten.new_empty_strided, aten.topk, aten.sort, aten.argsort, aten.nonzero,
}  # fmt: skip


class Movement(TorchDispatchMode):
    """While active, what is ``followed`` is followed through every operation."""

    def __init__(self, followed: Followed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._followed = followed
        self._paused = 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Follow no places in the block, only what depends on what."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, followed = kwargs or {}, self._followed
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        step = Step(func, getattr(func, "overloadpacket", func), args, kwargs, given, made)
        self._mark_choices(step)
        bits = 0
        for tensor in given:
            bits |= followed.reads(tensor)
        written = args[0] if _writes(func) and isinstance(args[0], Tensor) else None
        changed = made if written is None else [*made, written]
        # A number that is written in the forward is lifted, and was not seen before.
        beside = step.packet is not aten.lift_fresh and any(followed.is_beside(tensor) for tensor in given)
        for tensor in changed:
            followed.note_beside(tensor, beside)
        if not bits:
            return out
        if written is not None and written._base is not None:
            changed.append(written._base)
        for tensor in changed:
            followed.depend(tensor, bits)
        if not self._paused and any(tensor in followed for tensor in given):
            try:
                if written is not None:
                    self._write(step, written)
                elif made and step.packet not in _WITHOUT_PLACE:
                    self._follow(step)
            except NOT_FOLLOWED as error:  # refused by its name, where a map needs it; never the model's own error
                followed.report(f"the operation {step.packet}, whose places could not be followed ({error})", *changed)
        return out

    def _follow(self, step: Step) -> None:
        if step.func.is_view or step.packet in _MOVES or step.packet in _FLOATING_MOVES:
            self._move(step)
            return
        rule = RULES.get(step.packet, elementwise if torch.Tag.pointwise in step.func.tags else unknown)
        ids = rule(self._followed, step)
        for tensor in step.made:  # values and their indices lie at one place
            if tensor.shape == step.out.shape:
                self._followed.put(tensor, ids)

    def _mark_choices(self, step: Step) -> None:
        followed = self._followed
        if step.packet in _CHOICES or any(
            tensor in followed.choices and not tensor.is_floating_point() for tensor in step.given
        ):
            for tensor in step.made:
                if not tensor.is_floating_point():
                    followed.choices[tensor] = True
        if step.packet in _INDEXING and step.given[0] in followed:
            followed.chosen |= any(tensor in followed.choices for tensor in step.given[1:])

    def _move(self, step: Step) -> None:
        """Let the operation move the ids as it moved the elements."""
        ids = self._followed.ids_of(step.args[0])
        if ids is None:
            return
        if step.packet in _IN_PLACE:
            self._followed.put(step.out, ids)
            return
        if step.packet in (aten.view_as_real, aten.view_as_complex):  # pairs of numbers and complex ones
            self._followed.put(step.out, ids.unsqueeze(-1) if step.packet is aten.view_as_real else ids[..., 0])
            return
        rest = list(step.args[1:])
        if step.packet is aten.constant_pad_nd:
            rest[1:] = [0]  # padding lies nowhere, whatever its value
        if step.packet in _FLOATING_MOVES:
            wide = ids.double() if ids.device.type != "mps" else ids.float()
            moved = step.func(wide, *rest, **step.kwargs).int()
        else:
            try:
                moved = step.func(ids, *rest, **step.kwargs)
            except RuntimeError:  # a view of ids that repeat along a dimension
                moved = step.func(ids.contiguous(), *rest, **step.kwargs)
        for tensor, result in zip(step.made, [moved] if isinstance(moved, Tensor) else moved, strict=True):
            self._followed.put(tensor, result if step.func.is_view else repeating(result))

    def _write(self, step: Step, written: Tensor) -> None:
        """A tensor is changed in place, and with it what it is a view of."""
        followed, args, packet = self._followed, step.args, step.packet
        if packet is aten.copy_:
            source = followed.ids_of(args[1])
            ids = self._written_tokens(written, args[1]) if source is None else source.expand(written.shape)
        elif packet is aten.index_put_:
            ids = aten.index_put(
                followed.ids_or_nothing(written).contiguous(), args[1], followed.ids_or_nothing(args[2])
            )
        elif packet in (aten.scatter_, aten.index_copy_) and isinstance(args[3], Tensor):
            plain = aten.scatter if packet is aten.scatter_ else aten.index_copy
            ids = plain(followed.ids_or_nothing(written).contiguous(), *args[1:3], followed.ids_or_nothing(args[3]))
        elif packet in (aten.fill_, aten.zero_):
            return
        elif packet in MERGES:
            merged(followed, step)
            return
        else:
            together = joined(followed, step.given, written)
            if together is None:
                return
            ids = together.expand(written.shape)
        known, base = followed.ids_of(written), written._base
        if known is not None and known.shape == ids.shape and torch.equal(known, ids):
            return
        if base is None:
            followed.put(written, ids)
            return
        whole = torch.empty_strided(base.size(), base.stride(), dtype=torch.int32, device=base.device)
        whole.copy_(followed.ids_or_nothing(base))
        part = whole.as_strided(written.size(), written.stride(), written.storage_offset() - base.storage_offset())
        part.copy_(ids)
        followed.put(base, whole)
        followed.put(written, part)

    def _written_tokens(self, written: Tensor, source: Tensor) -> Tensor:
        """Ids of what is written among tokens and lies nowhere: tokens of its own, as where it is put beside them."""
        followed, base = self._followed, written._base
        nothing = torch.zeros((), dtype=torch.int32, device=written.device).expand(written.shape)
        before = None if base is None else followed.ids_of(base)
        if base is None or before is None or written.dim() < 2 or not bool(source.ne(0).any()):
            return nothing
        images = followed.table.images_of(before.flatten(1).amax(1))  # (B,)
        if len(images) != len(written):
            return nothing
        single = written.dim() < base.dim()
        new = followed.table.new_slots(images, 1 if single else written.shape[1])  # (B, tokens)
        new = new[:, 0] if single else new
        return new.view(*new.shape, *[1] * (written.dim() - new.dim())).expand(written.shape)


def _writes(func: Any) -> bool:
    arguments = func._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write
