"""A question about a model: by which method, about which objective, with which options; and its answer."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import (
    PLAIN,
    NoEmbeddingError,
    UnsupportedModelError,
    equal_cells,
    outside_autocast,
)
from lightning_attngrad.explain.confirmed import SECOND_METHOD, check_best, confirmed
from lightning_attngrad.explain.default import DEFAULT_METHOD, ask_by_default
from lightning_attngrad.explain.explanation import Explanation
from lightning_attngrad.explain.forward_pass import (
    ForwardPass,
    NonFiniteGradientError,
    forward_pass,
    numbers_of,
)
from lightning_attngrad.explain.objectives import Objective, OfOutput, Region, check_objective
from lightning_attngrad.explain.outputs import TASKS, UNSAID, Task
from lightning_attngrad.explain.plain import Plain, plain
from lightning_attngrad.explain.registry import METHODS, Method, TokenScores, find_method
from lightning_attngrad.explain.returned import find_logits
from lightning_attngrad.explain.targets import classes_of

Target = int | Sequence[int] | Tensor | None
Quality = Literal["default", "best"]


@dataclass(frozen=True, eq=False)
class Question:
    """What :func:`lightning_attngrad.explain` is asked, apart from model, images and classes.

    Questions that ask the same are equal, and may serve as keys: those about a function only if it is the same one.

    Args:
        method: a registered method. None is the default, and what stands in for it where the model does not permit it,
            see :func:`~lightning_attngrad.explain.default.ask_by_default`; with ``options`` it is the default itself,
            which they are of.
        objective: as :func:`lightning_attngrad.explain` takes it.
        options: the method's own options by name.
        quality: as :func:`lightning_attngrad.explain` takes it.

    Raises:
        ValueError: for what is not known, or does not go together; the message says what would do.
        TypeError: for an objective of another type.

    Example:
        >>> question = Question("gradient_guided", options={"correction": "transfer"})
        >>> question.signed, question.needs_target, question.panels
        (True, True, None)
        >>> question.plain()
        {'method': 'gradient_guided', 'objective': 'logit', 'options': {'correction': 'transfer'}}
    """

    method: str | None = None
    objective: str | Objective | Callable[[Any], Tensor] = "logit"
    options: Mapping[str, Any] = field(default_factory=dict)
    quality: Quality = "default"

    def __post_init__(self) -> None:
        if self.quality not in ("default", "best"):
            raise ValueError(f"quality: got {self.quality!r}; expected 'default' or 'best'")
        if self.quality == "best":
            check_best(self.method, self.options, self._objective)
        object.__setattr__(self, "options", dict(self.options))
        if self.method is None and self.options:
            object.__setattr__(self, "method", DEFAULT_METHOD)
        method, objective = self._method, self._objective
        method.with_options(self.options)
        if isinstance(objective, Region) and not method.takes_region:
            takers = " or ".join(repr(name) for name, other in METHODS.items() if other.takes_region)
            raise ValueError(f"objective: Region has no meaning for method={method.name!r}; use method={takers}")

    @property
    def signed(self) -> bool:
        """Whether the maps have values below 0; where no method is asked for, those of the default itself."""
        return self.quality == "best" or self._method.is_signed(self._options)

    @property
    def needs_target(self) -> bool:
        """Whether it is about a class."""
        return self._objective.needs_target

    @property
    def asks_task(self) -> bool:
        """Whether it depends on what a class is."""
        return self._objective.asks_task

    def objective_in_words(self, class_name: Callable[[int], str] = str) -> str:
        """What is explained, for figures, with classes by name; empty where it is a class of the image."""
        return self._objective.in_words(class_name)

    @property
    def panels(self) -> tuple[str, ...] | None:
        """Names of the maps that each image gets, where the options ask for several."""
        return getattr(self._options, "panels", None)

    @property
    def is_of_relevance(self) -> bool:
        """Whether it is to a method with backward rules of its own, whose maps account for the output."""
        return self._method.rules is not PLAIN

    @property
    def method_in_words(self) -> str:
        """For titles; where no method is asked for, the default's."""
        return self._method.name.replace("_", " ")

    @property
    def lacks(self) -> Literal["masks", "embeddings"] | None:
        """What the objective has still to be given of its images, see :attr:`Objective.lacks`."""
        return self._objective.lacks

    def filled(self, found: Tensor) -> Question:
        """The same question with what it :attr:`lacks`, one row an image."""
        return replace(self, objective=self._objective.filled(found))

    def of_first_panel(self) -> Question:
        """The same question where the options ask for several maps of an image: for the first of them alone."""
        panels = self.panels
        if panels is None:
            return self
        options = {
            name: value[0]
            if not isinstance(value, str) and isinstance(value, Sequence) and tuple(value) == panels
            else value
            for name, value in self.options.items()
        }
        return replace(self, options=options)

    def plain(self) -> dict[str, Plain]:
        """The question in plain values, for checkpoints and hashes, options at their defaults included.

        A function is described by its module, name and a hash of its code, a tensor by a hash of its values. Where no
        method is asked for it is None: which one answers is the model's, and stands in the answer.
        """
        names = () if self.method is None else self._method.option_names
        return {
            "method": self.method,
            "objective": self._objective.plain(),
            "options": {name: plain(getattr(self._options, name)) for name in names},
            **({} if self.quality == "default" else {"quality": self.quality}),
        }

    def by(self, method: str) -> Question:
        """The same question to a method, its options at their defaults."""
        return replace(self, method=method, options={}, quality="default")

    def of_images(self, indices: Tensor) -> Question:
        """The same question about some images (n,) of those that its objective was made for."""
        return replace(self, objective=self._objective.of_images(indices))

    def explain(
        self,
        model: nn.Module,
        images: Tensor,
        target: int | Sequence[int] | Tensor | None = None,
        *,
        forward: Callable[[Tensor], Any] | None = None,
        memory_budget: int | None = None,
        score_offsets: Sequence[Tensor | None] = (),
        task: Task = UNSAID,
    ) -> Explanation:
        """Answer it: arguments, result, warning and errors are those of :func:`lightning_attngrad.explain`."""

        def ask(question: Question) -> Explanation:
            return answer(
                question._method,
                question._options,
                question._objective,
                model,
                images,
                target,
                forward=forward,
                memory_budget=memory_budget,
                score_offsets=score_offsets,
                task=task,
            )

        if self.method is not None:
            return ask(self)
        if self.quality == "best" and score_offsets:
            raise ValueError(
                "score_offsets: got some beside quality='best', which looks at copies of the images, whose scores are "
                "others; leave them out, or write quality='default'"
            )
        explanation, said = ask_by_default(lambda method: ask(self.by(method)), model)
        if said:
            warnings.warn(said, stacklevel=3)  # where explain() is called
        if self.quality == "default":
            return explanation
        found = [explanation]
        if explanation.method != SECOND_METHOD:
            with contextlib.suppress(UnsupportedModelError, NoEmbeddingError):
                found.append(ask(Question(SECOND_METHOD, self.objective)))
        with torch.inference_mode(mode=False), torch.no_grad():  # whatever the caller is in
            return confirmed(model, images, found, self._objective, forward=forward, task=task)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Question):
            return NotImplemented
        mine, others = self._objective, other._objective
        if isinstance(mine, OfOutput) and isinstance(others, OfOutput) and mine.function != others.function:
            return False  # what a function can reach is more than its description says
        return self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash(json.dumps(self.plain(), sort_keys=True))

    @property
    def _method(self) -> Method:
        return find_method(DEFAULT_METHOD if self.method is None else self.method)

    @property
    def _options(self) -> Any:
        return self._method.with_options(self.options)

    @property
    def _objective(self) -> Objective:
        return check_objective(self.objective)


