"""Maps and rewrites on a device against those of the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import lightning.pytorch as pl
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.probe import ProbeForward

SIDE, CLASSES, BATCH = 32, 5, 4
TARGET = (0, 1, 2, 4)
CPU = torch.device("cpu")
#: Relative, in the Euclidean norm: sums in another order, without TensorFloat-32.
FLOAT32 = 1e-4
#: What bfloat16 may cost on a device beside what it costs on the CPU, which rounds at other places.
TIMES, PLUS = 3.0, 0.02


class Encoder(nn.Module):
    """Patches through `nn.TransformerEncoderLayer`, whose attention is that of `nn.MultiheadAttention`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, 8)
        self.place = nn.Parameter(torch.randn(1, 16, 32))
        layers = [nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).mT + self.place  # (B, N, 32)
        return self.head(self.layers(tokens).mean(1))


def vision_transformer() -> nn.Module:
    """Three blocks on a 4 × 4 grid, a class token in front."""
    return VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=64, depth=3, num_heads=4, num_classes=CLASSES, init_values=0.5
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"timm": vision_transformer, "encoder": Encoder}


def model_of(kind: str) -> nn.Module:
    """A model in evaluation mode on the CPU, with seeded weights that are far from those of an untrained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[kind]()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
    return model.eval()


def images() -> Tensor:
    """(4, 3, 32, 32) of noise, the same each time."""
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def accelerator_of(device: torch.device) -> str:
    """As Lightning calls it."""
    return "cpu" if device.type == "cpu" else "gpu"


def heatmap(kind: str, method: str, device: torch.device, precision: str = "32-true") -> Tensor:
    """The maps of four images, (4, h, w) float32 on the CPU, computed as a run of that precision would."""
    trainer = pl.Trainer(
        accelerator=accelerator_of(device),
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = trainer.precision_plugin.convert_module(model_of(kind)).to(device)
    given = images().to(device)
    with _plain_float32():
        explanation = attngrad.explain(
            model,
            given,
            torch.tensor(TARGET, device=device),
            method=method,
            forward=ProbeForward(trainer, model),
        )
    assert explanation.heatmap.device.type == device.type, f"the map lies on {explanation.heatmap.device}"
    assert explanation.heatmap.isfinite().all(), "the map is not finite"
    return explanation.heatmap.detach().float().cpu()


@cache
def reference(kind: str, method: str, precision: str) -> Tensor:
    """The same on the CPU."""
    return heatmap(kind, method, CPU, precision)


def error(found: Tensor, expected: Tensor) -> float:
    """Length of the difference in lengths of what was expected; over a batch of maps."""
    assert found.shape == expected.shape, f"{found.shape} and {expected.shape}"
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def method_equals_cpu(kind: str, method: str, precision: str, device: torch.device) -> str:
    """A map in float32 is that of the CPU; in bfloat16 it is about as near to it as the CPU's own in bfloat16."""
    exact = reference(kind, method, "32-true")
    assert exact.abs().sum() > 0, "the map of the CPU is zero everywhere"
    found = error(heatmap(kind, method, device, precision), exact)
    if precision == "32-true":
        assert found <= FLOAT32, f"relative error {found:.2g}, allowed {FLOAT32:g}"
        return f"relative error {found:.1e}"
    own = error(reference(kind, method, precision), exact)
    assert found <= TIMES * own + PLUS, f"relative error {found:.3f}; the CPU's own in {precision} is {own:.3f}"
    return f"relative error {found:.3f}, the CPU's own {own:.3f}"


def channels_last(kind: str, method: str, device: torch.device) -> str:
    """Weights and images in the layout that convolutions of a GPU like give the same map, and stay in it."""
    model = model_of(kind).to(device)
    like_that: Any = copy.deepcopy(model).to(memory_format=torch.channels_last)
    given = images().to(device)
    last = given.contiguous(memory_format=torch.channels_last)
    target = torch.tensor(TARGET, device=device)
    with _plain_float32():
        plain = attngrad.explain(model, given, target, method=method).heatmap
        found = error(attngrad.explain(like_that, last, target, method=method).heatmap.cpu(), plain.cpu())
    assert found <= FLOAT32, f"relative error {found:.2g}, allowed {FLOAT32:g}"
    assert last.is_contiguous(memory_format=torch.channels_last), "the images came out in another layout"
    return f"relative error {found:.1e}"


def compiled(device: torch.device) -> str:
    """A compiled model that has run has the map of the model itself, and still runs compiled afterwards."""
    torch._dynamo.reset()
    model = model_of("timm").to(device)
    backend = "eager" if device.type == "cpu" else "inductor"  # no kernels are generated in the smoke test
    faster: Any = torch.compile(model, backend=backend)
    given, target = images().to(device), torch.tensor(TARGET, device=device)
    with _plain_float32():
        with torch.no_grad():
            before = faster(given)
        worst = max(
            error(
                attngrad.explain(faster, given, target, method=method).heatmap.cpu(),
                attngrad.explain(model, given, target, method=method).heatmap.cpu(),
            )
            for method in ("gradient_guided", "guided_relevance")
        )
        with torch.no_grad():
            again = faster(given)
    torch._dynamo.reset()
    assert torch.equal(before, again), "the compiled model gives other logits after it was explained"
    assert worst <= FLOAT32, f"relative error {worst:.2g}, allowed {FLOAT32:g}"
    return f"backend {backend}, relative error {worst:.1e}"


def rewriting_equals_cpu(norm: str, device: torch.device) -> str:
    """Images are rewritten as far as on the CPU, and the model itself says so on the device."""
    pixels = images().sigmoid()
    found = {}
    for where in (CPU, device):
        model = model_of("timm").to(where)
        with _plain_float32():
            result = attngrad.rewrite(model, pixels.to(where), "runner_up", norm=norm, steps=8, mean=0.0, std=1.0)
            shown = model(result.images).argmax(1)
        assert result.images.device.type == where.type, f"rewritten images lie on {result.images.device}"
        assert torch.equal(shown[result.success], result.target[result.success]), "a success that the model denies"
        found[where] = result.success.cpu(), result.distance.cpu()
    (success, distance), (success_there, distance_there) = found[CPU], found[device]
    assert torch.equal(success, success_there), f"rewritten: {success_there.tolist()}, on the CPU {success.tolist()}"
    both = success & success_there
    assert bool(both.any()), "no image was rewritten"
    apart = float(((distance_there - distance).abs() / distance.clamp_min(1e-6))[both].max())
    assert apart <= 0.05, f"distances differ by {apart:.1%}"  # a search takes other turns after other roundings
    return f"{int(both.sum())} of {len(both)} rewritten, distances within {apart:.1e}"


def _plain_float32() -> Any:
    """No TensorFloat-32, in which convolutions run by default, and which is ten bits."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
