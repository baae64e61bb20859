"""Gradient-guided attention: Cui, Fan, Chen, arXiv 2605.11392 (our reading); Chefer et al., arXiv 2103.15679."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.propagation import RowPropagation
from lightning_attngrad.explain.registry import Options, TokenScores, register_method


@register_method(
    "gradient_guided",
    source="arXiv 2605.11392; correction 'positive' with objective 'logit' is arXiv 2103.15679, eq. 5 and 6",
    takes_corrections=True,
    takes_region=True,
)
def gradient_guided(forward: ForwardPass, seeds: Seeds, options: Options) -> TokenScores:
    """Attention times its gradient, corrected, rolled through the layers from the row that feeds the prediction."""
    scores, _ = stream(forward, seeds, options, options.corrections, forward.tap.calls[0].tensor)
    return scores


def stream(
    forward: ForwardPass, seeds: Seeds, options: Options, corrections: tuple[str, ...], source: Tensor
) -> tuple[TokenScores, Tensor]:
    """One backward pass from ``seeds`` to ``source`` with row propagation at every attention call on its way.

    Returns:
        The propagated scores, and the gradient at ``source``.
    """
    propagation = RowPropagation(forward.layout, corrections, options.memory_budget)
    if seeds.given is not None:
        propagation(*seeds.given)
    forward.tap.on_gradient = propagation
    try:
        gradient = (
            torch.autograd.grad(seeds.outputs, source, seeds.gradients, retain_graph=options.retain_graph)[0]
            if seeds.outputs
            else torch.zeros_like(source)
        )
    finally:
        forward.tap.on_gradient = None
    increments = propagation.increments[::-1]
    if propagation.scores is None or propagation.zero_gradient is None or len(increments) < len(forward.tap.calls):
        raise ValueError(
            f"model: gradient came to {len(increments)} of the {len(forward.tap.calls)} attention calls that were "
            "seen; its output is not computed from all of them, one after the other"
        )
    return (
        TokenScores(propagation.scores, propagation.zero_gradient, layers=torch.stack(increments, dim=2)),
        gradient,
    )
