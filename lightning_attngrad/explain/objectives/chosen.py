"""Objectives by name, and functions of the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives.base import Objective, ValueObjective
from lightning_attngrad.explain.objectives.classes import Logit, Margin
from lightning_attngrad.explain.objectives.start import Start
from lightning_attngrad.explain.plain import Plain, plain


@dataclass(frozen=True, eq=False)
class OfOutput(ValueObjective):
    """A function of the model's own output: for regression, embeddings, backbones without a classifier.

    Args:
        function: from the output to one number an image, (B,).
    """

    function: Callable[[Any], Tensor]
    needs_target: bool = field(default=False, init=False, repr=False)
    asks_task: bool = field(default=False, init=False, repr=False)

    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:  # noqa: ARG002
        value = self.function(forward.output)
        if not isinstance(value, Tensor) or value.shape != (forward.batch,):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"objective: the function returned {got}; expected one number an image, ({forward.batch},)"
            )
        return value if value.dtype == torch.float64 else value.float()

    def plain(self) -> Plain:
        return plain(self.function)


#: Objectives without arguments, by name.
OBJECTIVES: dict[str, Objective] = {"logit": Logit(), "margin": Margin(), "start": Start()}


def check_objective(objective: str | Objective | Callable[[Any], Tensor]) -> Objective:
    """An objective from its name, itself, or a function of the output.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything else.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        if objective in OBJECTIVES:
            return OBJECTIVES[objective]
        raise ValueError(
            f"objective: got {objective!r}; expected {' or '.join(map(repr, OBJECTIVES))}, or one with arguments: "
            "Contrast(against=class), Mixture(weights), Region(mask), PixelClass(class, where), PixelValue(where), "
            "QueryClass(class, query), QueryBox(coordinate, query), Similarity(vectors), or a function of the model's "
            "output"
        )
    if callable(objective):
        return OfOutput(objective)
    raise TypeError(f"objective: got {type(objective).__name__}; expected a name, an Objective or a function")
