"""torchgeo: 13 bands in raw counts, dict batches, Kornia's augmentation and normalisation behind the transfer.

https://torchgeo.readthedocs.io, its trainers and data modules; several labels an image, and masks from GeoTIFFs that
samplers of boxes cut pieces of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchgeo.datamodules import GeoDataModule, NonGeoDataModule
from torchgeo.datamodules.eurosat import MEAN, STD
from torchgeo.datasets import NonGeoDataset, RasterDataset
from torchgeo.trainers import ClassificationTask, SemanticSegmentationTask

import lightning_attngrad as attngrad
from benchmarks.clients.client import Client
from benchmarks.clients.photographs import brightness_classes, crops

#: Places of red, green and blue among Sentinel-2's bands.
RED_GREEN_BLUE = [3, 2, 1]
BANDS = len(MEAN)
LABELS = 4


def raw_counts(pixels: Tensor) -> Tensor:
    """Photographs (N, 3, H, W) as if 13 bands had seen them, (N, 13, H, W): means and spreads are EuroSAT's."""
    mean, std = (torch.tensor(list(one.values()))[:, None, None] for one in (MEAN, STD))
    mixed = pixels[:, torch.arange(BANDS) % 3]
    mixed[:, RED_GREEN_BLUE] = pixels
    return (mean + std * 4 * (mixed - 0.5)).clamp(min=0)


class Scenes(NonGeoDataset):  # type: ignore[misc]
    """Scenes with several labels each."""

    def __init__(self, split: str = "train") -> None:
        pixels, classes = crops(12 if split == "train" else 8, 224, seed=len(split))
        self.images = raw_counts(pixels)
        self.labels = nn.functional.one_hot(classes, LABELS)
        self.labels[:, 0] |= (torch.arange(len(pixels)) % 3 == 0).long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": self.labels[index]}


class ScenesDataModule(NonGeoDataModule):  # type: ignore[misc]
    """Normalises and augments on the device, as all of torchgeo's do."""

    mean = torch.tensor(list(MEAN.values()))
    std = torch.tensor(list(STD.values()))

    def __init__(self) -> None:
        super().__init__(Scenes, batch_size=4, num_workers=0)
        self.train_aug = K.AugmentationSequential(
            K.Normalize(mean=self.mean, std=self.std),
            K.RandomHorizontalFlip(p=0.5),
            K.RandomVerticalFlip(p=0.5),
            data_keys=None,
            keepdim=True,
        )


def multilabel(folder: Path, callbacks: list[Any]) -> nn.Module:
    task = ClassificationTask(
        model="vit_tiny_patch16_224", in_channels=BANDS, task="multilabel", num_labels=LABELS, loss="bce"
    )
    _trainer(folder, callbacks).fit(task, datamodule=ScenesDataModule())
    return task  # type: ignore[no-any-return]


class Tiles(RasterDataset):  # type: ignore[misc]
    """Images as GeoTIFFs."""

    filename_glob = "image_*.tif"
    is_image = True
    all_bands = tuple(MEAN)


class Masks(RasterDataset):  # type: ignore[misc]
    """Their masks."""

    filename_glob = "mask_*.tif"
    is_image = False


class TilesDataModule(GeoDataModule):  # type: ignore[misc]
    """Pieces of tiles: at random in training, on a grid in validation."""

    mean = torch.tensor(list(MEAN.values()))
    std = torch.tensor(list(STD.values()))

    def __init__(self, folder: Path) -> None:
        super().__init__(Tiles, batch_size=4, patch_size=64, length=8, num_workers=0)
        self.folder = folder
        self.train_aug = K.AugmentationSequential(
            K.Normalize(mean=self.mean, std=self.std), K.RandomHorizontalFlip(p=0.5), data_keys=None, keepdim=True
        )

    def setup(self, stage: str) -> None:
        from torchgeo.samplers import GridGeoSampler, RandomBatchGeoSampler

        self.dataset = Tiles(self.folder) & Masks(self.folder)
        self.train_batch_sampler = RandomBatchGeoSampler(self.dataset, 64, self.batch_size, self.length)
        self.val_sampler = GridGeoSampler(self.dataset, 64, 64)


def _write_tiles(folder: Path) -> Path:
    import rasterio
    from rasterio.transform import from_origin

    folder.mkdir(parents=True, exist_ok=True)
    pixels, _ = crops(2, 128)
    masks = brightness_classes(pixels, 128)
    for index, (image, mask) in enumerate(zip(raw_counts(pixels).numpy(), masks.numpy(), strict=True)):
        place = {"crs": "EPSG:32631", "transform": from_origin(500_000 + 1_280 * index, 5_000_000, 10, 10)}
        size = {"driver": "GTiff", "height": 128, "width": 128, **place}
        with rasterio.open(folder / f"image_{index}.tif", "w", count=BANDS, dtype="float32", **size) as file:
            file.write(image.astype(np.float32))
        with rasterio.open(folder / f"mask_{index}.tif", "w", count=1, dtype="uint8", **size) as file:
            file.write(mask.astype(np.uint8)[None])
    return folder


def segmentation(folder: Path, callbacks: list[Any]) -> nn.Module:
    task = SemanticSegmentationTask(
        model="segformer", backbone="mit_b0", in_channels=BANDS, task="multiclass", num_classes=3
    )
    _trainer(folder, callbacks).fit(task, datamodule=TilesDataModule(_write_tiles(folder / "tiles")))
    return task  # type: ignore[no-any-return]


def _trainer(folder: Path, callbacks: list[Any]) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )


def watch_labels() -> list[Any]:
    images = attngrad.ProbeImages(num_images=4, channels=RED_GREEN_BLUE)
    return [attngrad.AttentionMapMonitor(probe=images), attngrad.AttentionDriftMonitor(probe=images)]


def watch_segmentation() -> list[Any]:
    images = attngrad.ProbeImages(num_images=4, channels=RED_GREEN_BLUE)
    bright = attngrad.PixelClass(2)
    return [
        attngrad.AttentionMapMonitor(probe=images, objective=bright),
        attngrad.AttentionDriftMonitor(probe=images, objective=bright),
    ]


PACKAGES = ("torchgeo", "kornia", "segmentation-models-pytorch")
CLIENTS = (
    Client("torchgeo: several labels", PACKAGES, multilabel, watch_labels),
    Client("torchgeo: segmentation", PACKAGES, segmentation, watch_segmentation),
)