def answer(
    method: Method,
    options: Any,
    objective: Objective,
    model: nn.Module,
    images: Tensor,
    target: Target,
    *,
    forward: Callable[[Tensor], Any] | None,
    memory_budget: int | None,
    score_offsets: Sequence[Tensor | None],
    task: Task,
) -> Explanation:
    """Explain; arguments, result and errors are those of :func:`lightning_attngrad.explain`.

    Args:
        method: the method.
        options: its own, as :meth:`Method.with_options` gives them.
        objective: what is explained.
        model: of the images.
        images: (B, C, H, W).
        target: the class or classes.
        forward: called instead of ``model(images)``.
        memory_budget: in bytes.
        score_offsets: additions to the attention scores.
        task: what the model's output means.
    """
    names: tuple[str, ...] | None = getattr(options, "panels", None)
    _check_target(objective, target, several_maps=names is not None)
    if objective.needs_target:
        _check_classifier(model, task)
    with forward_pass(
        model,
        images,
        forward=forward,
        start=method.start,
        rules=method.rules,
        score_offsets=score_offsets,
        memory_budget=memory_budget,
        follows_attention=method.follows_attention,
        layer=getattr(options, "layer", None),
        keep_statistics=method.reads_statistics,
        task=task,
    ) as ran:
        classes = _resolve_target(target, ran) if objective.needs_target else None
        asked: list[Tensor | None] = [classes] if classes is None or classes.dim() == 1 else list(classes.unbind(1))
        results, values = [], []
        for index, of_panel in enumerate(asked):
            seeds = replace(objective.seeds(ran, of_panel), retain_graph=index + 1 < len(asked))
            with outside_autocast(seeds.value.device):
                results.append(method.scores(ran, seeds, options))
            values.append(seeds.value)
        _check_finite([result.scores for result in results], type(model).__name__)
        panels = names
        if classes is not None and classes.dim() == 2:
            panels = _names_of_classes(classes)
        found = _as_explanation(ran, method.name, results, values, classes, panels)
        return replace(found, images=images.detach() if images.dim() == 4 else None, task=task)


def _check_target(objective: Objective, target: Target, *, several_maps: bool) -> None:
    objective.check()
    several_classes = isinstance(target, list | tuple) or (isinstance(target, Tensor) and target.dim() == 2)
    if several_maps and several_classes:
        raise ValueError(
            "target: several classes, where the options ask for several maps of each (several corrections) already; "
            "ask for one or the other"
        )
    if target is not None and not objective.needs_target:
        raise ValueError(f"target: got {target!r}, and the objective {objective!r} takes none; leave it out")


