"""What ``explain`` accepts, what it refuses and in which words, and that everything is put back afterwards."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_attngrad import Contrast, Mixture, Region, attention_step, explain, register_method
from lightning_attngrad.explain import METHODS, NonFiniteOutputError, TokenScores, UnsupportedModelError
from tests.methods import OF_ANY_MODEL
from tests.zoo import CLASSES, ZOO

VIT = ZOO["vit"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": CLASSES}, f"target: got [{CLASSES}]; the model's classes are 0 to {CLASSES - 1}"),
        ({"target": -1}, "target: got [-1]"),
        ({"target": torch.tensor([0, 1, 2])}, "torch.int64 of shape (3,) for 2 images"),
        ({"target": torch.tensor([0.0, 1.0])}, "target: got torch.float32"),
        ({"target": torch.tensor([True, False])}, "target: got torch.bool"),
        ({"target": []}, "target: got"),
        ({"target": "cat"}, "target: got 'cat'; expected None, an int"),
        ({"method": "grad"}, "method: got 'grad'; expected one of"),
        ({"objective": "logits"}, "objective: got 'logits'; expected 'logit' or 'margin'"),
        ({"objective": Contrast(against=99)}, "against: got 99; expected classes from 0 to"),
        ({"objective": Mixture([1.0, 2.0])}, "weights: got shape (2,); expected one weight a class"),
        ({"objective": Mixture([1.0] * CLASSES), "target": 0}, "target: got 0, and the objective"),
        ({"objective": Region(torch.ones(4)), "method": "gradient_guided"}, "mask: got shape (4,)"),
        ({"objective": Region(torch.ones(4, 6))}, "Region has no meaning for method='guided_relevance'"),
        ({"objective": lambda output: output}, f"the function returned shape (2, {CLASSES})"),
        (
            {"objective": lambda output: output.detach().sum(1)},
            "its output does not depend on the attention that was seen",
        ),
        ({"correction": "best", "method": "gradient_guided"}, "correction: got 'best'; expected one or several of"),
        ({"correction": (), "method": "gradient_guided"}, "correction: got ()"),
        (
            {"correction": "signed"},
            "correction: got 'signed'; neither explain nor method='guided_relevance' takes it: its options are "
            "combine. correction is an option of method='gradient_guided'",
        ),
        (
            {"combine": "sum", "method": "rollout"},
            "neither explain nor method='rollout' takes it: it has no options. "
            "combine is an option of method='guided_relevance'",
        ),
        ({"targets": 1}, "targets: got 1; neither explain nor method='guided_relevance' takes it"),
        (
            {"correction": ("signed", "positive"), "target": [0, 1], "method": "gradient_guided"},
            "target: several classes, where the options ask for several maps of each (several corrections)",
        ),
        ({"combine": "mean"}, "combine: got 'mean'; expected one of sum, product, gated_sum"),
        ({"memory_budget": 0}, "memory_budget: got 0"),
    ],
)
def test_bad_arguments_are_named_with_what_would_do(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        explain(VIT.build(), VIT.images(), **arguments)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (
            torch.zeros(3, 32, 48),
            "images: got torch.float32 (3, 32, 48); expected a floating-point tensor (B, C, H, W)",
        ),
        (torch.zeros(2, 3, 32, 48, dtype=torch.uint8), "images: got torch.uint8"),
        (torch.zeros(0, 3, 32, 48), "images: got torch.float32 (0, 3, 32, 48)"),
        ([1, 2], "images: got list"),
    ],
    ids=["no batch", "bytes", "empty", "list"],
)
def test_images_of_another_kind_are_refused(images: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        explain(VIT.build(), images)


def test_a_function_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"model: got function; expected a torch\.nn\.Module"):
        explain(lambda images: images, VIT.images())


def test_an_objective_of_another_type() -> None:
    with pytest.raises(TypeError, match="objective: got int"):
        explain(VIT.build(), VIT.images(), objective=3)


def test_margin_needs_a_rival() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=1)
    with pytest.raises(ValueError, match="needs a rival"):
        explain(model, torch.rand(2, 3, 32, 32), objective="margin")
    assert explain(model, torch.rand(2, 3, 32, 32)).target.tolist() == [0, 0]


@pytest.mark.parametrize("name", ["resnet10t", "mixer_s32_224"])
def test_models_that_cannot_be_read_are_refused_and_left_as_they_were(name: str) -> None:
    model = timm.create_model(name, num_classes=2)
    before = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    with pytest.raises(UnsupportedModelError, match=type(model).__name__):
        explain(model, torch.rand(1, 3, 224, 224), method="gradient_guided")
    assert [(module.training, len(module._forward_hooks)) for module in model.modules()] == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nan_logits_are_refused_with_their_number() -> None:
    images = VIT.images()
    images[1] = torch.nan
    with pytest.raises(NonFiniteOutputError, match="NaN or infinite outputs for 1 of 2 images"):
        explain(VIT.build(), images)


class _Wrapped(nn.Module):
    """Outputs of other shapes than a tensor of logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.vit, self.kind = VIT.build(), kind

    def forward(self, images: Tensor) -> object:
        logits = self.vit(images)
        return {
            "namespace": lambda: SimpleNamespace(logits=logits),
            "terratorch": lambda: SimpleNamespace(output=logits, auxiliary_heads=None),
            "dict": lambda: {"loss": None, "logits": logits},
            "tuple": lambda: (logits, images),
            "regression": lambda: logits[:, 0],
            "map": lambda: logits[:, :, None, None],
            "features": lambda: {"features": logits},
        }[self.kind]()


