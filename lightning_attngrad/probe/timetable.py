"""When a monitor evaluates: at the start, every so many epochs or steps, and at the weights a run ends with."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl


@dataclass(frozen=True)
class Cadence:
    """Every so many epochs, or every so many optimizer steps.

    Give at most one of the two; with neither, every epoch. Epochs and steps are counted as Lightning counts
    them for ``check_val_every_n_epoch``: with ``every_n_epochs=2`` the second, fourth, … epoch is due. The
    last epoch is always due, so that a run ends with a probe of its final weights.

    Args:
        every_n_epochs: a positive number of epochs.
        every_n_steps: a positive number of optimizer steps (``trainer.global_step``).

    Raises:
        ValueError: if both are given, or one is not a positive int.

    Example:
        >>> cadence = Cadence(every_n_epochs=2)
        >>> [epoch for epoch in range(5) if cadence.due_at_epoch(epoch, is_last=epoch == 4)]
        [1, 3, 4]
        >>> [step for step in range(250) if Cadence(every_n_steps=100).due_at_step(step)]
        [100, 200]
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("every_n_epochs", self.every_n_epochs), ("every_n_steps", self.every_n_steps)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: got {value!r}; expected a positive int, or None to leave it out")
        if self.every_n_epochs is not None and self.every_n_steps is not None:
            raise ValueError(
                f"every_n_epochs, every_n_steps: got {self.every_n_epochs} and {self.every_n_steps}; "
                "expected one of the two; leave out the other"
            )
        if self.every_n_epochs is None and self.every_n_steps is None:
            object.__setattr__(self, "every_n_epochs", 1)

    def due_at_epoch(self, epoch: int, *, is_last: bool = False) -> bool:
        """Whether the end of an epoch is due.

        Args:
            epoch: ``trainer.current_epoch``, counted from 0.
            is_last: whether no epoch follows; the last one is due in either way of counting.
        """
        return is_last or (self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0)

    def due_at_step(self, step: int) -> bool:
        """Whether a step is due.

        Args:
            step: ``trainer.global_step``, the optimizer steps done. Under gradient accumulation it stays the
                same for several batches: the caller asks once a step.
        """
        return self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0


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
