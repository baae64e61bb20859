"""The registry of methods. A new one is a function and one decorator, with options of its own; users may add theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor

from lightning_attngrad.attention import PLAIN, BackwardRules
from lightning_attngrad.attention.places import Grid
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives import Seeds


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What a method returns for one class: B images, K maps (one, or one a panel of its options), L parts.

    The N = S + h·w tokens are first the S slots (tokens that lie nowhere on the image: class, register and query
    tokens), then the cells of a grid in reading order.

    Attributes:
        scores: (B, K, N).
        zero_gradient: (B,) bool.
        layers: (B, K, L, N), parts that sum to ``scores``: what each attention call added, first call first, and
            whatever else there is; None where the map is no such sum.
        layer_names: L names of the parts; None where they are the attention calls.
        relevance: (B, N) whose sum over tokens ought to be Φ, for relevance methods.
        grid: rows and columns (h, w); None is ``forward.places.grid``.
    """

    scores: Tensor
    zero_gradient: Tensor
    layers: Tensor | None = None
    layer_names: tuple[str, ...] | None = None
    relevance: Tensor | None = None
    grid: Grid | None = None


#: ``(forward, seeds)``, or ``(forward, seeds, options)`` for a method with options, to token scores.
MethodFunction = Callable[..., TokenScores]


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: by which :func:`explain` knows it.
        compute: from a forward pass and the start of its backward pass, and the method's options where it has some, to
            token scores.
        source: paper and equation.
        start: where the graph begins: ``attention`` is cheaper, ``embedding`` reaches the tokens' embedding.
        rules: what replaces the plain gradient.
        options: the frozen dataclass of the method's own options; None without any.
        signed: whether maps have values below 0, or a function of the options that says so.
        takes_region: whether ``objective=Region(...)`` has a meaning.
        class_sensitive: whether its maps are claimed to depend on the class: 1 − rank correlation between the maps of
            the two most probable classes is at least 0.45 on the models of docs/methods.md, and the maps of a model
            whose weights are redrawn have nothing to do with those before.
        follows_attention: whether the map is made of attention calls. Methods that do not are for models without any,
            or whose calls cannot be followed, as well.
        reads_statistics: whether it reads what normalisations divided each token by, ``forward.tap.statistics``.
    """

    name: str
    compute: MethodFunction
    source: str
    start: Literal["attention", "embedding"]
    rules: BackwardRules
    options: type[Any] | None
    signed: bool | Callable[[Any], bool]
    takes_region: bool
    class_sensitive: bool = False
    follows_attention: bool = True
    reads_statistics: bool = False

    @property
    def option_names(self) -> tuple[str, ...]:
        """Names of the method's own options."""
        return () if self.options is None else tuple(field.name for field in fields(self.options) if field.init)

    def with_options(self, given: Mapping[str, Any]) -> Any:
        """The method's options, those that are not given at their defaults; None for a method without any.

        Raises:
            ValueError: for an option that the method does not have, or a value that does not fit.
        """
        for name, value in given.items():
            if name not in self.option_names:
                raise ValueError(f"{name}: got {value!r}; {self._instead_of(name)}")
        return None if self.options is None else self.options(**given)

    def is_signed(self, options: Any) -> bool:
        """Whether its maps have values below 0 with these options, as :meth:`with_options` gives them."""
        return self.signed(options) if callable(self.signed) else self.signed

    def scores(self, forward: ForwardPass, seeds: Seeds, options: Any) -> TokenScores:
        """Token scores of one class."""
        return self.compute(forward, seeds) if self.options is None else self.compute(forward, seeds, options)

    def _instead_of(self, name: str) -> str:
        own = f"its options are {', '.join(self.option_names)}" if self.option_names else "it has no options"
        takers = [repr(method.name) for method in METHODS.values() if name in method.option_names]
        elsewhere = f". {name} is an option of method={' and method='.join(takers)}" if takers else ""
        return f"neither explain nor method={self.name!r} takes it: {own}{elsewhere}"


METHODS: dict[str, Method] = {}


def find_method(name: str) -> Method:
    """The method of this name.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method: got {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name]


def register_method(
    name: str,
    *,
    source: str,
    start: Literal["attention", "embedding"] = "attention",
    rules: BackwardRules = PLAIN,
    options: type[Any] | None = None,
    signed: bool | Callable[[Any], bool] = False,
    takes_region: bool = False,
    class_sensitive: bool = False,
    follows_attention: bool = True,
    reads_statistics: bool = False,
) -> Callable[[MethodFunction], MethodFunction]:
    """Decorator that makes a function known to :func:`explain` under ``name``.

    The function takes a :class:`ForwardPass` and :class:`Seeds`, and returns :class:`TokenScores`.

    Args:
        name: of the method.
        source: paper and equation.
        start: where the graph begins: ``attention`` is cheaper, ``embedding`` reaches the tokens' embedding.
        rules: what replaces the plain gradient.
        options: a frozen dataclass of the method's own options, each with a default, checked in its
            ``__post_init__``. :func:`explain`, monitors and the command line pass them on by name, and the function
            takes the dataclass as its third argument. Where it has a property ``panels`` that is not None but names,
            the function returns one map a name.
        signed: whether maps have values below 0, which are drawn on a scale of their own; or a function of the options.
        takes_region: whether ``objective=Region(...)`` has a meaning.
        class_sensitive: whether its maps are claimed to depend on the class.
        follows_attention: whether the map is made of attention calls; without, models that make none are explained too.
        reads_statistics: whether it reads what normalisations divided each token by, ``forward.tap.statistics``; the
            graph has to begin at the ``embedding`` then.

    Raises:
        ValueError: if the name is taken.
        TypeError: for options that are no dataclass, or have a field without a default.

    Example:
        >>> from dataclasses import dataclass
        >>> import timm, torch, lightning_attngrad as attngrad
        >>> from lightning_attngrad.explain import METHODS, TokenScores, register_method
        >>> @dataclass(frozen=True)
        ... class PowerOptions:
        ...     power: float = 2.0
        ...     def __post_init__(self):
        ...         if self.power <= 0:
        ...             raise ValueError(f"power: got {self.power!r}; expected a number above 0")
        >>> @register_method("input_gradient", source="none", start="embedding", options=PowerOptions)
        ... def input_gradient(forward, seeds, options):
        ...     gradient = seeds.gradient_at(forward.tap.embedding)  # (B, N, D)
        ...     sizes = gradient.norm(dim=-1, keepdim=True).mT  # (B, 1, N)
        ...     return TokenScores(sizes**options.power, zero_gradient=sizes.eq(0).all(dim=2)[:, 0])
        >>> model, images = timm.create_model("test_vit", num_classes=5), torch.rand(2, 3, 160, 160)
        >>> attngrad.explain(model, images, method="input_gradient", power=0.5).heatmap.shape
        torch.Size([2, 10, 10])
        >>> METHODS.pop("input_gradient").source
        'none'
    """
    if name in METHODS:
        raise ValueError(f"name: a method {name!r} is registered already; choose another")
    if options is not None:
        if not is_dataclass(options):
            raise TypeError(f"options: got {options!r}; expected a frozen dataclass")
        options()  # fails here, where the method is written, if an option has no default

    def register(compute: MethodFunction) -> MethodFunction:
        METHODS[name] = Method(
            name,
            compute,
            source,
            start,
            rules,
            options,
            signed,
            takes_region,
            class_sensitive,
            follows_attention,
            reads_statistics,
        )
        return compute

    return register
