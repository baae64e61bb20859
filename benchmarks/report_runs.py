"""A short training with monitors that keep a report, or keep none."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import timm
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_attngrad as attngrad


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


def seconds_of_monitors(folder: Path, *, report: bool) -> float:
    """That three monitors took of a fit of three epochs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(16, 3, 224, 224), torch.arange(16) % 10)
    images = attngrad.ProbeImages(num_images=16, mean=0.0, std=1.0)
    monitors = [
        attngrad.AttentionMapMonitor(probe=images, report=report),
        attngrad.AttentionDriftMonitor(probe=images),
        attngrad.RewriteRobustnessMonitor(probe=images),
    ]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=monitors,  # type: ignore[arg-type]
        logger=CSVLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Classifier(), DataLoader(data, batch_size=8), DataLoader(data, batch_size=8))
    return sum(monitor.account.spent for monitor in monitors)
