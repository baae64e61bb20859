"""Small real pictures without a download: crops of the photographs that scikit-image ships."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: Class → photograph.
SUBJECTS = {"person": "astronaut", "cat": "chelsea", "cup": "coffee", "rocket": "rocket"}
CLASS_NAMES = tuple(SUBJECTS)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@cache
def _photograph(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def crops(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Square parts of the photographs, of their classes in turn.

    Args:
        count: how many.
        size: their side, in pixels.
        seed: of the places and sizes of the parts.

    Returns:
        Pixels (N, 3, size, size) in [0, 1], and classes (N,).
    """
    random = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        photograph = _photograph(SUBJECTS[CLASS_NAMES[index % len(CLASS_NAMES)]])
        side = int(random.uniform(0.5, 0.9) * min(photograph.size))
        left, top = (int(random.integers(0, whole - side)) for whole in photograph.size)
        part = photograph.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        pictures.append(torch.from_numpy(np.asarray(part).copy()).permute(2, 0, 1))
    return torch.stack(pictures).float() / 255, torch.arange(count) % len(CLASS_NAMES)


def normalised(pixels: Tensor) -> Tensor:
    """Pixels (N, 3, H, W) as ImageNet's models take them."""
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def brightness_classes(pixels: Tensor, size: int) -> Tensor:
    """(N, size, size) int64: dark, middling or bright, a third of each picture's pixels: a mask to be segmented."""
    grey = torch.nn.functional.interpolate(pixels.mean(dim=1, keepdim=True), size=(size, size))[:, 0]
    ranks = grey.flatten(1).argsort(dim=1).argsort(dim=1).view_as(grey)
    return (3 * ranks / (size * size)).long()


def folder_of(path: Path, count: int, size: int) -> Path:
    """Write crops as PNG files below a folder, one folder a class; returns the folder."""
    pixels, labels = crops(count, size)
    for index, (picture, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        of_class = path / CLASS_NAMES[label]
        of_class.mkdir(parents=True, exist_ok=True)
        array = (255 * picture).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(of_class / f"{index:03}.png")
    return path
