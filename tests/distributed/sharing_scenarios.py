"""What each of two processes does where the images are shared between them; see ``scenarios``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_attngrad as attngrad
from lightning_attngrad.probe import Evaluation, Findings
from tests.distributed.scenarios import DROPOUT, dropping, fit_sharded, seen_by, two_processes
from tests.integration.harness import (
    BATCH,
    CLASSES,
    TRAINING_IMAGES,
    Pictures,
    TinyModule,
    WatchedMonitor,
    fit,
    seed_everything,
    tiny_vit,
)
from tests.other_models import ViTBesideColours

#: Of an odd data set, which a DistributedSampler fills up with a duplicate; in parts of two that do not go round.
IMAGES, IMAGES_AT_ONCE = 7, 2
#: Of the evaluation that is slowed down; the share of the time that it may take; and the steps that it is watched for.
EVALUATION_SECONDS, STEP_SECONDS, LIMIT, STEPS = 0.1, 0.01, 0.1, 400


class SharingMonitor(WatchedMonitor):
    """The monitor as it is, which keeps how many images went through the model in each forward pass."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.shared._sharing.at_once = IMAGES_AT_ONCE

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"num_images": IMAGES + 1, **options})
        self.passes: list[list[int]] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.passes.append(sizes := [])

        def forward(images: Tensor) -> Any:
            sizes.append(len(images))
            return evaluation.forward(images)

        return super().evaluate(Evaluation(**{**vars(evaluation), "forward": forward}))


def loaders() -> tuple[Any, Any]:
    train = DataLoader(Pictures(TRAINING_IMAGES, seed=1), batch_size=BATCH, shuffle=True)
    return train, DataLoader(Pictures(IMAGES, seed=2), batch_size=BATCH)


def shared_maps(directory: Path) -> dict[str, Any]:
    without = fit(dropping(), loaders=loaders(), **two_processes())
    module, monitor = dropping(), SharingMonitor()
    left = fit(module, [monitor], loaders=loaders(), **two_processes())
    return {
        "without": without,
        "fingerprint": left,
        "weights": module.state_dict(),
        "logged": {name: float(value) for name, value in module.trainer.callback_metrics.items()},
        "passes": monitor.passes,
        **seen_by(monitor),
    }


def shared_maps_sharded(directory: Path) -> dict[str, Any]:
    """FSDP2: each forward pass gathers the parameters from both processes, so both must make as many."""
    monitor = SharingMonitor()
    validation = DataLoader(Pictures(IMAGES, seed=2), batch_size=BATCH)
    without = fit_sharded(validation=validation)
    return {
        "without": without,
        "fingerprint": fit_sharded(monitor, validation=validation),
        "passes": monitor.passes,
        **seen_by(monitor),
    }


def without_embedding() -> nn.Module:
    return ViTBesideColours(CLASSES)


def _standing_in(fitted: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """No method is asked for, and the model does not permit the default; each process would find that out by itself."""
    monitor = SharingMonitor()
    without = fitted()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        left = fitted(monitor, quiet=False)
    return {
        "without": without,
        "fingerprint": left,
        "passes": monitor.passes,
        "warnings": [str(one.message) for one in caught if "attngrad" in str(one.message)],
        **seen_by(monitor),
    }


def standing_in(directory: Path) -> dict[str, Any]:
    def fitted(*monitors: WatchedMonitor, **options: Any) -> dict[str, Any]:
        seed_everything(0)
        return fit(TinyModule(without_embedding()), monitors, loaders=loaders(), **two_processes(), **options)

    return _standing_in(fitted)


def standing_in_sharded(directory: Path) -> dict[str, Any]:
    validation = DataLoader(Pictures(IMAGES, seed=2), batch_size=BATCH)
    return _standing_in(partial(fit_sharded, validation=validation, backbone=without_embedding))


class OutOfMemoryOnOneRank(SharingMonitor):
    """One process has less memory than the other."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.shared._sharing.at_once = 4

    def evaluate(self, evaluation: Evaluation) -> Findings:
        def forward(images: Tensor) -> Any:
            if torch.distributed.get_rank() == 1 and len(images) > IMAGES_AT_ONCE:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return evaluation.forward(images)

        return super().evaluate(Evaluation(**{**vars(evaluation), "forward": forward}))


def out_of_memory(directory: Path) -> dict[str, Any]:
    monitor = OutOfMemoryOnOneRank()
    left = fit(dropping(), [monitor], loaders=loaders(), **two_processes())
    return {
        "fingerprint": left,
        "passes": monitor.passes,
        "at once": monitor.shared._sharing.at_once,
        **seen_by(monitor),
    }


class SlowMonitor(WatchedMonitor):
    """Evaluations that take as long as several steps, on the first process longer than on the second."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        time.sleep(EVALUATION_SECONDS if torch.distributed.get_rank() == 0 else EVALUATION_SECONDS / 2)
        return super().evaluate(evaluation)


class SlowModule(TinyModule):
    """Steps of a known length, so that the share does not hang on what else the machine does.

    It writes nothing down: each evaluation would look through what a module keeps, and take longer from step to step.
    """

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        time.sleep(STEP_SECONDS)
        return self.loss(batch, "train")


def governed(directory: Path) -> dict[str, Any]:
    monitor = SlowMonitor(num_images=2, every_n_steps=2, max_overhead=LIMIT)
    began = time.perf_counter()
    fit(
        SlowModule(tiny_vit(**DROPOUT)),
        [monitor],
        loaders=loaders(),
        max_epochs=-1,
        max_steps=STEPS,
        limit_val_batches=0,
        **two_processes(),
    )
    took = time.perf_counter() - began
    return {
        "share": monitor.spent / took,
        "taken": monitor.governor.taken,
        "skipped": monitor.governor.skipped,
        "stretch": monitor.scalars["stretch"],
        **seen_by(monitor),
    }


class DrawnMonitor(attngrad.AttentionMapMonitor):
    """The monitor with its figures, in parts that go to both processes."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.shared._sharing.at_once = IMAGES_AT_ONCE


def report_of_two(directory: Path) -> dict[str, Any]:
    """Both are told to write to one folder, as they are on one machine; the report is the first one's to write."""
    module, monitor = (
        dropping(),
        DrawnMonitor(num_images=IMAGES + 1, on_error="raise", report=True, figures=["overlay"]),
    )
    logger = CSVLogger(directory, name="report", version="two")
    left = fit(module, [monitor], loaders=loaders(), logger=logger, **two_processes())
    return {"fingerprint": left, "log directory": logger.log_dir}


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (
    shared_maps,
    shared_maps_sharded,
    standing_in,
    standing_in_sharded,
    out_of_memory,
    governed,
    report_of_two,
)
