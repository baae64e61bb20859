"""Normalisations, as functions and written out: without a bias relevance adds up to the output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import ATTN_LRP, CONSERVATIVE, PLAIN, AttentionTap
from tests.attention.rules.under_rules import numbers, relevance

Function = Callable[[Tensor], Tensor]

TOKENS, MAPS = numbers(2, 5, 8), numbers(2, 8, 3, 4)
WEIGHT = 1 + 0.3 * numbers(8, seed=1)


def _layer_norm_2d(x: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (8,), WEIGHT).permute(0, 3, 1, 2)


def _by_hand(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * WEIGHT


def _by_hand_over_channels(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * WEIGHT[:, None, None]


def _response(x: Tensor) -> Tensor:
    """Global response normalisation of ConvNeXt V2, in both of timm's layouts of its product."""
    length = x.norm(p=2, dim=(2, 3), keepdim=True)
    response = length / (length.mean(dim=1, keepdim=True) + 1e-6)
    return x + torch.addcmul(torch.zeros_like(WEIGHT)[:, None, None], WEIGHT[:, None, None], x * response)


OF_TOKENS: dict[str, Function] = {
    "layer norm": lambda x: F.layer_norm(x, (8,), WEIGHT),
    "layer norm of torch": lambda x: torch.layer_norm(x, (8,), WEIGHT),
    "layer norm over two axes": lambda x: F.layer_norm(x, (5, 8)),
    "layer norm module": nn.LayerNorm(8, dtype=torch.float64),
    "rms norm": lambda x: F.rms_norm(x, (8,), WEIGHT),
    "rms norm module": nn.RMSNorm(8, eps=1e-6, dtype=torch.float64),
    "layer norm by hand": _by_hand,
    "standardised": lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
    "rms norm by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * WEIGHT,
    "rms norm by hand, in float32": lambda x: x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6),
    "rms norm by hand, another power": lambda x: WEIGHT * (x * (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5),
    "rms norm by hand, in place": lambda x: x.mul_(x.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()),
    "simple norm": lambda x: x * torch.rsqrt(x.var(dim=-1, keepdim=True) + 1e-6) * WEIGHT,
    "unit length": lambda x: x / x.norm(dim=-1, keepdim=True),
    "unit length, expanded": lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12).expand_as(x),
    "unit length in place": lambda x: x.div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True)),
    "normalize": lambda x: F.normalize(x, dim=-1) * 4,
    "normalize by another norm": lambda x: F.normalize(x, p=1.0, dim=1),
    "cosine queries": lambda x: F.normalize(x.unflatten(-1, (2, 4)), dim=-1).flatten(2),
}

OF_MAPS: dict[str, Function] = {
    "group norm": lambda x: F.group_norm(x, 4, WEIGHT),
    "group norm of torch": lambda x: torch.group_norm(x, 2, WEIGHT),
    "group norm with one group": nn.GroupNorm(1, 8, dtype=torch.float64),
    "group norm of channels last": lambda x: F.group_norm(x.to(memory_format=torch.channels_last), 4, WEIGHT),
    "instance norm": lambda x: F.instance_norm(x, weight=WEIGHT),
    "instance norm module": nn.InstanceNorm2d(8, affine=True, dtype=torch.float64),
    "instance norm that tracks": nn.InstanceNorm2d(8, track_running_stats=True, dtype=torch.float64).eval(),
    "instance norm of one image": lambda x: torch.stack([nn.InstanceNorm2d(8)(image) for image in x]),
    "batch norm": nn.BatchNorm2d(8, dtype=torch.float64).eval(),
    "layer norm 2d": _layer_norm_2d,
    "layer norm over channels by hand": _by_hand_over_channels,
    "global response norm": _response,
}


@pytest.mark.parametrize("name", OF_TOKENS | OF_MAPS)
def test_relevance_adds_up(name: str) -> None:
    function, inputs = (OF_TOKENS | OF_MAPS)[name], TOKENS if name in OF_TOKENS else MAPS
    found, output = relevance(lambda x: function(x) * numbers(*inputs.shape, seed=2), inputs)
    expected = function(inputs.clone()) * numbers(*inputs.shape, seed=2)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.flatten(1).sum(1), expected.flatten(1).sum(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["layer norm", "rms norm", "layer norm by hand", "unit length", "normalize"])
def test_without_the_rules_it_does_not(name: str) -> None:
    # Homogeneous of degree nought, nearly: plain gradient × input is about zero.
    inputs = TOKENS.clone().requires_grad_()
    output = OF_TOKENS[name](inputs) * numbers(*TOKENS.shape, seed=2)
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    assert (inputs * gradient).sum().abs() < 1e-3 < output.sum().abs()


@pytest.mark.parametrize(
    ("name", "written_out"),
    [
        ("layer norm", "layer norm by hand"),
        ("normalize", "unit length"),
        ("group norm with one group", None),
        ("layer norm 2d", "layer norm over channels by hand"),
    ],
)
def test_functions_and_what_is_written_out_agree_token_by_token(name: str, written_out: str | None) -> None:
    every = OF_TOKENS | OF_MAPS
    inputs, share = (TOKENS, numbers(2, 5, 8, seed=3)) if name in OF_TOKENS else (MAPS, numbers(2, 8, 3, 4, seed=3))

    def one_group(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(1, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5)

    other = every[written_out] if written_out else one_group
    factor = 4 if name == "normalize" else 1
    found, _ = relevance(lambda x: every[name](x) * share, inputs)
    expected, _ = relevance(lambda x: factor * other(x) * share, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rules", [PLAIN, CONSERVATIVE, ATTN_LRP])
@pytest.mark.parametrize("spelling", ["module", "torch"])
@pytest.mark.parametrize("batch", [1, 2])
def test_batch_norm_passes_the_gradient_of_a_single_image_whole(rules: object, spelling: str, batch: int) -> None:
    # torch itself mixes up channels and places where the gradient comes back through flatten and transpose.
    mean, variance = numbers(8, seed=4), numbers(8, seed=5).square() + 0.5
    bias = numbers(8, seed=6)
    inputs, share = MAPS[:batch].clone().requires_grad_(), numbers(batch, 12, 8, seed=7)
    with AttentionTap(nn.Identity(), rules=rules):  # type: ignore[arg-type]
        if spelling == "module":
            normed = F.batch_norm(inputs, mean, variance, WEIGHT, bias)
        else:
            normed = torch.batch_norm(inputs, WEIGHT, bias, mean, variance, False, 0.1, 1e-5, False)
        normed = F.relu(normed + 100, inplace=True) if batch == 2 else normed.add_(1)  # as models do behind it
        tokens = normed.flatten(2).transpose(1, 2)
    (gradient,) = torch.autograd.grad(tokens, inputs, share)
    expected = share.mT.unflatten(2, (3, 4)) * (WEIGHT / (variance + 1e-5).sqrt())[:, None, None]
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
