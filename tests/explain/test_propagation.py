"""Corrections row by row; and rows carried by places, against the naive recursion over all tokens of all calls."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from lightning_attngrad.attention import AttentionCall, AttentionTap
from lightning_attngrad.attention.places import CallPlaces, ImagePlaces, TokenPlaces
from lightning_attngrad.explain.corrections import CORRECTIONS
from lightning_attngrad.explain.propagation import RowPropagation
from tests.explain.placed_calls import LAYOUTS, calls_of
from tests.references import placed as reference
from tests.zoo import ZOO

TOKENS = ZOO["vit"].tokens


@pytest.fixture(scope="module")
def last_call() -> tuple[AttentionCall, Tensor]:
    """The last attention call of a ViT, and a gradient that arrives at one of its query tokens at a time."""
    with AttentionTap(ZOO["vit"].build()) as tap, torch.no_grad():
        ZOO["vit"].build()(ZOO["vit"].images())
    call = tap.calls[-1]
    return call, torch.randn(call.tensor.shape, generator=torch.Generator().manual_seed(1))


def _row(call: AttentionCall, gradient: Tensor, row: int, budget: int = 10**6) -> dict[str, Tensor]:
    """What each correction makes of one row, mean over heads, (B, M)."""
    only = torch.zeros_like(gradient)
    only[:, :, row] = gradient[:, :, row]
    place = torch.arange(TOKENS).expand(call.shape[0], 1, -1)
    image = torch.arange(call.shape[0]).view(-1, 1, 1).expand_as(place)
    tokens = TokenPlaces(image, place, ZOO["vit"].grid, in_order=True)
    of_call = CallPlaces(call.name, call.shape, tokens, tokens, call.shape[1], "tokens", frozenset())
    places = ImagePlaces((of_call,), ZOO["vit"].prefix, ZOO["vit"].grid, None, (0, 0, 32, 32), call.shape[0])
    propagation = RowPropagation(places, tuple(CORRECTIONS), budget)
    propagation(call, only)
    return dict(zip(CORRECTIONS, propagation.increments[:, :, 0].unbind(1), strict=True))


@pytest.mark.parametrize("row", [0, 1, 7, TOKENS - 1])
@pytest.mark.parametrize("budget", [1, 10**6])
def test_every_row_of_every_correction_is_its_formula(
    last_call: tuple[AttentionCall, Tensor], row: int, budget: int
) -> None:
    call, gradient = last_call
    maps = _row(call, gradient, row, budget)
    attention = call.attention(slice(row, row + 1)).squeeze(2)  # (B, H, M)
    at_attention = call.attention_gradient(slice(row, row + 1), gradient).squeeze(2)
    product = attention * at_attention
    expected = {
        "positive": product.clamp_min(0),
        "negative": (-product).clamp_min(0),
        "absolute": product.abs(),
        "signed": product,
        "transfer": attention * (at_attention - product.sum(-1, keepdim=True)),
    }
    for name, whole in expected.items():
        torch.testing.assert_close(maps[name], whole.mean(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("row", [0, 3, TOKENS - 1])
def test_rows_of_transfer_sum_to_zero_and_support_less_opposition_is_signed(
    last_call: tuple[AttentionCall, Tensor], row: int
) -> None:
    maps = _row(*last_call, row)
    size = maps["absolute"].sum(dim=1)
    assert bool((maps["transfer"].sum(dim=1).abs() < 1e-5 * size).all())
    assert bool((maps["transfer"].abs().sum(dim=1) > 1e-2 * size).all())
    torch.testing.assert_close(maps["positive"] - maps["negative"], maps["signed"], rtol=1e-4, atol=1e-6)


@cache
def expected(layout: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The map (B, S + h·w) of every correction, and what each call adds to it, (B, L, S + h·w)."""
    placed = LAYOUTS[layout]()
    return {name: (reference.guided_map(placed, name), reference.increments(placed, name)) for name in CORRECTIONS}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [1, 700, 10**6])
def test_rows_by_places_are_the_recursion_over_all_tokens(layout: str, budget: int) -> None:
    placed = LAYOUTS[layout]()
    propagation = RowPropagation(placed.places, tuple(CORRECTIONS), budget)
    for number, call in reversed(list(enumerate(calls_of(placed)))):
        if number not in placed.unreached:
            propagation(call, placed.gradients[number])
    found = propagation.increments  # (B, K, L, S + h·w)
    assert propagation.names == tuple(placed.places.calls[number].name for number in placed.counting)
    assert propagation.zero_gradient is not None
    assert not bool(propagation.zero_gradient.any())
    for index, (whole, parts) in enumerate(expected(layout).values()):
        torch.testing.assert_close(parts.sum(dim=1), whole)
        largest = whole.abs().amax()
        assert float(largest) > 1e-3
        assert float((found[:, index].sum(dim=1) - whole).abs().amax() / largest) < 1e-5
        assert float((found[:, index] - parts).abs().amax() / parts.abs().amax()) < 1e-5


def test_without_any_gradient_the_image_is_named() -> None:
    placed = LAYOUTS["shifted_windows"]()
    propagation = RowPropagation(placed.places, ("positive",), 10**6)
    gradient = placed.gradients[2].clone()
    gradient[1] = 0
    propagation(calls_of(placed)[2], gradient)
    assert propagation.zero_gradient is not None
    assert propagation.zero_gradient.tolist() == [False, True]