@pytest.mark.parametrize("kind", ["namespace", "terratorch", "dict", "tuple"])
def test_logits_are_found_in_an_output(kind: str) -> None:
    expected = explain(VIT.build(), VIT.images())
    explanation = explain(_Wrapped(kind), VIT.images())
    assert torch.equal(explanation.heatmap, expected.heatmap)
    assert torch.equal(explanation.logits, expected.logits)
    assert explanation.layer_names == (*(f"vit.{name}" for name in expected.layer_names[:-1]), "relevance")


def test_one_number_an_image_is_one_class() -> None:
    explanation = explain(_Wrapped("regression"), VIT.images())
    assert explanation.logits.shape == (2, 1)
    assert torch.equal(explanation.heatmap, explain(VIT.build(), VIT.images(), target=0).heatmap)


@pytest.mark.parametrize("kind", ["map", "features"])
def test_other_outputs_want_an_objective(kind: str) -> None:
    with pytest.raises(ValueError, match="give objective= a function"):
        explain(_Wrapped(kind), VIT.images())


def test_a_function_of_the_output_explains_what_has_no_classes() -> None:
    explanation = explain(_Wrapped("features"), VIT.images(), objective=lambda output: output["features"][:, 2])
    assert explanation.target is None
    assert explanation.logits.shape == (2, 0)
    assert torch.equal(explanation.heatmap, explain(VIT.build(), VIT.images(), target=2).heatmap)


@pytest.mark.parametrize("how", ["function", "method"])
@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_compiled_models_give_the_same_map(how: str, method: str) -> None:
    plain, images = VIT.build(), VIT.images()
    expected = explain(plain, images, method=method)
    compiled = VIT.build()
    if how == "method":
        compiled.compile(backend="eager")
    else:
        compiled = torch.compile(compiled, backend="eager")
    first = compiled(images).detach()
    explanation = explain(compiled, images, method=method)
    torch.testing.assert_close(explanation.heatmap, expected.heatmap)
    assert explanation.layer_names == expected.layer_names
    assert torch.equal(compiled(images).detach(), first)


def test_inside_somebody_s_autocast_the_map_is_that_of_the_autocast_model() -> None:
    model, images = VIT.build(), VIT.images()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images).detach().float()
        explanation = explain(model, images)
    assert torch.equal(explanation.logits, logits)


def test_a_registered_method_is_known_and_a_name_is_taken_once() -> None:
    @register_method("first_token", source="none")
    def first_token(forward, seeds):
        scores = torch.zeros(forward.batch, 1, forward.places.tokens)
        scores[..., forward.places.slots] = seeds.value[:, None]
        return TokenScores(scores, zero_gradient=torch.zeros(forward.batch, dtype=torch.bool))

    try:
        explanation = explain(VIT.build(), VIT.images(), target=1, method="first_token")
        assert explanation.heatmap[:, 0, 0].tolist() == explanation.logits[:, 1].tolist()
        assert explanation.method == "first_token"
        with pytest.raises(ValueError, match="'first_token' is registered already"):
            register_method("first_token", source="none")
    finally:
        del METHODS["first_token"]


def test_an_error_in_the_backward_pass_puts_everything_back() -> None:
    model = VIT.build().train()

    def fail(output: Tensor) -> Tensor:
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        explain(model, VIT.images(), objective=fail)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": [0, 1]}, "expected one class an image"),
        ({"target": 0, "step_sizes": ()}, "step_sizes: got none"),
        ({"target": 0, "layers": ["blocks.7.attn"]}, "layers: got ['blocks.7.attn']; expected some of blocks.0.attn"),
        ({"target": 0, "layers": []}, "layers: got []"),
    ],
)
def test_attention_step_refuses(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        attention_step(VIT.build(), VIT.images(), **arguments)


@pytest.mark.parametrize("name", ["vit", "vit_unfused", "siglip", "torchvision", "beit"])
def test_an_attention_step_goes_uphill(name: str) -> None:
    model, images = ZOO[name].build(), ZOO[name].images()
    target = torch.tensor([1, 4])
    step = attention_step(model, images, target, step_sizes=(0.0, 1e-2))
    # rtol for the kernel with a mask, which is another one than without
    torch.testing.assert_close(step.logits[0], step.before.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step.heatmaps[0], step.before.heatmap, rtol=1e-3, atol=1e-6)
    assert (step.logit_change[1].gather(1, target[:, None]) > 0).all()


def test_the_smallest_step_is_the_first_that_suffices() -> None:
    model, images = VIT.build(), VIT.images()
    target = explain(model, images).logits.argsort(dim=1)[:, -2]  # the runner-up
    step = attention_step(model, images, target, step_sizes=(1e-6, 0.5, 2.0, 8.0, 32.0))
    for image in range(len(images)):
        reached = [
            size
            for size, logits in zip(step.step_sizes, step.logits, strict=True)
            if int(logits[image].argmax()) == int(target[image])
        ]
        assert float(step.smallest_step[image]) == (min(reached) if reached else float("inf"))
        assert float(step.smallest_step[image]) > 1e-6
    assert attention_step(model, images, explain(model, images).target).smallest_step.tolist() == [0.0, 0.0]


def test_only_the_chosen_layers_are_redirected() -> None:
    step = attention_step(VIT.build(), VIT.images(), 1, step_sizes=(2.0,), layers=["blocks.1.attn"])
    everywhere = attention_step(VIT.build(), VIT.images(), 1, step_sizes=(2.0,))
    assert step.layer_names == ("blocks.1.attn",)
    assert len(everywhere.layer_names) > 1
    assert not torch.allclose(step.logits, everywhere.logits)
