"""finetuning-scheduler: a callback that thaws a model layer by layer, beside ours.

https://finetuning-scheduler.readthedocs.io
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from finetuning_scheduler import FinetuningScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_attngrad as attngrad
from benchmarks.clients.client import Client
from benchmarks.clients.photographs import MEAN, STD, crops, normalised

SIDE = 64


class Classifier(L.LightningModule):
    """A backbone whose head is trained first."""

    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, depth=2, num_classes=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        parameters = [one for one in self.parameters() if one.requires_grad]
        return torch.optim.AdamW(parameters, lr=1e-3)


def train(folder: Path, callbacks: list[Any]) -> nn.Module:
    schedule = folder / "schedule.yaml"
    schedule.write_text(
        "0:\n  max_transition_epoch: 1\n  params: ['net.head.*']\n"
        "1:\n  max_transition_epoch: 2\n  params: ['net.norm.*', 'net.blocks.1.*']\n"
        "2:\n  params: ['net.blocks.0.*', 'net.patch_embed.*', 'net.cls_token', 'net.pos_embed']\n"
    )
    module = Classifier()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        callbacks=[FinetuningScheduler(ft_schedule=str(schedule)), *callbacks],
        default_root_dir=folder,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    loaders = []
    for seed in (0, 1):
        pixels, labels = crops(8, SIDE, seed)
        loaders.append(DataLoader(TensorDataset(normalised(pixels), labels), batch_size=4, shuffle=seed == 0))
    trainer.fit(module, *loaders)
    return module


def watch() -> list[Any]:
    images = attngrad.ProbeImages(num_images=4, mean=MEAN, std=STD)
    return [
        attngrad.AttentionMapMonitor(probe=images),
        attngrad.AttentionDriftMonitor(probe=images),
        attngrad.CheckpointAudit(probe=images),
    ]


CLIENTS = (Client("finetuning-scheduler", ("finetuning-scheduler",), train, watch),)
