"""monai: its ViT on slices, and on volumes, which are refused in words: there is no picture to draw a map on.

https://github.com/Project-MONAI/tutorials, a LightningModule around a network of monai with dict batches.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from monai.data import DataLoader, Dataset
from monai.networks.nets import ViT
from torch import Tensor, nn

import lightning_attngrad as attngrad
from benchmarks.clients.client import Client
from benchmarks.clients.photographs import crops

SIDE = 32


class Net(L.LightningModule):
    """As in the tutorials; monai's ViT returns a pair of logits and the hidden states of its blocks."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self._model = ViT(
            in_channels=1,
            img_size=(SIDE,) * spatial_dims,
            patch_size=(8,) * spatial_dims,
            hidden_size=48,
            mlp_dim=96,
            num_layers=2,
            num_heads=4,
            classification=True,
            num_classes=4,
            post_activation=None,
            spatial_dims=spatial_dims,
        )

    def forward(self, x: Tensor) -> Any:
        return self._model(x)[0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch["image"]), batch["label"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


def _loader(count: int, seed: int, spatial_dims: int) -> Any:
    pixels, labels = crops(count, SIDE, seed)
    images = pixels.mean(dim=1, keepdim=True)
    if spatial_dims == 3:
        images = images[:, :, None].expand(-1, -1, SIDE, -1, -1)
    data = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    return DataLoader(Dataset(data), batch_size=4, shuffle=seed == 0)


def train(spatial_dims: int, folder: Path, callbacks: list[Any]) -> nn.Module:
    net = Net(spatial_dims)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(net, _loader(8, 0, spatial_dims), _loader(8, 1, spatial_dims))
    return net


def watch() -> list[Any]:
    images = attngrad.ProbeImages(num_images=4)
    return [attngrad.AttentionMapMonitor(probe=images), attngrad.AttentionDriftMonitor(probe=images)]


CLIENTS = (
    Client("monai: slices", ("monai",), partial(train, 2), watch),
    Client(
        "monai: volumes",
        ("monai",),
        partial(train, 3),
        watch,
        figures=(),
        refused=r"AttentionMapMonitor is switched off.*(volume|3-D|\(B, C, D, H, W\)|five axes)",
        says=("AttentionDriftMonitor is switched off.*same reason", r"attngrad: what 2 monitors saw"),
    ),
)
