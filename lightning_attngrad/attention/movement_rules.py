"""What each operation of torch's dispatcher does to the places of what it reads.

A rule takes what is :class:`Followed` and one :class:`Step` of a pass, and gives the ids of what the step made: of its
shape, or of one that expands to it; None where it is to have none. :data:`RULES` has them by operation, whatever the
overload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.attention.beside import Beside
from lightning_attngrad.attention.followed import Followed
from lightning_attngrad.attention.place_table import compressed
from lightning_attngrad.attention.windows import Ranges, each, even_windows, window_middles, windows

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a pass.

    Attributes:
        func: the overload.
        packet: the operation.
        args: as it got them.
        kwargs: the same.
        given: the tensors among its arguments.
        made: the tensors that it made.
    """

    func: Any
    packet: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: list[Tensor]
    made: list[Tensor]

    @property
    def out(self) -> Tensor:
        """The tensor that it made, or the first of them."""
        return self.made[0]

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)


Rule = Callable[[Followed, Step], Tensor | None]
RULES: dict[Any, Rule] = {}


def _rule(*packets: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(packets, rule))
        return rule

    return register


def _where_there_is(*names: str) -> list[Any]:
    """Operations that the oldest torch that is supported does not have."""
    return [getattr(aten, name) for name in names if hasattr(aten, name)]


def repeating(ids: Tensor) -> Tensor:
    """The same ids, with dimensions along which they repeat held once; only those that channels have are tried."""
    for dim in {ids.dim() - 1, 1, ids.dim() - 3}:
        if 0 <= dim < ids.dim() and ids.shape[dim] > 1 and ids.stride(dim) != 0:
            first = ids.narrow(dim, 0, 1)
            if bool((ids == first).all()):
                ids = first.expand(ids.shape)
    return ids


@_rule(aten.cat, aten.concat)
def _cat(followed: Followed, step: Step) -> Tensor:
    """What is put in front of, or behind, tokens and lies nowhere becomes tokens of its own; zeros are padding.

    Rows of a batch that are put one under the other, image after image, are no tokens.
    """
    table, dim = followed.table, step.argument(1, "dim", 0)
    parts = [part for part in step.args[0] if part.numel()]
    placed = [ids for part in parts if (ids := followed.ids_of(part)) is not None and ids.dim() == parts[-1].dim()]
    dim = dim % placed[0].dim()
    along = compressed(next((ids for ids in placed if table.lies_on_image(ids)), placed[0]))
    token_axis = any(compressed(ids).shape[dim] > 1 for ids in placed)
    if not token_axis:  # single tokens, as class attention has them: an axis of tokens if it is none of channels
        token_axis = all(ids.shape[dim] == 1 for ids in placed) and dim != along.dim() - 1
    token_axis = token_axis and not _is_axis_of_images([table.images_of(compressed(ids)) for ids in placed], dim)
    images = table.images_of(along.amax(dim=dim, keepdim=True))
    beside = Beside(followed, parts, images) if token_axis else None
    collected = []
    for part in parts:
        ids = followed.ids_of(part)
        if ids is not None and beside is not None:
            ids = beside.told_apart(part, ids, step.out)
        if ids is None and token_axis and bool(part.ne(0).any()):
            new = table.new_slots(images.movedim(dim, -1).squeeze(-1), part.shape[dim])
            ids = new.movedim(-1, dim).expand(part.shape)
        collected.append(followed.ids_or_nothing(part) if ids is None else ids)
    return repeating(torch.cat(collected, dim=dim))


def _is_axis_of_images(owners: Sequence[Tensor], dim: int) -> bool:
    """Whether images (−1 for none) follow each other along a dimension, and along no other."""
    known = torch.cat([one[one >= 0] for one in owners])
    by_place = [one.movedim(dim, 0).flatten(1) for one in owners]
    alone = all(bool(((one == one.amax(1, keepdim=True)) | (one < 0)).all()) for one in by_place)
    return alone and bool((known != known[:1]).any())


