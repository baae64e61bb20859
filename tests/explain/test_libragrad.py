"""LibraGrad's FullGrad+: against its reference, and complete with all biases on."""

from __future__ import annotations

import pytest
import timm
import torch

from lightning_attngrad.explain import METHODS, Contrast, explain
from tests.references import guided
from tests.references.libragrad import full_gradient
from tests.zoo import ZOO, randomise

TARGET = torch.tensor([2, 5])


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].twin is None])
def test_the_reference_is_complete(name: str) -> None:
    zoo = ZOO[name]
    found = full_gradient(zoo, zoo.build(torch.float64), zoo.images(dtype=torch.float64), guided.logit(TARGET))
    torch.testing.assert_close(found.tokens.sum(-1) + found.biases.sum(-1) + found.rest, found.phi, rtol=0, atol=1e-9)
    assert found.biases.abs().max() > 1e-3


@pytest.mark.parametrize("name", ZOO)
def test_tokens_and_biases_are_the_reference_s(name: str) -> None:
    zoo = ZOO[ZOO[name].twin or name]
    images = zoo.images(dtype=torch.float64)
    expected = full_gradient(zoo, zoo.build(torch.float64), images, guided.logit(TARGET))
    found = explain(ZOO[name].build(torch.float64), images, TARGET, method="libragrad")
    patches = (expected.tokens + expected.biases)[:, zoo.prefix :].unflatten(1, zoo.grid)
    torch.testing.assert_close(found.heatmap.double(), patches.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ZOO)
def test_it_sums_to_the_logit_with_biases(name: str) -> None:
    zoo = ZOO[name]
    found = explain(zoo.build(torch.float64), zoo.images(dtype=torch.float64), TARGET, method="libragrad")
    assert found.completeness_error is not None
    assert found.completeness_error.max() < 1e-9


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("pvt_v2_b0", {}),
        ("coatnet_nano_rw_224", {"img_size": 64}),
        ("cait_xxs24_224", {"img_size": 64}),  # a class token comes in late, and class attention
        ("swin_tiny_patch4_window7_224", {"img_size": 112}),  # windows, an odd grid whose patches merge with padding
        ("swinv2_tiny_window8_256", {"img_size": 64}),
        ("mvitv2_tiny", {"img_size": 64}),
        ("maxvit_tiny_rw_224", {"img_size": 64}),
        ("levit_128s", {"img_size": 64}),
        ("mobilevit_xxs", {}),
        ("visformer_tiny", {"img_size": 64}),
        ("coat_lite_tiny", {"img_size": 64}),
    ],
)
def test_it_sums_to_the_logit_in_other_families(name: str, options: dict[str, int]) -> None:
    model = randomise(timm.create_model(name, num_classes=7, **options), 0).eval().double()
    size = options.get("img_size", 64)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).double()
    found = explain(model, images, TARGET, method="libragrad")
    assert found.completeness_error is not None
    assert found.completeness_error.max() < 1e-9
    assert found.heatmap.flatten(1).abs().amax(1).gt(0).all()


def test_without_what_layers_add_it_is_conservative() -> None:
    zoo = ZOO["vit"]
    model, images = zoo.build(torch.float64), zoo.images(dtype=torch.float64)
    both = explain(model, images, TARGET, method="libragrad").heatmap
    tokens = explain(model, images, TARGET, method="conservative").heatmap
    assert (both - tokens).abs().max() > 1e-3
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.zero_()
    both = explain(model, images, TARGET, method="libragrad").heatmap
    tokens = explain(model, images, TARGET, method="conservative").heatmap
    torch.testing.assert_close(both, tokens, rtol=0, atol=1e-12)


def test_several_classes_and_a_contrast() -> None:
    zoo = ZOO["vit"]
    model, images = zoo.build(torch.float64), zoo.images(dtype=torch.float64)
    panels = explain(model, images, [1, 4], method="libragrad")
    contrast = explain(model, images, 1, method="libragrad", objective=Contrast(4))
    torch.testing.assert_close(panels.heatmap[:, 0] - panels.heatmap[:, 1], contrast.heatmap, rtol=1e-4, atol=1e-6)
    assert panels.completeness_error is not None
    assert panels.completeness_error.max() < 1e-9


def test_it_is_signed_and_follows_no_attention() -> None:
    method = METHODS["libragrad"]
    assert method.signed is True
    assert not method.follows_attention
