"""A short training with monitors that keep a report."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks.run_report import RunReport


class Classifier(L.LightningModule):
    """vit_tiny on noise: what it learns does not matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("vit_tiny_patch16_224", num_classes=10)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images)
        return found

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def seconds_of_monitors(folder: Path) -> tuple[int, float, float]:
    """Of three monitors in a fit of two epochs: how many evaluations, seconds of keeping, and their other seconds."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(16, 3, 224, 224), torch.arange(16) % 10)
    images = attngrad.ProbeImages(num_images=16, mean=0.0, std=1.0)
    monitors = [
        attngrad.AttentionMapMonitor(probe=images, report=True),
        attngrad.AttentionDriftMonitor(probe=images),
        attngrad.RewriteRobustnessMonitor(probe=images),
    ]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=monitors,  # type: ignore[arg-type]
        logger=CSVLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    keeping: list[float] = []

    def timed(self: RunReport, *given: Any) -> None:
        began = time.perf_counter()
        keep(self, *given)
        keeping.append(time.perf_counter() - began)

    keep, RunReport.keep = RunReport.keep, timed  # type: ignore[method-assign]
    try:
        trainer.fit(Classifier(), DataLoader(data, batch_size=8), DataLoader(data, batch_size=8))
    finally:
        RunReport.keep = keep  # type: ignore[method-assign]
    spent = sum(monitor.account.spent for monitor in monitors)
    return monitors[0].story.evaluations, sum(keeping), spent - sum(keeping)