@_rule(aten.stack)
def _stack(followed: Followed, step: Step) -> Tensor:
    parts = [followed.ids_or_nothing(part) for part in step.args[0]]
    return torch.stack(parts, dim=step.argument(1, "dim", 0))


@_rule(
    aten.native_layer_norm, aten.native_batch_norm, aten._native_batch_norm_legit, aten.native_group_norm,
    aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm, aten.miopen_batch_norm,
    aten._batch_norm_with_update, aten._batch_norm_no_update, aten.native_dropout, aten.rms_norm, aten.batch_norm,
    aten._batch_norm_impl_index, *_where_there_is("_fused_rms_norm"),
)  # fmt: skip
def _normalisation(followed: Followed, step: Step) -> Tensor | None:
    """Statistics of many elements lie nowhere; what they scale stays where it is."""
    return followed.ids_of(step.args[0])


@_rule(aten._softmax, aten._safe_softmax, aten._log_softmax)
def _softmax(followed: Followed, step: Step) -> Tensor | None:
    ids = followed.ids_of(step.args[0])
    if ids is None:
        return None
    shape, kept = step.out.shape, compressed(ids)
    square = len(shape) > 2 and shape[-1] == shape[-2] > 1
    by_place = (len(shape) > 3 or square) and max(kept.shape[1:], default=1) > 1
    followed.note_softmax(step.out, over_tokens=kept.shape[step.argument(1, "dim")] > 1 or by_place)
    return ids


@_rule(
    aten.hardswish, aten.prelu, aten._prelu_kernel, aten.tril, aten.triu, aten.rrelu_with_noise, aten.masked_fill,
    aten.where, aten.glu, aten.nan_to_num, aten.log_sigmoid_forward, aten.renorm, aten.copy,
)  # fmt: skip
def elementwise(followed: Followed, step: Step) -> Tensor | None:
    """Element by element: the more local of what is joined, see :meth:`PlaceTable.join`."""
    return joined(followed, step.given, step.out)


def joined(followed: Followed, given: Sequence[Tensor], out: Tensor) -> Tensor | None:
    """Places of ``out``, computed element by element from tensors that broadcast to its shape."""
    ids: Tensor | None = None
    for tensor in given:
        other = followed.ids_of(tensor)
        if other is None:
            continue
        other = compressed(other)
        if ids is None:
            ids = other
            continue
        dims = max(ids.dim(), other.dim())
        ids, other = (one.reshape(*[1] * (dims - one.dim()), *one.shape) for one in (ids, other))
        _look_for_contexts(followed, ids, other, out)
        parts = (ids, other)
        ids, gave_way = followed.table.join(ids, other)
        if bool(gave_way.any()) and not any(_is_gate(one, out) for one in given if one in followed):
            maker = next((name for one in parts if (name := followed.maker_of(one)) is not None), None)
            followed.report("a layer that mixes all tokens and is no attention", out, module=maker)
    if ids is None or ids.dim() == out.dim():
        return ids
    return ids.reshape(*[1] * (out.dim() - ids.dim()), *ids.shape)


def _look_for_contexts(followed: Followed, one: Tensor, two: Tensor, out: Tensor) -> None:
    """Report a context of all tokens, weighted by a softmax and asked for by none, that each of them is changed by."""
    table = followed.table
    for context, tokens in ((one, two), (two, one)):
        if table.holds_context(context) and table.lies_on_image(tokens):
            what = "a context of all tokens (separable or global-context attention)"
            followed.report(what, out, module=followed.maker_of(context))


def _is_gate(tensor: Tensor, out: Tensor) -> bool:
    """Whether a factor is one for many elements."""
    if tensor.numel() < out.numel():
        return True
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


@_rule(aten.mm, aten.bmm, aten.mv, aten.dot)
def _product(followed: Followed, step: Step) -> Tensor | None:
    return _of_product(followed, step.out, step.args[0], step.args[1])


