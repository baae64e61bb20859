"""Runs without a validation loader, and what gathers images in them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2

from lightning_attngrad.probe import ProbeSet
from tests.probe.runs import Images, InHook, TinyModule


class TrainingOnly(pl.LightningModule):
    """Self-supervised: several views, no validation loader, no validation step."""

    def __init__(self, dataset: Any = None, **options: Any) -> None:
        super().__init__()
        self.net = TinyModule().net
        self.dataset = Images(16) if dataset is None else dataset
        self.options = options
        self.seen: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch[0][0] if isinstance(batch[0], list) else batch[0]
        self.seen.append(float(images.double().sum()))
        return self(images).square().mean()

    def train_dataloader(self) -> Any:
        shuffle = not isinstance(self.dataset, IterableDataset)
        return DataLoader(self.dataset, batch_size=4, shuffle=shuffle, **self.options)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Views(Images):
    """Two random views of an image, its class, and a transform that normalises."""

    def __init__(self) -> None:
        super().__init__(16)
        self.transform = v2.Normalize([0.5] * 3, [0.25] * 3)
        self.classes = ["a", "b", "c"]

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return [self.transform(image), self.transform(image.flip(-1))], target


class TrainingStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.full((3, 8, 8), float(index)), index % 3) for index in range(10)])


def collecting(probe: ProbeSet, hook: str) -> InHook:
    callback = InHook("on_train_start", probe.read)

    def collect(trainer: Any, pl_module: Any, outputs: Any, batch: Any, *rest: Any) -> None:
        probe.collect(batch, *rest[1:])

    setattr(callback, hook, collect)
    callback.on_train_end = lambda trainer, pl_module: probe.freeze(trainer)  # type: ignore[method-assign]
    return callback
