"""A program that does not know this package: ``python another_program.py PACKAGE FOLDER [devices]``.

It trains a small ViT with its Lightning, one of the two, logs to TensorBoard, and prints a hash of its weights and the
modules of this package that were loaded.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def data(length: int, seed: int, *, shuffle: bool) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(length, 3, 32, 32, generator=generator)
    labels = torch.arange(length) % 3
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, 8 * label : 8 * label + 8] += 0.6
    return DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=shuffle)


def main(package: str, folder: str, devices: int = 1) -> None:
    pl = importlib.import_module(package)
    loggers = importlib.import_module(f"{package}.loggers")

    class Classifier(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = VisionTransformer(
                img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3, drop_rate=0.1
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(self(images), labels)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            images, labels = batch
            self.log("val_loss", nn.functional.cross_entropy(self(images), labels), sync_dist=True)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    torch.manual_seed(7)
    module = Classifier()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        logger=loggers.TensorBoardLogger(folder, name="", version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, data(12, 0, shuffle=True), data(8, 1, shuffle=False))
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.numpy().tobytes())
    if trainer.is_global_zero:
        ours = sorted(name for name in sys.modules if name.split(".")[0] == "lightning_attngrad")
        print("weights:", digest.hexdigest(), torch.rand(()).item())
        print("modules:", *ours)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
