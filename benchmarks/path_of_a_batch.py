"""The files of ours that a batch goes through, from the validation loader to a written figure.

    python -m benchmarks.path_of_a_batch

One validation of `AttentionMapMonitor`, whose every call is watched: a file is on the path if one of its functions
takes, or gives back, the batch, its images, what the model makes of them, their maps, or the figure and its picture.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from matplotlib.figure import Figure
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_attngrad as attngrad

PACKAGE = Path(attngrad.__file__).parent
SIDE, GRID, IMAGES = 32, 4, 4
#: Sizes that only images, and only maps, have here.
_OF_IMAGES, _OF_MAPS = (SIDE, SIDE), (GRID, GRID)


class Module(L.LightningModule):
    """A small ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.net = VisionTransformer(
            img_size=SIDE, patch_size=SIDE // GRID, embed_dim=24, depth=2, num_heads=2, num_classes=3
        )

    def forward(self, images: Tensor) -> Any:
        """Logits."""
        return self.net(images)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Log the loss."""
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def carries(value: Any, depth: int = 0) -> bool:
    """Whether a value is the batch, images, maps, a figure or its picture, or holds them."""
    if isinstance(value, Tensor | np.ndarray):
        shape = tuple(value.shape)
        picture = isinstance(value, np.ndarray) and value.ndim == 3 and shape[-1] in (3, 4)
        return shape[-2:] in (_OF_IMAGES, _OF_MAPS) or picture
    if isinstance(value, Figure):
        return True
    if depth < 2 and isinstance(value, list | tuple):
        return any(carries(item, depth + 1) for item in value)
    if depth < 2 and isinstance(value, dict):
        return any(carries(item, depth + 1) for item in value.values())
    return False


@contextmanager
def watched(found: dict[str, set[str]]) -> Iterator[None]:
    """Note the files and functions that are on the path."""

    def profile(frame: Any, event: str, result: Any) -> None:
        file = frame.f_code.co_filename
        if event not in ("call", "return") or not file.startswith(str(PACKAGE)):
            return
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
        values = [frame.f_locals.get(name) for name in names] if event == "call" else [result]
        if any(carries(value) for value in values):
            found.setdefault(str(Path(file).relative_to(PACKAGE)), set()).add(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def path() -> dict[str, set[str]]:
    """Functions by file."""
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(8, 3, SIDE, SIDE), torch.arange(8) % 3)
    found: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            callbacks=[attngrad.AttentionMapMonitor(num_images=IMAGES, on_error="raise")],
        )
        with watched(found):
            trainer.validate(Module(), DataLoader(data, batch_size=4), verbose=False)
        written = sorted(Path(folder).rglob("*.png"))
        assert written, "no figure was written"
    return found


def main() -> None:
    found = path()
    for file in sorted(found):
        print(f"{file:40} {', '.join(sorted(found[file]))}")
    print(f"\n{len(found)} files")


if __name__ == "__main__":
    main()
