"""Everything that is compared: this library's maps, and other libraries' on the same weights."""

from __future__ import annotations

import copy
import importlib.metadata
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.faithfulness_twin import torchvision_twin
from lightning_attngrad.attention.places import carry
from lightning_attngrad.explain import explain

#: From a network, images (B, C, H, W), classes (B,) and the patch grid to maps (B, h, w).
Maps = Callable[[nn.Module, Tensor, Tensor, tuple[int, int]], Tensor]

#: The row that all others are compared with: Chefer et al., arXiv 2103.15679.
CHEFER = "gradient_guided, positive (Chefer)"
#: The row of several backward passes, whose lead over each other row is printed.
BEST = 'quality="best"'
BATCH = 16
#: Gradients along the path of integrated gradients, and images with patches hidden for KernelSHAP.
INTEGRATED, SAMPLED = 32, 128


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: for the table.
        maps: what it computes.
        of: from the network to the one that its maps are taken of; itself for this library's.
        package: that has to be installed.
    """

    name: str
    maps: Maps
    of: Callable[[nn.Module], nn.Module] = field(default=lambda network: network)
    package: str | None = None

    @property
    def twin_of_vit(self) -> bool:
        """Whether its maps are taken of a twin, or by a form, that only a ViT has."""
        return self.package is not None and self.package != "captum"

    def missing(self) -> str | None:
        """Why the row cannot be computed, as far as that is known beforehand."""
        if self.package is None:
            return None
        try:
            importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"
        return None

    def all_maps(self, network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps (N, h, w) of many images, a few at a time."""
        parts = zip(images.split(BATCH), target.split(BATCH), strict=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the other libraries have some to give
            return torch.cat([self.maps(network, some, classes, grid).detach().float() for some, classes in parts])


def ours(**options: Any) -> Maps:
    """One of this library's methods."""

    def maps(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
        return carry(explain(network, images, target, **options).heatmap, grid)

    return maps


def _grad_cam(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    found: Any = peers.grad_cam(network, images, target)()  # enlarged to the image
    return F.adaptive_avg_pool2d(torch.from_numpy(found)[:, None], grid)[:, 0]


def _legrad(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    found: Any = peers.legrad(network, images, target)()
    return torch.stack([cam.view(len(images), *grid) for cam in found]).mean(dim=0)


def _lxt(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    found: Any = peers.lxt(network, images, target)()
    return _summed_in_patches(found, grid)


def _captum(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    from captum.attr import InputXGradient

    inputs = images.detach().clone().requires_grad_()
    found = InputXGradient(network).attribute(inputs, target=target)
    return _summed_in_patches(found.sum(dim=1), grid)


def _integrated(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    from captum.attr import IntegratedGradients

    colour = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    found = IntegratedGradients(network).attribute(
        images, colour, target=target, n_steps=INTEGRATED, internal_batch_size=BATCH
    )
    return _summed_in_patches(found.sum(dim=1), grid)


def _kernel_shap(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    from captum.attr import KernelShap

    patches = _numbers_of_patches(images, grid)
    torch.manual_seed(0)
    maps = []
    for image, label in zip(images.split(1), target.tolist(), strict=True):
        colour = image.mean(dim=(2, 3), keepdim=True).expand_as(image)
        found = KernelShap(network).attribute(
            image, colour, target=label, feature_mask=patches, n_samples=SAMPLED, perturbations_per_eval=BATCH
        )
        maps.append(F.adaptive_avg_pool2d(found.mean(dim=1, keepdim=True), grid)[:, 0])
    return torch.cat(maps)


def _ablation(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    from captum.attr import FeatureAblation

    patches = _numbers_of_patches(images, grid)
    colour = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    found = FeatureAblation(network).attribute(images, colour, target=target, feature_mask=patches)
    return F.adaptive_avg_pool2d(found.mean(dim=1, keepdim=True), grid)[:, 0]


def _numbers_of_patches(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, 1, H, W), of each pixel the number of its patch."""
    numbers = torch.arange(grid[0] * grid[1]).view(1, 1, *grid).float()
    return F.interpolate(numbers, images.shape[-2:], mode="nearest-exact").long()


def _summed_in_patches(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H, W) → (B, h, w)."""
    cells = pixels.shape[-2] // grid[0] * (pixels.shape[-1] // grid[1])
    return F.adaptive_avg_pool2d(pixels.detach()[:, None], grid)[:, 0] * cells


ROWS = (
    Row("default", ours()),
    Row(BEST, ours(quality="best")),
    Row("guided_relevance, sum", ours(method="guided_relevance", combine="sum")),
    Row("guided_relevance, product", ours(method="guided_relevance", combine="product")),
    Row("attn_lrp", ours(method="attn_lrp")),
    Row("conservative", ours(method="conservative")),
    Row("libragrad", ours(method="libragrad")),
    Row("layernorm_statistics", ours(method="layernorm_statistics")),
    Row(CHEFER, ours(method="gradient_guided")),
    Row("gradient_guided, absolute", ours(method="gradient_guided", correction="absolute")),
    Row("gradient_guided, signed", ours(method="gradient_guided", correction="signed")),
    Row("gradient_guided, negative", ours(method="gradient_guided", correction="negative")),
    Row("gradient_guided, transfer", ours(method="gradient_guided", correction="transfer")),
    Row("raw_attention", ours(method="raw_attention")),
    Row("rollout", ours(method="rollout")),
    Row("grad_cam", ours(method="grad_cam")),
    Row("pytorch-grad-cam, GradCAM", _grad_cam, torchvision_twin, "grad-cam"),  # type: ignore[arg-type]
    Row("captum, IntegratedGradients (32)", _integrated, copy.deepcopy, "captum"),
    Row("captum, FeatureAblation (each patch)", _ablation, copy.deepcopy, "captum"),
    Row("captum, KernelShap (128)", _kernel_shap, copy.deepcopy, "captum"),
    Row("captum, InputXGradient", _captum, copy.deepcopy, "captum"),
    Row("torch-cam, LeGrad (4 blocks)", _legrad, torchvision_twin, "torchcam"),  # type: ignore[arg-type]
    Row("LXT, cp_LRP", _lxt, torchvision_twin, "lxt"),  # type: ignore[arg-type]  # last: it patches torch for good
)
