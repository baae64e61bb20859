"""open_clip: a CLIP in a LightningModule whose forward takes images and texts; maps of what a text finds in an image.

https://github.com/mlfoundations/open_clip
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_attngrad as attngrad
from benchmarks.clients.client import Client
from benchmarks.clients.photographs import CLASS_NAMES, crops

SIDE = 64
TEXTS = [f"a photo of a {name}" for name in CLASS_NAMES]


def small_clip() -> nn.Module:
    """Two towers of two layers."""
    return CLIP(
        embed_dim=48,
        vision_cfg={"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": SIDE},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    )


class Contrastive(L.LightningModule):
    """Images and their texts."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = small_clip()
        self.loss = ClipLoss()

    def forward(self, image: Tensor, text: Tensor) -> Any:
        return self.clip(image, text)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image, text = batch
        return self.loss(*self(image, text))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        image, text = batch
        self.log("val_loss", self.loss(*self(image, text)))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def train(folder: Path, callbacks: list[Any]) -> nn.Module:
    module = Contrastive()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    loaders = []
    for seed in (0, 1):
        pixels, labels = crops(8, SIDE, seed)
        mean, std = (
            torch.tensor(one)[:, None, None] for one in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        )
        texts = open_clip.tokenize([TEXTS[label] for label in labels])
        loaders.append(DataLoader(TensorDataset((pixels - mean) / std, texts), batch_size=4, shuffle=seed == 0))
    trainer.fit(module, *loaders)
    return module


def encode_image(model: nn.Module, images: Tensor) -> Tensor:
    return model.clip.encode_image(images)


def watch() -> list[Any]:
    with torch.no_grad():
        texts = small_clip().encode_text(open_clip.tokenize(TEXTS))
    images = attngrad.ProbeImages(
        num_images=4,
        forward=encode_image,
        task=attngrad.Similarity(texts, CLASS_NAMES),
        mean=OPENAI_DATASET_MEAN,
        std=OPENAI_DATASET_STD,
    )
    return [attngrad.AttentionMapMonitor(probe=images), attngrad.AttentionDriftMonitor(probe=images)]


CLIENTS = (Client("open_clip", ("open_clip_torch",), train, watch),)
