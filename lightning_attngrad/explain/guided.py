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
    propagation = RowPropagation(forward.layout.prefix, corrections, options.memory_budget)
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
    if propagation.scores is None or propagation.zero_gradient is None:
        raise ValueError(
            "model: no gradient passed any attention call on its way back from the output; is its output computed "
            "from detached features?"
        )
    pooling_call = forward.tap.calls[-1]
    increments = propagation.increments[::-1]
    if not pooling_call.is_self_attention and increments[-1].shape[-1] > forward.layout.tokens:
        raise ValueError(f"model: {pooling_call.name!r} pools more tokens than the image has")
    return (
        TokenScores(propagation.scores, propagation.zero_gradient, layers=torch.stack(increments, dim=2)),
        gradient,
    )
