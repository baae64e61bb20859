"""Objectives: the scalar Φ an image whose gradient guides a map (arXiv 2605.11392, our reading; METHODS §2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.attention import (
    AttentionCall,
    ExplicitAttentionCall,
    FusedAttentionCall,
    UnsupportedModelError,
    outside_autocast,
)
from lightning_attngrad.attention.places import CallPlaces
from lightning_attngrad.explain.flow import sum_of
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.placing import gather_tokens, sum_by_image, within_area
from lightning_attngrad.explain.plain import Plain, plain
from lightning_attngrad.explain.pooling import last_attention
from lightning_attngrad.state import outside_inference


@dataclass(frozen=True, eq=False)
class Seeds:
    """Where a backward pass starts.

    Attributes:
        value: Φ of each image, (B,).
        outputs: tensors of the graph.
        gradients: ∂Φ at each of them.
        given: attention calls whose gradient is known without autograd, and that gradient, last call first.
        retain_graph: whether another backward pass follows this one.
        pooled: pooling weights of last attention calls, by number, states (B, 1, S + h·w), where Φ knows them: a
            gradient that is zero at a whole window says nothing of its tokens.
    """

    value: Tensor
    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    given: tuple[tuple[AttentionCall, Tensor], ...] = ()
    retain_graph: bool = False
    pooled: Mapping[int, Tensor] = field(default_factory=dict)

    def gradient_at(self, tensor: Tensor) -> Tensor:
        """∂Φ at a tensor of the graph, by one backward pass."""
        (gradient,) = self.gradients_at((tensor,))
        return torch.zeros_like(tensor) if gradient is None else gradient

    def gradients_at(self, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """∂Φ at tensors of the graph, by one backward pass; None where Φ does not depend on them."""
        if not self.outputs or not tensors:
            return (None,) * len(tensors)
        return torch.autograd.grad(
            self.outputs, tuple(tensors), self.gradients, retain_graph=self.retain_graph, allow_unused=True
        )


class Objective(ABC):
    """Φ as a function of one forward pass and, for most, of a class an image."""

    needs_target: bool = True

    @abstractmethod
    def seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:
        """Where the backward pass of Φ starts; ``target`` is (B,) or None."""

    def of_images(self, indices: Tensor) -> Objective:  # noqa: ARG002
        """The same objective for some images (n,) of those that it was made for; most are the same for every image."""
        return self

    def plain(self) -> Plain:
        """What is asked, in plain values: objectives that ask the same are described alike."""
        return plain(self)

    def check(self) -> None:  # noqa: B027  (most have nothing to check)
        """Refuse an objective that is not complete.

        Raises:
            ValueError: with what is missing.
        """


class ValueObjective(Objective):
    """An objective that is a number an image, computed from the output."""

    @abstractmethod
    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:
        """Φ of each image, (B,), in the graph."""

    def seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:
        value = self.value(forward, target)
        if not value.requires_grad:
            raise UnsupportedModelError(
                "model: its output does not depend on the attention that was seen: the forward detaches its features, "
                "or computes them under torch.inference_mode or in a torch.autograd.Function. Explain the part before "
                "that."
            )
        return Seeds(value.detach(), (value,), (torch.ones_like(value),))


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


@dataclass(frozen=True, eq=False)
class OfOutput(ValueObjective):
    """A function of the model's own output: for regression, embeddings, backbones without a classifier.

    Args:
        function: from the output to one number an image, (B,).
    """

    function: Callable[[Any], Tensor]
    needs_target: bool = field(default=False, init=False, repr=False)

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


@dataclass(frozen=True, eq=False)
class Region(Objective):
    """The share of the last attention that falls inside a mask: guided from outside by place, not by class.

    ``Φ = Σ_i w_i mean_h Σ_{j in mask} A_L[h, i, j]`` with w the weights by which tokens are pooled; the mean of these
    where several calls are last (side by side, or of several towers). The target only decides which tokens count as
    pooled; Φ itself knows no class.

    Args:
        mask: (H, W), (B, H, W) of the images, or of any grid over the part of them that the map covers
            (:attr:`Explanation.area`); True or 1 inside. None leaves it to whoever asks: the monitors take the masks
            of their images.
    """

    mask: Tensor | None = None

    def check(self) -> None:
        if self.mask is None:
            raise ValueError(
                "objective: Region() has no mask; expected Region(mask), a tensor (H, W) or (B, H, W) that is True "
                "inside. Only monitors fill it in, from the masks of their images"
            )

    def plain(self) -> Plain:
        return {"region": plain(self.mask)}

    def of_images(self, indices: Tensor) -> Region:
        mask = self.mask
        if mask is None or mask.dim() < 3 or len(mask) == 1:
            return self
        return replace(self, mask=mask[indices.to(mask.device)])

    def seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:
        self.check()
        with outside_autocast(forward.tap.calls[-1].tensor.device):
            return self._seeds(forward, target)

    def _seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:
        logit = Logit().value(forward, target)
        # Only the head behind the last attention is walked back for this: it tells which tokens are pooled.
        last = last_attention(forward, (logit,), (torch.ones_like(logit),), retain_graph=True)
        values, outputs, given = [], [], []
        for number, weights in last.weights.items():
            call, places = forward.tap.calls[number], forward.places.calls[number]
            known = self._known(forward, call, places)
            at_attention = gather_tokens(weights / len(last.weights), places.queries, forward.places.slots)
            at_attention = at_attention[:, 0].unsqueeze(-1).expand(-1, call.shape[1], -1, -1)  # (R, H, N, 1)
            if isinstance(call, ExplicitAttentionCall):
                by_row, graph = _at_probabilities(call, known, at_attention)
            else:
                by_row, graph = _through_scores(call, known, at_attention, forward.memory_budget)  # type: ignore[arg-type]
                given.append((known, at_attention))
            values.append(sum_by_image(by_row, places.queries, forward.batch))
            outputs += graph
        return Seeds(
            sum_of(values),
            tuple(tensor for tensor, _ in outputs),
            tuple(gradient.to(tensor.dtype) for tensor, gradient in outputs),
            given=tuple(given),
            pooled=last.weights,
        )

    def _known(self, forward: ForwardPass, call: AttentionCall, places: CallPlaces) -> _RegionCall:
        """The call with the mask as its gradient: 1 at keys inside, by area, 0 outside and at keys in slots."""
        mask = outside_inference(torch.as_tensor(self.mask, dtype=torch.float32, device=call.tensor.device))
        if mask.dim() not in (2, 3) or (mask.dim() == 3 and len(mask) not in (1, forward.batch)):
            raise ValueError(f"mask: got shape {tuple(mask.shape)}; expected (H, W) or ({forward.batch}, H, W)")
        slots, grid = forward.places.slots, places.keys.grid
        inside = mask.new_zeros(forward.batch, 1, slots)
        if grid is not None:
            mask = within_area(mask, forward.places.area).expand(forward.batch, -1, -1)
            cells = F.adaptive_avg_pool2d(mask.unsqueeze(1), grid).flatten(2)  # (B, 1, h·w)
            inside = torch.cat([inside, cells], dim=2)
        at_keys = gather_tokens(inside, places.keys, slots)[:, 0]  # (R, G, M)
        return _RegionCall(call.name, call.tensor, call, at_keys / places.heads)


def _at_probabilities(
    call: ExplicitAttentionCall, known: _RegionCall, at_attention: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Start at the probabilities, a tensor of the graph: Φ of each row (R,), and that tensor with its gradient."""
    every = slice(0, call.shape[2])
    whole = known.attention_gradient(every, at_attention)  # (R, H, N, M)
    value = (call.attention(every) * whole).sum(dim=(1, 2, 3))
    return value, [(call.tensor, whole.reshape(call.tensor.shape))]


