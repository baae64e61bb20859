"""Follows places through a forward pass: what each operation of torch does to the places of what it reads.

Works below the functions that models call, on the operations of torch's dispatcher, of which a forward pass has a few
dozen kinds. Values are the model's own; the ids of :class:`PlaceTable` travel beside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_attngrad.attention.place_table import PlaceTable, compressed

aten = torch.ops.aten

#: Operations that only move elements: ids are moved by the operation itself.
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
_MATRIX_PRODUCTS = {
    aten.mm: 0, aten.bmm: 0, aten.mv: 0, aten.dot: 0, aten.addmm: 1, aten.baddbmm: 1, aten.addmv: 1, aten.addbmm: 1,
    aten._addmm_activation: 1,
}  # fmt: skip
_CONVOLUTIONS = {aten.convolution, aten._convolution, aten.cudnn_convolution, aten.mkldnn_convolution}
_NORMALISATIONS = {
    aten.native_layer_norm, aten.native_batch_norm, aten._native_batch_norm_legit, aten.native_group_norm,
    aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm, aten.miopen_batch_norm, aten._fused_rms_norm,
    aten._batch_norm_with_update, aten._batch_norm_no_update, aten.native_dropout, aten.rms_norm, aten.batch_norm,
    aten._batch_norm_impl_index,
}  # fmt: skip
#: Element by element, though torch does not mark them so, or along a row that stays what it is.
_ELEMENTWISE = {
    aten.hardswish, aten.hardswish_, aten.prelu,
    aten._prelu_kernel, aten.tril, aten.triu, aten.rrelu_with_noise, aten.masked_fill, aten.where, aten.glu,
    aten.nan_to_num, aten.log_sigmoid_forward, aten.renorm, aten._weight_norm_interface,
}  # fmt: skip
_SOFTMAXES = {aten._softmax, aten._safe_softmax, aten._log_softmax}
_REDUCTIONS = {
    aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.var_mean, aten.std_mean,
    aten.linalg_vector_norm, aten.norm, aten.logsumexp, aten.prod, aten.aminmax, aten.nansum, aten.argmax, aten.argmin,
    aten.all, aten.any, aten.median, aten.nanmedian, aten.mode,
}  # fmt: skip
_POOLS = {
    aten.avg_pool1d, aten.avg_pool2d, aten.max_pool2d, aten.max_pool2d_with_indices, aten.mkldnn_max_pool2d,
    aten.avg_pool3d, aten.max_pool3d_with_indices,
}  # fmt: skip
_ADAPTIVE_POOLS = {
    aten._adaptive_avg_pool2d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d, aten.adaptive_avg_pool1d,
    aten.adaptive_max_pool1d, aten.mkldnn_adaptive_avg_pool2d,
}  # fmt: skip
_RESAMPLED = ("upsample_", "_upsample_")
#: Their results choose: which elements an index then takes depends on the images, or on chance.
_CHOICES = {aten.sort, aten.argsort, aten.topk, aten.nonzero, aten.randperm, aten.multinomial, aten.randint}
_WITHOUT_PLACE = {aten.zeros_like, aten.ones_like, aten.empty_like, aten.full_like, aten.new_zeros, aten.new_ones}
_WITHOUT_PLACE |= {aten.new_empty, aten.new_full, aten.rand_like, aten.randn_like, aten.histc, aten.bincount}
_WITHOUT_PLACE |= {aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.allclose, aten.new_empty_strided}


@dataclass(eq=False)
class Unseen:
    """Something by which tokens mix and that is no attention call that was seen.

    Attributes:
        module: of the model, whose forward did it.
        what: in words.
        kernel: whether it is an operation of its own, and may be an attention.
        bit: by which tensors remember that they depend on it.
    """

    module: str
    what: str
    kernel: bool
    bit: int


@dataclass(frozen=True, eq=False)
class SeenSoftmax:
    """A softmax over something of the image.

    Attributes:
        module: whose forward computed it.
        shape: of its probabilities.
        over_tokens: whether they differ by place: along the axis that it was taken over, or along others in an array that
            has axes for images, heads, queries and keys.
        bit: by which tensors remember that they depend on it.
    """

    module: str
    shape: tuple[int, ...]
    over_tokens: bool
    bit: int


class Movement(TorchDispatchMode):
    """While active, ids of places follow every tensor that comes from the images.

    Args:
        images: (B, C, H, W).
        calling_module: name of the innermost module whose forward is running.

    Attributes:
        batch: number of images.
        table: of the places.
        unseen: what mixes tokens unseen, in order.
        softmaxes: all that were taken of what comes from the images.
        chosen: whether tokens were picked by what the images hold, or by chance.
    """

    def __init__(self, images: Tensor, calling_module: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch = len(images)
        self.table = PlaceTable(len(images), (images.shape[-2], images.shape[-1]), images.device)
        self.unseen: list[Unseen] = []
        self.softmaxes: list[SeenSoftmax] = []
        self.chosen = False
        self._calling_module = calling_module
        self._ids: Any = WeakTensorKeyDictionary()
        self._reads: Any = WeakTensorKeyDictionary()  # a bit for each call, and each unseen mixing, it depends on
        self._choices: Any = WeakTensorKeyDictionary()
        self._bits = 1  # bit 0: comes from the images
        self._paused = 0
        self.put(images, self.table.of_pixels().expand(images.shape))
        self._reads[images] = 1

    # What others ask ------------------------------------------------------------------------------------------------

    def ids_of(self, tensor: Tensor) -> Tensor | None:
        """Ids of a tensor's elements; None where it has none."""
        ids: Tensor | None = self._ids.get(tensor)
        return ids

    def put(self, tensor: Tensor, ids: Tensor) -> None:
        """Let a tensor have these ids, of its shape."""
        self._ids[tensor] = ids

    def reads(self, tensor: Tensor) -> int:
        """What a tensor depends on, a bit each; bit 0 are the images."""
        bits: int = self._reads.get(tensor, 0)
        return bits

    def depend(self, tensor: Tensor, bits: int) -> None:
        """Let a tensor depend on more."""
        self._reads[tensor] = self.reads(tensor) | bits

    def new_bit(self) -> int:
        """A bit for something that tensors may depend on."""
        self._bits += 1
        return 1 << (self._bits - 1)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Follow no places in the block, only what depends on what."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def report(self, what: str, *outputs: Any, kernel: bool = False) -> None:
        """Tokens mix unseen in what is computed right now."""
        module = self._calling_module()
        unseen = Unseen(module, what, kernel, self.new_bit())
        self.unseen.append(unseen)
        for output in outputs:
            if isinstance(output, Tensor):
                self.depend(output, unseen.bit)

    # Each operation -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **kwargs)
        packet = getattr(func, "overloadpacket", func)
        bits = 0
        for tensor in given:
            bits |= self.reads(tensor)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._mark_choices(packet, given, made)
        if not bits:
            return out
        for tensor in made:
            self.depend(tensor, bits)
        written = args[0] if _writes(func) and args and isinstance(args[0], Tensor) else None
        if written is not None:
            self.depend(written, bits)
            if written._base is not None:
                self.depend(written._base, bits)
        if not self._paused:
            self._follow(func, packet, args, kwargs, given, made, written)
        return out

    def _follow(
        self,
        func: Any,
        packet: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Tensor],
        made: list[Tensor],
        written: Tensor | None,
    ) -> None:
        if not any(tensor in self._ids for tensor in given):
            return
        if written is not None:
            self._write(packet, args, written, given, made)
            return
        if not made or packet in _WITHOUT_PLACE:
            return
        out = made[0]
        ids: Tensor | None
        if func.is_view or packet in _MOVES or packet in _FLOATING_MOVES:
            self._move(func, packet, args, kwargs, made)
            return
        if packet in (aten.cat, aten.concat):
            ids = self._cat(args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0))
        elif packet is aten.stack:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            ids = torch.stack([self._ids_or_none(part) for part in args[0]], dim=dim)
        elif packet in _MATRIX_PRODUCTS:
            ids = self._product(out, *args[_MATRIX_PRODUCTS[packet] :][:2])
        elif packet in _CONVOLUTIONS:
            ids = self._convolution(out, args, kwargs)
        elif packet in _NORMALISATIONS:
            ids = self.ids_of(args[0])
        elif packet in _POOLS:
            ids = self._pool(out, args, kwargs)
        elif packet in _ADAPTIVE_POOLS:
            ids = self._adaptive_pool(out, args[0])
        elif packet in _REDUCTIONS:
            ids = self._reduction(packet, args, kwargs, out)
        elif str(packet).split(".")[-1].startswith(_RESAMPLED):
            source = self.ids_of(args[0])
            ids = (
                None if source is None else self._spatial(source, lambda two: self.table.resampled(two, out.shape[2:]))
            )
        elif packet is aten.col2im:
            ids = self._folded(out, args, kwargs)
        elif packet in (aten.index_put, aten.slice_scatter, aten.select_scatter, aten.scatter, aten.index_copy):
            ids = self._scattered(func, args, kwargs)
        elif packet in _SOFTMAXES:
            ids = self.ids_of(args[0])
            self._note_softmax(out, ids, args[1] if len(args) > 1 else kwargs["dim"])
        elif torch.Tag.pointwise in func.tags or packet in _ELEMENTWISE or packet is aten.copy:
            ids = self._joined(given, out)
        else:
            ids = self._unknown(func, packet, given, made)
        self._set(out, ids)
        for other in made[1:]:  # values and their indices lie at one place
            if other.shape == out.shape:
                self._set(other, ids)

    def _set(self, tensor: Tensor, ids: Tensor | None) -> None:
        if ids is not None:
            self._ids[tensor] = ids.expand(tensor.shape)

    def _ids_or_none(self, tensor: Tensor) -> Tensor:
        ids = self.ids_of(tensor)
        return torch.zeros((), dtype=torch.int32, device=tensor.device).expand(tensor.shape) if ids is None else ids

    def _mark_choices(self, packet: Any, given: list[Tensor], made: list[Tensor]) -> None:
        if packet in _CHOICES or any(tensor in self._choices and not tensor.is_floating_point() for tensor in given):
            for tensor in made:
                if not tensor.is_floating_point():
                    self._choices[tensor] = True
        indexes = given[1:] if packet in (aten.index, aten.index_select, aten.gather, aten.take_along_dim) else ()
        if any(tensor in self._choices for tensor in indexes) and given[0] in self._ids:
            self.chosen = True

    def _move(self, func: Any, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Tensor]) -> None:
        ids = self.ids_of(args[0])
        if ids is None:
            return
        if packet is aten._to_copy or packet in (aten.clone, aten.contiguous, aten.lift_fresh):
            self._set(made[0], ids)
            return
        if packet in (aten.view_as_real, aten.view_as_complex):  # pairs of numbers and complex ones
            complex_pairs = ids.unsqueeze(-1) if packet is aten.view_as_real else ids[..., 0]
            self._set(made[0], complex_pairs)
            return
        rest = [
            argument if not (packet is aten.constant_pad_nd and n == 1) else 0 for n, argument in enumerate(args[1:])
        ]
        if packet in _FLOATING_MOVES:
            moved = func(ids.double() if ids.device.type != "mps" else ids.float(), *rest, **kwargs).int()
        else:
            try:
                moved = func(ids, *rest, **kwargs)
            except RuntimeError:  # a view of ids that repeat along a dimension
                moved = func(ids.contiguous(), *rest, **kwargs)
        results = [moved] if isinstance(moved, Tensor) else list(moved)
        for tensor, result in zip(made, results, strict=True):
            self._ids[tensor] = result if func.is_view else _repeating(result)

    def _cat(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """What is put in front of, or behind, tokens and lies nowhere becomes tokens of its own; zeros are padding."""
        placed = [ids for part in parts if (ids := self.ids_of(part)) is not None and ids.dim() == parts[-1].dim()]
        dim = dim % placed[0].dim()
        along = compressed(placed[0])
        token_axis = any(compressed(ids).shape[dim] > 1 for ids in placed)
        if not token_axis:  # single tokens, as class attention has them: an axis of tokens if it is none of channels
            token_axis = all(ids.shape[dim] == 1 for ids in placed) and dim != along.dim() - 1
        images = self.table.images_of(along.amax(dim=dim, keepdim=True))
        collected = []
        for part in parts:
            ids = self.ids_of(part)
            if ids is None and token_axis and part.numel() and bool(part.ne(0).any()):
                ids = self._new_tokens(part, images, dim)
            collected.append(self._ids_or_none(part) if ids is None else ids)
        return _repeating(torch.cat(collected, dim=dim))

    def _new_tokens(self, part: Tensor, images: Tensor, dim: int) -> Tensor:
        """Ids of tokens that lie nowhere, of the images that their neighbours along ``dim`` are of."""
        new = self.table.new_slots(images.movedim(dim, -1).squeeze(-1), part.shape[dim])
        return new.movedim(-1, dim).expand(part.shape)

    def _note_softmax(self, out: Tensor, ids: Tensor | None, dim: int) -> None:
        if ids is None:
            return
        kept = compressed(ids)
        square = out.dim() > 2 and out.shape[-1] == out.shape[-2] > 1
        over_tokens = kept.shape[dim] > 1 or ((out.dim() > 3 or square) and max(kept.shape[1:], default=1) > 1)
        softmax = SeenSoftmax(self._calling_module(), tuple(out.shape), over_tokens, self.new_bit())
        self.softmaxes.append(softmax)
        self.depend(out, softmax.bit)

    def _joined(self, given: list[Tensor], out: Tensor) -> Tensor | None:
        ids: Tensor | None = None
        for tensor in given:
            other = self.ids_of(tensor)
            if other is None:
                continue
            other = compressed(other)
            if ids is None:
                ids = other
                continue
            dims = max(ids.dim(), other.dim())
            ids, other = (each.reshape(*[1] * (dims - each.dim()), *each.shape) for each in (ids, other))
            ids, gave_way = self.table.join(ids, other)
            if bool(gave_way.any()) and not any(_repeats(one, out) for one in given if one in self._ids):
                self.report("a layer that mixes all tokens and is no attention", out)
        if ids is None:
            return None
        return ids if ids.dim() == out.dim() else ids.reshape(*[1] * (out.dim() - ids.dim()), *ids.shape)

    def _product(self, out: Tensor, first: Tensor, second: Tensor) -> Tensor | None:
        one, two = self.ids_of(first), self.ids_of(second)
        both = one is not None and two is not None
        left = None if one is None else self.table.reduce(one, (-1,), mixing=True, always=both)
        contracted = -2 if second.dim() > 1 else -1
        right = None if two is None else self.table.reduce(two, (contracted,), mixing=True, always=both)
        if first.dim() == 1 or second.dim() == 1:  # mv, dot
            left, right = (None if side is None else side.reshape(-1)[:1].expand(1) for side in (left, right))
            return left if left is not None else right
        if left is None or right is None:
            return left if left is not None else right
        left_mixed, right_mixed = self.table.is_mixed(left), self.table.is_mixed(right)
        if left_mixed != right_mixed:  # rows of tokens, times a matrix that was made of tokens
            local, other = (right, left) if left_mixed else (left, right)
            rows = compressed(local)
            if rows.numel() > rows.shape[0] and bool(rows.gt(0).any()):
                self.report("a product of tokens with tokens that is no softmax attention", out, kernel=True)
            return local if bool(local.gt(0).any()) else other
        return left if bool(left.gt(0).any()) else right  # rows of padding stay nowhere

    def _reduction(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
        ids = self.ids_of(args[0])
        if ids is None:
            return None
        dims = kwargs.get(
            "dim", args[_DIM_ARGUMENT.get(packet, 1)] if len(args) > _DIM_ARGUMENT.get(packet, 1) else None
        )
        if isinstance(dims, Tensor):  # element by element: maximum of two
            return self._joined([args[0], dims], out)
        dims = [dims] if isinstance(dims, int) else dims
        dims = list(range(ids.dim())) if not dims else [dim % ids.dim() for dim in dims]
        reduced = self.table.reduce(ids, tuple(dims))
        for dim in sorted(dims, reverse=True):
            if reduced.shape[dim] > 1:  # kept as it repeats
                reduced = reduced.narrow(dim, 0, 1)
        return reduced if out.dim() == ids.dim() else reduced.squeeze(tuple(dims)) if dims else reduced

    def _spatial(self, ids: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Change the last two dimensions of (B, C, H, W), or the last of (B, C, L); channels are joined."""
        joined = self.table.reduce(ids, (1,))
        joined = joined.narrow(1, 0, 1).expand(-1, -1, *ids.shape[2:])
        flat = joined.unsqueeze(2) if ids.dim() == 3 else joined
        changed = change(flat)
        return changed.squeeze(2) if ids.dim() == 3 else changed

    def _convolution(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        ids = self.ids_of(given["input"])
        if ids is None:
            return None
        if given.get("transposed"):
            return self._spatial(ids, lambda two: self.table.resampled(two, _two(out.shape[2:])))
        return self._windowed(ids, out, given["weight"].shape[2:], given["stride"], given["padding"], given["dilation"])

    def _pool(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        ids = self.ids_of(args[0])
        if ids is None:
            return None
        kernel = args[1]
        stride = args[2] if len(args) > 2 and args[2] else kwargs.get("stride") or kernel
        padding = args[3] if len(args) > 3 else kwargs.get("padding", 0)
        return self._windowed(ids, out, kernel, stride, padding, 1)

    def _adaptive_pool(self, out: Tensor, source: Tensor) -> Tensor | None:
        ids = self.ids_of(source)
        if ids is None:
            return None
        sizes = _two(source.shape[2:]), _two(out.shape[2:])
        ranges = tuple(_even_windows(before, after) for before, after in zip(*sizes, strict=True))
        return self._spatial(ids, lambda two: self.table.windows(two, ranges))

    def _windowed(self, ids: Tensor, out: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
        axes = out.dim() - 2
        if axes == 3:
            self.report("a layer over three dimensions", out)
            return self.table.reduce(ids, (1, 2, 3, 4)).narrow(1, 0, 1)
        sizes = [_each(value, axes) for value in (kernel, stride, padding, dilation)]
        ranges = tuple(
            _windows(before, after, *(size[axis] for size in sizes))
            for axis, (before, after) in enumerate(zip(ids.shape[2:], out.shape[2:], strict=True))
        )
        ranges = ((([0]), ([0])), *ranges) if axes == 1 else ranges
        single = all(first == last for first, last in ranges)

        def change(two: Tensor) -> Tensor:
            if not single:
                return self.table.windows(two, ranges)
            for dim, (first, _) in zip((-2, -1), ranges, strict=True):
                if first != list(range(two.shape[dim])):
                    two = two.index_select(dim, torch.tensor(first, device=two.device))
            return two

        return self._spatial(ids, change)

    def _folded(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Overlapping patches added up: each element lies where its patches say, the last of them winning."""
        ids = self.ids_of(args[0])
        if ids is None:
            return None
        wide = torch.float64 if ids.device.type != "mps" else torch.float32
        placed = (ids > 0).to(wide)
        total: Tensor = aten.col2im(ids.to(wide), *args[1:], **kwargs)
        count = aten.col2im(placed, *args[1:], **kwargs)
        mean = total / count.clamp_min(1)
        agreed = (mean - mean.round()).abs() < 1e-6
        if not bool(agreed.all()):
            self.report("overlapping patches of different places, added up", out)
        return mean.round().int()

    def _scattered(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        source = next((arg for arg in args[1:] if isinstance(arg, Tensor) and arg in self._ids), None)
        base = self._ids_or_none(args[0]).contiguous()
        position = next((n for n, arg in enumerate(args) if n and arg is source), None)
        if source is None or position is None:
            return base
        changed = [self._ids_or_none(source) if n == position else arg for n, arg in enumerate(args)]
        changed[0] = base
        result: Tensor = func(*changed, **kwargs)
        return result

    def _write(
        self, packet: Any, args: tuple[Any, ...], written: Tensor, given: list[Tensor], made: list[Tensor]
    ) -> None:
        """A tensor is changed in place, and with it what it is a view of."""
        if packet in (aten.copy_, aten.index_put_, aten.scatter_, aten.fill_, aten.zero_, aten.index_copy_):
            if packet is aten.copy_:
                ids = self.ids_of(args[1])
                ids = self._written_tokens(written, args[1]) if ids is None else ids.expand(written.shape)
            elif packet is aten.index_put_ and isinstance(args[2], Tensor):
                ids = aten.index_put(self._ids_or_none(written).contiguous(), args[1], self._ids_or_none(args[2]))
            elif packet in (aten.scatter_, aten.index_copy_) and isinstance(args[3], Tensor):
                plain = aten.scatter if packet is aten.scatter_ else aten.index_copy
                ids = plain(self._ids_or_none(written).contiguous(), args[1], args[2], self._ids_or_none(args[3]))
            else:
                ids = self._ids_or_none(written)
        else:
            joined = self._joined(given, written)
            if joined is None:
                return
            ids = joined.expand(written.shape)
        before = self.ids_of(written)
        if before is not None and before.shape == ids.shape and torch.equal(before, ids):
            return
        base = written._base
        if base is None:
            self._ids[written] = ids
            return
        whole = torch.empty_strided(base.size(), base.stride(), dtype=torch.int32, device=base.device)
        whole.copy_(self._ids_or_none(base))
        offset = written.storage_offset() - base.storage_offset()
        part = whole.as_strided(written.size(), written.stride(), offset)
        part.copy_(ids)
        self._ids[base] = whole
        self._ids[written] = part

    def _written_tokens(self, written: Tensor, source: Tensor) -> Tensor:
        """Ids of what is written among tokens and lies nowhere: tokens of its own, see :meth:`_cat`."""
        nothing = torch.zeros((), dtype=torch.int32, device=written.device).expand(written.shape)
        base = written._base
        before = None if base is None else self.ids_of(base)
        if base is None or before is None or written.dim() < 2 or not bool(source.ne(0).any()):
            return nothing
        images = self.table.images_of(before.flatten(1).amax(1))  # (B,)
        if len(images) != len(written):
            return nothing
        if written.dim() < base.dim():  # one token
            new = self.table.new_slots(images, 1)
            return new.view(-1, *[1] * (written.dim() - 1)).expand(written.shape)
        new = self.table.new_slots(images, written.shape[1])
        return new.view(*new.shape, *[1] * (written.dim() - 2)).expand(written.shape)

    def _unknown(self, func: Any, packet: Any, given: list[Tensor], made: list[Tensor]) -> Tensor | None:
        name = str(packet).replace("aten.", "")
        if not (made[0].is_floating_point() or made[0].is_complex()):
            return None
        self.report(f"the operation {name}", *made, kernel=True)
        placed = [tensor for tensor in given if tensor in self._ids]
        alike = next((tensor for tensor in placed if tensor.shape == made[0].shape), None)
        if alike is not None:
            return self.ids_of(alike)
        fitting = next(
            (one for one in placed if one.dim() == made[0].dim() and one.shape[:-1] == made[0].shape[:-1]), None
        )
        if fitting is None:
            return None
        ids = self.table.reduce(self._ids[fitting], (-1,))
        return ids.narrow(-1, 0, 1)


#: Where each reduction has its dimensions, if not behind the tensor.
_DIM_ARGUMENT = {aten.linalg_vector_norm: 2, aten.norm: 2}


def _writes(func: Any) -> bool:
    schema = func._schema
    arguments = schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write


def _repeating(ids: Tensor) -> Tensor:
    """The same ids, with dimensions along which they repeat held once; only those that channels have are tried."""
    for dim in {ids.dim() - 1, 1, ids.dim() - 3}:
        if 0 <= dim < ids.dim() and ids.shape[dim] > 1 and ids.stride(dim) != 0:
            first = ids.narrow(dim, 0, 1)
            if bool((ids == first).all()):
                ids = first.expand(ids.shape)
    return ids


def _repeats(tensor: Tensor, out: Tensor) -> bool:
    """Whether a factor is one for many elements: a gate, not a token of its own."""
    if tensor.numel() < out.numel():
        return True
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _two(size: Sequence[int]) -> tuple[int, int]:
    return (1, size[0]) if len(size) == 1 else (size[-2], size[-1])


def _each(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _even_windows(before: int, after: int) -> tuple[list[int], list[int]]:
    """``after`` parts of ``before`` indices, as adaptive pools cut them."""
    first = [index * before // after for index in range(after)]
    last = [-(-(index + 1) * before // after) - 1 for index in range(after)]
    return first, last


def _windows(
    before: int, after: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[list[int], list[int]]:
    """First and last input index that stands for each output.

    Windows that do not overlap are read whole. Overlapping ones only blur: their outputs lie evenly over the input.
    """
    reach = (kernel - 1) * dilation + 1
    if stride == 1:
        shift = (reach - 1) // 2 - padding
        places = [min(max(index + shift, 0), before - 1) for index in range(after)]
        return places, places
    if kernel > stride:
        seen = max(0, min(before, (after - 1) * stride + reach - padding))
        return _even_windows(seen if after <= seen else before, after)
    start, length = -padding, reach
    first = [min(max(index * stride + start, 0), before - 1) for index in range(after)]
    last = [min(max(index * stride + start + length - 1, 0), before - 1) for index in range(after)]
    return first, last
