"""A question about a model: by which method, about which objective, with which options. Checked once, asked often."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from lightning_attngrad.explain.answering import answer
from lightning_attngrad.explain.explanation import Explanation
from lightning_attngrad.explain.objectives import Objective, OfOutput, Region, check_objective
from lightning_attngrad.explain.plain import Plain, plain
from lightning_attngrad.explain.registry import METHODS, Method, find_method

#: The most faithful map at the price of one backward pass: docs/faithfulness.md has the figures.
DEFAULT_METHOD = "guided_relevance"


@dataclass(frozen=True, eq=False)
class Question:
    """What :func:`lightning_attngrad.explain` is asked, apart from model, images and classes.

    Questions that ask the same are equal, and may serve as keys: those about a function only if it is the same one.

    Args:
        method: a registered method.
        objective: ``"logit"``, ``"margin"``, ``Contrast(against)``, ``Mixture(weights)``, ``Region(mask)``, or a
            function from the model's output to one number an image.
        options: the method's own options by name.

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

    method: str = DEFAULT_METHOD
    objective: str | Objective | Callable[[Any], Tensor] = "logit"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        method, objective = self._method, self._objective
        method.with_options(self.options)
        if isinstance(objective, Region) and not method.takes_region:
            takers = " or ".join(repr(name) for name, other in METHODS.items() if other.takes_region)
            raise ValueError(f"objective: Region has no meaning for method={method.name!r}; use method={takers}")

    @property
    def signed(self) -> bool:
        """Whether the maps have values below 0."""
        return self._method.is_signed(self._options)

    @property
    def needs_target(self) -> bool:
        """Whether it is about a class."""
        return self._objective.needs_target

    @property
    def panels(self) -> tuple[str, ...] | None:
        """Names of the maps that each image gets, where the options ask for several."""
        return getattr(self._options, "panels", None)

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

        A function is described by its module, name and a hash of its code, a tensor by a hash of its values.
        """
        names = self._method.option_names
        return {
            "method": self.method,
            "objective": self._objective.plain(),
            "options": {name: plain(getattr(self._options, name)) for name in names},
        }

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
    ) -> Explanation:
        """Answer it: arguments, result and errors are those of :func:`lightning_attngrad.explain`."""
        return answer(
            self._method,
            self._options,
            self._objective,
            model,
            images,
            target,
            forward=forward,
            memory_budget=memory_budget,
            score_offsets=score_offsets,
        )

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
        return find_method(self.method)

    @property
    def _options(self) -> Any:
        return self._method.with_options(self.options)

    @property
    def _objective(self) -> Objective:
        return check_objective(self.objective)
