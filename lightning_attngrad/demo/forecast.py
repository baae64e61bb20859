"""How long a run will take, said once its first steps are known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_attngrad.callbacks.monitor import Monitor

#: Steps after which it is said; the first three warm up and are not counted.
STEPS, _WARM_UP = 10, 3
#: Of a training step, what a forward pass of as many images takes in a validation.
_FORWARD = 0.4


class TimeForecast(Callback):
    """Says after ten steps how much longer the run will take, on this machine as it is now.

    Steps are taken at the pace of the first ten, and the evaluations that are due as long as that of the starting
    weights. Put it behind the monitors, so that these have evaluated the starting weights before it looks.

    Args:
        monitors: of the run.
        more_steps: that the program will train afterwards, in other runs.

    Attributes:
        minutes: that were forecast; None before ten steps.

    Example:
        >>> forecast = TimeForecast([])
        >>> # trainer = L.Trainer(max_epochs=8, callbacks=[*monitors, forecast])
        >>> forecast.minutes is None
        True
    """

    def __init__(self, monitors: Sequence[Monitor], more_steps: int = 0) -> None:
        self.monitors, self.more_steps = monitors, more_steps
        self.minutes: float | None = None
        self._ends: list[float] = []
        self._evaluation: list[float] = []  # seconds, of each monitor

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """The monitors have just evaluated the starting weights."""
        self.minutes, self._ends = None, []
        self._evaluation = [monitor.spent for monitor in self.monitors]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Say it, once."""
        if self.minutes is not None or trainer.current_epoch > 0:
            return
        self._ends.append(time.perf_counter())
        if batch_idx + 1 < STEPS:
            return
        step = median(
            end - begin for begin, end in zip(self._ends[_WARM_UP - 1 :], self._ends[_WARM_UP:], strict=False)
        )
        epochs, batches = trainer.max_epochs or 0, int(trainer.num_training_batches)
        steps = epochs * batches - STEPS + self.more_steps
        watching = sum(
            seconds * sum(_is_due(monitor, epoch, epochs) for epoch in range(epochs))
            for seconds, monitor in zip(self._evaluation, self.monitors, strict=True)
        )
        training = step * (steps + epochs * _FORWARD * _validation_in_batches(trainer))
        self.minutes = (training + watching) / 60
        said = (
            f"forecast after {STEPS} steps of {step:.2g} s: another {self.minutes:.1f} minutes, "
            f"{watching / 60:.1f} of these for what is watched"
        )
        bar = trainer.progress_bar_callback
        if trainer.is_global_zero:
            print(said, flush=True) if bar is None else bar.print(said)


def _is_due(monitor: Monitor, epoch: int, epochs: int) -> bool:
    return monitor.timetable.cadence.due_at_epoch(epoch, is_last=epoch == epochs - 1)


def _validation_in_batches(trainer: L.Trainer) -> float:
    """Length of a validation in training batches; by number of images where the loaders tell it."""
    batches = float(sum(trainer.num_val_batches))
    # Lightning reads the validation loader before the first step, also where no sanity check is asked for.
    loaders = (trainer.val_dataloaders, trainer.train_dataloader)
    sizes = [getattr(loader, "batch_size", None) for loader in loaders]
    return batches * sizes[0] / sizes[1] if sizes[0] and sizes[1] else batches
