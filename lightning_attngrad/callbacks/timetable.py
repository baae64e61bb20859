"""When a monitor looks: at the start, every so many epochs or steps, and at the weights a run ends with."""

from __future__ import annotations

from typing import Any, TypeAlias

import lightning.pytorch as pl

from lightning_attngrad.probe import Cadence

Moment: TypeAlias = tuple[int, int, int]


class Timetable:
    """A cadence, and what has happened of it in this run.

    Args:
        cadence: every so many epochs or steps.
    """

    def __init__(self, cadence: Cadence) -> None:
        self.cadence = cadence
        self._seen_epoch = -1  # the last one with a validation
        self._seen_step = 0
        self._looked_at_step: int | None = None

    def begin(self, trainer: pl.Trainer) -> None:
        """A fit begins, or goes on from a checkpoint."""
        self._seen_epoch, self._seen_step = trainer.current_epoch - 1, trainer.global_step
        self._looked_at_step = None

    def looked(self, trainer: pl.Trainer) -> None:
        """Take down that there was a look."""
        self._looked_at_step = trainer.global_step

    def due_in_validation(self, trainer: pl.Trainer) -> bool:
        """Whether the validation that now runs is one to look in; asking again gives the same answer."""
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

    def end_validation(self, trainer: pl.Trainer) -> None:
        """Its epochs have been dealt with."""
        self._seen_epoch = trainer.current_epoch

    def due_after_batch(self, trainer: pl.Trainer) -> bool:
        """Whether an optimizer step since the last call is one to look after.

        Gradient accumulation comes here several times with the same count, and several optimizers raise it by more
        than one.
        """
        passed = range(self._seen_step + 1, trainer.global_step + 1)
        self._seen_step = trainer.global_step
        return any(self.cadence.due_at_step(step) for step in passed)

    def due_at_end(self, trainer: pl.Trainer) -> bool:
        """Whether nobody has seen the weights that the run ends with.

        So it is after ``max_steps``, ``max_time`` and ``EarlyStopping`` between two looks.
        """
        return trainer.global_step != self._looked_at_step


def moment(trainer: pl.Trainer) -> Moment:
    """What stays the same as long as the weights and buffers do that a checkpoint would hold.

    Optimizer steps; batches, since those of an accumulated gradient write buffers too; and updates of an average.
    """
    updates = sum(int(getattr(getattr(one, "_average_model", None), "n_averaged", 0)) for one in averaging(trainer))
    batches = trainer.fit_loop.epoch_loop.batch_progress.total
    return trainer.global_step, batches.processed, updates  # type: ignore[attr-defined]


def averaging(trainer: pl.Trainer) -> list[Any]:
    """Callbacks that put averaged weights into checkpoints; by name, as older versions of Lightning lack the class."""
    return [callback for callback in _callbacks(trainer) if _is_a(callback, "WeightAveraging")]


def swaps_at_the_end(trainer: pl.Trainer) -> bool:
    """Whether a callback puts other weights into the model when training ends."""
    return any(_is_a(callback, "StochasticWeightAveraging") for callback in _callbacks(trainer))


def _callbacks(trainer: pl.Trainer) -> list[Any]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def _is_a(callback: Any, name: str) -> bool:
    return any(base.__name__ == name for base in type(callback).__mro__)


def is_fitting(trainer: pl.Trainer) -> bool:
    """Whether this is a fit, and not a validation or a test of its own."""
    return trainer.state.fn == "fit"


def label_of_validation(trainer: pl.Trainer) -> str:
    """What a look in the validation that now runs is called: ``epoch 3``, ``step 200``, ``validate`` or ``test``."""
    if not is_fitting(trainer):
        return str(getattr(trainer.state.fn, "value", "now"))
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return f"epoch {trainer.current_epoch + 1}"
    return f"step {trainer.global_step}"


def why_no_validation(trainer: pl.Trainer) -> str | None:
    """Why this run has no validation in which to look; None if it has."""
    if trainer.enable_validation:
        return None
    if trainer.limit_val_batches == 0:
        return "validation is switched off (limit_val_batches=0): switch it on"
    if not trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined():
        return "the run has no validation loader: define val_dataloader(), or pass val_dataloaders to trainer.fit"
    return "the LightningModule has no validation_step: define one, even an empty one"
