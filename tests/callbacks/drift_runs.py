"""The drift monitor as the tests run it: few images, nothing drawn, every evaluation kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

import lightning_attngrad as attngrad
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.small_runs import COSTS
from tests.probe_options import with_probe

MEASURES = ("spearman", "cosine", "ssim", "top_iou", "jensen_shannon", "centroid")


class WatchedDrift(attngrad.AttentionDriftMonitor):
    """The monitor as it is, which keeps what it saw; it draws only where asked to."""

    def __init__(self, *, draws: bool = False, **options: Any) -> None:
        super().__init__(**with_probe({"num_images": 3, "scalars": "all", "on_error": "raise", **options}))
        self.draws = draws
        self.evaluations: list[tuple[Evaluation, Findings]] = []

    @property
    def labels(self) -> list[str]:
        return [evaluation.label for evaluation, _ in self.evaluations]

    def series(self, name: str) -> list[float]:
        return [findings.scalars[name] for _, findings in self.evaluations]

    def evaluate(self, evaluation: Evaluation) -> Findings:
        findings = super().evaluate(evaluation)
        self.evaluations.append((evaluation, findings))
        return findings if self.draws else Findings(findings.scalars, dict)


class Smooth(Dataset[tuple[Tensor, int]]):
    """Pictures in which a pixel is like its neighbours, as in photographs: a shift by one of them changes little."""

    def __init__(self, length: int = 8) -> None:
        coarse = torch.rand(length, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        self.images = F.interpolate(coarse, size=(32, 32), mode="bicubic")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index % 3


def saved(module: Any, path: Path) -> str:
    """A checkpoint of a module's weights as they are."""
    torch.save({"state_dict": module.state_dict()}, path)
    return str(path)


def numbers(scalars: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scalars.items() if name not in COSTS}
