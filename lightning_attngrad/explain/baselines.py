"""Maps to compare with: raw attention and rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.attention import AttentionCall, Cut, UnsupportedModelError
from lightning_attngrad.attention.places import ImagePlaces, TokenPlaces
from lightning_attngrad.explain.flow import TokenFlow, sum_of
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.placing import gather_queries, scatter_tokens
from lightning_attngrad.explain.pooling import last_attention
from lightning_attngrad.explain.propagation import Terms, weighted_rows
from lightning_attngrad.explain.registry import TokenScores, register_method


@register_method("raw_attention", source="none: the last layer's attention, mean over heads")
def raw_attention(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """The row of the last attention call that feeds the prediction, mean over heads; their mean if several are last.

    Raises:
        UnsupportedModelError: if these read no token that lies on the image.
    """
    last = last_attention(forward, seeds.outputs, seeds.gradients, retain_graph=seeds.retain_graph)
    if all(forward.places.calls[number].keys.grid is None for number in last.weights):
        names = " and ".join(f"'{forward.places.calls[number].name}'" for number in last.weights)
        raise UnsupportedModelError(
            f"model: its last attention, {names}, reads only tokens that lie nowhere on the image (latents, queries or "
            "registers that have read it before), so by itself it is no map of the image. Use method='rollout', which "
            "goes on to what these have read, or a method that follows the gradient"
        )
    flow = TokenFlow(forward.places)
    for number, weights in last.weights.items():
        flow.add(number, _read(forward, number, weights / len(last.weights)), forward.places.calls[number].keys)
    return TokenScores(flow.layers().sum(dim=2), last.zero_gradient)


@register_method("rollout", source="Abnar & Zuidema, arXiv 2005.00928")
def rollout(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """``r ← ½(r + r·mean_h A)`` from the last attention call to the first.

    One half is the residual connection's: where p calls side by side read the same tokens, each counts as much as it,
    1/(p + 1). A query that nothing before knows (attention pooling) has none, and is read without the half. Tokens that
    a call does not ask for stay as they are. Where several calls are last, it is the mean of what comes of each.
    """
    places = forward.places
    last = last_attention(forward, seeds.outputs, seeds.gradients, retain_graph=seeds.retain_graph)
    flow, residuals = TokenFlow(places), _Residuals(places, last.reached)
    for number, weights in last.weights.items():  # a map for each last call
        flow.start(number, torch.cat([weights * (number == other) for other in last.weights], dim=1))
    for number in reversed(last.reached):
        received = flow.received(number)
        state = sum_of([*flow.started(number), *([] if received is None else [received])])
        moved = state * residuals.given_up(number)  # (B, K, S + h·w)
        flow.add(number, -moved, places.calls[number].queries)
        flow.add(number, _read(forward, number, moved), places.calls[number].keys)
    rows = flow.starts() + flow.layers().sum(dim=2)
    return TokenScores(rows.mean(dim=1, keepdim=True), last.zero_gradient)


def _read(forward: ForwardPass, number: int, state: Tensor) -> Tensor:
    """What the queries of a call read where they have relevance, ``r · mean_h A``: a state on the grid of its keys."""
    call, places = forward.tap.calls[number], forward.places.calls[number]
    rows = gather_queries(state, places, forward.places.slots) / places.heads

    def terms(part: AttentionCall, cut: Cut) -> Terms:
        yield cut.of(rows), part.attention(cut.block)

    every = (0, call.shape[2])
    read = weighted_rows(call, places.keys, rows, terms, forward.memory_budget, every)
    return scatter_tokens(read, places.keys, forward.places.slots, forward.batch)


class _Residuals:
    """How much of their relevance the queries of a call give up to the keys; the rest stays, by the residual.

    Args:
        places: of all calls.
        reached: numbers of those that the prediction depends on.
    """

    def __init__(self, places: ImagePlaces, reached: tuple[int, ...]) -> None:
        self._places, self._reached = places, frozenset(reached)
        self._held: dict[int, Tensor] = {}

    def given_up(self, number: int) -> Tensor:
        """Of each token, a state (B, 1, S + h·w) on the grid of the queries; 0 where it is none of them."""
        call, slots = self._places.calls[number], self._places.slots
        present = self._present(call.queries)
        sides = sum(self._side_by_side(number, other) for other in self._reached)
        earlier = [self._slots_of(other) for other in sorted(call.reads & self._reached)]
        known = sum_of([self._present(call.keys)[..., :slots], *earlier]).clamp_max(1)
        residual = torch.cat([known, torch.ones_like(present[..., slots:])], dim=-1)
        return present / (sides + residual)

    def _side_by_side(self, one: int, other: int) -> bool:
        """Whether two calls read the same and are read by the same, and so stand at one place of the model.

        Last calls are not: each has a map of its own.
        """
        calls, readers = self._places.calls, self._readers(one)
        if one == other or not readers:
            return one == other
        return (
            calls[one].shape[2] == calls[other].shape[2]
            and calls[one].queries.grid == calls[other].queries.grid
            and calls[one].reads & self._reached == calls[other].reads & self._reached
            and self._readers(other) == readers
        )

    def _readers(self, number: int) -> set[int]:
        return {later for later in self._reached if number in self._places.calls[later].reads}

    def _slots_of(self, number: int) -> Tensor:
        """The slots that a call's tokens hold, (B, 1, S), 1 or 0."""
        if number not in self._held:
            call, slots = self._places.calls[number], self._places.slots
            tokens = [self._present(of_call)[..., :slots] for of_call in (call.queries, call.keys)]
            self._held[number] = torch.maximum(*tokens)
        return self._held[number]

    def _present(self, tokens: TokenPlaces) -> Tensor:
        """1 at the places of these tokens, 0 elsewhere, a state (B, 1, S + h·w) on their grid."""
        once = torch.ones(tokens.place.shape, device=tokens.place.device).unsqueeze(1)
        return (
            scatter_tokens(once, tokens, self._places.slots, self._places.batch).sum(dim=1, keepdim=True).clamp_max(1)
        )