@_rule(aten.addmm, aten.baddbmm, aten.addmv, aten.addbmm, aten._addmm_activation)
def _added_product(followed: Followed, step: Step) -> Tensor | None:
    return _of_product(followed, step.out, step.args[1], step.args[2])


def _of_product(followed: Followed, out: Tensor, first: Tensor, second: Tensor) -> Tensor | None:
    """A row lies where the rows of the first factor lie; without, where the columns of the second do."""
    table = followed.table
    one, two = followed.ids_of(first), followed.ids_of(second)
    both, families = one is not None and two is not None, table.families
    left = None if one is None else table.reduce(one, (-1,), mixing=True, always=both)
    contracted = -2 if second.dim() > 1 else -1
    right = None if two is None else table.reduce(two, (contracted,), mixing=True, always=both)
    followed.note_makers(families)
    if second.dim() == 1:  # one number for each row of a matrix, or one in all
        alone = None if right is None else right.reshape(-1)[:1]
        return alone if left is None else left.squeeze(-1) if first.dim() > 1 else left
    if left is None or right is None:
        return left if left is not None else right
    left_mixed, right_mixed = table.is_mixed(left), table.is_mixed(right)
    if left_mixed != right_mixed:  # rows of tokens, times a matrix that was made of tokens
        local, other = (right, left) if left_mixed else (left, right)
        rows = compressed(local)
        if rows.numel() > rows.shape[0] and bool(rows.gt(0).any()):
            what = "a product of tokens with tokens that is no softmax attention seen here (a linear or a scripted one)"
            followed.report(what, out)
        return local if bool(local.gt(0).any()) else other
    return left if bool(left.gt(0).any()) else right  # rows of padding stay nowhere


@_rule(
    aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.var_mean, aten.std_mean,
    aten.logsumexp, aten.prod, aten.aminmax, aten.nansum, aten.argmax, aten.argmin, aten.all, aten.any, aten.median,
    aten.nanmedian, aten.mode, aten.linalg_vector_norm, aten.norm,
)  # fmt: skip
def _reduction(followed: Followed, step: Step) -> Tensor | None:
    ids = followed.ids_of(step.args[0])
    if ids is None:
        return None
    dims = step.argument(2 if step.packet in (aten.linalg_vector_norm, aten.norm) else 1, "dim")
    if isinstance(dims, Tensor):  # element by element: the larger of two
        return joined(followed, [step.args[0], dims], step.out)
    dims = [dims] if isinstance(dims, int) else dims
    dims = tuple(range(ids.dim())) if not dims else tuple(dim % ids.dim() for dim in dims)
    reduced = followed.table.reduce(ids, dims)
    for dim in dims:
        if reduced.shape[dim] > 1:  # kept, as it repeats
            reduced = reduced.narrow(dim, 0, 1)
    return reduced if step.out.dim() == ids.dim() else reduced.squeeze(dims)


@_rule(aten.convolution, aten._convolution, aten.cudnn_convolution, aten.mkldnn_convolution)
def _convolution(followed: Followed, step: Step) -> Tensor | None:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed")
    given = {**dict(zip(names, step.args, strict=False)), **step.kwargs}
    ids = followed.ids_of(given["input"])
    if ids is None:
        return None
    if given.get("transposed"):
        size = _two(step.out.shape[2:])
        return _spatial(followed, ids, lambda flat: followed.table.resampled(flat, size))
    settings = (given["weight"].shape[2:], given["stride"], given["padding"], given["dilation"])
    return _windowed(followed, ids, step.out, settings)


@_rule(
    aten.avg_pool1d, aten.avg_pool2d, aten.max_pool2d, aten.max_pool2d_with_indices, aten.mkldnn_max_pool2d,
    aten.avg_pool3d, aten.max_pool3d_with_indices,
)  # fmt: skip
def _pool(followed: Followed, step: Step) -> Tensor | None:
    ids = followed.ids_of(step.args[0])
    if ids is None:
        return None
    kernel = step.args[1]
    stride = step.argument(2, "stride") or kernel
    return _windowed(followed, ids, step.out, (kernel, stride, step.argument(3, "padding", 0), 1))


