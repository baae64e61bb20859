"""Every product of attention with values in a forward pass of any model, its factors kept as tensors of the graph.

    A @ V, where A descends from a softmax: after masks, talking heads, gates, dropout, whatever was done to it

`recorded_attention` patches the two spellings of plain ViTs; this follows tensors instead: the outcome of a softmax is
marked, and whatever is made of a marked tensor without summing over it is marked; a product of a marked tensor with an
unmarked one that is no parameter is attention. A fused kernel is written out. It shares nothing with the package.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.references.recorded_attention import patched, plain_scores

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_PRODUCT = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
_PARTS = (Tensor.__getitem__, torch.split, Tensor.split, torch.chunk, Tensor.chunk, Tensor.unbind, torch.unbind)
#: What sums over a tensor leaves no attention.
_ENDS = {"sum", "mean", "amax", "max", "argmax", "argsort", "topk", "norm"}


@dataclass(eq=False)
class AttentionProduct:
    """One product.

    Attributes:
        probabilities: A, (…, N, M), in the graph and used for this product only.
        value: V, (…, M, d).
        query: (…, N, e), the rows whose products with keys became the scores; None where there were none.
        output: (…, N, d).
    """

    probabilities: Tensor
    value: Tensor
    query: Tensor | None
    output: Tensor = field(default_factory=lambda: torch.empty(0))


#: Number of the product and the product, its output computed → what the model gets instead.
Replace = Callable[[int, AttentionProduct], Tensor]


class AttentionProducts(TorchFunctionMode):
    """While active, fills :attr:`products`.

    Args:
        replace: what the model gets for an output.
        factor: what is done to each factor of other products of two activations, those of queries and keys among them.
    """

    def __init__(self, replace: Replace | None = None, factor: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self._factor = factor
        self.products: list[AttentionProduct] = []
        self._replace = replace
        self._weights: dict[int, tuple[Tensor, Tensor | None]] = {}  # id → marked tensor, its queries
        self._scores: dict[int, tuple[Tensor, Tensor]] = {}  # id → a product of activations, its left rows

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with patched((F, "has_torch_function", lambda *_: False)), self:
                return func(*args, **kwargs)
        if func in _PRODUCT:
            return self._multiply(args[0], args[1] if len(args) > 1 else kwargs.get("mat2", kwargs.get("other")))
        if func is torch.baddbmm and not kwargs:
            return args[0] + self._multiply(args[1], args[2])
        if func is torch.einsum:
            operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
            if len(operands) == 2:
                return self._einsum(args[0], *operands)
        if func in _SOFTMAX:
            kwargs = {name: value for name, value in kwargs.items() if name != "dtype"}  # no float32 in between
        output = func(*args, **kwargs)
        if func in _SOFTMAX:
            self._mark(output, *args, **kwargs)
        elif getattr(func, "__name__", "") not in _ENDS:
            self._hand_on(func, args, kwargs, output)
        return output

    def _mark(self, output: Tensor, scores: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
        known = self._scores.get(id(scores))
        over_keys = dim in (-1, None, scores.dim() - 1)
        if scores.dim() > 2:
            self._weights[id(output)] = (output, known[1] if known is not None and over_keys else None)

    def _hand_on(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Marks of the arguments to what was made of them."""
        made = [t for t in (output if isinstance(output, list | tuple) else [output]) if isinstance(t, Tensor)]
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        for known in (self._weights, self._scores):
            marked = next((known[id(a)] for a in given if id(a) in known), None)
            if marked is None:
                continue
            for tensor in made:
                if id(tensor) not in known and tensor.is_floating_point():
                    same = tensor.numel() == marked[0].numel() or tensor.shape[-2:] == marked[0].shape[-2:]
                    if same or func in _PARTS:
                        known[id(tensor)] = (tensor, marked[1] if same else None)  # type: ignore[assignment]

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scores = plain_scores(self._factor(query), self._factor(key), attn_mask, is_causal=is_causal, scale=scale)
        return self._attend(scores.softmax(-1).nan_to_num(0.0), value, query)

    def _attend(self, probabilities: Tensor, value: Tensor, query: Tensor | None) -> Tensor:
        lead = torch.broadcast_shapes(probabilities.shape[:-2], value.shape[:-2])
        product = AttentionProduct(
            probabilities.expand(*lead, *probabilities.shape[-2:]) * 1.0,
            value.expand(*lead, *value.shape[-2:]),
            query,
        )
        product.output = product.probabilities @ product.value
        self.products.append(product)
        return product.output if self._replace is None else self._replace(len(self.products) - 1, product)

    def _multiply(self, left: Tensor, right: Tensor) -> Tensor:
        weights = [id(t) in self._weights for t in (left, right)]
        parameters = [isinstance(t, nn.Parameter) for t in (left, right)]
        if weights == [True, False] and not parameters[1] and right.dim() > 1:
            return self._attend(left, right, self._weights[id(left)][1])
        if weights == [False, True] and not parameters[0] and left.dim() > 1:
            return self._attend(right.mT, left.mT, self._weights[id(right)][1]).mT.contiguous()
        of_activations = not any(weights) and not any(parameters)
        # What is made of parameters alone, as tables of positions are, is no activation.
        halves = of_activations and left.requires_grad and right.requires_grad
        output = torch.matmul(*(self._factor(x) if halves else x for x in (left, right)))
        if any(weights):
            self._weights[id(output)] = (output, None)
        elif of_activations:
            self._scores[id(output)] = (output, left)
        return output

    def _einsum(self, equation: str, left: Tensor, right: Tensor) -> Tensor:
        """Two operands as a batched product of (shared…, rows, summed) and (shared…, summed, columns)."""
        equation = equation.replace(" ", "")
        inputs, result = equation.split("->") if "->" in equation else (equation, "")
        a, b = inputs.split(",")
        shared, summed = [c for c in a if c in b and c in result], [c for c in a if c in b and c not in result]
        rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
        known = (id(left) in self._weights) != (id(right) in self._weights) or "..." not in equation
        if (
            "..." in equation
            or "->" not in equation
            or len(summed) != 1
            or not known
            or not set(rows + columns) <= set(result)
        ):
            output = torch.einsum(equation, left, right)
            self._hand_on(torch.einsum, (left, right), {}, output)
            return output
        size = dict(zip(a, left.shape, strict=True)) | dict(zip(b, right.shape, strict=True))
        first = self._as(left, left.permute([a.index(c) for c in shared + rows + summed]), len(shared), 1)
        second = self._as(
            right, right.permute([b.index(c) for c in shared + summed + columns]), len(shared), 1, last=False
        )
        if isinstance(left, nn.Parameter) or isinstance(right, nn.Parameter):
            output = torch.einsum(equation, left, right)
            self._hand_on(torch.einsum, (left, right), {}, output)
            return output
        output = self._multiply(first, second)
        output_axes = shared + rows + columns
        spread = output.reshape([size[c] for c in output_axes])
        final = spread.permute([output_axes.index(c) for c in result])
        for known_tensors in (self._weights, self._scores):
            if id(output) in known_tensors:
                known_tensors[id(final)] = (final, known_tensors[id(output)][1])  # type: ignore[assignment]
        return final

    def _as(self, source: Tensor, permuted: Tensor, shared: int, summed: int, last: bool = True) -> Tensor:
        """(shared…, rows, summed) of a left operand, (shared…, summed, columns) of a right one."""
        lead = permuted.shape[:shared]
        shape = (*lead, -1, permuted.shape[-1]) if last else (*lead, permuted.shape[shared], -1)
        tensor = permuted.reshape(shape)
        if id(source) in self._weights:
            self._weights[id(tensor)] = (tensor, self._weights[id(source)][1])
        return tensor


@contextlib.contextmanager
def attention_products(
    replace: Replace | None = None, factor: Callable[[Tensor], Tensor] = lambda x: x
) -> Iterator[list[AttentionProduct]]:
    """Record every product made inside the context, in order; see `AttentionProducts`."""
    with AttentionProducts(replace, factor) as mode:
        yield mode.products


def rows_of(tensor: Tensor) -> Tensor:
    """(…, N, d) → (R, N, d)."""
    return tensor.reshape(math.prod(tensor.shape[:-2]), *tensor.shape[-2:])
