"""Tiny runs that the tests of the probe share."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_attngrad.probe import ProbeImages, ProbeSet

HOOKS = {
    "fit": (
        "on_train_start",
        "on_before_optimizer_step",
        "on_train_batch_end",
        "on_validation_batch_end",
        "on_validation_epoch_end",
        "on_validation_end",
        "on_train_epoch_end",
    ),
    "validate": ("on_validation_start", "on_validation_batch_end", "on_validation_epoch_end"),
    "test": ("on_test_batch_end", "on_test_epoch_end"),
}


class Images(Dataset[tuple[Tensor, int]]):
    """Items with a random transform: noise drawn from all three global streams."""

    def __init__(self, length: int = 12, classes: int = 3, size: tuple[int, ...] = (3, 8, 8)) -> None:
        self.length, self.number_of_classes, self.size = length, classes, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        image = torch.full(self.size, index / self.length)
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002
        return image + 1e-3 * noise, index % self.number_of_classes


class TinyModule(pl.LightningModule):
    """Convolution, batch normalisation, dropout, head; remembers the order of the data it was given."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        self.seen: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)  # type: ignore[no-any-return]

    def _loss(self, batch: Any) -> Tensor:
        images, targets = batch
        self.seen.append(float(images.double().sum()))
        return nn.functional.cross_entropy(self(images).float(), targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self._loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Data(pl.LightningDataModule):
    """A datamodule with the given attributes."""

    def __init__(self, loader: Any = None, **attributes: Any) -> None:
        super().__init__()
        self.loader = DataLoader(Images(), batch_size=4) if loader is None else loader
        vars(self).update(attributes)

    def train_dataloader(self) -> Any:
        return DataLoader(Images(16), batch_size=4)

    def val_dataloader(self) -> Any:
        return self.loader


class InHook(pl.Callback):
    """Runs ``body(trainer, pl_module)`` whenever the given hook fires, and counts."""

    def __init__(self, hook: str, body: Callable[[pl.Trainer, Any], None], only_once: bool = False) -> None:
        self.calls = 0

        def fire(trainer: pl.Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
            if not (only_once and self.calls):
                self.calls += 1
                body(trainer, pl_module)

        setattr(self, hook, fire)

    @property
    def state_key(self) -> str:
        return f"InHook{id(self)}"


def make_trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**{**defaults, **options})


def run(
    stage: str,
    module: pl.LightningModule,
    *callbacks: pl.Callback,
    loader: Any = None,
    datamodule: Any = None,
    **options: Any,
) -> Any:
    """One run of fit, validate or test from fixed seeds, with a shuffled training loader that has its own generator."""
    random.seed(3)  # not seed_everything: it writes to the environment
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    trainer = make_trainer(*callbacks, **options)
    loader = DataLoader(Images(), batch_size=4) if loader is None else loader
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if datamodule is not None:
            getattr(trainer, stage)(module, datamodule=datamodule)
        elif loader == "the module's own":
            getattr(trainer, stage)(module)
        elif stage == "fit":
            generator = torch.Generator().manual_seed(5)
            train = DataLoader(Images(16), batch_size=4, shuffle=True, generator=generator)
            trainer.fit(module, train, loader)
        else:
            getattr(trainer, stage)(module, loader, verbose=False)
    return trainer


def set_of(num_images: int = 16, seed: int = 0, **options: Any) -> ProbeSet:
    """A set with settings of its own."""
    return ProbeSet(ProbeImages(num_images, seed=seed, **options))


def listening(probe: ProbeSet) -> list[str]:
    """What the set says, in order."""
    said: list[str] = []
    probe.say = lambda trainer, message: said.append(message)  # type: ignore[method-assign]
    return said


def fail() -> None:
    raise ZeroDivisionError


def rng_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), (name, bytes(keys), *rest), bytes(torch.get_rng_state().numpy())


def everything(module: pl.LightningModule) -> dict[str, Any]:
    """What a run leaves behind, ready for ``==``: weights, buffers, optimizer, flags, random streams, data order."""
    trainer = module.trainer
    optimizers = [
        {number: {k: bytes_of(v) for k, v in values.items()} for number, values in state["state"].items()}
        for state in (optimizer.state_dict() for optimizer in trainer.optimizers)
    ]
    return {
        "state": {name: bytes_of(value) for name, value in module.state_dict().items()},
        "gradients": {name: None if p.grad is None else bytes_of(p.grad) for name, p in module.named_parameters()},
        "optimizers": optimizers,
        "training": [m.training for m in module.modules()],
        "rng": rng_state(),
        "seen": list(getattr(module, "seen", [])),
        "metrics": {name: repr(float(value)) for name, value in trainer.callback_metrics.items()},
    }


def bytes_of(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().cpu().clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
