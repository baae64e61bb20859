"""How long a monitor takes to choose and read its images: ``python -m benchmarks.probe_reading``.

Sixteen images out of 1.28 million records, as many as ImageNet has: seconds of ``ProbeSet.read`` in ``on_train_start``
of a run, for several kinds of data sets. Opening and decoding image files is left out: items are made of noise.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import time
import warnings
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_attngrad.probe import ProbeImages, ProbeSet

CLASSES = 1000
AIM = 2.0  # seconds


class Plain(Dataset[tuple[Tensor, int]]):
    """Records of which only reading tells the class."""

    def __init__(self, length: int) -> None:
        self.records = [(f"train/{index % CLASSES}/{index}.jpg", index % CLASSES) for index in range(length)]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, 224, 224), self.records[index][1]


class ImageFolderLike(Plain):
    """As torchvision's: three lists of all records, one of them twice."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.samples = self.imgs = self.records
        self.targets = [target for _, target in self.samples]


class Column:
    """A column of a table in the arrow format."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values

    def __getitem__(self, places: slice) -> Column:
        return Column(self.values[places])

    def to_numpy(self) -> np.ndarray[Any, Any]:
        return self.values


class HuggingFaceLike(Dataset[dict[str, Any]]):
    """As Hugging Face's: a table, read without the user's format."""

    def __init__(self, length: int) -> None:
        self.features = {"image": None, "label": None}
        self.labels = np.arange(length) % CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.rand(3, 224, 224), "label": int(self.labels[index])}

    def with_format(self, _: str) -> dict[str, Column]:
        return {"label": Column(self.labels)}


class Module(pl.LightningModule):
    """A run with next to nothing in it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        return self.net(torch.ones(1, 1)).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Timed(pl.Callback):
    """Reads the images as a monitor does, again and again."""

    def __init__(self, num_images: int, rounds: int) -> None:
        self.num_images, self.rounds = num_images, rounds
        self.seconds: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for _ in range(self.rounds):
            probe = ProbeSet(ProbeImages(self.num_images))
            start = time.perf_counter()
            probe.read(trainer, pl_module)
            self.seconds.append(time.perf_counter() - start)


def seconds_of(dataset: Dataset[Any], num_images: int, rounds: int) -> list[float]:
    """Seconds of each reading, in a run that validates on the data set."""
    timed = Timed(num_images, rounds)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        callbacks=[timed],
        **quiet,
    )
    trainer.fit(Module(), DataLoader(torch.utils.data.TensorDataset(torch.zeros(4))), DataLoader(dataset, batch_size=8))
    return timed.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_280_000)
    parser.add_argument("--num-images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, lightning "
        f"{pl.__version__}, numpy {np.__version__}; {options.num_images} images of {options.records:,} records, "
        f"slowest and fastest of {options.rounds}; aim: {AIM:g} s\n"
    )
    print("| data set | slowest, s | fastest, s |\n|---|---|---|")
    for name, make in (
        ("ImageFolder-like: `samples`, `imgs`, `targets`", ImageFolderLike),
        ("the same in a `Subset`", lambda length: Subset(ImageFolderLike(length), list(range(length)))),
        ("Hugging-Face-like: a label column", HuggingFaceLike),
        ("map-style, classes known by reading only", Plain),
    ):
        seconds = seconds_of(make(options.records), options.num_images, options.rounds)
        print(f"| {name} | {max(seconds):.2f} | {min(seconds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
