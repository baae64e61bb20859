"""Chefer's rule weighted by the statistics of tokens: against the formula with hooks on norms, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import UnsupportedModelError
from lightning_attngrad.explain import METHODS, explain
from lightning_attngrad.explain.forward_pass import forward_pass
from tests.explain.test_against_references import assert_same_map
from tests.references import guided
from tests.references.layernorm_statistics import entering, root_mean_square, standard_deviation, statistics_map
from tests.references.placed import Placed
from tests.zoo import randomise

TARGET = torch.tensor([1, 2])
METHOD = "layernorm_statistics"
Norm = Callable[[Tensor], Tensor]


class WrittenByHand(nn.Module):
    """A ViT with a class token whose normalisations are functions; ``seen`` has the identity at what enters them."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.position = nn.Parameter(torch.zeros(1, 17, 32))
        self.seen = nn.ModuleList(nn.Identity() for _ in range(2))
        self.projections = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.head = nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1) + self.position
        for seen, projection, layer in zip(self.seen, self.projections, self.layers, strict=True):
            query, key, value = (
                part.unflatten(-1, (2, 16)).transpose(1, 2)
                for part in projection(self.norm(seen(tokens))).chunk(3, dim=-1)
            )
            tokens = tokens + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            tokens = tokens + F.gelu(layer(self.norm(tokens)))
        return self.head(self.norm(tokens[:, 0]))


def written_out_layer_norm(tokens: Tensor) -> Tensor:
    return (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, keepdim=True) + 1e-6).sqrt()


def written_out_rms_norm(tokens: Tensor) -> Tensor:
    return tokens * torch.rsqrt(tokens.pow(2).mean(-1, keepdim=True) + 1e-6)


def written_out_product_by_an_attribute(tokens: Tensor) -> Tensor:
    return torch.rsqrt(tokens.square().mean(-1, keepdim=True) + 1e-6).mul(tokens)


@dataclass(frozen=True)
class Case:
    """A model, and in front of which of its calls stands what.

    Attributes:
        size: of the images.
        build: the model.
        norms: name of the module that gets what is normalised, by call.
        grids: of the image tokens that enter it, by call.
        statistic: what the norm divides by.
    """

    size: tuple[int, int]
    build: Callable[[], nn.Module]
    norms: dict[int, str]
    grids: dict[int, tuple[int, int]]
    statistic: Callable[[Tensor], Tensor] = standard_deviation


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=3, **options)


_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_BY_HAND = ((32, 32), {0: "seen.0", 1: "seen.1"}, {0: (4, 4), 1: (4, 4)})


def _by_hand(norm: Norm, statistic: Callable[[Tensor], Tensor]) -> Case:
    size, norms, grids = _BY_HAND
    return Case(size, lambda: WrittenByHand(norm), norms, grids, statistic)


