"""Corrections row by row; and rows carried by places, against the naive recursion over all tokens of all calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_attngrad.attention import AttentionCall, AttentionTap, TokenLayout
from lightning_attngrad.explain.corrections import CORRECTIONS
from lightning_attngrad.explain.propagation import RowPropagation, pooling_weights
from tests.zoo import ZOO

TOKENS = ZOO["vit"].tokens
LAYOUT = TokenLayout(ZOO["vit"].prefix, ZOO["vit"].grid)


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
    propagation = RowPropagation(LAYOUT, tuple(CORRECTIONS), budget)
    propagation(call, only)
    assert propagation.scores is not None
    return dict(zip(CORRECTIONS, propagation.scores.unbind(1), strict=True))


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
