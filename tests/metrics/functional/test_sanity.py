"""The sanity check: what is redrawn, what stays, and that nothing is left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import lightning_attngrad as attngrad
from lightning_attngrad.metrics.functional import map_spearman, redrawn_state, sanity_check
from tests.zoo import ZOO, _timm

HEADS = {
    "vit": {"head.weight", "head.bias"},
    "deit_distilled": {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"},
    "siglip": {"head.weight", "head.bias"},
    "torchvision": {"heads.head.weight", "heads.head.bias"},
    "hf_vit": {"classifier.weight", "classifier.bias"},
    "hf_dinov2": {"classifier.weight", "classifier.bias"},
}


class Wrapper(nn.Module):
    """As a LightningModule that holds a model, with a projection that is registered later."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model
        self.unused = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_the_classifier(name: str) -> None:
    model = ZOO[name].build()
    assert redrawn_state(model, "head").keys() == HEADS[name]
    if "hf" not in name and name != "torchvision":
        assert redrawn_state(Wrapper(model), "head").keys() == {f"net.{key}" for key in HEADS[name]}
    assert redrawn_state(model).keys() == {key for key, _ in model.named_parameters()}


def test_each_tensor_keeps_its_mean_and_spread_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(300, 200), nn.LayerNorm(200), nn.Linear(200, 300, dtype=torch.bfloat16))
    nn.init.normal_(model[0].weight, 2.0, 0.5)
    state = redrawn_state(model)
    drawn, trained = state["0.weight"], model[0].weight.detach()
    assert float(drawn.mean()) == pytest.approx(2, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([drawn.flatten(), trained.flatten()]))[0, 1])) < 0.02
    assert torch.equal(state["1.weight"], torch.ones(200))  # all alike: as it was
    assert state["2.weight"].dtype == torch.bfloat16
    assert not drawn.requires_grad


def test_draws_are_those_of_the_seed_and_of_the_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].load_state_dict(model[0].state_dict())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = redrawn_state(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other, head = redrawn_state(model), redrawn_state(model, seed=1), redrawn_state(model, "head")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["0.weight"], first["1.weight"])
    assert all(torch.equal(first[name], head[name]) for name in head)


def test_shared_weights_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    state = redrawn_state(model)
    assert list(state) == ["0.weight"]
    x = torch.rand(2, 4)
    torch.testing.assert_close(functional_call(model, state, (x,)), x @ state["0.weight"].T @ state["0.weight"].T)


@pytest.mark.parametrize("name", ["vit", "vit_unfused", "siglip", "torchvision", "hf_vit"])
@pytest.mark.parametrize("which", ["all", "head"])
def test_equals_a_copy_with_the_redrawn_weights_in_it(name: str, which: str) -> None:
    entry = ZOO[name]
    model, images = entry.build(), entry.images()
    redrawn = copy.deepcopy(model)
    redrawn.load_state_dict(redrawn_state(model, which, seed=3), strict=False)
    target = torch.tensor([1, 4])
    for method in ("attn_lrp", "gradient_guided"):
        maps = [attngrad.explain(net, images, target, method=method).heatmap for net in (model, redrawn)]
        found = sanity_check(model, images, target, method, which, seed=3)
        torch.testing.assert_close(found, map_spearman(*maps))
        assert (found != 1).all()


def test_the_model_is_left_alone_also_after_an_error() -> None:
    entry = ZOO["vit"]
    model, images = entry.build().train(), entry.images()
    parameters = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}

    def check() -> None:
        assert model.training
        for name, parameter in model.named_parameters():
            assert parameter is parameters[name][0]
            assert parameter.requires_grad
            assert parameter.grad is None
            assert torch.equal(parameter, parameters[name][1])

    state = torch.get_rng_state()
    sanity_check(model, images)
    check()
    calls = []

    def fails_at_the_second(batch: torch.Tensor) -> torch.Tensor:
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("out of order")
        return model(batch)

    with pytest.raises(RuntimeError, match="out of order"):
        sanity_check(model, images, forward=fails_at_the_second)
    check()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_callers_forward_sees_the_redrawn_weights() -> None:
    entry = ZOO["vit"]
    model, images = entry.build(), entry.images()
    seen = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        seen.append(model.head.weight.detach().clone())
        return model(batch)

    found = sanity_check(model, images, forward=forward)
    torch.testing.assert_close(found, sanity_check(model, images))
    assert torch.equal(seen[0], model.head.weight)
    assert torch.equal(seen[-1], redrawn_state(model)["head.weight"])


def test_works_under_no_grad_and_inference_mode() -> None:
    entry = ZOO["vit"]
    model, images = entry.build(), entry.images()
    expected = sanity_check(model, images)
    with torch.no_grad():
        torch.testing.assert_close(sanity_check(model, images), expected)
    with torch.inference_mode():
        found = sanity_check(model, images)
    torch.testing.assert_close(found.clone(), expected)


def test_what_cannot_be_redrawn_is_refused() -> None:
    model = ZOO["vit"].build()
    with pytest.raises(ValueError, match=r"which: got 'body'; expected 'all' or 'head'"):
        redrawn_state(model, "body")  # type: ignore[arg-type]
    features = _timm("vit_tiny_patch16_224", num_classes=0)()  # its get_classifier() gives an identity
    for headless in (nn.Conv2d(1, 1, 1), features, Wrapper(features)):
        with pytest.raises(ValueError, match="has no classifier head to redraw"):
            redrawn_state(headless, "head")
    with pytest.raises(ValueError, match="target: got several classes an image"):
        sanity_check(model, ZOO["vit"].images(), [0, 1])
