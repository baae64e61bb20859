"""segmentation-models-pytorch: the module of its examples, which normalises uint8 images in its forward.

https://github.com/qubvel-org/segmentation_models.pytorch, examples/binary_segmentation_intro.ipynb
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lightning_attngrad as attngrad
from benchmarks.clients.client import Client
from benchmarks.clients.photographs import MEAN, STD, brightness_classes, crops

SIDE = 64


class Pictures(Dataset[dict[str, Any]]):
    """Images as uint8, with the mask of their bright third."""

    def __init__(self, count: int, seed: int) -> None:
        pixels, _ = crops(count, SIDE, seed)
        self.images = (255 * pixels).round().byte()
        self.masks = (brightness_classes(pixels, SIDE) == 2)[:, None].float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "mask": self.masks[index]}


class PetModel(pl.LightningModule):
    """As in the notebook."""

    def __init__(self, arch: str, encoder_name: str, in_channels: int, out_classes: int, **kwargs: Any) -> None:
        super().__init__()
        self.model = smp.create_model(
            arch, encoder_name=encoder_name, in_channels=in_channels, classes=out_classes, **kwargs
        )
        # The notebook asks for those of the encoder's weights, which lie on a hub; they are these.
        params = {"mean": MEAN, "std": STD}
        self.register_buffer("std", torch.tensor(params["std"]).view(1, 3, 1, 1))
        self.register_buffer("mean", torch.tensor(params["mean"]).view(1, 3, 1, 1))
        self.loss_fn = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)

    def forward(self, image: Tensor) -> Tensor:
        image = (image - self.mean) / self.std
        return self.model(image)

    def shared_step(self, batch: Any) -> Tensor:
        return self.loss_fn(self.forward(batch["image"]), batch["mask"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.shared_step(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("valid_loss", self.shared_step(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=2e-4)


def segformer(folder: Path, callbacks: list[Any]) -> nn.Module:
    model = PetModel("segformer", "mit_b0", in_channels=3, out_classes=1, encoder_weights=None)
    trainer = pl.Trainer(
        max_epochs=2,
        log_every_n_steps=1,
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
    )
    training, validation = (DataLoader(Pictures(8, seed), batch_size=4, shuffle=seed == 0) for seed in (0, 1))
    trainer.fit(model, train_dataloaders=training, val_dataloaders=validation)
    return model


def watch() -> list[Any]:
    images = attngrad.ProbeImages(num_images=4, task="binary")
    bright = attngrad.PixelClass(1)
    return [
        attngrad.AttentionMapMonitor(probe=images, objective=bright),
        attngrad.AttentionDriftMonitor(probe=images, objective=bright),
    ]


CLIENTS = (Client("segmentation-models-pytorch: SegFormer", ("segmentation-models-pytorch",), segformer, watch),)
