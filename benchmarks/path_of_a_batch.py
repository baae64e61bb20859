"""The files of ours between a validation loader and a figure: ``python -m benchmarks.path_of_a_batch``.

A fit under `AttentionMapMonitor` and TensorBoard. Counted is every file of the package that stands on the call stack

- where the validation data set gives an item,
- where the module's transfer hook gets the batch,
- where the model runs on the images for a map,
- where the picture of a figure reaches TensorBoard's writer.

What only computes (tensors in, tensors out) or only draws is called from these files and is not on the way itself.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard.writer import FileWriter

import lightning_attngrad as attngrad

PACKAGE = Path(attngrad.__file__).parent
SIDE = 32


class Way:
    """The files that were met, and on the way to where."""

    def __init__(self) -> None:
        self.files: dict[str, set[str]] = {}

    def note(self, where: str, only_through: str = "") -> None:
        """Take the files of the package that stand on the stack, if one of them is ``only_through``."""
        here: list[str] = []
        frame = sys._getframe(1)
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(PACKAGE):
                here.append(str(file.relative_to(PACKAGE)))
            frame = frame.f_back  # type: ignore[assignment]
        if not only_through or only_through in here:
            for name in here:
                self.files.setdefault(name, set()).add(where)


#: Of the whole module: what a data set or a LightningModule keeps for itself is put back after an evaluation.
WAY = Way()


class Pictures(Dataset[tuple[Tensor, int]]):
    """Noise whose classes are known without reading it."""

    def __init__(self) -> None:
        self.targets = [index % 3 for index in range(8)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        WAY.note("read")
        return torch.rand(3, SIDE, SIDE), self.targets[index]


class Module(L.LightningModule):
    """A small ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.net = VisionTransformer(img_size=SIDE, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3)

    def forward(self, images: Tensor) -> Any:
        WAY.note("explained", only_through="explain/question.py")
        return self.net(images)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        WAY.note("transferred")
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing of its own."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def files_on_the_way() -> dict[str, set[str]]:
    """By file, where it was met."""
    WAY.files.clear()
    real = FileWriter.add_summary

    def noted(self: Any, summary: Any, *rest: Any, **options: Any) -> Any:
        if any(value.HasField("image") for value in summary.value):
            WAY.note("written")
        return real(self, summary, *rest, **options)

    FileWriter.add_summary = noted  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                accelerator="cpu",
                max_epochs=1,
                num_sanity_val_steps=0,
                logger=TensorBoardLogger(folder),
                enable_progress_bar=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                callbacks=[attngrad.AttentionMapMonitor(num_images=4, on_error="raise")],
            )
            trainer.fit(Module(), DataLoader(Pictures(), batch_size=4), DataLoader(Pictures(), batch_size=4))
    finally:
        FileWriter.add_summary = real  # type: ignore[method-assign]
    return dict(WAY.files)


def main() -> None:
    files = files_on_the_way()
    for file in sorted(files):
        print(f"{file:42} {', '.join(sorted(files[file]))}")
    print(f"\n{len(files)} files")


if __name__ == "__main__":
    main()
