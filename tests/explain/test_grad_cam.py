"""grad-CAM at any stage and in any form of its map: the formula, the peer's package, what is said of empty maps."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_attngrad.explain import UnsupportedModelError, explain
from lightning_attngrad.state import untouched
from tests.zoo import ZOO, randomise

TARGET = torch.tensor([2, 1])


def _model(name: str, **options: object) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=3, **options)
    return randomise(model, 0).eval()


def _images(height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def _reference(model: nn.Module, layer: str, images: Tensor, channels: int) -> Tensor:
    """ReLU(Σ_c α_c a_c), α_c the mean over places of ∂z_t/∂a_c, for the output a of a module: (B, h, w)."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # what stands behind it may work in place

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        logits = model(images)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, TARGET[:, None]).sum(), kept)
    activation, gradient = kept[0].detach().movedim(channels, 1), gradient.movedim(channels, 1)
    return (activation * gradient.mean((2, 3), keepdim=True)).sum(1).relu()


@pytest.mark.parametrize(
    ("name", "options", "layer", "channels", "size"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": (64, 96)}, "layers.2", -1, (64, 96)),
        ("swin_tiny_patch4_window7_224", {"img_size": (64, 96)}, "layers.0.blocks.1", -1, (64, 96)),
        ("swin_tiny_patch4_window7_224", {"img_size": (64, 96)}, "layers.3.blocks.1.norm1", -1, (64, 96)),
        ("resnet18", {}, "layer4", 1, (64, 96)),
        ("resnet18", {}, "layer1.0.conv1", 1, (64, 96)),  # in front of most of it
        ("resnet18", {}, "layer2.0.bn1", 1, (64, 96)),  # overwritten by the activation behind it
        ("convnext_atto", {}, "stages.2", 1, (64, 96)),
        ("pvt_v2_b0", {}, "stages.2", 1, (64, 96)),
        ("coatnet_nano_rw_224", {"img_size": (64, 96)}, "stages.1", 1, (64, 96)),
    ],
)
def test_a_named_layer_is_read_where_it_is(
    name: str, options: dict[str, object], layer: str, channels: int, size: tuple[int, int]
) -> None:
    model, images = _model(name, **options), _images(*size)
    found = explain(model, images, TARGET, method="grad_cam", layer=layer)
    expected = _reference(model, layer, images, channels)
    assert expected.gt(0).any()
    of_places = found.token_scores[:, -expected[0].numel() :].view_as(expected)  # before it is drawn
    torch.testing.assert_close(of_places, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": (64, 96)}, "layers.3.blocks.1.norm1"),
        ("resnet18", {}, "layer4"),
        ("convnext_atto", {}, "stages.3"),
        ("mixer_s16_224", {"img_size": 64}, "norm"),
        ("vit_tiny_patch16_224", {"img_size": 64}, "blocks.11.norm1"),
    ],
)
def test_by_default_it_is_the_last_map(name: str, options: dict[str, object], layer: str) -> None:
    model = _model(name, **options)
    images = _images(*(options["img_size"] if isinstance(options.get("img_size"), tuple) else (64, 64)))  # type: ignore[misc]
    default = explain(model, images, TARGET, method="grad_cam")
    named = explain(model, images, TARGET, method="grad_cam", layer=layer)
    torch.testing.assert_close(default.heatmap, named.heatmap, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vit", "dinov2_registers", "siglip"])
def test_tokens_in_front_of_the_patches_take_no_part(name: str) -> None:
    zoo = ZOO[name]
    model, images = zoo.build(), zoo.images()
    target = torch.tensor([2, 5])
    found = explain(model, images, target, method="grad_cam", layer=zoo.last_norm)
    torch.testing.assert_close(found.heatmap, explain(model, images, target, method="grad_cam").heatmap)


def test_sequence_first_tokens_are_the_same_tokens() -> None:
    class ViT(nn.Module):
        def __init__(self, sequence_first: bool) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 8, 8)
            self.position = nn.Parameter(torch.empty(1, 32, 16))
            self.sequence_first = sequence_first
            layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, batch_first=not sequence_first)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 3)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.patches(images).flatten(2).mT + self.position
            if self.sequence_first:
                return self.head(self.encoder(tokens.transpose(0, 1)).mean(0))
            return self.head(self.encoder(tokens).mean(1))

    one, other = (randomise(ViT(order), 0).eval() for order in (False, True))
    maps = [explain(model, _images(32, 64), TARGET, method="grad_cam").heatmap for model in (one, other)]
    assert maps[0].shape == (2, 4, 8)
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-6)


