"""AttentionTap: sees every attention call of a forward pass, and changes none."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_attngrad.attention.arrangement import Arrangement, FusedArrangement, four_dimensional
from lightning_attngrad.attention.call import AttentionCall, ExplicitAttentionCall, FusedAttentionCall
from lightning_attngrad.attention.constants import constant_of
from lightning_attngrad.attention.descent import SoftmaxDescent
from lightning_attngrad.attention.embedding import NumberedOutputs
from lightning_attngrad.attention.feature_maps import FeatureMaps
from lightning_attngrad.attention.joined import BlockReader, Readers, is_joinable, joined_attention
from lightning_attngrad.attention.module_names import ModuleNames, unlike
from lightning_attngrad.attention.multihead import multi_head_attention
from lightning_attngrad.attention.rules import NORMALISATIONS, PLAIN, BackwardRules, scale_gradient, under_rules
from lightning_attngrad.attention.token_statistics import TokenStatistics
from lightning_attngrad.attention.watching import AttentionWatcher, SeenAttention
from lightning_attngrad.attention.weights import LOG_SOFTMAX, SOFTMAX, UnreadSoftmax, Weights, softmax_dim
from lightning_attngrad.state import outside_inference

T = TypeVar("T")


class AttentionTap(TorchFunctionMode):
    """While active, records every attention call of ``model`` in :attr:`calls`, first call first.

    ``scaled_dot_product_attention`` stays the fused kernel that it is; an explicit softmax that is multiplied
    with values, and the attention inside ``nn.MultiheadAttention``, are seen as well. No module is patched,
    wrapped or hooked: names come from the stack of Python calls, gradients from hooks on activations.

    Args:
        model: whose module names the calls are known by.
        start: where the autograd graph begins while parameters are held constant. ``attention``: at the first
            attention call. ``embedding``: at :attr:`embedding`. ``images``: at what :meth:`begin_at` was given.
            ``None``: no graph is asked for.
        embedding_number: of the embedding, as :func:`embedding_number` finds it; None where it is not needed.
        keep_statistics: whether to keep what normalisations of tokens divide by.
        rules: what replaces the plain gradient on the way back.
        score_offsets: one addition to the scores (B, H, N, M), or None, for each call in order.
        watcher: is told of every attention call while it happens.

    Attributes:
        calls: the attention calls.
        beginnings: with ``start="attention"``, the tensors of calls to which no graph led, where one begins now: the
            first call, and the first of every tower or branch beside it.
        moves: a number that tells passes apart that move their tokens in another way.
        numbered: how many tensors functions of torch have returned to the model, see :mod:`embedding`.
        embedding: what relevance is measured at, tokens with their positions as they enter the first block: (B, N, D),
            or whatever form the model gives them. None until then.
        first_reads: what the first attention call that reads from the graph's beginning reads, values last, in the
            graph: a call before it may read another image. None until then.
        features: the maps that grad-CAM may be read from.
        statistics: what the normalisations in front of the calls divided by; None where that was not asked for.
        muted: whether functions of torch are none of the model's for now, and are neither seen nor numbered.
        on_gradient: called with a call and the gradient at its ``tensor``, last call first, while autograd
            runs backwards.
        on_blocks: where set, asked instead for a reader of the blocks of a call whose backward pass is taken over, see
            :mod:`joined`; None lets that pass go its own way.
        on_constant: called likewise, under rules that ask for ``constants``, with the name of a module, a constant that
            it added behind the embedding (a bias), the gradient at what that was added to, and the number of that.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("test_vit", num_classes=3).eval()
        >>> with AttentionTap(model) as tap, torch.no_grad():
        ...     _ = model(torch.rand(2, 3, 160, 160))
        >>> tap.calls[0].name, tap.calls[0].shape
        ('blocks.0.attn', (2, 2, 101, 101))
        >>> probabilities = tap.calls[0].attention(slice(0, 1))  # the row of the class token
        >>> probabilities.shape, bool(torch.allclose(probabilities.sum(-1), torch.ones(())))
        (torch.Size([2, 2, 1, 101]), True)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        start: Literal["attention", "embedding", "images"] | None = None,
        rules: BackwardRules = PLAIN,
        score_offsets: Sequence[Tensor | None] = (),
        watcher: AttentionWatcher | None = None,
        embedding_number: int | None = None,
        keep_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.calls: list[AttentionCall] = []
        self.beginnings: list[Tensor] = []
        self.moves = 0
        self.numbered = NumberedOutputs(embedding_number, keep_nodes=start == "images")
        self.first_reads: tuple[Tensor, ...] | None = None
        self.features = FeatureMaps()
        self.statistics = TokenStatistics() if keep_statistics else None
        self.muted = False
        self.on_gradient: Callable[[AttentionCall, Tensor], None] | None = None
        self.on_blocks: Callable[[AttentionCall, Tensor], BlockReader | None] | None = None
        self.on_constant: Callable[[str, Tensor, Tensor, int], None] | None = None
        self._names = ModuleNames(model)
        self._start = start
        self._rules = rules
        self._score_offsets = score_offsets
        self._watcher = watcher
        self._entering_norm: Tensor | None = None
        self._descent = SoftmaxDescent(model, self)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._handlers: dict[Callable[..., Any], Callable[..., Any]] = {
            F.scaled_dot_product_attention: self._on_fused_attention,
            F.multi_head_attention_forward: self._on_multi_head_attention,
            torch._C._set_grad_enabled: self._on_set_grad_enabled,
            **dict.fromkeys(SOFTMAX | LOG_SOFTMAX, self._on_softmax),
            **dict.fromkeys(NORMALISATIONS, self._on_normalisation),
            F.batch_norm: self._on_batch_normalisation,
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # What torch does to gather sharded weights belongs to no model, and is not the same in every pass.
        if self.muted or sys._getframe(1).f_globals.get("__name__", "").startswith("torch.distributed."):
            return func(*args, **(kwargs or {}))
        args = tuple(outside_inference(argument) for argument in args)
        kwargs = {name: outside_inference(value) for name, value in kwargs.items()} if kwargs else {}
        output = self._given(self._descent.computed(func, args, kwargs))
        if func in _MOVES:
            self.moves = hash((self.moves, func, _plain(args), _plain(tuple(kwargs.values()))))
        return output

    def _given(self, output: Any) -> Any:
        """What the model gets for what a function gave it: numbered, and mostly that."""
        output = self.numbered(output)
        if self._watcher is not None and isinstance(output, Tensor):
            self._watcher.returned(self.numbered.last, output)
        return output

    def computed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives under the rules, apart from what its arguments descend from."""
        keeps = self._rules.constants and self.embedding is not None
        constant = constant_of(func, args, kwargs) if keeps else None
        output = (self._handlers.get(func) or self._under_rules)(func, *args, **kwargs)
        self._keep_constant(constant, output, self.numbered.last + 1)
        if self.statistics is not None:
            self.statistics.computed(func, args, kwargs, output, self.numbered.last + 1)
        return output

    def _under_rules(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = under_rules(func, self._rules)(*args, **kwargs)
        if self._start == "embedding" and isinstance(output, Tensor):
            self.features.made(output, self.numbered.last + 1)
        return output

    @property
    def embedding(self) -> Tensor | None:
        """What relevance is measured at; None until then."""
        return self.numbered.embedding

    def begin_at(self, images: Tensor) -> Tensor:
        """Let the graph begin at images (B, C, H, W); returns what the model takes."""
        return images.requires_grad_().clone()  # a model that works in place would fail on the images themselves

    def release(self) -> None:
        """Let go of all tensors and hooks, so that nothing but the caller's results stays alive."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.calls.clear()
        self.on_gradient = self.on_blocks = self.on_constant = None
        self._descent.release()
        self.beginnings.clear()
        self.numbered.release()
        self.features.release()
        if self.statistics is not None:
            self.statistics.release()
        self.first_reads = self._entering_norm = None

    @property
    def unread_softmaxes(self) -> tuple[UnreadSoftmax, ...]:
        """Softmaxes that no attention call was made of, and that may have been attention.

        What descends from such a one met other tensors in a way that cannot be read, or it has as many rows as keys and
        met nothing that is seen. Whether tokens of the image are concerned, only their places can tell.
        """
        return self._descent.unread

    # What is seen ------------------------------------------------------------------------------------------

    def _on_fused_attention(
        self,
        func: Callable[..., Any],  # noqa: ARG002  (all handlers take it)
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002  (models are explained as they are evaluated: without dropout)
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        rules = self._rules.attention
        seen = (query, key, value)
        if rules == "constant":
            query, key = query.detach(), key.detach()
        elif rules == "uniform":
            query, key = scale_gradient(query, 0.25), scale_gradient(key, 0.25)
            value = scale_gradient(value, 0.5)
        fused = FusedArrangement.of(*seen, enable_gqa)
        offset = self._score_offset()
        mask = attn_mask
        if offset is not None:
            mask = _added_to_mask(fused.of_scores(offset).to(query.dtype), attn_mask, is_causal)
            is_causal = False
        is_joined = is_joinable(query, key, value, mask, is_causal, scale)
        with self._attending():
            if is_joined:
                output = joined_attention(query, key, value, scale, self._readers(len(self.calls)))
            else:
                output = F.scaled_dot_product_attention(
                    query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
                )
        call = FusedAttentionCall(
            name=self.calling_module(),
            tensor=output,
            query=fused.of_rows(seen[0]),
            key=fused.grouped_keys(seen[1]),
            value=fused.grouped_keys(seen[2]),
            mask=None if mask is None else fused.of_mask(mask),
            is_causal=is_causal,
            scale=scale,
        )
        self._record(seen, call, fused.of_rows, is_joined=is_joined)
        self._tell(
            lambda: SeenAttention(
                call, seen[0], seen[2], output, fused.of_rows, fused.of_keys, fused.to_output(output.shape)
            )
        )
        return output

    def _on_multi_head_attention(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def attend(
            query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
        ) -> tuple[Tensor, Callable[[], Tensor]]:
            output = self._on_fused_attention(func, query, key, value, mask, 0.0, is_causal, scale)
            call = self.calls[-1]
            return output, lambda: call.attention(slice(0, call.shape[2]))

        def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            output: Tensor = self._given(F.linear(tokens, weight, bias))  # by no function that the model calls
            self._keep_constant(bias, output, self.numbered.last)
            return output

        return multi_head_attention(attend, linear, *args, **kwargs)

    def _on_softmax(self, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        number = len(self.calls)
        offset = self._score_offset()
        if offset is not None and input.dim() > 2 and four_dimensional(input).shape == offset.shape:
            output: Tensor = func(input + offset.reshape(input.shape).to(input.dtype), *args, **kwargs)
        else:
            offset = None
            output = func(input, *args, **kwargs)
        dim = softmax_dim(func, args, kwargs)
        if dim is not None and output.dim() > 1 and output.is_floating_point():
            self._descent.begin(output, dim, func in LOG_SOFTMAX, None if offset is None else number)
        return output

    def factors(self, matrix: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and values as they are multiplied: what flows back through them is up to the rules."""
        if self._rules.attention == "constant":
            matrix = matrix.detach()
        elif self._rules.attention == "uniform":
            # The rule for products halves what reaches queries and keys once more.
            matrix, value = scale_gradient(matrix, 0.5), scale_gradient(value, 0.5)
        if not self.calls or self._rules.attention != "constant":
            self._begin(matrix)
        return matrix, value

    def attend(
        self,
        weights: Weights,
        operands: tuple[Tensor, Tensor, Tensor],
        arrangement: Arrangement,
        compute: Callable[[], Tensor],
    ) -> Tensor:
        """Compute a product of probabilities and values, and keep what it was.

        Args:
            weights: what is known of the probabilities.
            operands: the matrix as the model holds it, as it is multiplied, and the values.
            arrangement: of the matrix as the model holds it.
            compute: gives the product.
        """
        matrix, factor, value = operands
        weights.was_read()
        call = ExplicitAttentionCall(
            name=self.calling_module(), tensor=factor, probabilities=arrangement.of_rows(matrix.detach())
        )
        self._check_offset(call.name, weights, arrangement)
        self._record((matrix, value), call, arrangement.for_every_row().of_rows)
        with self._attending():
            output = compute()
        self._tell(
            lambda: SeenAttention(
                call, matrix, value, output, arrangement.of_rows, arrangement.of_keys, arrangement.to_output
            )
        )
        return output

    def _check_offset(self, name: str, weights: Weights, arrangement: Arrangement) -> None:
        """Refuse to move the scores of an attention that is not the very softmax of them."""
        if self._score_offset() is None:
            return
        offsets = {softmax.offset for softmax in weights.softmaxes}
        if offsets != {len(self.calls)} or not weights.is_copy or not arrangement.is_plain:
            raise ValueError(
                f"score_offsets: the attention of {name!r} is changed or moved about between its softmax and its "
                "values, so that its scores cannot be moved along their gradient; leave this layer out (layers= of "
                "attention_step)"
            )

    def _on_normalisation(self, func: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        of_tokens = input.dim() == 3 and input.is_floating_point()  # (B, N, D), not the heads of a query
        output: Tensor = under_rules(func, self._rules)(input, *args, **kwargs)
        if of_tokens:
            self._entering_norm = input
        self.features.normalised(output, self.numbered.last + 1)
        return output

    def _on_batch_normalisation(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = under_rules(func, self._rules)(*args, **kwargs)
        self.features.normalised(output, self.numbered.last + 1, by_batch=True)
        return output

    def _on_set_grad_enabled(self, func: Callable[..., Any], enabled: bool) -> None:
        # A backbone that its owner runs under no_grad is a frozen one: it is read like any other.
        if enabled or self._start is None:
            func(enabled)

    # What is kept ------------------------------------------------------------------------------------------

    def _begin(self, tensor: Tensor) -> None:
        """Let a graph begin at a tensor of an attention call, if none leads to it."""
        if self._start == "attention" and torch.is_grad_enabled():
            tensor.requires_grad_()

    def _attending(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._watcher is None else self._watcher.attending()

    def _tell(self, seen: Callable[[], SeenAttention]) -> None:
        if self._watcher is not None:
            self._watcher.attended(seen())

    def _record(
        self,
        reads: tuple[Tensor, ...],
        call: AttentionCall,
        canonical: Callable[[Tensor], Tensor],
        *,
        is_joined: bool = False,
    ) -> None:
        """Keep a call, and from what it reads, values last, as the model has it: before rules cut anything."""
        call.name = unlike(call.name, [known.name for known in self.calls])
        if self.first_reads is None and reads[-1].requires_grad:
            self.first_reads = reads
        if isinstance(call, FusedAttentionCall):
            self._begin(call.tensor)
        if self._start == "attention" and call.tensor.is_leaf and call.tensor.requires_grad:
            self.beginnings.append(call.tensor)
        if call.tensor.requires_grad:
            self._hooks.append(call.tensor.register_hook(self._deliver(call, canonical, is_joined)))
        if call.is_self_attention:
            self.features.attended(reads[-1])
        if self.statistics is not None:
            self.statistics.attended(reads[-1])
        if self._entering_norm is not None:
            tokens = self._entering_norm.detach()
            call.token_norms = torch.linalg.vector_norm(
                tokens, dim=-1, dtype=torch.promote_types(tokens.dtype, torch.float32)
            )
        self.calls.append(call)

    def _keep_constant(self, constant: Tensor | None, output: Any, number: int) -> None:
        """Deliver, while autograd runs backwards, what a function added to an output and the gradient at that."""
        if constant is None or not self._rules.constants or self.embedding is None or not output.requires_grad:
            return
        name, constant = self.calling_module(), constant.detach()

        def deliver(gradient: Tensor) -> None:
            if self.on_constant is not None:
                self.on_constant(name, constant, gradient, number)

        self._hooks.append(output.register_hook(deliver))

    def _deliver(
        self, call: AttentionCall, canonical: Callable[[Tensor], Tensor], is_joined: bool
    ) -> Callable[[Tensor], None]:
        def deliver(gradient: Tensor) -> None:
            if self.on_gradient is not None and not (is_joined and self.on_blocks is not None):
                self.on_gradient(call, canonical(gradient))

        return deliver

    def _readers(self, number: int) -> Readers:
        """Who reads the blocks of a call that is about to be recorded."""

        def reader(gradient: Tensor) -> tuple[AttentionCall, BlockReader] | None:
            if self.on_blocks is None:
                return None
            call = self.calls[number]
            found = self.on_blocks(call, gradient)
            return None if found is None else (call, found)

        return reader

    def _score_offset(self) -> Tensor | None:
        index = len(self.calls)
        return self._score_offsets[index] if index < len(self._score_offsets) else None

    def calling_module(self) -> str:
        """Name of the innermost module of the model whose forward is running."""
        return self._names.running() or f"attention.{len(self.calls)}"

    def running_module(self) -> str:
        """The same; "" where that is the model itself, whose calls are known by their number."""
        return self._names.running() or ""


#: What moves tokens by arguments that have nothing to do with the number of images.
_MOVES = {
    torch.roll, Tensor.roll, torch.flip, Tensor.flip, torch.permute, Tensor.permute, torch.transpose, Tensor.transpose,
    torch.cat, F.pad, Tensor.__getitem__, torch.swapaxes, Tensor.swapaxes, torch.movedim, Tensor.movedim,
}  # fmt: skip


def _plain(arguments: tuple[Any, ...]) -> str:
    """Numbers and slices among the arguments of a function, as text."""
    kinds = (int, slice, tuple, list)
    return str([one for one in arguments if isinstance(one, kinds) and not _has_tensors(one)])


def _has_tensors(argument: Any) -> bool:
    return isinstance(argument, tuple | list) and any(isinstance(one, Tensor) or _has_tensors(one) for one in argument)


def _added_to_mask(offset: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    if is_causal:
        mask = torch.ones(offset.shape[-2:], dtype=torch.bool, device=offset.device).tril()
    if mask is None:
        return offset
    return offset.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else offset + mask
