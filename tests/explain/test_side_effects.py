"""explain() leaves nothing behind, and nothing around the call changes its maps."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import explain
from lightning_attngrad.explain.objectives import Contrast, Mixture, Region
from tests.methods import OF_ANY_MODEL
from tests.state.checkpointed import WAYS, Vit
from tests.zoo import ZOO

TARGET = torch.tensor([2, 5])


@cache
def model_of(name: str) -> nn.Module:
    return ZOO[name].build()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    assert expected.abs().amax() > 0
    assert (actual - expected).abs().amax() < tolerance * expected.abs().amax()


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("name", ["vit", "siglip", "torchvision", "hf_vit"])
def test_frozen_parameters_give_the_same_map(name: str, method: str) -> None:
    zoo = ZOO[name]
    frozen = zoo.build().requires_grad_(False)
    expected = explain(model_of(name), zoo.images(), TARGET, method=method).heatmap
    assert torch.equal(explain(frozen, zoo.images(), TARGET, method=method).heatmap, expected)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("name", ["vit", "eva02", "torchvision", "hf_dinov2"])
def test_the_caller_s_gradient_mode_does_not_matter(
    name: str, method: str, around: Callable[[], torch.autograd.grad_mode.no_grad]
) -> None:
    zoo = ZOO[name]
    expected = explain(model_of(name), zoo.images(), TARGET, method=method)
    with around():
        found = explain(model_of(name), zoo.images(), TARGET.clone(), method=method)
    assert torch.equal(found.heatmap, expected.heatmap)
    assert not found.heatmap.requires_grad
    assert not found.logits.requires_grad


class FrozenBackbone(nn.Module):
    """A backbone that its owner runs without gradients, under a head that is trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.model.forward_features(images)
        return self.model.forward_head(features)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("name", ["vit", "vit_unfused", "siglip", "eva02"])
def test_a_backbone_run_under_no_grad_gives_the_same_map(name: str, method: str) -> None:
    zoo = ZOO[name]
    expected = explain(model_of(name), zoo.images(), TARGET, method=method).heatmap
    found = explain(FrozenBackbone(model_of(name)), zoo.images(), TARGET, method=method).heatmap
    assert_close(found, expected, 1e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*deprecated.*")
@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("name", ["vit", "siglip", "eva02", "hf_vit", "hf_dinov2_eager"])
def test_gradient_checkpointing_gives_the_same_map(name: str, method: str) -> None:
    zoo = ZOO[name]
    model = zoo.build().train()
    model.gradient_checkpointing_enable() if name.startswith("hf") else model.set_grad_checkpointing()
    flags = [{k: v for k, v in vars(m).items() if "checkpointing" in k} for m in model.modules()]
    expected = explain(model_of(name), zoo.images(), TARGET, method=method).heatmap
    assert torch.equal(explain(model, zoo.images(), TARGET, method=method).heatmap, expected)
    assert [{k: v for k, v in vars(m).items() if "checkpointing" in k} for m in model.modules()] == flags


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("way", WAYS)
def test_checkpointing_by_wrapper_or_by_hand_gives_the_same_map(way: str, method: str) -> None:
    model, images = WAYS[way]().train(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([2, 4])
    expected = explain(Vit(), images, target, method=method)
    found = explain(model, images, target, method=method)
    assert expected.heatmap.amax() > 0
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "siglip", "torchvision", "hf_vit"])
def test_everything_given_under_inference_mode_may_come_from_it(name: str) -> None:
    zoo = ZOO[name]
    goals = {
        "mixture": lambda: Mixture(torch.linspace(-1, 1, 7)),
        "contrast": lambda: Contrast(torch.tensor([3, 0])),
        "region": lambda: Region(torch.eye(*zoo.grid)),
    }
    for kind, goal in goals.items():
        target = None if kind == "mixture" else TARGET
        expected = explain(model_of(name), zoo.images(), target, method="gradient_guided", objective=goal())
        with torch.inference_mode():
            own = None if target is None else target.clone()
            found = explain(model_of(name), zoo.images(), own, method="gradient_guided", objective=goal())
        assert torch.equal(found.heatmap, expected.heatmap)