def test_agrees_with_the_grad_cam_package_on_a_swin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "")  # which OpenCV, that the package imports, sets for itself
    package = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is an extra: pip install '.[bench]'")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = _model("swin_tiny_patch4_window7_224", img_size=64), _images()
    for layer in ("layers.1.blocks.1.norm1", "layers.2.blocks.5", "layers.3"):
        with package.GradCAM(
            model=model,
            target_layers=[model.get_submodule(layer)],
            reshape_transform=lambda output: output.permute(0, 3, 1, 2),
        ) as peer:
            theirs = torch.from_numpy(peer(images, [ClassifierOutputTarget(int(target)) for target in TARGET]))
        ours = explain(model, images, TARGET, method="grad_cam", layer=layer).heatmap
        assert ours.flatten(1).amax(1).gt(0).all()
        ours = F.interpolate(ours[:, None], size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
        least, most = ours.flatten(1).aminmax(dim=1)
        ours = (ours - least[:, None, None]) / (most - least)[:, None, None]  # as theirs is scaled, after resizing
        torch.testing.assert_close(_scaled(theirs), ours, rtol=0, atol=1e-5)


def _scaled(maps: Tensor) -> Tensor:
    least, most = maps.flatten(1).aminmax(dim=1)
    return (maps - least[:, None, None]) / (most - least)[:, None, None]


def test_a_map_that_the_relu_leaves_empty_is_warned_of() -> None:
    class Against(nn.Module):
        """Every channel of its map is positive, and speaks against class 0 and for class 1."""

        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Conv2d(3, 4, 4, 4)

        def forward(self, images: Tensor) -> Tensor:
            strength = self.map(images).square().mean((1, 2, 3))
            return torch.stack([-strength, strength], dim=1)

    model, images = Against(), _images(16, 24)
    with pytest.warns(UserWarning, match=r"1 of 2 images \(number 0, counted from 0\) is zero everywhere"):
        found = explain(model, images, torch.tensor([0, 1]), method="grad_cam")
    assert found.heatmap[0].eq(0).all()
    assert found.heatmap[1].gt(0).any()
    assert not found.zero_gradient.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(model, images, 1, method="grad_cam")


def test_layers_that_cannot_be_read_are_refused() -> None:
    model = _model("swin_tiny_patch4_window7_224", img_size=64)
    with pytest.raises(
        ValueError, match=r"layer: got 'layers\.9', and SwinTransformer has no module .* try 'layers\.\d'"
    ):
        explain(model, _images(), 1, method="grad_cam", layer="layers.9")
    with pytest.raises(ValueError, match="layer: got ''; expected the name of a module"):
        explain(model, _images(), 1, method="grad_cam", layer="")
    with pytest.raises(UnsupportedModelError, match=r"'layers\.1\.downsample\.norm' has shape"):  # four tokens in each
        explain(model, _images(), 1, method="grad_cam", layer="layers.1.downsample.norm")
    with pytest.raises(UnsupportedModelError, match="'head' has shape"):
        explain(model, _images(), 1, method="grad_cam", layer="head")
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="layer: 'unused' did not run"):
        explain(model, _images(), 1, method="grad_cam", layer="unused")


def test_a_named_layer_needs_no_embedding() -> None:
    from tests.other_models import vit_beside_colours

    model, images = vit_beside_colours(), _images(32, 32)
    found = explain(model, images, TARGET, method="grad_cam", layer="embed").heatmap
    torch.testing.assert_close(found, _reference(model, "embed", images, 1), rtol=1e-4, atol=1e-6)


def test_no_hook_is_left_behind() -> None:
    from torch.nn.modules import module as modules

    model = _model("resnet18")
    before = len(modules._global_forward_hooks)
    with untouched(model):
        explain(model, _images(), 1, method="grad_cam", layer="layer3")
        with pytest.raises(ValueError, match="has no module"):
            explain(model, _images(), 1, method="grad_cam", layer="no")
    assert len(modules._global_forward_hooks) == before
    assert not any(module._forward_hooks for module in model.modules())
