"""Chefer's rule with keys weighted by what normalises their tokens: our reading of arXiv 2311.11378."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.attention import UnsupportedModelError
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.guided import roll
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.placing import carry_tokens, scatter_tokens
from lightning_attngrad.explain.registry import TokenScores, register_method


@register_method(
    "layernorm_statistics",
    source="our reading of Nguyen et al., arXiv 2311.11378, of which only the abstract and summaries were available",
    start="embedding",
    reads_statistics=True,
)
def layernorm_statistics(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """``r ← r + (r·mean_h (A ∘ G)₊) ∘ w``: Chefer's rule, each key times its token's share w of the statistics.

    The normalisation in front of a call divides every token by its standard deviation σ (an RMSNorm by its root mean
    square), so that attention sees large and small tokens alike. w = σ over the mean σ of the image's tokens gives back
    what was divided out.

    Raises:
        UnsupportedModelError: for a model in which some attention reads tokens that no such normalisation precedes.
    """
    calls = forward.places.calls
    counting = [number for number, call in enumerate(calls) if call.kind == "tokens" and call.counts]
    weights = {number: key_weights(forward, number) for number in counting}
    return roll(forward, seeds, ("positive",), weights)


def key_weights(forward: ForwardPass, number: int) -> Tensor:
    """w of the key tokens of a call: a state (B, 1, S + h·w) on their grid; 1 where nothing normalised a token.

    Where keys lie on another grid than the tokens that were normalised, it is the mean of these by area.
    """
    call, slots = forward.places.calls[number], forward.places.slots
    assert forward.tap.statistics is not None
    found = forward.tap.statistics.of_call(number)
    if not found:
        raise UnsupportedModelError(
            f"model: no LayerNorm or RMSNorm over the channels of each token stands in front of the attention "
            f"{call.name!r} (its tokens come to it past one, or by a normalisation of another kind), so there are no "
            "statistics to weight it by. Use method='gradient_guided', which is the same without them"
        )
    sums, counts = [], []
    for statistic in found:
        places = forward.known.of_tensor(statistic.number)
        if places is None or places.channel_axis != -1 or places.tokens.place.numel() != statistic.values.numel():
            raise UnsupportedModelError(
                f"model: where on the image the {statistic.values.numel()} tokens lie that are normalised in front of "
                f"the attention {call.name!r} could not be followed. Use method='gradient_guided', which does without "
                "their statistics"
            )
        for kept, values in ((sums, statistic.values), (counts, torch.ones_like(statistic.values))):
            state = scatter_tokens(values.view(1, 1, 1, -1), places.tokens, slots, forward.batch)
            kept.append(carry_tokens(state, slots, places.tokens.grid, call.keys.grid))
    total, count = torch.stack(sums).sum(dim=0), torch.stack(counts).sum(dim=0)
    mean = total.sum(dim=-1, keepdim=True) / count.sum(dim=-1, keepdim=True)
    return torch.where((count > 0) & (mean > 0), total / count / mean, 1.0)