CASES = {
    "vit": Case(
        (32, 48),
        _timm("vit_tiny_patch16_224", **{**_VIT, "img_size": (32, 48)}),
        {0: "blocks.0.norm1", 1: "blocks.1.norm1"},
        {0: (4, 6), 1: (4, 6)},
    ),
    "vit, mean of the patches": Case(
        (32, 32),
        _timm("vit_medium_patch16_reg4_gap_256", **_VIT),
        {0: "blocks.0.norm1", 1: "blocks.1.norm1"},
        {0: (4, 4), 1: (4, 4)},
    ),
    "swin": Case(
        (48, 72),
        _timm(
            "swin_tiny_patch4_window7_224",
            img_size=(48, 72),
            window_size=5,  # windows are padded
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
        {2 * stage + block: f"layers.{stage}.blocks.{block}.norm1" for stage in (0, 1) for block in (0, 1)},
        {0: (12, 18), 1: (12, 18), 2: (6, 9), 3: (6, 9)},
    ),
    "pvt, whose keys are reduced": Case(
        (64, 64),
        _timm("pvt_v2_b0", depths=(1, 1, 1, 1)),
        {
            **{stage: f"stages.{stage}.blocks.0.attn.norm" for stage in range(3)},
            3: "stages.3.blocks.0.norm1",
        },
        dict.fromkeys(range(4), (2, 2)),
    ),
    "layer_norm, by hand": _by_hand(lambda tokens: F.layer_norm(tokens, (32,)), standard_deviation),
    "torch.layer_norm, by hand": _by_hand(lambda tokens: torch.layer_norm(tokens, (32,)), standard_deviation),
    "rms_norm, by hand": _by_hand(lambda tokens: F.rms_norm(tokens, (32,)), root_mean_square),
    "layer norm, written out": _by_hand(written_out_layer_norm, standard_deviation),
    "rms norm, written out": _by_hand(written_out_rms_norm, root_mean_square),
    "rms norm, a method": _by_hand(written_out_product_by_an_attribute, root_mean_square),
    "rms norm, a module": Case(
        (32, 32),
        _timm("vit_tiny_patch16_224", **_VIT, norm_layer="rmsnorm"),
        {0: "blocks.0.norm1", 1: "blocks.1.norm1"},
        {0: (4, 4), 1: (4, 4)},
        root_mean_square,
    ),
}


@cache
def _model(name: str) -> nn.Module:
    return randomise(CASES[name].build(), seed=3).eval()


def _images(name: str) -> Tensor:
    return torch.randn(2, 3, *CASES[name].size, generator=torch.Generator().manual_seed(1))


def _placed(name: str) -> tuple[Placed, dict[int, Tensor]]:
    """Places of the calls, A and G in float64, and the statistics, by naive passes with hooks on the norms."""
    case, images = CASES[name], _images(name)
    with forward_pass(_model(name), images) as ran:
        places = ran.places
    exact = randomise(case.build(), seed=3).eval().double()
    with entering(exact, case.norms) as entered:
        reading = guided.read(exact, images.double(), guided.logit(TARGET))
    attention = [matrix.reshape(call.shape) for matrix, call in zip(reading.attention, places.calls, strict=True)]
    gradients = [matrix.reshape(call.shape) for matrix, call in zip(reading.gradients, places.calls, strict=True)]
    last = len(places.calls) - 1
    queries = places.calls[last].queries
    arrived = gradients[last].abs().sum(dim=(1, 3)) > 0  # (R, N)
    found = zip(queries.image[:, 0][arrived].tolist(), queries.place[:, 0][arrived].tolist(), strict=True)
    pooled = {last: [token for token in found if token[1] >= 0]}
    statistics = {call: case.statistic(tokens) for call, tokens in entered.items()}
    return Placed(places, attention, gradients, pooled), statistics


@pytest.mark.parametrize("name", CASES)
def test_the_map_is_the_formula_s(name: str) -> None:
    placed, statistics = _placed(name)
    expected = statistics_map(placed, statistics, CASES[name].grids)
    found = explain(_model(name), _images(name), TARGET, method=METHOD)
    assert_same_map(found.token_scores, expected)
    unweighted = explain(_model(name), _images(name), TARGET, method="gradient_guided").token_scores
    assert (found.token_scores - unweighted).abs().max() > 1e-3 * unweighted.abs().max()


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_tokens_of_one_size_leave_chefer_s_rule(name: str) -> None:
    """Where all tokens are normalised to one size beforehand, the statistics are equal, and every weight is 1."""
    model = randomise(CASES[name].build(), seed=3).eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda module, inputs: F.layer_norm(inputs[0], inputs[0].shape[-1:]))
    found = explain(model, _images(name), TARGET, method=METHOD).token_scores
    chefer = explain(model, _images(name), TARGET, method="gradient_guided").token_scores
    torch.testing.assert_close(found, chefer, rtol=1e-3, atol=1e-5)


def test_parts_sum_to_the_map() -> None:
    found = explain(_model("swin"), _images("swin"), TARGET, method=METHOD)
    assert found.layers is not None
    assert len(found.layer_names) == found.layers.shape[1] == 4
    torch.testing.assert_close(found.layers.sum(dim=1), found.heatmap)


def test_an_image_alone_is_explained_as_beside_another() -> None:
    for name in ("vit", "swin"):
        together = explain(_model(name), _images(name), TARGET, method=METHOD).heatmap
        for index in range(2):
            alone = explain(_model(name), _images(name)[index : index + 1], TARGET[index], method=METHOD).heatmap
            torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-6)


def _no_norm(tokens: Tensor) -> Tensor:
    return tokens


def _gated(tokens: Tensor) -> Tensor:
    """A factor a token that is no normalisation."""
    return tokens * tokens.mean(-1, keepdim=True).sigmoid()


def _over_all(tokens: Tensor) -> Tensor:
    """One mean and deviation for all tokens of an image: there are none of a token."""
    return F.group_norm(tokens.mT, 1).mT


def _over_tokens_and_channels(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[1:])


def _beside_a_norm(tokens: Tensor) -> Tensor:
    """Something comes to the attention past the normalisation."""
    return tokens + F.layer_norm(tokens, (32,))


@pytest.mark.parametrize("norm", [_no_norm, _gated, _over_all, _over_tokens_and_channels, _beside_a_norm])
def test_attention_without_such_a_norm_is_refused(norm: Norm) -> None:
    model = randomise(WrittenByHand(norm), seed=3).eval()
    images = _images("layer_norm, by hand")
    with pytest.raises(UnsupportedModelError, match=r"no LayerNorm or RMSNorm .* stands in front of the attention"):
        explain(model, images, TARGET, method=METHOD)
    assert explain(model, images, TARGET, method="gradient_guided").heatmap.shape == (2, 4, 4)


@pytest.mark.parametrize(
    "name",
    [
        "swinv2_tiny_window8_256",  # what a block adds is normalised
        "levit_128s",  # batch statistics
    ],
)
def test_families_without_such_a_norm_are_refused(name: str) -> None:
    model = randomise(timm.create_model(name, num_classes=3, img_size=64), 0).eval()
    with pytest.raises(UnsupportedModelError, match="no LayerNorm or RMSNorm"):
        explain(model, torch.randn(2, 3, 64, 64), TARGET, method=METHOD)


def test_only_this_method_keeps_statistics() -> None:
    assert [name for name, method in METHODS.items() if method.reads_statistics] == [METHOD]
    with forward_pass(_model("vit"), _images("vit")) as ran:
        assert ran.tap.statistics is None
