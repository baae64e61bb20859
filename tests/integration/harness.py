"""Tiny real runs, and everything that such a run leaves behind, ready for ``==``.

A run here draws from every random stream, keeps buffers, metrics and a scheduler, and writes down at each training
step what it has seen: a callback that disturbs anything shows up somewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lightning_attngrad as attngrad
from lightning_attngrad.measure.maps import Maps, explain_images
from lightning_attngrad.probe import Evaluation, Findings
from tests.probe_options import with_probe

CLASSES = 4
BATCH = 4
TRAINING_IMAGES, VALIDATION_IMAGES = 16, 8
#: Scalars of what a monitor took: other ones in every run.
COSTS = {"seconds", "overhead", "stretch"}
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


class Pictures(Dataset[dict[str, Any]]):
    """Labelled noise, augmented at random from the three global streams each time that it is read."""

    def __init__(self, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(length, 3, 32, 32, generator=generator)
        self.targets = [index % CLASSES for index in range(length)]
        for image, target in zip(self.images, self.targets, strict=True):
            image[target % 3, :, 8 * target : 8 * target + 8] += 2  # something to learn

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        if random.random() < 0.5:
            image = image.flip(-1)
        image = image * float(np.random.uniform(0.8, 1.2))  # noqa: NPY002  (users draw from it)
        image = image + 0.05 * torch.randn(image.shape)
        return {"image": image, "label": self.targets[index], "index": index}


def tiny_vit(*, depth: int = 2, **options: Any) -> VisionTransformer:
    """Blocks of width 32 on a 4 × 4 grid, with a head that is not zero."""
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=depth, num_heads=2, num_classes=CLASSES, **options
    )


class Steps(nn.Module):
    """What a user's LightningModule has, whichever of the two packages it is built on.

    Beside the backbone: batch normalisation (buffers that training writes), a buffer that every forward writes, and
    a metric that logs from within the forward. ``trail`` holds what each training step found.
    """

    def build(self, backbone: nn.Module) -> None:
        self.stem = nn.BatchNorm2d(3)
        self.backbone = backbone
        self.register_buffer("forwards", torch.zeros((), dtype=torch.long))
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES)
        self.brightness = torchmetrics.MeanMetric()
        self.order: list[int] = []
        self.trail: list[Any] = []

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += 1
        self.brightness.update(images.detach().float().mean())
        return self.backbone(self.stem(images))  # type: ignore[no-any-return]

    def loss(self, batch: dict[str, Any], stage: str) -> Tensor:
        logits = self(batch["image"])
        loss = nn.functional.cross_entropy(logits.float(), batch["label"])
        self.log(f"{stage}/loss", loss.detach(), on_step=stage == "train", on_epoch=True)  # type: ignore[operator]
        return loss

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.order += batch["index"].tolist()
        loss = self.loss(batch, "train")
        self.trail.append((bytes_of(loss), flags_of(self), gradients_of(self), random_streams()))
        return loss

    def evaluation_step(self, batch: dict[str, Any], stage: str) -> None:
        self.order += batch["index"].tolist()
        self.accuracy(self(batch["image"]), batch["label"])
        self.log(f"{stage}/accuracy", self.accuracy, on_step=False, on_epoch=True)  # type: ignore[operator]
        self.log(f"{stage}/brightness", self.brightness, on_step=False, on_epoch=True)  # type: ignore[operator]
        self.loss(batch, stage)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation_step(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation_step(batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TinyModule(Steps, pl.LightningModule):
    """The user's module on ``lightning.pytorch``."""

    def __init__(self, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.build(tiny_vit() if backbone is None else backbone)


class WatchedMonitor(attngrad.AttentionMapMonitor):
    """The monitor as it is, keeping what it explained, and drawing nothing (drawing has tests of its own).

    It raises its errors, so that no test passes because the monitor was switched off.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({"num_images": 4, "on_error": "raise", **options}))
        self.explained: list[tuple[str, Tensor, Maps]] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        findings = super().evaluate(evaluation)
        explanation = explain_images(evaluation, self.question)  # found already
        assert explanation.heatmap.isfinite().all()
        assert not explanation.zero_gradient.any()
        self.explained.append((evaluation.label, evaluation.images, explanation))
        return Findings(findings.scalars, dict)

    @property
    def labels(self) -> list[str]:
        return [label for label, _, _ in self.explained]


def seed_everything(seed: int) -> None:
    """Lightning's function of this name would also write to the environment."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def make_trainer(callbacks: Sequence[Any] = (), package: Any = pl, **options: Any) -> Any:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,  # Lightning undoes what the sanity check draws: it would hide a fault
        "log_every_n_steps": 1,
    }
    return package.Trainer(**{**quiet, "callbacks": list(callbacks), **options})


def validation_loader() -> DataLoader[dict[str, Any]]:
    return DataLoader(Pictures(VALIDATION_IMAGES, seed=2), batch_size=BATCH)


