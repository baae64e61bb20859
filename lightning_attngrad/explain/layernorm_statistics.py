"""Chefer's rule with keys weighted by what normalises their tokens: our reading of arXiv 2311.11378."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.attention import Grid, TokenPlaces, UnsupportedModelError
from lightning_attngrad.explain.flow import sum_of
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
    return roll(forward, seeds, ("positive",), key_weights(forward))


def key_weights(forward: ForwardPass) -> dict[int, Tensor]:
    """What the keys of every call count, by its number: w, a state (B, 1, S + h·w) on their grid.

    Where keys lie on another grid than the tokens that were normalised, w is the mean of these by area; where no
    normalisation had a token, it is 1.

    Raises:
        UnsupportedModelError: where there are none in front of a call, or where they lie is not known.
    """
    totals: dict[int, list[Tensor]] = {}
    counts: dict[int, list[Tensor]] = {}
    calls_on: dict[Grid | None, list[int]] = {}
    for (places, grid), of_places in _by_places(forward).items():
        values = [of_tokens for _, of_tokens in of_places]
        rows = torch.stack([*values, torch.ones_like(values[0])])  # (L + 1, T)
        state = scatter_tokens(rows[None, :, None], places, forward.places.slots, forward.batch)
        state = carry_tokens(state, forward.places.slots, places.grid, grid)  # (B, L + 1, S + h·w)
        for index, (number, _) in enumerate(of_places):
            if number not in totals:
                calls_on.setdefault(grid, []).append(number)
            totals.setdefault(number, []).append(state[:, index])
            counts.setdefault(number, []).append(state[:, -1])
    weights: dict[int, Tensor] = {}
    for numbers in calls_on.values():
        total, count = (torch.stack([sum_of(of[number]) for number in numbers], dim=1) for of in (totals, counts))
        mean = total.sum(dim=-1, keepdim=True) / count.sum(dim=-1, keepdim=True)
        shares = torch.where((count > 0) & (mean > 0), total / count / mean, 1.0)  # (B, L, S + h·w)
        weights.update(zip(numbers, shares.split(1, dim=1), strict=True))
    return weights


def _by_places(forward: ForwardPass) -> dict[tuple[TokenPlaces, Grid | None], list[tuple[int, Tensor]]]:
    """Number of a call and the statistics (T,) of tokens in front of it, by places of these and grid of its keys."""
    found: dict[tuple[TokenPlaces, Grid | None], list[tuple[int, Tensor]]] = {}
    statistics = forward.tap.statistics
    assert statistics is not None
    for number, call in enumerate(forward.places.calls):
        if call.kind != "tokens" or not call.counts:
            continue
        of_call = statistics.of_call(number)
        if not of_call:
            raise UnsupportedModelError(
                "model: no LayerNorm or RMSNorm over the channels of each token stands in front of the attention "
                f"{call.name!r} (its tokens come to it past one, or by a normalisation of another kind), so there are "
                "no statistics to weight it by. Use method='gradient_guided', which is the same without them"
            )
        for statistic in of_call:
            places = forward.known.of_tensor(statistic.number)
            if places is None or places.channel_axis != -1 or places.tokens.place.numel() != len(statistic.values):
                raise UnsupportedModelError(
                    f"model: where on the image the {len(statistic.values)} tokens lie that are normalised in front of "
                    f"the attention {call.name!r} could not be followed. Use method='gradient_guided', which does "
                    "without their statistics"
                )
            found.setdefault((places.tokens, call.keys.grid), []).append((number, statistic.values))
    return found
