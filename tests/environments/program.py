"""A small program that is trained in each environment; for ``pytorch_lightning`` one name in it is replaced.

Nothing of `tests` is imported: in a new environment there is this package and what it asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3


def squares(length: int, seed: int) -> TensorDataset:
    """Noise with a bright square in a place of its own for each class."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(length, 3, 32, 32, generator=generator)
    labels = torch.arange(length) % CLASSES
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 8 * label : 8 * label + 8, 8 * label : 8 * label + 8] += 0.6
    return TensorDataset(images, labels)


class Squares(pl.LightningDataModule):
    """A shuffled training loader and a validation loader."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(squares(12, 0), batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(squares(9, 1), batch_size=4)


class Classifier(pl.LightningModule):
    """A ViT with dropout: a run that draws one random number more ends with other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=CLASSES, proj_drop_rate=0.1
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self(images), labels))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def trained(folder: Path, callbacks: Sequence[Any]) -> pl.Trainer:
    """Two epochs on the CPU, with a board, a table of numbers, and checkpoints."""
    pl.seed_everything(7)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=[*callbacks, ModelCheckpoint(folder / "checkpoints", save_top_k=-1, every_n_epochs=1)],
        logger=[TensorBoardLogger(folder, name="", version="board"), CSVLogger(folder, name="", version="lines")],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Classifier(), Squares())
    return trainer
