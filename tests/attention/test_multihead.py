"""Multi-head attention from its weights equals torch's own, whatever its options."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lightning_attngrad.attention import AttentionTap

OPTIONS = [
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    {"batch_first": True},
    {"kdim": 12, "vdim": 20},
]
MASKS = ["none", "bool", "float", "per head", "padding", "both", "causal"]


@pytest.mark.parametrize(("options", "mask"), list(itertools.product(OPTIONS, MASKS)), ids=str)
def test_equals_torch_s_own(options: dict[str, object], mask: str) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, **options).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    batch, tokens = 3, 5
    shape = (batch, tokens) if options.get("batch_first") else (tokens, batch)
    query = torch.randn(*shape, 16)
    key = torch.randn(*shape, options.get("kdim", 16))
    value = torch.randn(*shape, options.get("vdim", 16))
    upper = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    padding = torch.zeros(batch, tokens, dtype=torch.bool)
    padding[1, -2:] = True
    arguments: dict[str, object] = {
        "none": {},
        "bool": {"attn_mask": upper},
        "float": {"attn_mask": torch.randn(tokens, tokens)},
        "per head": {"attn_mask": torch.randn(batch * 4, tokens, tokens)},
        "padding": {"key_padding_mask": padding},
        "both": {"key_padding_mask": padding, "attn_mask": upper},
        "causal": {"attn_mask": upper, "is_causal": True},
    }[mask]
    for need_weights, average in ((True, True), (True, False), (False, True)):
        given = {**arguments, "need_weights": need_weights, "average_attn_weights": average}
        expected, expected_weights = layer(query, key, value, **given)
        with AttentionTap(layer) as tap:
            output, weights = layer(query, key, value, **given)
        assert len(tap.calls) == 1
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
        if expected_weights is None:
            assert weights is None
        else:
            torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-5)


def test_a_single_sequence_without_a_batch() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4).eval()
    tokens = torch.randn(5, 16)
    expected, expected_weights = layer(tokens, tokens, tokens)
    with AttentionTap(layer) as tap:
        output, weights = layer(tokens, tokens, tokens)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)
    assert tap.calls[0].shape == (1, 4, 5, 5)


def test_a_whole_encoder_layer_does_not_take_its_fast_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    tokens = torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = layer(tokens)
        with AttentionTap(layer) as tap:
            output = layer(tokens)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert [call.name for call in tap.calls] == ["self_attn"]