def _hooks(model: nn.Module) -> Iterator[int]:
    for module in model.modules():
        for name, value in vars(module).items():
            if name.endswith("hooks") and value:
                yield len(value)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("name", ["vit", "vit_unfused", "siglip", "torchvision", "hf_vit", "eva02"])
def test_nothing_is_left_on_the_model(name: str, method: str) -> None:
    zoo = ZOO[name]
    model, images = zoo.build().train(), zoo.images()
    for number, module in enumerate(model.modules()):
        module.training = number % 3 != 0  # flags that no eval() or train() call could put back
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    flags = [module.training for module in model.modules()]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    versions = [parameter._version for parameter in model.parameters()]
    keys = [set(vars(module)) for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()

    explain(model, images, TARGET, method=method)

    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert [parameter._version for parameter in model.parameters()] == versions
    assert [set(vars(module)) for module in model.modules()] == keys
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not list(_hooks(model))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not images.requires_grad
    assert images.grad is None
    assert torch.equal(images, zoo.images())


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("name", ["vit", "vit_unfused", "torchvision", "hf_vit_eager"])
def test_nothing_but_the_result_is_held(name: str, method: str) -> None:
    zoo = ZOO[name]
    model = zoo.build()
    seen: list[torch._C._WeakTensorRef] = []
    for module in model.modules():
        module.register_forward_hook(
            lambda module, inputs, output: seen.extend(
                torch._C._WeakTensorRef(t) for t in (output,) if isinstance(t, Tensor)
            )
        )
    gc.collect()
    gc.disable()  # let go of at once, not when the collector comes round
    try:
        explanation = explain(model, zoo.images(), TARGET, method=method)
        held = sum(not reference.expired() for reference in seen)
    finally:
        gc.enable()
    assert len(seen) > 10
    # The logits may be the model's own output tensor, outside its graph.
    assert held <= 1
    assert explanation.heatmap.grad_fn is None
    assert explanation.logits.grad_fn is None


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_a_model_in_training_is_explained_as_it_evaluates(method: str) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            patch_size=8,
            embed_dim=32,
            depth=2,
            num_heads=2,
            num_classes=7,
            drop_rate=0.5,
            attn_drop_rate=0.5,
            proj_drop_rate=0.5,
            drop_path_rate=0.5,
            pos_drop_rate=0.5,
        )

    images = ZOO["vit_deep"].images()
    expected = explain(build().eval(), images, TARGET, method=method).heatmap
    assert torch.equal(explain(build().train(), images, TARGET, method=method).heatmap, expected)


@pytest.mark.parametrize("method", OF_ANY_MODEL)
@pytest.mark.parametrize("name", ["vit", "vit_unfused", "vit_mean", "siglip", "torchvision", "hf_vit"])
def test_bf16_autocast_gives_nearly_the_same_map(name: str, method: str) -> None:
    zoo = ZOO[name]
    model, images = model_of(name), zoo.images()

    def in_bf16(batch: Tensor) -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(batch)

    exact = explain(model, images, TARGET, method=method)
    rounded = explain(model, images, TARGET, method=method, forward=in_bf16)
    assert rounded.heatmap.dtype == rounded.logits.dtype == torch.float32
    assert not torch.equal(rounded.logits, exact.logits)  # it did run in bf16
    for one, other in zip(exact.heatmap.flatten(1), rounded.heatmap.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.98


@pytest.mark.parametrize("method", ["gradient_guided", "conservative", "attn_lrp", "guided_relevance", "grad_cam"])
def test_no_gradient_is_said_and_gives_no_nan(method: str) -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    fresh = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=7
    ).eval()  # its head is zero
    found = explain(fresh, ZOO["torchvision"].images(), TARGET, method=method)
    assert found.zero_gradient.tolist() == [True, True]
    assert torch.isfinite(found.heatmap).all()


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_an_error_in_the_model_leaves_it_as_it_was(method: str) -> None:
    model = ZOO["vit"].build().train()

    def fail(batch: Tensor) -> Tensor:
        model(batch)
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        explain(model, ZOO["vit"].images(), TARGET, method=method, forward=fail)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not list(_hooks(model))
