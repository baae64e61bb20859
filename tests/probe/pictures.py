"""Photographs, and runs whose data hold them in one unit or another and normalise them in one place or another."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

#: Of photographs, in units of [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ("astronaut", "coffee", "chelsea", "rocket")
#: Where red, green and blue lie among thirteen bands, as in Sentinel-2.
RED_GREEN_BLUE = (3, 2, 1)
WHITE = 10_000


@cache
def photographs(size: int = 32) -> Tensor:
    """(4, 3, size, size) in [0, 1], in levels of 8 bits, from black to white."""
    pictures = []
    for name in NAMES:
        picture = Image.fromarray(getattr(data, name)()).convert("RGB").resize((size, size))
        pictures.append(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))
    images = torch.stack(pictures).float()
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 255
    return images / 255


def thirteen_bands(size: int = 32) -> Tensor:
    """(4, 13, size, size) counts: the photographs in three bands, up to 2,800 of 10,000, and grey in the others."""
    pixels = photographs(size)
    bands = 400 + 2000 * pixels.mean(dim=1, keepdim=True).repeat(1, 13, 1, 1)
    bands[:, list(RED_GREEN_BLUE)] = 300 + 2500 * pixels
    return bands


class Pictures(Dataset[dict[str, Any]]):
    """Items {"image", "label"}; ``prepare`` makes them of an image, as a transform of a data set does."""

    def __init__(self, images: Tensor, prepare: Callable[[Tensor], Tensor] = lambda image: image) -> None:
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.prepare(self.images[index]), "label": index % 3}


class PictureData(pl.LightningDataModule):
    """Loaders of one data set, with whatever attributes are given; a ``hook`` changes each batch on the device."""

    def __init__(
        self, dataset: Dataset[Any], hook: Callable[[Tensor], Tensor] | None = None, **attributes: Any
    ) -> None:
        super().__init__()
        self.dataset, self.hook = dataset, hook
        vars(self).update(attributes)

    def train_dataloader(self) -> Any:
        return DataLoader(self.dataset, batch_size=2)

    def val_dataloader(self) -> Any:
        return DataLoader(self.dataset, batch_size=2)


class HookedData(PictureData):
    """As torchgeo's datamodules: images are changed in ``on_after_batch_transfer``."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.hook is not None
        return {**batch, "image": self.hook(batch["image"])}


def column(values: Any) -> Tensor:
    """One number a channel, as images are multiplied by it."""
    return torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1)
