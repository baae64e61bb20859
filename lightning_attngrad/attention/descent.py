"""Follows everything that descends from a softmax, function by function, until it multiplies values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention.arrangement import Arrangement
from lightning_attngrad.attention.axes import Axes
from lightning_attngrad.attention.call import AttentionCall
from lightning_attngrad.attention.products import PRODUCTS, Product
from lightning_attngrad.attention.weighted_tokens import WeightedTokens, weighted_tokens
from lightning_attngrad.attention.weights import (
    DIVISION,
    EXPONENTIAL,
    LOG_SOFTMAX,
    MULTIPLICATION,
    SOFTMAX,
    SUM,
    Exponentials,
    Facts,
    Softmax,
    SummedExponentials,
    UnreadSoftmax,
    Weights,
    follow,
    reduced,
    softmaxed,
    tensors_of,
)

#: What may be known of a tensor that descends from a softmax, or may become one.
Fact = Weights | WeightedTokens | Exponentials | SummedExponentials

_FUSED = (F.scaled_dot_product_attention, F.multi_head_attention_forward)


class Computes(Protocol):
    """Who computes functions, and keeps the attention calls that are found."""

    @property
    def calls(self) -> Sequence[AttentionCall]:
        """So far."""

    def calling_module(self) -> str:
        """Name of the innermost module whose forward is running."""

    def computed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives."""

    def factors(self, matrix: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and values as they are to be multiplied."""

    def attend(
        self,
        weights: Weights,
        operands: tuple[Tensor, Tensor, Tensor],
        arrangement: Arrangement,
        compute: Callable[[], Tensor],
    ) -> Tensor:
        """Compute a product of probabilities and values, and keep what it was."""


class SoftmaxDescent:
    """Follows what descends from the softmaxes of a model.

    Args:
        model: whose parameters are no tokens.
        tap: computes, and keeps the calls.
    """

    def __init__(self, model: nn.Module, tap: Computes) -> None:
        self._tap = tap
        self._constants = {id(tensor) for tensor in itertools.chain(model.parameters(), model.buffers())}
        self._softmaxes: list[Softmax] = []
        self._facts: Facts[Fact] = Facts()

    def release(self) -> None:
        """Forget everything."""
        self._softmaxes.clear()
        self._facts.clear()

    @property
    def unread(self) -> tuple[UnreadSoftmax, ...]:
        """Softmaxes that no attention call was made of, and that may have been attention."""
        return tuple(
            UnreadSoftmax(each.name, each.shape, each.axis, each.calls_before, each.met)
            for each in self._softmaxes
            if not each.read and (each.is_square or (each.met is not None and len(each.shape) > 2))
        )

    def weights_of(self, tensor: Tensor) -> Weights | None:
        """What is known of a tensor that descends from a softmax; None of any other."""
        fact = self._facts.get(tensor)
        return fact if isinstance(fact, Weights) else None

    def begin(self, output: Tensor, dim: int, is_log: bool, offset: int | None = None) -> None:
        """Follow what comes out of a softmax over this axis.

        Args:
            output: of the softmax.
            dim: its axis.
            is_log: whether it is the logarithm.
            offset: number of the attention call whose addition to the scores it took.
        """
        name = self._tap.calling_module()
        softmax = Softmax(name, tuple(output.shape), dim % output.dim(), len(self._tap.calls), offset)
        self._softmaxes.append(softmax)
        self._facts.add(output, softmaxed(softmax, is_log))

    def computed(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives the model."""
        if self._facts and self._facts.any_of(args, kwargs):
            return self._with_facts(func, args, kwargs)
        output = self._tap.computed(func, args, kwargs)
        if func in EXPONENTIAL and output.dim() > 2:
            self._facts.add(output, Exponentials())
        return output

    def _with_facts(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function with arguments that descend from a softmax, or may become one."""
        facts = [(tensor, fact) for tensor in tensors_of(args, kwargs) if (fact := self._facts.get(tensor)) is not None]
        if not facts:
            return self._tap.computed(func, args, kwargs)
        first, fact = facts[0]
        if isinstance(fact, WeightedTokens) and func in SUM:
            return self._on_weighted_sum(first, fact, func, args, kwargs)
        given = [(tensor, fact) for tensor, fact in facts if isinstance(fact, Weights)]
        if given and func in PRODUCTS:
            product = PRODUCTS[func](func, *args, **kwargs)
            if product is not None:
                return self._on_product(product, func, args, kwargs)
        if len(given) == 1 and func in MULTIPLICATION and len(args) == 2:
            weighted = self._weighted(given[0][0], given[0][1], args)
            if weighted is not None:
                return weighted
        output = self._tap.computed(func, args, kwargs)
        if given:
            self._follow(func, args, kwargs, given, output)
        elif isinstance(fact, Exponentials) and isinstance(output, Tensor):
            self._follow_exponentials(func, args, kwargs, [fact for _, fact in facts], output)
        return output

    def _follow(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[tuple[Tensor, Weights]],
        output: Any,
    ) -> None:
        if func in SOFTMAX or func in LOG_SOFTMAX:
            again = self._facts.get(output)
            if isinstance(again, Weights):
                self._facts.add(output, again.joined(given))
            return
        outputs = [output] if isinstance(output, Tensor) else output if isinstance(output, list | tuple) else []
        others = [
            tensor
            for tensor in tensors_of(args, kwargs)
            if self._facts.get(tensor) is None and not self._is_constant(tensor)
        ]
        followed = False
        for each in outputs:
            if isinstance(each, Tensor) and each.is_floating_point():
                known = follow(func, args, kwargs, given, others, each)
                if known is not None:
                    followed = True
                    self._facts.add(each, known)
                else:
                    self._facts.forget(each)
        if (
            outputs
            and (others or len(given) > 1)
            and not followed
            and func not in MULTIPLICATION
            and func not in _FUSED
        ):
            for _, weights in given:
                weights.met(func)
        if not followed and func in SUM and given[0][1].met_tokens:
            given[0][1].met(func)

    def _follow_exponentials(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], facts: list[Fact], output: Tensor
    ) -> None:
        first = facts[0]
        if func in SUM and isinstance(first, Exponentials) and output.dim() == args[0].dim():
            dims = reduced(args, kwargs, output.dim())
            if len(dims) == 1:
                self._facts.add(output, SummedExponentials(first, dims[0]))
        elif func in DIVISION and len(facts) == 2:
            divisor = facts[1]
            if isinstance(divisor, SummedExponentials) and divisor.of is first:
                self.begin(output, divisor.axis, is_log=False)

    def _on_product(
        self, product: Product, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        first, second = (self._facts.get(operand) for operand in product.operands)
        both = [fact for fact in (first, second) if isinstance(fact, Weights)]
        axes: Axes | None = None
        if len(both) == 2:
            axes = product.chained(both[0].axes, both[1].axes)
            both[0].met(func)
            both[1].met(func)
        elif not both[0].is_log:
            (weights,) = both
            side = 0 if first is weights else 1
            of_constants = self._is_constant(product.operands[1 - side])
            arrangement = product.attention(side, weights.keys)
            if arrangement is not None and not of_constants:
                return self._on_matrix_of_values(product, side, weights, arrangement)
            if arrangement is None and not (of_constants and weights.met_tokens):
                axes = product.mixed(side, weights.axes)
                if not of_constants:
                    weights.met(func)
        output: Tensor = self._tap.computed(func, args, kwargs)
        if axes is not None:
            self._facts.add(output, both[0].changed(both, axes))
        return output

    def _on_matrix_of_values(self, product: Product, side: int, weights: Weights, arrangement: Arrangement) -> Tensor:
        matrix, value = product.operands[side], product.operands[1 - side]
        # An alias: the gradient at it comes from this product, and from nothing else that the matrix is used for.
        factor, scaled = self._tap.factors(arrangement.expand(matrix), value)
        return self._tap.attend(
            weights,
            (matrix, factor, value),
            arrangement,
            lambda: product.multiply(side, factor, scaled, arrangement.for_every_row()),
        )

    def _weighted(self, matrix: Tensor, weights: Weights, args: tuple[Any, ...]) -> Tensor | None:
        """Tokens times their weights, which a sum over the tokens may follow; None where it is another product."""
        value = args[1] if args[0] is matrix else args[0]
        if not isinstance(value, Tensor) or self._is_constant(value):
            return None
        labels = weighted_tokens(weights, matrix, value)
        if labels is None:
            return None
        factor, scaled = self._tap.factors(matrix.view_as(matrix), value)
        output = torch.mul(factor, scaled)
        self._facts.add(output, WeightedTokens(weights, matrix, factor, value, labels))
        return output

    def _on_weighted_sum(
        self,
        tokens: Tensor,
        weighted: WeightedTokens,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        dims = reduced(args, kwargs, tokens.dim())
        keep = bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))
        arrangement = weighted.summed(dims, keep)
        if arrangement is None:
            output: Tensor = func(*args, **kwargs)
            return output
        operands = (weighted.matrix, weighted.factor, weighted.value)
        return self._tap.attend(weighted.weights, operands, arrangement, lambda: func(*args, **kwargs))

    def _is_constant(self, tensor: Tensor) -> bool:
        """Whether it is a parameter or buffer of the model, or a view of one."""
        base = tensor._base
        return (
            id(tensor) in self._constants
            or isinstance(tensor, nn.Parameter)
            or (base is not None and (id(base) in self._constants or isinstance(base, nn.Parameter)))
        )
