"""Images that the user gives instead of those of the run: a folder, files, pictures, tensors or a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.explain.inputs import what_to_write
from lightning_attngrad.probe.resolve import ProbeInputError, describe
from lightning_attngrad.probe.selection import balanced_choice

#: Files of a folder that are taken for images, by the end of their name.
FILE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_EXPECTED = (
    "expected a folder, a list of files, PIL pictures or tensors (C, H, W), a tensor (N, C, H, W), or a loader: a "
    "DataLoader or a list of batches"
)


@dataclass(frozen=True)
class GivenImages:
    """What the user gave.

    Attributes:
        kind: what it is, for messages.
        pictures: a path, a PIL picture or a tensor (C, H, W) each, or a tensor (N, C, H, W).
        folder: where files are, of which only some are needed.
        loader: what gives batches, or None.
    """

    kind: str
    pictures: Sequence[Any] | Tensor | None = None
    folder: Path | None = None
    loader: Any = None

    @property
    def is_loader(self) -> bool:
        """Whether there are batches."""
        return self.loader is not None

    @property
    def size(self) -> int | None:
        """How many images there are, where it is certain that each of them was meant."""
        return None if self.pictures is None else len(self.pictures)

    @property
    def has_pictures(self) -> bool:
        """Whether there is anything that must go through a transform first."""
        if isinstance(self.pictures, Tensor):
            return False
        return self.folder is not None or any(not isinstance(one, Tensor) for one in self.pictures or ())

    def choose(self, count: int, seed: int) -> list[Any]:
        """Some of the images: the first ones, but of a folder as many of one subfolder as of another.

        Raises:
            ProbeInputError: if the folder holds no images.
        """
        if self.folder is None:
            return list(() if self.pictures is None else self.pictures)[:count]
        files = files_of(self.folder)
        parents = sorted({file.parent for file in files})
        numbers = {parent: number for number, parent in enumerate(parents)}
        return [files[place] for place in balanced_choice([numbers[file.parent] for file in files], count, seed)]


def check_images(images: Any) -> GivenImages | None:
    """What ``ProbeImages(images=…)`` is; None for None.

    Raises:
        ValueError: if it is nothing of what is expected.
    """
    if images is None:
        return None
    if isinstance(images, str | PathLike):
        return _of_path(Path(images))
    if isinstance(images, Tensor):
        return GivenImages("a tensor", pictures=_checked_tensor(images))
    if isinstance(images, Sequence) and images and all(_is_picture(one) for one in images):
        return _of_pictures(images)
    arrays = isinstance(images, Sequence) and all(map(_is_array_of_an_image, images))
    if _gives_batches(images) and not arrays:
        kind = "a list of batches" if isinstance(images, Sequence) else f"a loader ({type(images).__name__})"
        return GivenImages(kind, loader=images)
    raise ValueError(f"images: got {_in_words(images)}")


def _gives_batches(images: Any) -> bool:
    """Whether these can be read batch by batch, and more than once."""
    is_other = isinstance(images, Mapping) or hasattr(images, "__next__") or hasattr(images, "__array__")
    return isinstance(images, Iterable) and not is_other and not (isinstance(images, Sequence) and not images)


def _in_words(images: Any) -> str:
    """What was given, what is expected, and what to write where that is known."""
    if _is_picture(images):
        return f"a picture ({type(images).__name__}); {_EXPECTED}. Write [picture]"
    if hasattr(images, "__array__"):
        got, write = what_to_write(images)
        return f"{got}; {_EXPECTED}. Write {write}"
    if isinstance(images, Sequence) and images and _is_array_of_an_image(images[0]):
        return (
            f"a list of {type(images[0]).__name__} {tuple(images[0].shape)}; {_EXPECTED}. Write "
            "[PIL.Image.fromarray(image) for image in images] for pictures of bytes"
        )
    return f"{type(images).__name__} {images!r:.60}{_hint(images)}; {_EXPECTED}"


def _hint(images: Any) -> str:
    if isinstance(images, Sequence) and not images:
        return " (it is empty)"
    if hasattr(images, "__next__"):
        return " (an iterator can be read only once: give what it is made of)"
    if isinstance(images, Mapping):
        return " (for a single batch, give a list of it)"
    return " (for a data set, give a DataLoader of it)" if hasattr(images, "__getitem__") else ""


def _of_path(path: Path) -> GivenImages:
    if path.is_dir():
        return GivenImages(f"the folder {str(path)!r}", folder=path)
    if path.is_file():
        return GivenImages(f"the file {str(path)!r}", pictures=(path,))
    raise ValueError(f"images: got {str(path)!r}, which does not exist; {_EXPECTED}")


def _of_pictures(images: Sequence[Any]) -> GivenImages:
    missing = [str(one) for one in images if isinstance(one, str | PathLike) and not Path(one).is_file()]
    if missing:
        raise ValueError(f"images: {len(missing)} of {len(images)} are no files, such as {missing[0]!r}; {_EXPECTED}")
    for one in images:
        if isinstance(one, Tensor):
            _checked_tensor(one[None], "[image.permute(2, 0, 1) for image in images] where channels are last")
    return GivenImages(f"a list of {type(images[0]).__name__}", pictures=tuple(images))


def _is_picture(one: Any) -> bool:
    is_pil = callable(getattr(one, "convert", None)) and hasattr(one, "getbands")
    return isinstance(one, str | PathLike) or is_pil or (isinstance(one, Tensor) and one.ndim == 3)


def _is_array_of_an_image(one: Any) -> bool:
    return hasattr(one, "__array__") and not isinstance(one, Tensor) and getattr(one, "ndim", 0) == 3


def _checked_tensor(images: Tensor, if_channels_are_last: str = "") -> Tensor:
    _, write = what_to_write(images)
    channels_are_last = "permute" in write
    if images.ndim != 4 or not len(images) or channels_are_last:
        said = (if_channels_are_last if channels_are_last else "") or write
        raise ValueError(f"images: got a tensor {list(images.shape)}; {_EXPECTED}{'. Write ' if said else ''}{said}")
    if not images.is_floating_point():
        raise ValueError(
            f"images: got a tensor of {str(images.dtype).removeprefix('torch.')}; expected floating numbers, as the "
            "model takes them: convert and normalise it, or give a loader whose batches your transfer hooks convert"
        )
    return images


def files_of(folder: Path) -> list[Path]:
    """The image files in a folder and the folders in it, in order.

    Raises:
        ProbeInputError: if there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FILE_ENDINGS and path.is_file())
    if not files:
        raise ProbeInputError(
            f"images: the folder {str(folder)!r} holds no image files, which end in {', '.join(FILE_ENDINGS)}"
        )
    return files


