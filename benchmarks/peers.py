"""Other libraries' maps of a torchvision ViT, each set up as its own documentation does. All are optional."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable

from torch import Tensor, nn

Call = Callable[[], object]
Peer = Callable[[nn.Module, Tensor, Tensor], Call]


def grad_cam(model: nn.Module, images: Tensor, target: Tensor) -> Call:
    """pytorch-grad-cam: tokens in front of the last attention, put on a grid by ``reshape_transform``."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    side = int((model.seq_length - 1) ** 0.5)  # type: ignore[operator]

    def on_grid(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)

    def call() -> object:
        with GradCAM(model, [model.encoder.layers[-1].ln_1], reshape_transform=on_grid) as cam:  # type: ignore
            return cam(images, [ClassifierOutputTarget(int(index)) for index in target])

    return call


def captum_grad_cam(model: nn.Module, images: Tensor, target: Tensor) -> Call:
    """captum: LayerGradCam at the same place."""
    from captum.attr import LayerGradCam

    def call() -> object:
        return LayerGradCam(model, model.encoder.layers[-1].ln_1).attribute(images, target=target)  # type: ignore

    return call


def legrad(model: nn.Module, images: Tensor, target: Tensor) -> Call:
    """torch-cam: LeGrad on the last four blocks, as in its docstring."""
    from torchcam.methods import LeGrad

    def call() -> object:
        with LeGrad(model, list(model.encoder.layers)[-4:]) as cam:  # type: ignore[union-attr, arg-type]
            return cam(target.tolist(), model(images))

    return call


def lxt(model: nn.Module, images: Tensor, target: Tensor) -> Call:
    """LXT: input × gradient under its rules for torchvision. It patches torch's classes: nothing may run after it."""
    from lxt.efficient import monkey_patch
    from lxt.efficient.models.vit_torch import cp_LRP
    from torchvision.models import vision_transformer

    def call() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says each time that the classes are patched already
            monkey_patch(vision_transformer, cp_LRP)
        inputs = images.detach().requires_grad_()
        model(inputs).gather(1, target[:, None]).sum().backward()
        return (inputs * inputs.grad).sum(1)

    return call


#: Name in the table → (package, what sets it up).
PEERS: dict[str, tuple[str, Peer]] = {
    "pytorch-grad-cam, GradCAM": ("grad-cam", grad_cam),
    "captum, LayerGradCam": ("captum", captum_grad_cam),
    "torch-cam, LeGrad (4 blocks)": ("torchcam", legrad),
    "LXT, cp_LRP": ("lxt", lxt),
}
#: What changes torch's own classes for good: last, behind everything that it would change.
PATCH_THE_PROCESS = ("LXT, cp_LRP",)


def set_up(name: str, model: nn.Module, images: Tensor, target: Tensor) -> Call | str:
    """The peer's call, or the reason why there is none."""
    package, peer = PEERS[name]
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peer(model, images, target)
    except ImportError as error:
        return f"cannot be imported: {error}"


def versions() -> str:
    """Versions of the peers that are installed."""
    installed = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions()}
    return ", ".join(f"{package} {installed[package]}" for package, _ in PEERS.values() if package in installed)
