"""Small runs that leave checkpoints, and the command on them."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_attngrad import CheckpointAudit, cli
from tests.audit.project import Classifier, SquaresData
from tests.probe_options import with_probe

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
HERE = "tests.audit.project"
CODE = ("--model", f"{HERE}.Classifier", "--data", f"{HERE}.SquaresData")


def run(
    folder: Path,
    *callbacks: pl.Callback,
    module: pl.LightningModule | None = None,
    data: Any = None,
    epochs: int = 2,
    trainer: Any = pl.Trainer,
    checkpoint: Any = ModelCheckpoint,
    training: dict[str, Any] | None = None,
    **options: Any,
) -> list[Path]:
    """Train for a few steps; the checkpoints of all epochs, the earliest first."""
    torch.manual_seed(0)
    saving = checkpoint(folder, save_top_k=-1, filename="{epoch}", **options)
    module = Classifier(16) if module is None else module
    running = trainer(**QUIET, **(training or {}), max_epochs=epochs, callbacks=[*callbacks, saving])
    running.fit(module, datamodule=SquaresData() if data is None else data)
    return sorted(folder.glob("*.ckpt"))


def small_audit(**options: Any) -> CheckpointAudit:
    return CheckpointAudit(**with_probe({"num_images": 3, "steps": 4, "on_error": "raise", **options}))


@dataclass
class Done:
    """What the command did."""

    code: int
    said: str
    error: str
    output: Path

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        return list(json.loads((self.output / "audit.json").read_text())["checkpoints"])

    @property
    def figures(self) -> list[dict[str, float]]:
        return [{name: float(value) for name, value in one["figures"].items()} for one in self.checkpoints]

    @property
    def lines(self) -> list[dict[str, str]]:
        with (self.output / "audit.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))


def audit(
    capsys: pytest.CaptureFixture[str], output: Path, checkpoints: list[Path], *arguments: str, cpu: bool = True
) -> Done:
    """The command, in this process."""
    capsys.readouterr()
    command = ["audit", *map(str, checkpoints), "--output", str(output), *arguments]
    code = cli.main([*command, "--accelerator", "cpu", "--devices", "1"] if cpu else command)
    said = capsys.readouterr()
    return Done(code, said.out, said.err, output)


def logged(path: Path) -> dict[str, float]:
    """The figures in the file beside a checkpoint."""
    figures = json.loads(path.with_suffix("").with_suffix(".audit.json").read_text())["figures"]
    return {name: float(value) for name, value in figures.items()}


def in_checkpoint(path: Path, name: str = "audit") -> dict[str, float]:
    """The figures in the checkpoint itself."""
    callbacks = torch.load(path, weights_only=True)["callbacks"]
    return dict(callbacks[f"CheckpointAudit{{'name': {name!r}}}"]["record"]["figures"])
