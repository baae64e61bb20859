"""Several labels an image, and numbers, under two processes: both have those of the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import lightning_attngrad as attngrad
from lightning_attngrad.probe import Evaluation, Findings
from tests.distributed.scenarios import Lean, two_processes
from tests.integration.harness import BATCH, CLASSES, Pictures, fit, seed_everything


class Marked(Pictures):
    """Rows of labels: that of the picture, the next one where the index is odd, and in one picture none."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        row = torch.zeros(CLASSES)
        row[self.targets[index]] = float(index != 3)
        row[(self.targets[index] + 1) % CLASSES] = float(index % 2 and index != 3)
        return {**item, "label": row}


class MarkedStream(IterableDataset[dict[str, Any]]):
    """Other pictures on each rank, and as many."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        pictures = Marked(8, seed=10 + torch.distributed.get_rank())
        yield from (pictures[index] for index in range(8))


class Several(Lean):
    """A binary loss for each label."""

    def loss(self, batch: dict[str, Any], stage: str) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(self(batch["image"]), batch["label"])


class Keeps(attngrad.RewriteRobustnessMonitor):
    """Rewrites, and keeps what is read and found."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.seen = {
            "task": evaluation.task.name,
            "targets": evaluation.targets,
            "classes": evaluation.classes(),
            "hash": evaluation.images_hash,
        }
        return super().evaluate(evaluation)


def _run(loader: DataLoader[Any]) -> dict[str, Any]:
    seed_everything(0)
    probe = attngrad.ProbeImages(num_images=5, mean=0.5, std=0.08)  # of noise around zero
    monitor = Keeps(probe=probe, steps=2, long_every=None)
    module = Several()
    train = DataLoader(Marked(8, seed=1), batch_size=BATCH)
    left = fit(module, [monitor], loaders=(train, loader), max_epochs=1, **two_processes())
    return {"fingerprint": left, "scalars": dict(monitor.scalars), "switched off": monitor._why_off, **monitor.seen}


def several_labels(directory: Path) -> dict[str, Any]:
    return _run(DataLoader(Marked(8, seed=2), batch_size=BATCH))


def several_labels_of_a_stream(directory: Path) -> dict[str, Any]:
    return _run(DataLoader(MarkedStream(), batch_size=2))


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (several_labels, several_labels_of_a_stream)