def read_pictures(pictures: Sequence[Any], transform: Callable[[Any], Any] | None) -> Tensor:
    """Files, PIL pictures and tensors as the model takes them.

    Args:
        pictures: tensors (C, H, W) are taken as they are, anything else is given to the transform.
        transform: from a PIL picture (RGB) to a tensor (C, H, W).

    Returns:
        (N, C, H, W), on the CPU, never the memory of what was given.

    Raises:
        ProbeInputError: if a file cannot be opened, there is no transform though one is needed, it fails, or the
            images have different sizes.
    """
    images = [one if isinstance(one, Tensor) else _transformed(one, transform) for one in pictures]
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise ProbeInputError(
            f"images: they have different sizes (C, H, W): {sorted(sizes)}; resize them to one size in the transform, "
            "or set num_images=1"
        )
    return torch.stack([image.detach().cpu() for image in images])


def _transformed(picture: Any, transform: Callable[[Any], Any] | None) -> Tensor:
    if transform is None:
        raise ProbeInputError(
            "images: files and pictures must be resized and normalised for the model, and the run's data set has no "
            "transform; give ProbeImages(images=…, transform=…), a function from a PIL picture to a tensor (C, H, W), "
            "or a tensor or loader as images="
        )
    try:
        image = transform(_opened(picture))
    except Exception as error:
        raise ProbeInputError(
            f"images: opening and transforming {str(picture)[:200]!r} with {type(transform).__name__} failed with "
            f"{error!r}; give ProbeImages(transform=…), a function from a PIL picture to a tensor (C, H, W)"
        ) from error
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        raise ProbeInputError(
            f"images: the transform ({type(transform).__name__}) made {describe(image)} of a picture; expected a "
            "floating tensor (C, H, W), as the model takes it; give ProbeImages(transform=…)"
        )
    return image


def _opened(picture: Any) -> Any:
    if not isinstance(picture, str | PathLike):
        return picture.convert("RGB")
    from PIL import Image  # noqa: PLC0415  (only where there are files to open)

    with Image.open(picture) as opened:
        return opened.convert("RGB")
