"""Chefer's rule with keys weighted by what the LayerNorm in front of them divides by, everything of size N×N kept.

    σ_j = √(mean_c (x_jc − mean_c x_jc)²)      of the tokens x (T, C) that enter the norm in front of call c
    w_j = σ_j / mean_j σ_j                     over the tokens of one image
    E_c ← E_c · diag(w)                        in the recursion of `placed.py`

An RMSNorm divides by ρ_j = √(mean_c x_jc²) instead. Our reading of arXiv 2311.11378: no formula of it is public.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tests.references.placed import Placed, guided_map, spread


def standard_deviation(tokens: Tensor) -> Tensor:
    """What a LayerNorm divides tokens (…, C) by."""
    centred = tokens - tokens.mean(-1, keepdim=True)
    return (centred**2).mean(-1) ** 0.5


def root_mean_square(tokens: Tensor) -> Tensor:
    """What an RMSNorm divides tokens (…, C) by."""
    return (tokens**2).mean(-1) ** 0.5


@contextmanager
def entering(model: nn.Module, norms: Mapping[int, str]) -> Iterator[dict[int, Tensor]]:
    """What enters the norms of these names while the model runs, by call, (B, T, C) in the order of the tensor."""
    found: dict[int, Tensor] = {}

    def keep(call: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[call] = inputs[0].detach().flatten(1, -2).double()

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(call)) for call, name in norms.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def statistics_map(placed: Placed, statistics: Mapping[int, Tensor], grids: Mapping[int, tuple[int, int]]) -> Tensor:
    """The map, (B, S + h·w).

    Args:
        placed: the calls.
        statistics: σ or ρ by call, (B, T): first the tokens that lie nowhere, then the cells of a grid row by row.
        grids: of those cells, by call.
    """
    weights = {call: _weights(placed, call, values, grids[call]) for call, values in statistics.items()}
    return guided_map(placed, "positive", weights)


def _weights(placed: Placed, call: int, statistics: Tensor, grid: tuple[int, int]) -> Tensor:
    """w of all tokens at the keys of a call, (B, tokens); means by area where they lie on another grid."""
    shares = statistics / statistics.mean(1, keepdim=True)
    in_front = statistics.shape[1] - grid[0] * grid[1]
    found = torch.zeros(len(shares), placed.tokens, dtype=torch.float64)
    counts = torch.zeros(placed.tokens, dtype=torch.float64)
    places = [*range(in_front), *(placed.places.slots + cell for cell in range(grid[0] * grid[1]))]
    for token, place in enumerate(places):
        number = placed.number(place, grid)
        found[:, number] = shares[:, token]
        counts[number] = 1
    to_keys = spread(placed, placed.places.calls[call].keys.grid)
    return (found @ to_keys / (counts @ to_keys)).nan_to_num(0.0)
