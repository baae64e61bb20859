"""Rules for functions that the package does not know, registered from outside: relevance is conserved through them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import backward_rule, constant_ratio, forget_backward_rule
from lightning_attngrad.attention.rules import LINEARISED, NORMALISATIONS
from lightning_attngrad.explain import explain

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class ScaleNorm(nn.Module):
    """A normalisation written as a function of torch, ``g·x/‖x‖``."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(4.0))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) * self.gain


class HandWrittenNorm(nn.Module):
    """A normalisation written out, ``x·rsqrt(mean x²)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * torch.rsqrt(tokens.pow(2).mean(dim=-1, keepdim=True) + 1e-6)


class Unusual(nn.Module):
    """A ViT without biases whose normalisation and activation the package does not know."""

    def __init__(self, norm: type[nn.Module], first_norm: type[nn.Module] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 32, 8, 8)
        self.norms = nn.ModuleList([(first_norm or norm)(), norm(), norm(), norm(), norm()])
        self.qkv = nn.ModuleList(nn.Linear(32, 96, bias=False) for _ in range(2))
        self.widen = nn.ModuleList(nn.Linear(32, 64, bias=False) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(64, 32, bias=False) for _ in range(2))
        self.head = nn.Linear(32, 5, bias=False)
        self.activation = nn.SELU()
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).mT
        for layer in range(2):
            parts = self.qkv[layer](self.norms[2 * layer](tokens)).chunk(3, dim=-1)
            read = F.scaled_dot_product_attention(*(part.unflatten(-1, (4, 8)).transpose(1, 2) for part in parts))
            tokens = tokens + read.transpose(1, 2).flatten(2)
            hidden = self.activation(self.widen[layer](self.norms[2 * layer + 1](tokens)))
            tokens = tokens + self.narrow[layer](hidden)
        return self.head(self.norms[4](tokens).mean(dim=1))


class PlainLayerNorm(nn.LayerNorm):
    def __init__(self) -> None:
        super().__init__(32, bias=False)


@pytest.fixture
def selu() -> Iterator[None]:
    @backward_rule(F.selu)
    def rule(tokens: Tensor, inplace: bool = False) -> Tensor:
        return constant_ratio(tokens, F.selu(tokens.detach()), at_zero=1.05)

    yield
    forget_backward_rule(F.selu)


@pytest.fixture
def normalize() -> Iterator[None]:
    @backward_rule(F.normalize, normalisation=True)
    def rule(tokens: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
        return tokens / torch.linalg.vector_norm(tokens, p, dim, keepdim=True).clamp_min(eps).detach()

    yield
    forget_backward_rule(F.normalize)


@pytest.fixture
def rsqrt() -> Iterator[None]:
    @backward_rule(torch.rsqrt, Tensor.rsqrt)
    def rule(tokens: Tensor) -> Tensor:
        return torch.rsqrt(tokens).detach()

    yield
    forget_backward_rule(torch.rsqrt, Tensor.rsqrt)


def _completeness_error(model: nn.Module) -> float:
    explanation = explain(model, IMAGES, 1, method="conservative")
    assert explanation.completeness_error is not None
    with torch.no_grad():
        torch.testing.assert_close(explanation.logits, model(IMAGES))  # rules leave the values alone
    return float(explanation.completeness_error.max())


@pytest.mark.usefixtures("selu", "normalize")
def test_a_new_activation_and_a_new_normalisation_conserve_relevance() -> None:
    assert _completeness_error(Unusual(ScaleNorm)) < 1e-4


@pytest.mark.usefixtures("normalize")
def test_without_a_rule_for_the_activation_they_do_not() -> None:
    assert _completeness_error(Unusual(ScaleNorm)) > 1e-2


@pytest.mark.usefixtures("selu")
def test_without_a_rule_for_the_normalisation_the_embedding_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"register the function that normalises with attention\.backward_rule"):
        explain(Unusual(ScaleNorm), IMAGES, 1, method="conservative")
    with pytest.raises(ValueError, match=r"register the function that normalises with attention\.backward_rule"):
        explain(Unusual(ScaleNorm), IMAGES, 1, method="grad_cam")


@pytest.mark.usefixtures("selu", "rsqrt")
def test_a_normalisation_that_is_written_out_is_held_constant_in_its_parts() -> None:
    assert _completeness_error(Unusual(HandWrittenNorm, PlainLayerNorm)) < 1e-4


@pytest.mark.usefixtures("selu")
def test_and_without_the_rule_for_its_parts_is_not() -> None:
    assert _completeness_error(Unusual(HandWrittenNorm, PlainLayerNorm)) > 1e-2


def test_rules_are_registered_once_and_forgotten() -> None:
    before, norms = dict(LINEARISED), set(NORMALISATIONS)
    with pytest.raises(ValueError, match="functions: gelu has a backward rule"):
        backward_rule(F.selu, F.gelu)
    with pytest.raises(ValueError, match="functions: got none"):
        backward_rule()
    with pytest.raises(ValueError, match="functions: selu has no backward rule"):
        forget_backward_rule(F.selu)
    backward_rule(F.selu, normalisation=True)(F.selu)
    assert F.selu in NORMALISATIONS
    forget_backward_rule(F.selu)
    assert before == LINEARISED
    assert norms == NORMALISATIONS
