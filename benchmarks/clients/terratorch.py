"""terratorch: Prithvi with a decoder, by its own tasks; what its models return is a `ModelOutput`.

https://terrastackai.github.io/terratorch
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from terratorch.tasks import ClassificationTask, SemanticSegmentationTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lightning_attngrad as attngrad
from benchmarks.clients.client import Client
from benchmarks.clients.photographs import brightness_classes, crops

SIDE = 64
BANDS = ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]


class Scenes(Dataset[dict[str, Tensor]]):
    """Six bands, normalised; the label is the class, or the mask of dark, middling and bright."""

    def __init__(self, count: int, seed: int, target: str) -> None:
        pixels, classes = crops(count, SIDE, seed)
        self.images = 2 * pixels[:, [2, 1, 0, 0, 1, 2]] - 1
        self.target = target
        self.targets = classes if target == "label" else brightness_classes(pixels, SIDE)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], self.target: self.targets[index]}

    def plot(self, sample: Any) -> None:
        """Terratorch's segmentation asks for it."""


class ScenesDataModule(LightningDataModule):
    """With the data set as an attribute, where terratorch's tasks look for it to plot samples."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.train_dataset, self.val_dataset = Scenes(8, 0, target), Scenes(8, 1, target)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train_dataset, batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val_dataset, batch_size=4)


def _arguments(decoder: dict[str, Any], classes: int) -> dict[str, Any]:
    return {
        "backbone": "prithvi_eo_tiny",
        "backbone_pretrained": False,
        "backbone_bands": BANDS,
        "backbone_img_size": SIDE,
        "backbone_num_frames": 1,
        "num_classes": classes,
        **decoder,
    }


def classification(folder: Path, callbacks: list[Any]) -> nn.Module:
    task = ClassificationTask(
        model_factory="EncoderDecoderFactory",
        model_args=_arguments({"decoder": "IdentityDecoder", "head_dim_list": [32]}, 4),
        loss="ce",
        lr=1e-3,
    )
    return _fit(task, "label", folder, callbacks)


def segmentation(folder: Path, callbacks: list[Any]) -> nn.Module:
    decoder = {
        "decoder": "FCNDecoder",
        "decoder_channels": 16,
        "necks": [{"name": "SelectIndices", "indices": [-1]}, {"name": "ReshapeTokensToImage"}],
    }
    task = SemanticSegmentationTask(
        model_factory="EncoderDecoderFactory", model_args=_arguments(decoder, 3), loss="ce", ignore_index=-100, lr=1e-3
    )
    return _fit(task, "mask", folder, callbacks)


def _fit(task: Any, target: str, folder: Path, callbacks: list[Any]) -> nn.Module:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(task, datamodule=ScenesDataModule(target))
    return task  # type: ignore[no-any-return]


def watch(**question: Any) -> list[Any]:
    images = attngrad.ProbeImages(num_images=4, channels=[2, 1, 0])
    return [
        attngrad.AttentionMapMonitor(probe=images, **question),
        attngrad.AttentionDriftMonitor(probe=images, **question),
    ]


def watch_bright() -> list[Any]:
    return watch(objective=attngrad.PixelClass(2))


CLIENTS = (
    Client("terratorch: Prithvi, classification", ("terratorch", "torchgeo"), classification, watch),
    Client("terratorch: Prithvi, segmentation", ("terratorch", "torchgeo"), segmentation, watch_bright),
)
