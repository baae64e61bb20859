"""What a monitor will cost: a few steps and an evaluation of a copy of the module, before training begins."""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch.utils._pytree import tree_leaves

from lightning_attngrad.probe import Governor, Timetable
from lightning_attngrad.probe.package import PACKAGES, lightning_package
from lightning_attngrad.state import seeded_rng

#: Steps that are timed, behind two that warm up.
_STEPS = 6


class Costly(Protocol):
    """What of a monitor tells its cost; see `Monitor`."""

    on_error: Any
    governor: Governor
    timetable: Timetable

    @property
    def spent(self) -> float:
        """Seconds of this fit."""


@dataclass(frozen=True)
class CostForecast:
    """What a monitor will take of a run.

    Attributes:
        evaluation_seconds: of one evaluation, its figures included.
        step_seconds: of one training step, without validation.
        steps_between: training steps between two evaluations that are due; ∞ where the length of an epoch is not known.
        max_overhead: the limit that the monitor has been given.
    """

    evaluation_seconds: float
    step_seconds: float
    steps_between: float
    max_overhead: float | None

    @property
    def overhead(self) -> float:
        """Share of the time that evaluations take if none is skipped; the first and the last are not counted."""
        between = self.steps_between * self.step_seconds
        return self.evaluation_seconds / (self.evaluation_seconds + between)

    @property
    def stretch(self) -> float:
        """Of how many evaluations that are due one will be made."""
        if self.max_overhead is None:
            return 1.0
        between = self.steps_between * self.step_seconds
        return max(1.0, self.evaluation_seconds * (1 - self.max_overhead) / (self.max_overhead * between))

    def __str__(self) -> str:
        """As it is printed."""
        lines = [
            f"an evaluation takes {self.evaluation_seconds:.2g} s, as long as "
            f"{self.evaluation_seconds / self.step_seconds:.2g} training "
            f"steps of {self.step_seconds:.2g} s"
        ]
        if math.isinf(self.steps_between):
            return lines[0] + "; how long an epoch is cannot be known"
        lines.append(f"one every {self.steps_between:g} steps is {self.overhead:.1%} of the time")
        if self.max_overhead is not None:
            kept = "every evaluation that is due is made" if self.stretch == 1 else f"one of {self.stretch:.1f} is made"
            lines.append(f"within max_overhead={self.max_overhead:g} {kept}")
        return "; ".join(lines)


class _StepTimer(pl.Callback):
    """Seconds from the end of a training batch to the end of the next, without what a monitor took between them."""

    def __init__(self, monitor: Costly) -> None:
        self.monitor = monitor
        self.seconds: list[float] = []
        self.batches_an_epoch = math.inf  # of a stream it is not known
        self._last: tuple[float, float] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self.batches_an_epoch = trainer.num_training_batches

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        now = time.perf_counter(), self.monitor.spent
        if self._last is not None:
            self.seconds.append(now[0] - self._last[0] - (now[1] - self._last[1]))
        self._last = now


def forecast(
    monitor: Costly,
    module: pl.LightningModule,
    train_dataloaders: Any,
    val_dataloaders: Any,
    datamodule: pl.LightningDataModule | None,
    options: dict[str, Any],
) -> CostForecast:
    """Train a copy of a module for a few steps under a copy of the monitor; see :meth:`Monitor.dry_cost`."""
    copied, watching = copy.deepcopy(module), copy.deepcopy(monitor)
    watching.on_error = "raise"
    watching.governor = Governor(None)
    timer = _StepTimer(watching)
    accumulated = int(options.get("accumulate_grad_batches", 1))
    package = lightning_package(module)
    if package is None:
        raise ValueError(
            f"dry_cost: got a {type(module).__name__}; expected a LightningModule, as trainer.fit takes it"
        )
    with _without_traces(train_dataloaders) as directory:
        trainer = package.Trainer(
            **{
                "devices": 1,
                "max_epochs": 1,
                "limit_val_batches": 1,
                **options,
                "max_steps": 2 + _STEPS,
                "num_sanity_val_steps": 0,
                "callbacks": [timer, watching],  # a batch has ended for the timer before the monitor evaluates
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": directory,
            }
        )
        trainer.fit(copied, train_dataloaders, val_dataloaders, datamodule=datamodule)
    if watching.governor.taken < 2 or not timer.seconds:
        raise ValueError(
            "dry_cost: there was no evaluation, or no training step, that could be timed; expected validation images "
            "that can be read before training (no stream), and at least two training batches"
        )
    cadence = watching.timetable.cadence
    between = float(cadence.every_n_steps or 0) or timer.batches_an_epoch / accumulated * (cadence.every_n_epochs or 1)
    return CostForecast(
        evaluation_seconds=watching.governor.last_evaluation(watching.spent),
        step_seconds=median(timer.seconds[1:] or timer.seconds) * accumulated,
        steps_between=between,
        max_overhead=monitor.governor.limit,
    )


@contextmanager
def _without_traces(train_dataloaders: Any) -> Iterator[str]:
    """Random streams as they were, of the loaders too; no advice; a directory for figures that is gone afterwards."""
    loaders = tree_leaves(train_dataloaders)
    generators = [
        getattr(one, "generator", None) for loader in loaders for one in (loader, getattr(loader, "sampler", 0))
    ]
    states = [(one, one.get_state()) for one in generators if isinstance(one, torch.Generator)]
    loggers = [logging.getLogger(name) for name in PACKAGES]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)  # what concerns so short a run concerns nobody
        with seeded_rng(0), warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
            warnings.simplefilter("ignore")
            yield directory
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for generator, state in states:
            generator.set_state(state)