@_rule(
    aten._adaptive_avg_pool2d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool2d, aten.adaptive_avg_pool1d,
    aten.adaptive_max_pool1d, aten.mkldnn_adaptive_avg_pool2d,
)  # fmt: skip
def _adaptive_pool(followed: Followed, step: Step) -> Tensor | None:
    ids = followed.ids_of(step.args[0])
    if ids is None:
        return None
    before, after = _two(ids.shape[2:]), _two(step.out.shape[2:])
    ranges = tuple(even_windows(one, two) for one, two in zip(before, after, strict=True))
    return _spatial(followed, ids, lambda flat: followed.table.windows(flat, ranges))


@_rule(
    *(
        getattr(aten, name)
        for name in dir(aten)
        if name.startswith(("upsample_", "_upsample_")) and "backward" not in name
    )
)
def _resampled(followed: Followed, step: Step) -> Tensor | None:
    ids = followed.ids_of(step.args[0])
    size = _two(step.out.shape[2:])
    return None if ids is None else _spatial(followed, ids, lambda flat: followed.table.resampled(flat, size))


def _spatial(followed: Followed, ids: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change the last two dimensions of (B, C, H, W), or the last of (B, C, L); channels are joined."""
    one = followed.table.reduce(ids, (1,)).narrow(1, 0, 1).expand(-1, -1, *ids.shape[2:])
    return change(one.unsqueeze(2)).squeeze(2) if ids.dim() == 3 else change(one)


def _windowed(followed: Followed, ids: Tensor, out: Tensor, settings: tuple[Any, Any, Any, Any]) -> Tensor:
    """Places of outputs that each read a window, by its kernel, stride, padding and dilation."""
    axes = out.dim() - 2
    by_axis = list(zip(*(each(value, axes) for value in settings), strict=True))
    if axes == 3:
        return _windowed_in_time(followed, ids, out, by_axis)
    middles = tuple(window_middles(after, *of_axis) for after, of_axis in zip(out.shape[2:], by_axis, strict=True))
    middles = ([0.0], *middles) if axes == 1 else middles
    found: list[Tensor] = []
    for late in (False, True):
        ranges: tuple[Ranges, ...] = tuple(
            windows(before, after, *of_axis, late=late)
            for before, after, of_axis in zip(ids.shape[2:], out.shape[2:], by_axis, strict=True)
        )
        ranges = (([0], [0]), *ranges) if axes == 1 else ranges
        found.append(_spatial(followed, ids, partial(_read, followed, ranges, middles)))
        if not any(kernel % 2 == 0 and stride == 1 for kernel, stride, *_ in by_axis):
            return found[0]
    early, later = found  # an even kernel without a stride: its middle is where the border was padded for it
    return later if int(later.eq(0).sum()) < int(early.eq(0).sum()) else early


def _windowed_in_time(
    followed: Followed, ids: Tensor, out: Tensor, by_axis: Sequence[tuple[int, int, int, int]]
) -> Tensor:
    """The same over (B, C, T, H, W), where the frames that one output reads lie at the same places of the image.

    They do where an image holds the frames of a clip side by side, and those that are read together as channels; and
    where channels are taken for time. Else an output lies at several places at once, and is reported.
    """
    ids = followed.table.reduce(ids, (1,)).narrow(1, 0, 1)[:, 0].expand(-1, *ids.shape[2:])  # (B, T, H, W)
    kernel, stride, padding, dilation = by_axis[0]
    begins = torch.arange(out.shape[2], device=ids.device) * stride - padding
    taps = (begins[:, None] + torch.arange(kernel, device=ids.device) * dilation).clamp(0, ids.shape[1] - 1)  # (t, k)
    read = ids[:, taps.flatten()].unflatten(1, taps.shape)  # (B, t, k, H, W)
    frames = read[:, :, 0]
    if bool((read != frames.unsqueeze(2)).any()):
        followed.report("a layer over three dimensions", out)
        return followed.table.reduce(ids, (1, 2, 3)).unsqueeze(1)
    ranges = tuple(
        windows(before, after, *of_axis)
        for before, after, of_axis in zip(ids.shape[2:], out.shape[3:], by_axis[1:], strict=True)
    )
    middles = tuple(window_middles(after, *of_axis) for after, of_axis in zip(out.shape[3:], by_axis[1:], strict=True))
    return _read(followed, ranges, middles, frames).unsqueeze(1)


def _read(followed: Followed, ranges: tuple[Ranges, ...], middles: tuple[list[float], ...], flat: Tensor) -> Tensor:
    if any(first != last for first, last in ranges):
        return followed.table.windows(flat, ranges, middles)
    for dim, (first, _) in zip((-2, -1), ranges, strict=True):  # each output lies where one input lies
        if first != list(range(flat.shape[dim])):
            flat = flat.index_select(dim, torch.tensor(first).to(flat.device))
    return flat


@_rule(aten.col2im)
def _folded(followed: Followed, step: Step) -> Tensor | None:
    """Overlapping patches added up: what lies at one place stays there."""
    ids = followed.ids_of(step.args[0])
    if ids is None:
        return None
    wide = torch.float64 if ids.device.type != "mps" else torch.float32
    total: Tensor = aten.col2im(ids.to(wide), *step.args[1:], **step.kwargs)
    count: Tensor = aten.col2im((ids > 0).to(wide), *step.args[1:], **step.kwargs)
    mean = total / count.clamp_min(1)
    if not bool(((mean - mean.round()).abs() < 1e-6).all()):
        followed.report("overlapping patches of different places, added up", step.out)
    return mean.round().int()


@_rule(aten.index_put, aten.slice_scatter, aten.select_scatter, aten.scatter, aten.index_copy)
def _scattered(followed: Followed, step: Step) -> Tensor:
    whole = followed.ids_or_nothing(step.args[0]).contiguous()
    written = [isinstance(one, Tensor) and one.is_floating_point() and one in followed for one in step.args]
    position = next((n for n, there in enumerate(written) if n and there), None)  # an index may come from tokens, too
    if position is None:
        return whole
    changed = [followed.ids_of(one) if n == position else one for n, one in enumerate(step.args)]
    result: Tensor = step.func(whole, *changed[1:], **step.kwargs)
    return result


#: What adds tokens up, or averages them, where an index says.
MERGES = {
    aten.scatter_add, aten.scatter_reduce, aten.index_add, aten.index_reduce,
    aten.scatter_add_, aten.scatter_reduce_, aten.index_add_, aten.index_reduce_,
}  # fmt: skip


@_rule(*MERGES)
def merged(followed: Followed, step: Step) -> Tensor | None:
    """Tokens become one with others: reported; what they become lies where the tokens do that stay."""
    called = str(step.packet).replace("aten.", "").rstrip("_")
    followed.report(f"merging them with {called} (what is merged has no one place on the image)", *step.made)
    return followed.ids_of(step.args[0])


def unknown(followed: Followed, step: Step) -> Tensor | None:
    """An operation without a rule may do anything: it is reported, and its output kept where its input is."""
    if not (step.out.is_floating_point() or step.out.is_complex()):
        return None
    followed.report(f"the operation {str(step.packet).replace('aten.', '')}", *step.made, kernel=True)
    placed = [tensor for tensor in step.given if tensor in followed]
    alike = next((tensor for tensor in placed if tensor.shape == step.out.shape), None)
    if alike is not None:
        return followed.ids_of(alike)
    rows = next((one for one in placed if one.dim() == step.out.dim() and one.shape[:-1] == step.out.shape[:-1]), None)
    return None if rows is None else followed.table.reduce(followed.ids_or_nothing(rows), (-1,)).narrow(-1, 0, 1)


def _two(size: Sequence[int]) -> tuple[int, int]:
    return (1, size[0]) if len(size) == 1 else (size[-2], size[-1])
