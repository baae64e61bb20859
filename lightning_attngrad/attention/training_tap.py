"""TrainingTap: sees the attention calls of a training step, in its graph, and changes nothing at all."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_attngrad.attention.arrangement import Arrangement, FusedArrangement
from lightning_attngrad.attention.call import AttentionCall, ExplicitAttentionCall, FusedAttentionCall
from lightning_attngrad.attention.descent import SoftmaxDescent
from lightning_attngrad.attention.module_names import ModuleNames, unlike
from lightning_attngrad.attention.multihead import multi_head_attention
from lightning_attngrad.attention.weights import LOG_SOFTMAX, SOFTMAX, Softmax, Weights, softmax_dim

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout)


class TrainingTap(TorchFunctionMode):
    """While active, records the attention calls of ``model`` in :attr:`calls`, first call first.

    Unlike an :class:`AttentionTap`, which is made for models that are explained, it lets every function of torch run as
    it is called, dropout included: a step under it is, bit for bit, the step without. What it keeps leads into the
    graph of the step: queries and keys of a fused call, or the probabilities of a softmax, before they are dropped.

    Args:
        model: whose module names the calls are known by.
        wanted: which calls are kept, by name; all by default. The others cost next to nothing.

    Attributes:
        calls: the attention calls.
        seen: names of all calls, wanted or not.
        unread: why the attention of a module could not be kept, by name.
        muted: whether functions of torch are none of the model's for now.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("test_vit", num_classes=3)
        >>> with TrainingTap(model) as tap:
        ...     _ = model(torch.rand(2, 3, 160, 160))
        >>> tap.calls[0].name, tap.calls[0].shape, tap.calls[0].query.requires_grad
        ('blocks.0.attn', (2, 2, 101, 101), True)
    """

    def __init__(self, model: nn.Module, wanted: Callable[[str], bool] = lambda _: True) -> None:
        super().__init__()
        self.calls: list[AttentionCall] = []
        self.unread: dict[str, str] = {}
        self.muted = False
        self._names = ModuleNames(model)
        self._wanted = wanted
        self.seen: list[str] = []
        self._descent = SoftmaxDescent(model, self)
        self._output: Any = None  # of the function that is looked at
        self._undropped: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self._dropped: set[Softmax] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self.muted:
            self._look(func, args, kwargs, output)
        return output

    def _look(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """At a function that was called, and what it gave."""
        if func is F.scaled_dot_product_attention:
            self._on_fused_attention(output, *args, **kwargs)
        elif func is F.multi_head_attention_forward:
            self._on_multi_head_attention(*args, **kwargs)
        else:
            self._output = output
            with torch.no_grad():  # nothing but what is kept gets into the graph of the step
                self._descent.computed(func, args, kwargs)
            self._output = None
            if func in _DROPOUTS:
                self._on_dropout(output, *args)

    def begin(self) -> None:
        """Become active, where no block of code can say so: between two hooks."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Be active no more, and see nothing of what is computed in between if another mode is taken off first."""
        self.muted = True
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Let go of all tensors."""
        self.calls.clear()
        self.seen.clear()
        self.unread.clear()
        self._undropped.clear()
        self._dropped.clear()
        self._descent.release()

    # Fused -------------------------------------------------------------------------------------------------

    def _on_fused_attention(
        self,
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002  (what is guided is what is dropped from)
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        fused = FusedArrangement.of(query, key, value, enable_gqa)
        self._record(
            FusedAttentionCall(
                name=self.calling_module(),
                tensor=output,
                query=fused.of_rows(query),
                key=fused.grouped_keys(key),
                value=fused.grouped_keys(value),
                mask=None if attn_mask is None else fused.of_mask(attn_mask),
                is_causal=is_causal,
                scale=1 / math.sqrt(query.shape[-1]) if scale is None else scale,
            )
        )

    def _on_multi_head_attention(self, *args: Any, **kwargs: Any) -> None:
        """The layer has run inside torch, where nothing is seen: its queries and keys are projected once more."""
        name = unlike(self.calling_module(), self.seen)
        if not self._wanted(name):
            self.seen.append(name)
            return

        def attend(
            query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
        ) -> Any:
            self._on_fused_attention(query, query, key, value, mask, 0.0, is_causal, scale)
            raise _EnoughError

        # Activation checkpointing counts what is kept for the backward pass, and would not find these again.
        kept_here = torch.autograd.graph.saved_tensors_hooks(_itself, _itself)
        with contextlib.suppress(_EnoughError), kept_here:
            multi_head_attention(attend, F.linear, *args, **kwargs)

    # A softmax and a product -------------------------------------------------------------------------------

    def computed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the function gave that is looked at."""
        output = self._output
        if func in SOFTMAX or func in LOG_SOFTMAX:
            dim = softmax_dim(func, args[1:], kwargs)
            if dim is not None and output.dim() > 1 and output.is_floating_point():
                self._descent.begin(output, dim, func in LOG_SOFTMAX)
        return output

    def factors(self, matrix: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As they are."""
        return matrix, value

    def attend(
        self,
        weights: Weights,
        operands: tuple[Tensor, Tensor, Tensor],
        arrangement: Arrangement,
        compute: Callable[[], Tensor],  # noqa: ARG002  (it is computed already)
    ) -> Tensor:
        """Keep the probabilities of a product with values."""
        matrix, name = operands[0], self.calling_module()
        weights.was_read()
        before = self._undropped.get(id(matrix))
        if before is not None and before[0]() is matrix:
            matrix = before[1]
        elif weights.softmaxes & self._dropped:
            self._cannot(name, "is moved about after its dropout")
        if not weights.is_copy:
            self._cannot(name, "is changed between its softmax and its values, and is no softmax any more")
        with torch.set_grad_enabled(matrix.requires_grad):
            probabilities = arrangement.of_rows(matrix)
        self._record(ExplicitAttentionCall(name, tensor=probabilities, probabilities=probabilities.detach()))
        given: Tensor = self._output
        return given

    def _on_dropout(self, output: Tensor, given: Tensor, *_: Any) -> None:
        weights = self._descent.weights_of(output)
        if weights is not None and output is not given:
            self._dropped |= weights.softmaxes
            key, undropped = id(output), self._undropped
            undropped[key] = (weakref.ref(output, lambda _: undropped.pop(key, None)), given)

    # What is kept ------------------------------------------------------------------------------------------

    def calling_module(self) -> str:
        """Name of the innermost module of the model whose forward is running."""
        return self._names.running() or f"attention.{len(self.seen)}"

    def _cannot(self, name: str, why: str) -> None:
        name = unlike(name, self.seen)
        if self._wanted(name):
            self.unread[name] = f"the attention of {name!r} {why}: leave this layer out"

    def _record(self, call: AttentionCall) -> None:
        call.name = unlike(call.name, self.seen)
        self.seen.append(call.name)
        if self._wanted(call.name):
            self.calls.append(call)


class _EnoughError(Exception):
    """Queries and keys are known, and the rest of the layer is not wanted."""


def _itself(tensor: Tensor) -> Tensor:
    return tensor