def _through_scores(
    call: FusedAttentionCall, known: _RegionCall, at_attention: Tensor, memory_budget: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Start at queries and keys: the probabilities are no tensor of the graph under a fused kernel."""
    rows, heads, _, _ = call.shape
    value = torch.zeros(rows, device=at_attention.device, dtype=at_attention.dtype)
    at_query = torch.zeros_like(call.query, dtype=at_attention.dtype)
    at_key = torch.zeros_like(call.key, dtype=at_attention.dtype)
    for block in call.blocks(memory_budget):
        attention = call.attention(block)
        product = attention * known.attention_gradient(block, at_attention)
        mass = product.sum(dim=-1, keepdim=True)
        value += mass.sum(dim=(1, 2, 3))
        at_scores = (product - attention * mass) * call.scale  # ∂Φ/∂S = A ⊙ (G − rowsum(A ⊙ G))
        key = call.key.detach().to(at_scores.dtype).repeat_interleave(heads // call.key.shape[1], dim=1)
        at_query[:, :, block] = at_scores @ key
        to_keys = at_scores.transpose(-1, -2) @ call.query.detach()[:, :, block].to(at_scores.dtype)
        at_key += to_keys.unflatten(1, (call.key.shape[1], -1)).sum(dim=2)
    graph = [(call.query, at_query), (call.key, at_key)]
    return value, [(tensor, gradient) for tensor, gradient in graph if tensor.requires_grad]


@dataclass(eq=False)
class _RegionCall(AttentionCall):
    """A last attention call, whose gradient at the probabilities is the mask itself: ``w_i·mask_j / H``."""

    inner: AttentionCall
    inside: Tensor  # mask / H at the keys, (R, H or 1, M)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.inner.shape

    def attention(self, rows: slice) -> Tensor:
        return self.inner.attention(rows)

    def attention_gradient(self, rows: slice, gradient: Tensor) -> Tensor:
        return gradient[:, :, rows] * self.inside[:, :, None, :]

    def part(self, images: slice, heads: slice) -> _RegionCall:
        inside = self.inside[images, heads if self.inside.shape[1] > 1 else slice(None)]
        return _RegionCall(self.name, self.tensor, self.inner.part(images, heads), inside)


#: Objectives that need nothing but a class, by name.
OBJECTIVES: dict[str, Objective] = {"logit": Logit(), "margin": Margin()}


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
            "Contrast(against=class), Mixture(weights), Region(mask), or a function of the model's output"
        )
    if callable(objective):
        return OfOutput(objective)
    raise TypeError(f"objective: got {type(objective).__name__}; expected a name, an Objective or a function")


def _of_class(logits: Tensor, target: Tensor | None) -> Tensor:
    return logits.gather(1, _column(target)).squeeze(1)


def _column(target: Tensor | None) -> Tensor:
    if target is None:
        raise ValueError("target: None; this objective is about a class")
    return target.unsqueeze(1)
