"""`conservative` accounts for the whole logit where no bias takes a share, and only with its rules."""

from __future__ import annotations

import pytest
import torch

from lightning_attngrad.explain import explain
from tests.references import guided
from tests.references.relevance import relevance
from tests.zoo import ZOO, zero_biases

TARGET = torch.tensor([2, 5])


@pytest.mark.parametrize("name", ZOO)
def test_token_relevance_sums_to_the_logit_without_biases(name: str) -> None:
    zoo = ZOO[name]
    explanation = explain(zero_biases(zoo.build()), zoo.images(), TARGET, method="conservative")
    logits = explanation.logits.gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(explanation.token_scores.sum(-1), logits, rtol=0, atol=1e-4)
    assert explanation.completeness_error is not None
    assert explanation.completeness_error.max() < 1e-3  # relative to logits that may be small


@pytest.mark.parametrize("name", [n for n in ZOO if ZOO[n].twin is None])
def test_plain_gradient_times_input_does_not_sum_to_the_logit(name: str) -> None:
    # What makes the test above one that can fail: the sum is the rules' doing.
    zoo = ZOO[name]
    module = zero_biases(zoo.build(torch.float64))
    plain = relevance(zoo, module, zoo.images(dtype=torch.float64), guided.logit(TARGET), "plain")
    assert (plain.tokens.sum(-1) - plain.phi).abs().max() > 0.1


@pytest.mark.parametrize("name", ["vit", "vit_mean", "siglip", "hf_vit"])
@pytest.mark.parametrize("method", ["conservative", "attn_lrp"])
def test_completeness_error_is_the_share_that_biases_take(name: str, method: str) -> None:
    zoo = ZOO[name]
    explanation = explain(zoo.build(), zoo.images(), TARGET, method=method)
    phi = explanation.logits.gather(1, TARGET[:, None])[:, 0]
    missing = (explanation.token_scores.sum(-1) - phi).abs() / phi.abs()
    assert explanation.completeness_error is not None
    torch.testing.assert_close(explanation.completeness_error, missing, rtol=1e-3, atol=1e-5)
    assert missing.min() > 1e-3


@pytest.mark.parametrize("name", ["vit", "deit_distilled", "eva02"])
def test_relevance_of_a_mixture_is_the_mixture_of_relevances(name: str) -> None:
    # Below the logits the modified backward pass is linear in the gradient that it starts from.
    from lightning_attngrad.explain.objectives import Mixture

    zoo = ZOO[name]
    model, images = zoo.build(), zoo.images()
    weights = torch.linspace(-1, 1, 7)
    mixed = explain(model, images, method="conservative", objective=Mixture(weights)).heatmap
    single = explain(model, images, list(range(7)), method="conservative").heatmap  # (B, 7, h, w)
    expected = torch.einsum("c,bchw->bhw", weights, single)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
