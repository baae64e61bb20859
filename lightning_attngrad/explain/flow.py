"""How relevance goes back from the prediction to the tokens, from attention call to attention call.

A call receives what the later calls that read its output have found, and nothing of those that do not: blocks side by
side do not feed each other, nor does one tower the other. Calls that the prediction does not depend on take no part.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from lightning_attngrad.attention import AttentionCall
from lightning_attngrad.attention.embedding import node_of, walk_graph
from lightning_attngrad.attention.places import Grid, ImagePlaces, TokenPlaces
from lightning_attngrad.explain.placing import carry_tokens


class TokenFlow:
    """What each attention call adds to the relevance of the tokens, while they are visited last call first.

    States are (B, K, S + h·w), see :mod:`~lightning_attngrad.explain.placing`. What a call adds stays on the grid of
    its own tokens, and is carried to another only to be read there.

    Args:
        places: of the calls.
    """

    def __init__(self, places: ImagePlaces) -> None:
        self._places = places
        self._starts: dict[int, Tensor] = {}
        self._added: dict[int, list[tuple[Grid | None, Tensor]]] = {}
        self._carried: dict[Hashable, Tensor] = {}  # many calls of a stage read the same sum of another stage

    @property
    def visited(self) -> tuple[int, ...]:
        """Numbers of the calls that have added something, first call first."""
        return tuple(sorted(self._added))

    def is_last(self, number: int) -> bool:
        """Whether none of the calls visited so far reads what this one gives: the prediction does, directly."""
        return not self._readers(number)

    def start(self, number: int, weights: Tensor) -> None:
        """What the prediction gives to a last call, a state (B, K, S + h·w) on the grid of its queries."""
        self._starts[number] = weights

    def started(self, number: int) -> list[Tensor]:
        """What the prediction gives to each last call that reads this one or is it, on the grid of its queries."""
        calls, to = self._places.calls, self._places.calls[number].queries.grid
        return [
            self._carry(("start", last), weights, calls[last].queries.grid, to)
            for last, weights in self._starts.items()
            if last == number or number in calls[last].reads
        ]

    def received(self, number: int) -> Tensor | None:
        """What the later calls that read this one have added, on the grid of its queries; None without any."""
        by_grid: dict[Grid | None, list[tuple[int, Tensor]]] = {}
        for later in self._readers(number):
            for grid, state in self._added[later]:
                by_grid.setdefault(grid, []).append((later, state))
        to = self._places.calls[number].queries.grid
        sums = [
            self._carry(tuple(later for later, _ in parts), sum_of([state for _, state in parts]), grid, to)
            for grid, parts in by_grid.items()
        ]
        return sum_of(sums) if sums else None

    def add(self, number: int, state: Tensor, tokens: TokenPlaces) -> None:
        """Add what a call has found at some of its tokens, a state on their grid."""
        self._added.setdefault(number, []).append((tokens.grid, state))

    def starts(self) -> Tensor:
        """What the prediction gives to all last calls, (B, K, S + h·w) on the grid of the map."""
        slots, to = self._places.slots, self._places.grid
        calls = self._places.calls
        return sum_of(
            [carry_tokens(state, slots, calls[last].queries.grid, to) for last, state in self._starts.items()]
        )

    def layers(self) -> Tensor:
        """What each visited call has added, first call first, on the grid of the map: (B, K, L, S + h·w)."""
        by_grid: dict[Grid | None, list[tuple[int, Tensor]]] = {}
        for number, parts in self._added.items():
            for grid, state in parts:
                by_grid.setdefault(grid, []).append((number, state))
        found: dict[int, list[Tensor]] = {}
        for grid, of_grid in by_grid.items():
            states = torch.stack([state for _, state in of_grid], dim=2)
            carried = carry_tokens(states, self._places.slots, grid, self._places.grid)
            for (number, _), state in zip(of_grid, carried.unbind(2), strict=True):
                found.setdefault(number, []).append(state)
        return torch.stack([sum_of(found[number]) for number in self.visited], dim=2)

    def _readers(self, number: int) -> list[int]:
        return [later for later in self._added if number in self._places.calls[later].reads]

    def _carry(self, what: Hashable, state: Tensor, source: Grid | None, to: Grid | None) -> Tensor:
        if source == to:
            return state
        key = (what, source, to)
        if key not in self._carried:
            self._carried[key] = carry_tokens(state, self._places.slots, source, to)
        return self._carried[key]


def sum_of(states: Sequence[Tensor]) -> Tensor:
    """Sum of states of one shape, in two launches however many they are."""
    return states[0] if len(states) == 1 else torch.stack(list(states)).sum(dim=0)


def calls_behind(outputs: Sequence[Tensor], calls: Sequence[AttentionCall]) -> list[int]:
    """Numbers of the calls whose gradient a backward pass from ``outputs`` reaches, first call first."""
    numbers = {node_of(call.tensor): number for number, call in enumerate(calls) if call.tensor.requires_grad}
    return sorted(numbers[node] for node in walk_graph(*outputs) if node in numbers)


def first_tensors(calls: Sequence[AttentionCall], source: Tensor | None = None) -> list[Tensor]:
    """The tensors down to which a backward pass has to go in order to reach every call.

    That is ``source``, and of each chain of calls that does not hang on it the first: blocks side by side at the
    bottom, or several towers.
    """
    found = [] if source is None else [source]
    known = {node_of(tensor) for tensor in found if tensor.requires_grad}
    for call in calls:
        if call.tensor.requires_grad:
            if not any(node in known for node in walk_graph(call.tensor)):
                found.append(call.tensor)
            known.add(node_of(call.tensor))
    return found
