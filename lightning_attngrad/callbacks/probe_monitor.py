"""ProbeMonitor: when a monitor looks, and where its numbers go."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lightning_attngrad.callbacks.forecast import CostForecast, forecast
from lightning_attngrad.callbacks.governor import Governor
from lightning_attngrad.callbacks.image_probe import ImageProbe
from lightning_attngrad.callbacks.look import Findings, Probe
from lightning_attngrad.callbacks.timetable import Timetable, is_fitting, label_of_validation, why_no_validation
from lightning_attngrad.probe import Cadence

__all__ = ["Findings", "Probe", "ProbeMonitor"]


class ProbeMonitor(ImageProbe):
    """A callback that looks at its frozen images every so often, and logs what it finds.

    The first look is at the starting weights. Later looks happen at the start of a validation, when averaged weights,
    if the run validates with them, are in place; their scalars are logged at its end, where ``ModelCheckpoint`` and
    ``EarlyStopping`` find them. On epochs without a look the last values are logged again, so that the key is always
    there. A run that ends between two looks gets one more. All processes log the numbers of the first one, whose
    weights and buffers a checkpoint holds.

    ``overhead`` is logged beside them: the share of the fit's time that the monitor has taken so far. With
    ``max_overhead`` also ``stretch``: of how many looks that were due one was taken.

    Args:
        every_n_epochs: look in every n-th epoch's validation; 1 where neither this nor ``every_n_steps`` is given.
        every_n_steps: look after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take: see :class:`Governor`. None is no limit.
        options: of :class:`ImageProbe`.
    """

    def __init__(
        self, *, every_n_epochs: int | None, every_n_steps: int | None, max_overhead: float | None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._timetable = Timetable(Cadence(every_n_epochs, every_n_steps))
        self._governor = Governor(max_overhead)
        self._allowed: bool | None = None  # the look that is due in the validation that now runs

    def dry_cost(
        self,
        module: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        **trainer_options: Any,
    ) -> CostForecast:
        """Print what this monitor will cost, before training: from a few steps and a look on a copy of the module.

        Neither the module nor this monitor nor a random stream is changed; a datamodule is set up. On one device, and
        without the time of validations: what the fit really spends is logged as ``overhead``.

        Args:
            module: as for ``trainer.fit``.
            train_dataloaders: likewise.
            val_dataloaders: likewise.
            datamodule: likewise.
            trainer_options: of the Trainer that will be used, such as ``accelerator``, ``precision`` and
                ``accumulate_grad_batches``.

        Returns:
            The forecast, which has been printed.

        Raises:
            ValueError: if the validation images are a stream, or there are no two training batches.

        Example:
            >>> # monitor = attngrad.AttentionMapMonitor(max_overhead=0.05)
            >>> # monitor.dry_cost(module, datamodule=data, precision="bf16-mixed")
        """
        found = forecast(self, module, train_dataloaders, val_dataloaders, datamodule, trainer_options)
        print(f"{type(self).__name__} {self.name!r}: {found}")
        return found

    def knows_enough(self) -> bool:
        """Whether the next look can wait until it is due.

        Not without a number yet, perhaps because a head of zeros gives no map at the start.
        """
        return bool(self.scalars) and all(math.isfinite(value) for value in self.scalars.values())

    def _begin(self, pl_module: pl.LightningModule) -> None:
        super()._begin(pl_module)
        self._governor.begin()
        self._allowed = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images and look at the starting weights, before the first step."""
        self._timetable.begin(trainer)
        if self._timetable.cadence.every_n_steps is None and (why := why_no_validation(trainer)):
            self._rest(
                trainer, f"it looks during validation, and {why}; or give every_n_steps=… to look during training"
            )
            return
        super().on_train_start(trainer, pl_module)
        if self.probe_set.is_frozen and not self.scalars:
            self._look(trainer, pl_module, f"step {trainer.global_step}" if trainer.global_step else "start")
            self._write_now(trainer)
        self._agree(trainer)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at the start of a validation: every other callback has put its weights in place by now."""
        first = batch_idx == 0 and dataloader_idx == 0
        if first and self._due_in_validation(trainer):
            self._look(trainer, pl_module, label_of_validation(trainer))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was seen, or the last values again."""
        if trainer.sanity_checking:
            return
        if self._streaming:
            self._end_of_stream(trainer)
        if self._pending is None and self._due_in_validation(trainer):
            # The images have only just gone by; or no batch has, on this process.
            self._look(trainer, pl_module, label_of_validation(trainer))
        self._timetable.end_validation(trainer)
        self._allowed = None
        self._log_figures(trainer)
        values = self._values(trainer)
        # The numbers agree already: synchronising keeps Lightning from warning of each of them.
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As in a validation."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As in a validation."""
        self.on_validation_epoch_end(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Look after an optimizer step, where the cadence counts steps."""
        due = self._timetable.due_after_batch(trainer) and self.probe_set.is_frozen and not self._resting
        if due and self._has_time(trainer, is_last=False):
            self._look(trainer, pl_module, f"step {trainer.global_step}")
            self._write_now(trainer)
            # For ModelCheckpoint(every_n_train_steps=…). Without the loggers: to them Lightning hands on only what
            # falls on its own log_every_n_steps.
            pl_module.log_dict(self._values(trainer), on_step=True, on_epoch=False, logger=False, batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the weights that the run ends with, unless the last validation did."""
        due = self.probe_set.is_frozen and not self._resting and self._timetable.due_at_end(trainer)
        if due and self._has_time(trainer, is_last=True):
            self._look(trainer, pl_module, f"step {trainer.global_step}")
            self._write_now(trainer)

    def _due_in_validation(self, trainer: pl.Trainer) -> bool:
        if trainer.sanity_checking or self._resting or not self.probe_set.is_frozen:
            return False
        if not is_fitting(trainer):
            return True
        if self.knows_enough() and not self._timetable.due_in_validation(trainer):
            return False
        if self._allowed is None:  # asked once: processes without a batch come to it only at the validation's end
            self._allowed = self._has_time(trainer, is_last=self._timetable.is_last_validation(trainer))
        return self._allowed

    def _has_time(self, trainer: pl.Trainer, *, is_last: bool) -> bool:
        """Whether the monitor's share of the time has room for a look; with a limit, a collective operation."""
        if self._governor.limit is None:
            return True
        has_time = bool(trainer.strategy.broadcast(self._governor.allows(self.spent, is_last=is_last)))
        if not has_time:
            if not self._governor.passed:
                rank_zero_info(
                    f"{type(self).__name__} passes over a look: a further one would take more than "
                    f"max_overhead={self._governor.limit:g} of the time so far. It looks again when there is time, and "
                    f"logs {self._key('stretch')}."
                )
            self._governor.passes()
        return has_time

    def _costs(self) -> dict[str, float]:
        """Beside the seconds, the share of the fit, and how far its limit has stretched the cadence."""
        costs = super()._costs() | {"overhead": self._governor.overhead(self.spent)}
        return costs if self._governor.limit is None else costs | {"stretch": self._governor.stretch}

    def _looked(self, trainer: pl.Trainer) -> None:
        self._timetable.looked(trainer)
        self._governor.takes(self.spent)
