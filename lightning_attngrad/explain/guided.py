"""Gradient-guided attention: Cui, Fan, Chen, arXiv 2605.11392 (our reading); Chefer et al., arXiv 2103.15679."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_attngrad.explain.corrections import CORRECTIONS, CorrectionName, check_corrections
from lightning_attngrad.explain.flow import first_tensors
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.pooling import no_attention_reached
from lightning_attngrad.explain.propagation import RowPropagation
from lightning_attngrad.explain.registry import TokenScores, register_method


@dataclass(frozen=True)
class GradientGuidedOptions:
    """Options of ``gradient_guided``.

    Args:
        correction: what of the gradient counts: ``positive``, ``negative``, ``absolute``, ``signed`` or ``transfer``;
            several of them give one panel each, from one backward pass.

    Raises:
        ValueError: for an unknown correction, or none at all.
    """

    correction: CorrectionName | Sequence[CorrectionName] = "positive"

    def __post_init__(self) -> None:
        if not isinstance(self.correction, str):
            object.__setattr__(self, "correction", tuple(self.correction))
        check_corrections(self.correction)  # type: ignore[arg-type]

    @property
    def corrections(self) -> tuple[str, ...]:
        """Their names, one or several."""
        return check_corrections(self.correction)  # type: ignore[arg-type]

    @property
    def panels(self) -> tuple[str, ...] | None:
        """A panel for each correction, where several were asked for."""
        return None if isinstance(self.correction, str) else self.corrections

    @property
    def signed(self) -> bool:
        """Whether a map has values below 0."""
        return any(CORRECTIONS[name].is_signed for name in self.corrections)


@register_method(
    "gradient_guided",
    source="arXiv 2605.11392; correction 'positive' with objective 'logit' is arXiv 2103.15679, eq. 5 and 6",
    options=GradientGuidedOptions,
    signed=lambda options: options.signed,
    takes_region=True,
)
def gradient_guided(forward: ForwardPass, seeds: Seeds, options: GradientGuidedOptions) -> TokenScores:
    """Attention times its gradient, corrected, rolled through the layers from the row that feeds the prediction."""
    return roll(forward, seeds, options.corrections)


def roll(
    forward: ForwardPass,
    seeds: Seeds,
    corrections: tuple[str, ...],
    key_weights: Mapping[int, Tensor] = MappingProxyType({}),
) -> TokenScores:
    """One backward pass from ``seeds`` to every attention call, with row propagation on its way.

    Args:
        forward: the forward pass.
        seeds: where the backward pass begins.
        corrections: one map each.
        key_weights: see :class:`RowPropagation`.

    Raises:
        ValueError: if the gradient reaches no attention call.
    """
    scores, _ = _stream(forward, seeds, corrections, first_tensors(forward.tap.calls), key_weights)
    return scores


def stream(
    forward: ForwardPass, seeds: Seeds, corrections: tuple[str, ...], source: Tensor
) -> tuple[TokenScores, Tensor]:
    """The same down to ``source`` as well.

    Returns:
        The propagated scores with their layers, which are the calls that the gradient reached; and the gradient at
        ``source``.

    Raises:
        ValueError: if the gradient reaches no attention call.
    """
    scores, (gradient, *_) = _stream(forward, seeds, corrections, first_tensors(forward.tap.calls, source))
    return scores, torch.zeros_like(source) if gradient is None else gradient


def _stream(
    forward: ForwardPass,
    seeds: Seeds,
    corrections: tuple[str, ...],
    sources: Sequence[Tensor],
    key_weights: Mapping[int, Tensor] = MappingProxyType({}),
) -> tuple[TokenScores, tuple[Tensor | None, ...]]:
    propagation = RowPropagation(forward.places, corrections, forward.memory_budget, seeds.pooled, key_weights)
    for call, gradient in seeds.given:
        propagation(call, gradient)
    forward.tap.on_gradient, forward.tap.on_blocks = propagation, propagation.blocks_of
    try:
        gradients = seeds.gradients_at(sources)
    finally:
        forward.tap.on_gradient = forward.tap.on_blocks = None
    if propagation.zero_gradient is None:
        raise no_attention_reached(forward)
    layers = propagation.increments
    scores = TokenScores(layers.sum(dim=2), propagation.zero_gradient, layers=layers, layer_names=propagation.names)
    return scores, gradients
