"""Which rules there are, and which function of torch is replaced by which: an open registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from lightning_attngrad.attention.rules.normalisations import batch_norm, torch_batch_norm


@dataclass(frozen=True)
class BackwardRules:
    """Which rules replace the plain gradient.

    Attributes:
        linearise: normalisations, activations, gates and products of two activations pass relevance on whole.
        attention: ``exact`` is the plain gradient, ``constant`` holds the probabilities fixed, ``uniform``
            shares the gradient between the factors of each product.
        constants: whether what layers add (biases) is asked for, with its gradient.
    """

    linearise: bool = False
    attention: Literal["exact", "constant", "uniform"] = "exact"
    constants: bool = False


PLAIN = BackwardRules()
CONSERVATIVE = BackwardRules(linearise=True, attention="constant")
ATTN_LRP = BackwardRules(linearise=True, attention="uniform")
LIBRAGRAD = BackwardRules(linearise=True, attention="constant", constants=True)

#: What the functions that a tap sees become under ``linearise``; :func:`backward_rule` adds to it.
LINEARISED: dict[Callable[..., Any], Callable[..., Any]] = {}

#: Whose plain gradient is computed otherwise, whatever the rules, since torch's own is wrong.
MENDED: dict[Callable[..., Any], Callable[..., Any]] = {F.batch_norm: batch_norm, torch.batch_norm: torch_batch_norm}

#: Functions that normalise tokens: grad-CAM is read from the output of the last of them.
NORMALISATIONS: set[Callable[..., Any]] = {F.layer_norm, F.rms_norm, F.group_norm}

Rule = TypeVar("Rule", bound=Callable[..., Any])


def under_rules(function: Callable[..., Any], rules: BackwardRules) -> Callable[..., Any]:
    """What takes the place of a function of torch: itself where there is no rule for it."""
    rule = LINEARISED.get(function) if rules.linearise else None
    return rule or MENDED.get(function, function)


class Ruled(TorchFunctionMode):
    """While active, functions of torch are what they become under rules: for what is computed behind a model."""

    def __init__(self, rules: BackwardRules) -> None:
        super().__init__()
        self._rules = rules

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return under_rules(func, self._rules)(*args, **(kwargs or {}))


def backward_rule(*functions: Callable[..., Any], normalisation: bool = False) -> Callable[[Rule], Rule]:
    """Decorator: what takes the place of torch functions while relevance is propagated (rules with ``linearise``).

    The decorated function takes their arguments, returns the same values, and decides what flows backwards. What
    does not depend on its input (``detach()``) passes nothing on; relevance is kept where the output is the input
    times something held constant: see :func:`constant_ratio` for activations, and divide by ``scale.detach()`` for
    normalisations. Functions of torch only, in all the spellings that models use (``torch.asinh``, ``Tensor.asinh``):
    what is composed of them in Python is seen as its parts.

    Args:
        functions: functions of torch, such as ``torch.asinh``.
        normalisation: whether they normalise tokens, as ``layer_norm`` does: grad-CAM is read from the output of the
            last normalisation in front of the last attention.

    Raises:
        ValueError: without a function, or for one that has a rule.

    Example:
        >>> @backward_rule(torch.asinh, torch.Tensor.asinh)
        ... def asinh(input):
        ...     return constant_ratio(input, torch.asinh(input.detach()), at_zero=1.0)
        >>> @backward_rule(F.local_response_norm, normalisation=True)
        ... def local_response_norm(input, *args, **kwargs):
        ...     return constant_ratio(input, F.local_response_norm(input.detach(), *args, **kwargs), at_zero=1.0)
        >>> forget_backward_rule(torch.asinh, torch.Tensor.asinh, F.local_response_norm)
    """
    if not functions:
        raise ValueError("functions: got none; expected functions of torch, such as torch.asinh")
    for function in functions:
        if function in LINEARISED:
            raise ValueError(
                f"functions: {_name(function)} has a backward rule already; forget_backward_rule removes it"
            )

    def register(rule: Rule) -> Rule:
        LINEARISED.update(dict.fromkeys(functions, rule))
        if normalisation:
            NORMALISATIONS.update(functions)
        return rule

    return register


def forget_backward_rule(*functions: Callable[..., Any]) -> None:
    """Propagate through these functions by their plain gradient again.

    Raises:
        ValueError: for a function without a rule.
    """
    for function in functions:
        if LINEARISED.pop(function, None) is None:
            raise ValueError(f"functions: {_name(function)} has no backward rule")
        NORMALISATIONS.discard(function)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
