"""When a monitor evaluates: at the start, every so many epochs or steps, and at the weights a run ends with."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_attngrad.probe.cadence import Cadence


class Timetable:
    """A cadence, and what has happened of it in this run.

    Args:
        cadence: every so many epochs or steps.
    """

    def __init__(self, cadence: Cadence) -> None:
        self.cadence = cadence
        self._seen_epoch = -1  # the last one with a validation
        self._seen_step = 0
        self._evaluated_at_step: int | None = None

    def begin(self, trainer: pl.Trainer) -> None:
        """A fit begins, or goes on from a checkpoint."""
        self._seen_epoch, self._seen_step = trainer.current_epoch - 1, trainer.global_step
        self._evaluated_at_step = None

    def evaluated(self, trainer: pl.Trainer) -> None:
        """Record that there was an evaluation."""
        self._evaluated_at_step = trainer.global_step

    def due_in_epoch(self, trainer: pl.Trainer) -> bool:
        """Whether to evaluate in this epoch's validation, or at its end; asking again gives the same answer."""
        if self.cadence.every_n_epochs is None:
            return False
        epoch = trainer.current_epoch
        # Epochs without a validation (check_val_every_n_epoch) may have been due: they are made up for.
        due = any(self.cadence.due_at_epoch(passed) for passed in range(self._seen_epoch + 1, epoch + 1))
        return due or self.cadence.due_at_epoch(epoch, is_last=epoch + 1 == trainer.max_epochs)

    @staticmethod
    def is_last_validation(trainer: pl.Trainer) -> bool:
        """Whether the fit, as far as can be known, ends with the validation that now runs."""
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return bool(ends_epoch) and trainer.current_epoch + 1 == trainer.max_epochs

    def end_epoch(self, trainer: pl.Trainer) -> None:
        """The epochs up to this one have been dealt with."""
        self._seen_epoch = trainer.current_epoch

    def due_after_batch(self, trainer: pl.Trainer) -> bool:
        """Whether an optimizer step since the last call is one to evaluate after.

        Gradient accumulation comes here several times with the same count, and several optimizers raise it by more
        than one.
        """
        passed = range(self._seen_step + 1, trainer.global_step + 1)
        self._seen_step = trainer.global_step
        return any(self.cadence.due_at_step(step) for step in passed)

    def due_at_end(self, trainer: pl.Trainer) -> bool:
        """Whether nothing has evaluated the weights that the run ends with.

        So it is after ``max_steps``, ``max_time`` and ``EarlyStopping`` between two evaluations.
        """
        return trainer.global_step != self._evaluated_at_step