def _resolve_target(target: Target, ran: ForwardPass) -> Tensor:
    """Classes, (B,) or (B, P) int64."""
    logits = ran.logits
    batch, number = logits.shape
    if target is None:
        return ran.task.chosen(logits)
    classes = classes_of(target, batch, logits.device, otherwise="None")
    ran.task.check_target(classes, number)
    return classes


def _check_classifier(model: nn.Module, task: Task) -> None:
    """Refuse a backbone whose features would be taken for classes."""
    if task is UNSAID and getattr(model, "num_classes", None) == 0:
        TASKS["embedding"].scores(None, 0)


def _names_of_classes(classes: Tensor) -> tuple[str, ...]:
    """A name for each panel of classes (B, P): the class, where it is the same for every image."""
    columns = classes.T.cpu().tolist()
    return tuple(
        f"class {column[0]}" if all(len(set(other)) == 1 for other in columns) else f"panel {index}"
        for index, column in enumerate(columns)
    )


def _check_finite(scores: list[Tensor], model_name: str) -> None:
    """Refuse maps (B, K, N) of which some are NaN or infinite: the output was finite, so its gradient is not."""
    finite = torch.stack([torch.isfinite(of_panel).flatten(1).all(dim=1) for of_panel in scores]).all(dim=0)
    if bool(finite.all()):
        return
    images, named = numbers_of(~finite)
    raise NonFiniteGradientError(
        f"model: {model_name} gives finite outputs and NaN or infinite gradients for {named}; no map can be made of "
        "them. A division by zero or a square root of zero on the way back does that (normalising a vector of zeros), "
        "and so does float16 where gradients grow too large: explain those in bfloat16 or float32",
        images,
    )


@dataclass(frozen=True)
class _Join:
    """Several classes: one panel each. One class: its K maps, or the only one.

    Attributes:
        several_classes: whether panels are classes.
        several_maps: whether they are maps of one class.
    """

    several_classes: bool
    several_maps: bool

    def numbers(self, parts: Sequence[Tensor]) -> Tensor:
        """(B,) each, to (B,) or (B, P)."""
        return torch.stack(list(parts), dim=1) if self.several_classes else parts[0]

    def maps(self, parts: Sequence[Tensor]) -> Tensor:
        """(B, K, …) each, to (B, …) or (B, P, …)."""
        if self.several_classes:
            return torch.stack([part[:, 0] for part in parts], dim=1)
        return parts[0] if self.several_maps else parts[0][:, 0]


def _as_explanation(
    ran: ForwardPass,
    method: str,
    results: list[TokenScores],
    values: list[Tensor],
    classes: Tensor | None,
    panels: tuple[str, ...] | None,
) -> Explanation:
    several_classes = classes is not None and classes.dim() == 2
    join = _Join(several_classes, several_maps=panels is not None and not several_classes)
    scores = join.maps([result.scores for result in results]).float()
    layers = [result.layers for result in results if result.layers is not None]
    relevance = [result.relevance for result in results if result.relevance is not None]
    errors = [(tokens.sum(dim=1) - value).abs() / value.abs() for tokens, value in zip(relevance, values, strict=False)]
    grid = results[0].grid or ran.places.grid
    if grid is None:
        raise ValueError(
            f"method: {method!r} returned scores on no grid, and the model's attention has none; expected "
            "TokenScores(..., grid=(rows, columns))"
        )

    edges = ran.places.edges.get(grid)  # of what the tokens read, where that is not the cells of the map

    def on_grid(tokens: Tensor) -> Tensor:
        cells: Tensor = tokens[..., ran.places.slots :].unflatten(-1, grid)
        return cells if edges is None else equal_cells(cells, edges)

    found = find_logits(ran.output)
    if classes is not None:
        logits = ran.task.logits(ran.logits)
    else:  # an objective without classes may explain a model without logits
        logits = found if found is not None and found.dim() == 2 else scores.new_zeros(ran.batch, 0)
    return Explanation(
        heatmap=on_grid(scores),
        logits=logits.detach().float(),
        target=classes,
        value=join.numbers(values).detach().float(),
        token_scores=scores,
        layers=on_grid(join.maps(layers).float()) if layers else None,
        layer_names=_layer_names(ran, method, results[0]),
        panels=panels,
        completeness_error=join.numbers(errors).float() if errors else None,
        zero_gradient=join.numbers([result.zero_gradient for result in results]),
        method=method,
        area=ran.places.area,
    )


def _layer_names(ran: ForwardPass, method: str, result: TokenScores) -> tuple[str, ...]:
    """Names of the parts of a map; none where it has no parts."""
    if result.layers is None:
        return ()
    names = result.layer_names
    if names is None:
        names = tuple(call.name for call in ran.tap.calls)
    if len(names) != result.layers.shape[2]:
        raise ValueError(
            f"method: {method!r} returned {result.layers.shape[2]} layers and {len(names)} names for them; expected "
            "one layer an attention call, or layer_names with one name a layer"
        )
    return names
