"""What the monitors take of a fit: ``python -m benchmarks.overhead``.

*The demo*, with every evaluation that is due, and within ``--max-overhead``: seconds of each monitor, and of what is
done once for all of them (``probe``), over the seconds of the fit that they were in. The demo's checkpoint audit, which
goes with checkpoints, is no monitor here; what it shares with them is in ``probe``.

*A fine-tuning* (``--fits fine-tuning``): vit_small at 224 pixels under all monitors, as they are without arguments and
as often as ``monitors("full")`` has it. A few steps are trained and three evaluations are made, all for real; the share
is that of epochs of ``--images``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lightning_attngrad as attngrad
from benchmarks.clients.photographs import CLASS_NAMES, MEAN, STD, crops, normalised
from lightning_attngrad.demo import DemoOptions, run_demo
from lightning_attngrad.probe import Cadence

#: What each monitor of the demo takes by itself, and last what they share.
OF_DEMO = ("maps", "drift", "rewrite", "probe")
#: The monitors that there are without arguments.
FULL = ("maps", "drift", "rewrite", "faithfulness")
#: Lengths of a fine-tuning.
EPOCHS = (1, 5, 10)
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", nargs="+", choices=("demo", "fine-tuning"), default=("demo", "fine-tuning"))
    parser.add_argument("--max-overhead", type=float, default=0.05, metavar="SHARE")
    parser.add_argument("--epochs", type=int, default=8, help="of the demo")
    parser.add_argument("--images", type=int, default=5000, metavar="N", help="of an epoch of fine-tuning")
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="that are trained of it")
    options = parser.parse_args()
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, lightning "
        f"{lightning.__version__}, timm {timm.__version__}; one thread"
    )
    if "demo" in options.fits:
        print(f"\nThe demo, {options.epochs} epochs (asked of all together: 10.0%)\n\n{_head('limit', OF_DEMO)}")
        for limit in (None, options.max_overhead):
            with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
                ran = run_demo(DemoOptions(epochs=options.epochs, max_overhead=limit, output=Path(directory)))
            shares = [
                sum(scalars.get(f"attngrad/{name}/seconds", 0.0) for scalars in ran.history) / ran.training_seconds
                for name in OF_DEMO
            ]
            print(_row("every evaluation that is due" if limit is None else f"max_overhead={limit:g}", shares))
    if "fine-tuning" in options.fits:
        torch.set_num_threads(1)
        steps, evaluations = _fine_tuning(options.steps)
        step, count = statistics.median(steps), options.images / BATCH
        print(
            f"\nvit_small_patch16_224, {options.images} images in batches of {BATCH} (asked "
            f"of all together: 5.0%); {len(steps)} steps measured, median {step:.1f} s\n\n{_head('a fit of', FULL)}"
        )
        full = [one for one in attngrad.monitors("full") if isinstance(one, attngrad.Monitor)]
        by_preset = {monitor.name: monitor.timetable.cadence for monitor in full}
        for said, cadences in (("", dict.fromkeys(FULL, Cadence())), (', monitors("full")', by_preset)):
            for epochs in EPOCHS:
                taken = {name: _seconds(name, cadences[name], epochs, evaluations) for name in FULL}
                whole = epochs * count * step + sum(taken.values())
                print(_row(f"{epochs} epochs{said}", [taken[name] / whole for name in FULL]))


def _seconds(name: str, cadence: Cadence, epochs: int, evaluations: Sequence[dict[str, float]]) -> float:
    """Of all evaluations of a fit: of the starting weights, the first after it, and the others."""
    start, first, later = (evaluation[name] for evaluation in evaluations)
    due = sum(cadence.due_at_epoch(epoch, is_last=epoch == epochs - 1) for epoch in range(epochs))
    return start + first + (due - 1) * later


class FineTuning(pl.LightningModule):
    """What anybody writes; notes how long each step takes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model("vit_small_patch16_224", num_classes=len(CLASS_NAMES))
        self.steps: list[float] = []
        self._began = 0.0

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores

    def training_step(self, batch: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any) -> None: ...

    def on_train_batch_start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(time.perf_counter() - self._began)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Spent(pl.Callback):
    """What each monitor has taken so far, with its part of what they share: when training begins, and each epoch."""

    def __init__(self, monitors: Sequence[attngrad.Monitor]) -> None:
        self.monitors = monitors
        self.so_far: list[dict[str, float]] = []

    def on_train_start(self, *_: Any) -> None:
        self.so_far.append({monitor.name: monitor.spent for monitor in self.monitors})

    on_train_epoch_end = on_train_start


def _fine_tuning(steps: int) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds of each training step, and of each monitor's evaluations: of the starting weights, the first, the second.

    The first after training began has the long search of rewriting, which is made in every tenth.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    pixels, classes = crops(max(BATCH * steps, 64), 224)
    data = DataLoader(TensorDataset(normalised(pixels), classes), batch_size=BATCH)
    probe = attngrad.ProbeImages(mean=MEAN, std=STD, class_names=CLASS_NAMES)
    monitors: list[attngrad.Monitor] = [
        attngrad.AttentionMapMonitor(probe=probe),
        attngrad.AttentionDriftMonitor(probe=probe),
        attngrad.RewriteRobustnessMonitor(probe=probe),
        attngrad.FaithfulnessMonitor(probe=probe),
    ]
    module, spent = FineTuning(), Spent(monitors)
    with tempfile.TemporaryDirectory() as directory:
        trainer = pl.Trainer(
            max_epochs=2,
            limit_train_batches=steps // 2,
            callbacks=[*monitors, spent],
            logger=TensorBoardLogger(directory),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data, data)
    before = dict.fromkeys(FULL, 0.0)
    evaluations = [
        {name: now[name] - then[name] for name in FULL}
        for then, now in zip([before, *spent.so_far], spent.so_far, strict=False)
    ]
    return module.steps[1:], evaluations


def _head(first: str, accounts: Sequence[str]) -> str:
    return f"| {first} | " + " | ".join(accounts) + " | together |\n|---|" + "---|" * (len(accounts) + 1)


def _row(first: str, shares: list[float]) -> str:
    return f"| {first} | " + " | ".join(f"{share:.1%}" for share in shares) + f" | **{sum(shares):.1%}** |"


if __name__ == "__main__":
    main()
