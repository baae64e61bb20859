"""Small models to rewrite classes of: linear ones, whose distances are known, a tiny ViT, and what counts passes."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lightning_attngrad.rewrite import Rewrite
from lightning_attngrad.rewrite.norms import NORMS
from tests.zoo import logits_of, randomise

PIXELS: dict[str, Any] = {"mean": 0.0, "std": 1.0}
ALL_NORMS = ("linf", "l2", "l0", "l0_patches")


class Linear(nn.Module):
    """``W x + b`` of the flattened image."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


class Counts:
    """What a model was asked for."""

    def __init__(self) -> None:
        self.forwards = self.gradients = 0
        self.batches: set[int] = set()
        self.modes: set[bool] = set()


#: Of each model. Not in the model itself, which is put back as it was with all that it keeps.
_COUNTS: WeakKeyDictionary[nn.Module, Counts] = WeakKeyDictionary()


class Counted(nn.Module):
    """Counts forward passes, gradients that reach the images, and the modes it was run in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        _COUNTS[self] = Counts()

    @property
    def forwards(self) -> int:
        return _COUNTS[self].forwards

    @property
    def gradients(self) -> int:
        return _COUNTS[self].gradients

    @property
    def batches(self) -> set[int]:
        return _COUNTS[self].batches

    @property
    def modes(self) -> set[bool]:
        return _COUNTS[self].modes

    def _count_gradient(self, gradient: Tensor) -> None:
        _COUNTS[self].gradients += 1

    def forward(self, images: Tensor) -> Any:
        counts = _COUNTS[self]
        counts.forwards += 1
        counts.batches.add(len(images))
        counts.modes.add(self.training)
        if images.requires_grad:
            images.register_hook(self._count_gradient)
        return self.model(images)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Uniform on [0, 1], seeded."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def linear_model(classes: int, size: int, seed: int = 0) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    return Linear(torch.randn(classes, size, generator=generator), torch.randn(classes, generator=generator))


def two_classes(image: Tensor, need: float, seed: int = 0) -> tuple[Linear, Tensor]:
    """A linear model in which class 1 trails class 0 on an image (C, H, W) by ``need`` times ``‖w‖₁``, and w."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, image.numel(), generator=generator)
    difference = weight[1] - weight[0]
    bias = torch.stack([difference @ image.flatten() + need * difference.abs().sum(), torch.zeros(())])
    return Linear(weight, bias), difference


def perceptron(seed: int = 0) -> nn.Module:
    """Of 3 × 2 × 2 images, with a hidden layer that bends."""
    return randomise(nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)), seed=seed)


def tiny_vit(classes: int = 5, seed: int = 0, **options: Any) -> VisionTransformer:
    """Two blocks of width 32 on a 4 × 4 grid, with no parameter at zero."""
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": classes}
    model = VisionTransformer(**{**settings, **options})
    randomise(model, seed=seed)
    return model.eval()


def others(model: nn.Module, images: Tensor) -> Tensor:
    """(B,) a class for each image that the model does not see in it."""
    with torch.no_grad():
        logits = logits_of(model(images))
    return (logits.argmax(1) + 1) % logits.shape[1]


def assert_true_report(result: Rewrite, model: Any) -> None:
    """Every success is one by a forward of its own, one image at a time, and every distance is that of the pixels."""
    with torch.no_grad():
        logits = torch.cat([logits_of(model(image[None])) for image in result.images]).float()
    assert torch.equal(logits.argmax(1)[result.success], result.target[result.success])
    assert torch.equal(result.success, result.distance < torch.inf)
    assert result.distance.dtype == result.pixels.dtype == result.original.dtype == torch.float32
    assert ((result.pixels >= 0) & (result.pixels <= 1)).all()
    assert ((result.original >= 0) & (result.original <= 1)).all()
    if result.norm == "l0":
        number = ((result.pixels - result.original).abs().amax(1) > 0).flatten(1).sum(1).float()
        assert torch.equal(result.distance[result.success], number[result.success])
    if result.norm in NORMS:
        change = result.pixels - result.original
        length = change.flatten(1).abs().amax(1) if result.norm == "linf" else change.flatten(1).norm(dim=1)
        exact = (result.pixels.double() - result.original.double()).flatten(1)
        exact = exact.abs().amax(1) if result.norm == "linf" else exact.norm(dim=1)
        torch.testing.assert_close(result.distance[result.success], length[result.success], rtol=3e-7, atol=0)
        torch.testing.assert_close(length.double(), exact, rtol=1e-6, atol=1e-7)