def fit(
    module: Any, callbacks: Sequence[Any] = (), *, loaders: Any = None, quiet: bool = True, **options: Any
) -> dict[str, Any]:
    """Train from fixed seeds; the fingerprint.

    Args:
        module: the LightningModule.
        callbacks: of the Trainer.
        loaders: for training and for validation; else a shuffled one that has its own generator, and a plain one.
        quiet: whether warnings are swallowed.
        options: of the Trainer.
    """
    generator = torch.Generator().manual_seed(5)
    if loaders is None:
        pictures = Pictures(TRAINING_IMAGES, seed=1)
        loaders = (DataLoader(pictures, batch_size=BATCH, shuffle=True, generator=generator), validation_loader())
    trainer = make_trainer(callbacks, **options)
    seed_everything(3)
    with _quietly() if quiet else contextlib.nullcontext():
        trainer.fit(module, *loaders)
    return fingerprint(trainer, module) | {"order of the loader": bytes_of(generator.get_state())}


def evaluate(stage: str, module: Any, callbacks: Sequence[Any] = (), **options: Any) -> dict[str, Any]:
    """A ``validate`` or ``test`` of its own, under inference mode unless told otherwise; the fingerprint."""
    trainer = make_trainer(callbacks, **options)
    seed_everything(4)
    with _quietly():
        results = getattr(trainer, stage)(module, validation_loader(), verbose=False)
    return fingerprint(trainer, module) | {"results": [_of_the_user(result) for result in results]}


class _quietly(warnings.catch_warnings):
    """Lightning's advice about workers, loggers and intervals is not what these tests are about."""

    def __enter__(self) -> Any:
        log = super().__enter__()
        warnings.simplefilter("ignore")
        return log


# Fingerprints ---------------------------------------------------------------------------------------------------


def fingerprint(trainer: Any, module: Any) -> dict[str, Any]:
    """All that a run leaves behind, bit by bit."""
    return {
        "weights": {name: bytes_of(value) for name, value in module.named_parameters()},
        "buffers": {name: bytes_of(value) for name, value in module.named_buffers()},
        "saved state": {name: bytes_of(value) for name, value in module.state_dict().items()},
        "optimizer": plain([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "scheduler": plain([entry.scheduler.state_dict() for entry in trainer.lr_scheduler_configs]),
        "gradients": gradients_of(module),
        "flags": flags_of(module),
        "hooks": [len(getattr(part, name)) for part in module.modules() for name in _HOOKS],
        "attributes": [sorted(vars(part)) for part in module.modules()],
        "random streams": random_streams(),
        "order": list(module.order),
        "steps": list(module.trail),
        "metrics": _of_the_user(trainer.callback_metrics),
        "logged metrics": _of_the_user(trainer.logged_metrics),
        "metric state": {name: plain(metric.metric_state) for name, metric in _metrics_of(module)},
        "progress": (trainer.global_step, trainer.current_epoch, trainer.fit_loop.epoch_loop.total_batch_idx),
        "process": process_flags(),
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The parts of two fingerprints that are not the same."""
    assert one.keys() == other.keys()
    return {part for part in one if one[part] != other[part]}


def flags_of(module: nn.Module) -> list[Any]:
    """``training``, checkpointing and fused-attention flags of every module, ``requires_grad`` of every parameter."""
    names = ("training", "grad_checkpointing", "fused_attn")
    return [
        [tuple(vars(part).get(name) for name in names) for part in module.modules()],
        [parameter.requires_grad for parameter in module.parameters()],
    ]


def gradients_of(module: nn.Module) -> list[bytes | None]:
    return [None if parameter.grad is None else bytes_of(parameter.grad) for parameter in module.parameters()]


def random_streams() -> dict[str, str]:
    """Digests of the three global streams."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return {
        "python": hashlib.sha256(repr(random.getstate()).encode()).hexdigest(),
        "numpy": hashlib.sha256(repr((numpy_state[0], bytes(numpy_state[1]), numpy_state[2:])).encode()).hexdigest(),
        "torch": hashlib.sha256(bytes_of(torch.get_rng_state())).hexdigest(),
    }


def process_flags() -> dict[str, Any]:
    cuda: Any = torch.backends.cuda
    return {
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "fused attention": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default dtype": torch.get_default_dtype(),
        "function modes": torch._C._len_torch_function_stack(),
        "attention function": torch.nn.functional.scaled_dot_product_attention,
    }


def bytes_of(tensor: Tensor) -> bytes:
    if hasattr(tensor, "to_local"):  # a sharded tensor: this process's share of it
        tensor = tensor.to_local()
    return tensor.detach().cpu().clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def plain(value: Any) -> Any:
    """Tensors as bytes, however deep they lie."""
    if isinstance(value, Tensor):
        return bytes_of(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _of_the_user(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if not name.startswith("attngrad/")}


def _metrics_of(module: nn.Module) -> list[tuple[str, torchmetrics.Metric]]:
    return [(name, part) for name, part in module.named_modules() if isinstance(part, torchmetrics.Metric)]
