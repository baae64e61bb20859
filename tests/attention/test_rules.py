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


class ResponseNorm(nn.Module):
    """A normalisation that is a function of torch, which the package does not know."""

    def forward(self, tokens: Tensor) -> Tensor:
        return F.local_response_norm(tokens.mT, 32, alpha=32.0, k=1e-3, beta=0.5).mT


class HandWrittenNorm(nn.Module):
    """A normalisation written out, ``x·rsqrt(mean x²)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * torch.rsqrt(tokens.pow(2).mean(dim=-1, keepdim=True) + 1e-6)


class LengthNorm(nn.Module):
    """``g·x/‖x‖`` by a function of torch that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(4.0))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(tokens, dim=-1) * self.gain


class ExponentNorm(nn.Module):
    """A normalisation written out so that it needs a rule for a part: its factor is as large as its input."""

    def forward(self, tokens: Tensor) -> Tensor:
        size = tokens.pow(2).mean(dim=-1, keepdim=True).repeat(1, 1, tokens.shape[-1])
        return tokens * torch.rsqrt(size + 1e-6)


class Asinh(nn.Module):
    """An activation that the package does not know."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.asinh(tokens)


class Unusual(nn.Module):
    """A ViT without biases whose normalisation and activation the package does not know."""

    def __init__(self, norm: type[nn.Module], activation: type[nn.Module] = Asinh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 32, 8, 8)
        self.norms = nn.ModuleList([norm(), norm(), norm(), norm(), norm()])
        self.qkv = nn.ModuleList(nn.Linear(32, 96, bias=False) for _ in range(2))
        self.widen = nn.ModuleList(nn.Linear(32, 64, bias=False) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(64, 32, bias=False) for _ in range(2))
        self.head = nn.Linear(32, 5, bias=False)
        self.activation = activation()
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


@pytest.fixture
def asinh() -> Iterator[None]:
    @backward_rule(torch.asinh)
    def rule(tokens: Tensor) -> Tensor:
        return constant_ratio(tokens, torch.asinh(tokens.detach()), at_zero=1.0)

    yield
    forget_backward_rule(torch.asinh)


@pytest.fixture
def response_norm() -> Iterator[None]:
    @backward_rule(F.local_response_norm, normalisation=True)
    def rule(tokens: Tensor, *args: float, **kwargs: float) -> Tensor:
        return constant_ratio(tokens, F.local_response_norm(tokens.detach(), *args, **kwargs), at_zero=1.0)

    yield
    forget_backward_rule(F.local_response_norm)


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


@pytest.mark.usefixtures("asinh", "response_norm")
def test_a_new_activation_and_a_new_normalisation_conserve_relevance() -> None:
    assert _completeness_error(Unusual(ResponseNorm)) < 1e-4


@pytest.mark.usefixtures("response_norm")
def test_without_a_rule_for_the_activation_they_do_not() -> None:
    assert _completeness_error(Unusual(ResponseNorm)) > 1e-2


@pytest.mark.usefixtures("asinh")
def test_without_a_rule_for_the_normalisation_they_do_not_either() -> None:
    # The embedding is known nevertheless: it is no normalisation that it is known by.
    assert _completeness_error(Unusual(ResponseNorm)) > 1e-2


@pytest.mark.parametrize("norm", [HandWrittenNorm, LengthNorm])
@pytest.mark.parametrize("activation", [nn.SELU, nn.GELU, nn.Softsign, nn.Hardswish])
def test_a_normalisation_that_is_written_out_needs_no_rule(norm: type[nn.Module], activation: type[nn.Module]) -> None:
    assert _completeness_error(Unusual(norm, activation)) < 1e-4


@pytest.mark.usefixtures("rsqrt")
def test_a_normalisation_is_held_constant_in_its_parts() -> None:
    assert _completeness_error(Unusual(ExponentNorm, nn.SELU)) < 1e-4


def test_and_without_the_rule_for_its_parts_is_not() -> None:
    assert _completeness_error(Unusual(ExponentNorm, nn.SELU)) > 1e-2


def test_rules_are_registered_once_and_forgotten() -> None:
    before, norms = dict(LINEARISED), set(NORMALISATIONS)
    with pytest.raises(ValueError, match="functions: gelu has a backward rule"):
        backward_rule(torch.asinh, F.gelu)
    with pytest.raises(ValueError, match="functions: got none"):
        backward_rule()
    with pytest.raises(ValueError, match="functions: asinh has no backward rule"):
        forget_backward_rule(torch.asinh)
    backward_rule(torch.asinh, normalisation=True)(torch.asinh)
    assert torch.asinh in NORMALISATIONS
    forget_backward_rule(torch.asinh)
    assert before == LINEARISED
    assert norms == NORMALISATIONS
