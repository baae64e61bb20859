"""By what the normalisations in front of attention calls divide each token: its standard deviation, or its length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention.embedding import node_of
from lightning_attngrad.attention.rules.gradient import differentiable

#: How far, as a share, a divisor that a model writes out may lie from the length of what it divides: that much do the
#: ε of a normalisation and a standard deviation of D − 1 degrees of freedom make of it.
_NEAR = 0.05


@dataclass(frozen=True, eq=False)
class TokenStatistic:
    """What one normalisation divided its tokens by.

    Attributes:
        values: one a token, in the order of the tensor without its last axis, (T,), at least float32: the standard
            deviation over the channels of a LayerNorm, the root mean square of an RMSNorm, both without their ε.
        number: by which a tap knows what the normalisation gave.
        is_normalisation: of what a model writes out, whether it is one, a tensor () of bool; None where that is sure.
    """

    values: Tensor
    number: int
    is_normalisation: Tensor | None = None


class TokenStatistics:
    """Keeps what the normalisations of tokens divided by, and finds those that an attention call reads through.

    A normalisation is in front of a call where nothing comes to the call's values but through it, or through others
    like it. In a pre-norm block that is so, for the residual path leads past the call; where the sum with the residual
    is normalised, too; where only what a block adds is normalised, it is not.

    ``layer_norm`` and ``rms_norm`` over the last axis are normalisations of tokens, and so is a product or quotient
    that a model writes out, of x (…, D) and something (…, 1) that makes the root mean square of every token 1.

    Example:
        >>> kept, tokens = TokenStatistics(), torch.tensor([[1.0, 3.0], [2.0, 8.0]], requires_grad=True)
        >>> normalised = F.layer_norm(tokens, (2,))
        >>> kept.computed(F.layer_norm, (tokens, (2,)), {}, normalised, number=1)
        >>> kept.attended(5 * normalised)  # the values of an attention call
        >>> kept.of_call(0)[0].values
        tensor([1., 3.])
        >>> kept.attended(tokens + normalised)  # and of one to which something comes past the normalisation
        >>> kept.of_call(1)
        ()
    """

    def __init__(self) -> None:
        self._by_node: dict[Any, TokenStatistic] = {}
        self._values: list[Any] = []

    def computed(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, number: int
    ) -> None:
        """A function has given this, and it has this number."""
        read = _STATISTICS.get(function)
        if read is None or not differentiable(output):
            return
        found = read(*args, **kwargs)
        if found is not None:
            self._by_node[node_of(output)] = TokenStatistic(found[0].flatten(), number, found[1])

    def attended(self, values: Tensor) -> None:
        """An attention call, the next one, reads these values."""
        self._values.append(node_of(values))

    def of_call(self, number: int) -> tuple[TokenStatistic, ...]:
        """Those of the normalisations in front of a call; none where something of the image comes to it past them.

        Args:
            number: of the call, the first is 0.
        """
        found: dict[Any, TokenStatistic] = {}
        waiting, seen = [self._values[number]], set()
        for node in waiting:  # grows meanwhile
            if node in seen:
                continue
            seen.add(node)
            statistic = self._by_node.get(node)
            if statistic is not None and (statistic.is_normalisation is None or bool(statistic.is_normalisation)):
                found[node] = statistic
                continue
            earlier = [] if node is None else [other for other, _ in node.next_functions if other is not None]
            if not earlier:  # here the graph begins
                return ()
            waiting.extend(earlier)
        return tuple(found.values())

    def release(self) -> None:
        """Let go of all tensors."""
        self._by_node.clear()
        self._values.clear()


#: (…,) statistics of the tokens, and whether it is a normalisation at all, see :class:`TokenStatistic`.
_Found = tuple[Tensor, Tensor | None] | None


def _of_layer_norm(input: Tensor, normalized_shape: Sequence[int], *_: Any, **__: Any) -> _Found:  # noqa: A002
    if len(normalized_shape) != 1:  # over more than the channels of a token
        return None
    return _wide(input).std(dim=-1, correction=0), None


def _of_rms_norm(input: Tensor, normalized_shape: Sequence[int], *_: Any, **__: Any) -> _Found:  # noqa: A002
    if len(normalized_shape) != 1:
        return None
    return _length(input), None


def _of_product(input: Any, other: Any, *_: Any, **__: Any) -> _Found:  # noqa: A002
    if _is_one_a_token(input, other):
        input, other = other, input  # noqa: A001
    if not _is_one_a_token(other, input):
        return None
    length = _length(input)
    return length, _is_one(length * _wide(other).squeeze(-1))


def _of_quotient(input: Any, other: Any, *_: Any, **__: Any) -> _Found:  # noqa: A002
    if not _is_one_a_token(other, input):
        return None
    length = _length(input)
    return length, _is_one(length / _wide(other).squeeze(-1))


def _is_one_a_token(factor: Any, tokens: Any) -> bool:
    """Whether a factor is (…, 1) where tokens are (…, D), and both come from the image."""
    if not (differentiable(factor) and differentiable(tokens)):
        return False
    shape = tokens.shape
    return len(shape) > 1 and shape[-1] > 1 and factor.shape == (*shape[:-1], 1)


def _is_one(lengths: Tensor) -> Tensor:
    """Whether all are about 1, (): the ε of a normalisation makes tokens that hardly differ from zero shorter."""
    return (lengths - 1).abs().le(_NEAR).all()


def _length(tensor: Tensor) -> Tensor:
    """Root mean square over the last axis."""
    return _wide(tensor).square().mean(dim=-1).sqrt()


def _wide(tensor: Tensor) -> Tensor:
    """Detached, and in a type in which squares neither overflow nor vanish."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


_STATISTICS: dict[Callable[..., Any], Callable[..., _Found]] = {
    F.layer_norm: _of_layer_norm,
    torch.layer_norm: _of_layer_norm,
    F.rms_norm: _of_rms_norm,
    torch.rms_norm: _of_rms_norm,
    **dict.fromkeys((torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__), _of_product),
    **dict.fromkeys(
        (torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide, Tensor.__truediv__),
        _of_quotient,
    ),
}
