"""Objectives that are about classes: one, one against others, or a mixture of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives.base import ValueObjective
from lightning_attngrad.explain.plain import Plain, plain
from lightning_attngrad.state import outside_inference


@dataclass(frozen=True)
class Logit(ValueObjective):
    """``z_t``: the class itself."""

    def plain(self) -> Plain:
        return "logit"

    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:
        return _of_class(forward.logits, target)


@dataclass(frozen=True)
class Margin(ValueObjective):
    """``z_t − max_{j≠t} z_j``: what separates the class from its nearest rival."""

    def plain(self) -> Plain:
        return "margin"

    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:
        logits = forward.logits
        if logits.shape[1] < 2:
            raise ValueError("objective: 'margin' needs a rival, and the model has one class; use 'logit'")
        return forward.task.margin(logits, _column(target)[:, 0])


@dataclass(frozen=True, eq=False)
class Contrast(ValueObjective):
    """``z_t − z_b``: why the target class rather than b.

    Args:
        against: b, one class for all images, or one an image, a list or a tensor (B,).
    """

    against: int | list[int] | Tensor

    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:
        logits, against = forward.logits, self.against
        if isinstance(against, int) and not isinstance(against, bool):
            known = 0 <= against < logits.shape[1]
        else:
            given = outside_inference(torch.as_tensor(against, device=logits.device))
            known = not (given.is_floating_point() or given.dtype == torch.bool) and given.numel() in (1, len(logits))
            against = given.expand(len(logits)) if known else given
            known = known and bool(((against >= 0) & (against < logits.shape[1])).all())
        if not known:
            raise ValueError(
                f"against: got {self.against!r}; expected classes from 0 to {logits.shape[1] - 1}, one, or one an image"
            )
        rival = logits[:, against] if isinstance(against, int) else _of_class(logits, against)
        return _of_class(logits, target) - rival

    def plain(self) -> Plain:
        return {"contrast": plain(self.against)}

    def of_images(self, indices: Tensor) -> Contrast:
        if isinstance(self.against, int):
            return self
        given = torch.as_tensor(self.against)
        return self if given.numel() == 1 else replace(self, against=given[indices.to(given.device)])


@dataclass(frozen=True, eq=False)
class Mixture(ValueObjective):
    """``Σ_c w_c z_c``: guided from outside, an image read as a mixture of classes. Takes no target.

    Args:
        weights: w, (C,) for all images, a list or a tensor, or (B, C); or a dictionary from some classes to their
            weights, where all others have none.
    """

    weights: list[float] | dict[int, float] | Tensor
    needs_target: bool = field(default=False, init=False, repr=False)

    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:  # noqa: ARG002
        logits = forward.logits
        if isinstance(self.weights, dict):
            return self._of_some(logits, {int(index): float(weight) for index, weight in self.weights.items()})
        weights = outside_inference(torch.as_tensor(self.weights, device=logits.device, dtype=logits.dtype))
        if weights.shape not in (logits.shape, logits.shape[1:]):
            raise ValueError(
                f"weights: got shape {tuple(weights.shape)}; expected one weight a class, ({logits.shape[1]},), "
                f"or one row an image, {tuple(logits.shape)}"
            )
        return (logits * weights).sum(dim=1)

    def _of_some(self, logits: Tensor, weights: dict[int, float]) -> Tensor:
        if not weights or not all(0 <= index < logits.shape[1] for index in weights):
            raise ValueError(f"weights: got {self.weights!r}; expected classes from 0 to {logits.shape[1] - 1}")
        return torch.stack([logits[:, index] * weight for index, weight in weights.items()]).sum(dim=0)

    def plain(self) -> Plain:
        return {"mixture": plain(self.weights)}

    def of_images(self, indices: Tensor) -> Mixture:
        if isinstance(self.weights, dict):
            return self
        given = torch.as_tensor(self.weights)
        return self if given.dim() < 2 else replace(self, weights=given[indices.to(given.device)])


def _of_class(logits: Tensor, target: Tensor | None) -> Tensor:
    return logits.gather(1, _column(target)).squeeze(1)


def _column(target: Tensor | None) -> Tensor:
    if target is None:
        raise ValueError("target: None; this objective is about a class")
    return target.unsqueeze(1)
