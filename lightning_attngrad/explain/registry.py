"""The registry of methods. A new one is a function and one decorator; users may add their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_attngrad.attention import PLAIN, BackwardRules
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives import Seeds

CombineName = Literal["sum", "product", "gated_sum"]


@dataclass(frozen=True)
class Options:
    """What the caller of :func:`explain` asked for, handed on to a method.

    Attributes:
        corrections: names of K corrections.
        combine: how two maps are joined.
        memory_budget: bytes for temporaries.
        retain_graph: whether another backward pass follows this one.
    """

    corrections: tuple[str, ...]
    combine: CombineName
    memory_budget: int
    retain_graph: bool


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What a method returns for one class: B images, K maps (one, or one a correction), N tokens, L calls.

    Attributes:
        scores: (B, K, N), prefix tokens in front.
        layers: (B, K, L, N), what each attention call added, first call first; or None.
        relevance: (B, N) whose sum over tokens ought to be Φ, for relevance methods.
        zero_gradient: (B,) bool.
    """

    scores: Tensor
    zero_gradient: Tensor
    layers: Tensor | None = None
    relevance: Tensor | None = None


MethodFunction = Callable[[ForwardPass, Seeds, Options], TokenScores]


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: by which :func:`explain` knows it.
        compute: from a forward pass and the start of its backward pass to token scores.
        source: paper and equation.
        start: where the graph begins: ``attention`` is cheaper, ``embedding`` reaches the tokens' embedding.
        rules: what replaces the plain gradient.
        takes_corrections: whether ``correction=`` changes the map.
        takes_region: whether ``objective=Region(...)`` has a meaning.
        class_sensitive: whether its maps are claimed to depend on the class: 1 − rank correlation between the maps of
            the two most probable classes is at least 0.45 on the models of docs/methods.md, and the maps of a model
            whose weights are redrawn have nothing to do with those before.
    """

    name: str
    compute: MethodFunction
    source: str
    start: Literal["attention", "embedding"]
    rules: BackwardRules
    takes_corrections: bool
    takes_region: bool
    class_sensitive: bool = False


METHODS: dict[str, Method] = {}


def register_method(
    name: str,
    *,
    source: str,
    start: Literal["attention", "embedding"] = "attention",
    rules: BackwardRules = PLAIN,
    takes_corrections: bool = False,
    takes_region: bool = False,
    class_sensitive: bool = False,
) -> Callable[[MethodFunction], MethodFunction]:
    """Decorator that makes a function known to :func:`explain` under ``name``.

    Raises:
        ValueError: if the name is taken.

    Example:
        >>> import torch
        >>> from lightning_attngrad.explain import METHODS, TokenScores, register_method
        >>> @register_method("uniform", source="none: every token the same")
        ... def uniform(forward, seeds, options):
        ...     scores = torch.ones(forward.batch, 1, forward.layout.tokens)
        ...     return TokenScores(scores, zero_gradient=torch.zeros(forward.batch, dtype=torch.bool))
        >>> METHODS.pop("uniform").source
        'none: every token the same'
    """
    if name in METHODS:
        raise ValueError(f"name: a method {name!r} is registered already; choose another")

    def register(compute: MethodFunction) -> MethodFunction:
        METHODS[name] = Method(name, compute, source, start, rules, takes_corrections, takes_region, class_sensitive)
        return compute

    return register
