"""Monitor: when a monitor evaluates, and where its numbers and figures go."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_attngrad.callbacks.base import ProbeCallback
from lightning_attngrad.callbacks.forecast import CostForecast, forecast
from lightning_attngrad.probe import Cadence, Evaluation, Findings, Governor, ProbeImages, Timetable
from lightning_attngrad.probe.moment import is_fitting, label_of_validation, why_no_validation
from lightning_attngrad.reporting.board import COSTS, Names, board_tag
from lightning_attngrad.reporting.layout import Charts, charts_of, edges_of
from lightning_attngrad.reporting.loggers import log_figures, log_scalars, scalar_step
from lightning_attngrad.reporting.style import PLAIN, FigureStyle

__all__ = ["Evaluation", "Findings", "Monitor"]

_PROBE_SECONDS = "attngrad/probe/seconds"


class Monitor(ProbeCallback):
    """A callback that evaluates its frozen images every so often, and logs what it finds. To be subclassed.

    The first evaluation is of the starting weights. Later ones happen at the start of a validation, when averaged
    weights, if the run validates with them, are in place; their scalars are logged at its end, where
    ``ModelCheckpoint`` and ``EarlyStopping`` find them. A run without validation is evaluated at the end of its
    training epochs. On epochs without an evaluation these two find the last values again, and loggers get none: each
    point of a curve was measured at its step. A run that ends between two evaluations gets one more. All processes log
    the numbers of the first one, whose weights and buffers a checkpoint holds.

    ``seconds`` is the time that the monitor took by itself since it was last logged: evaluating, drawing and writing
    figures. What is done once for all of them (reading images, holding the model still) is ``attngrad/probe/seconds``;
    maps that several ask for are at the cost of the first that does. ``overhead`` is the share of the fit's time that
    the monitor, with its part of what is shared, has taken so far; with ``max_overhead`` also ``stretch``: of how many
    evaluations that were due one was made.

    Args:
        name: stands in ``attngrad/<name>/…``; None is the name of the class.
        probe: the images and how they are read; None shares the default of the Trainer's other monitors.
        num_images: short for ``probe=ProbeImages(num_images=…)``.
        every_n_epochs: evaluate in every n-th epoch's validation; 1 where neither this nor ``every_n_steps`` is given.
        every_n_steps: evaluate after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take, such as 0.05: evaluations that are due are
            skipped rather than take more. None is no limit.
        scalars: which numbers loggers get. ``main``: those of ``main_scalars`` with the bands around them, those that a
            ``ModelCheckpoint`` or an ``EarlyStopping`` waits for, and what the monitor costs. ``all``: every one, also
            of single layers and classes. ``trainer.callback_metrics`` has all in any case.
        figures: names of those that are drawn, such as ``["overlay", "film"]``; None draws all, an empty list none.
        report: write the HTML report of the run when it ends, and keep maps and numbers of each evaluation beside it
            (docs/report.md); one callback that asks for it is enough, it is of all.
        style: how its figures look, see :class:`~lightning_attngrad.FigureStyle`.
        on_error: ``log`` reports an error inside an evaluation once and switches this monitor off; ``raise`` raises it.

    Raises:
        ValueError: for an argument that does not fit.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> class Confidence(attngrad.Monitor):
        ...     def evaluate(self, evaluation):
        ...         probability = evaluation.task.probabilities(evaluation.scores())
        ...         return attngrad.Findings({"mean": probability.amax(dim=1).mean()})
        >>> # trainer = L.Trainer(callbacks=[Confidence()])  # logs attngrad/Confidence/mean
    """

    #: Names of the figures that it can draw; empty where nobody has said.
    drawable: Collection[str] = ()

    def __init__(
        self,
        *,
        name: str | None = None,
        probe: ProbeImages | None = None,
        num_images: int | None = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
        scalars: Literal["main", "all"] = "main",
        figures: Sequence[str] | None = None,
        report: bool = False,
        style: FigureStyle = PLAIN,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        super().__init__(name=name, probe=probe, num_images=num_images, report=report, on_error=on_error)
        if scalars not in ("main", "all"):
            raise ValueError(f"scalars: got {scalars!r}; expected 'main' or 'all'")
        known = ", ".join(self.drawable)
        if figures is not None and (
            isinstance(figures, str)
            or not isinstance(figures, Sequence)
            or any(not isinstance(one, str) or (self.drawable and one not in self.drawable) for one in figures)
        ):
            among = f" among {known}" if known else ""
            raise ValueError(f"figures: got {figures!r}; expected a list of names{among}, or None for all of them")
        self.which_scalars = scalars
        self.figures = None if figures is None else tuple(figures)
        self.timetable = Timetable(Cadence(every_n_epochs, every_n_steps))
        self.governor = Governor(max_overhead)
        self.style = style
        self._allowed: bool | None = None  # the evaluation that is due in the validation that now runs
        self._has_validation = True
        self._could_draw = True
        self._measured: set[str] = set()  # names of scalars that no logger has been given yet
        self._names = Names(self.name)

    def knows_enough(self) -> bool:
        """Whether the next evaluation can wait until it is due.

        Not without a number yet, perhaps because a zero-initialised classifier gives no map at the start. One that is
        NaN beside others may be so for good: it is not waited for.
        """
        return any(math.isfinite(value) for name, value in self.scalars.items() if name not in COSTS)

    def dry_cost(
        self,
        module: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        **trainer_options: Any,
    ) -> CostForecast:
        """Print what this monitor will cost, before training: from a few steps and an evaluation of a copied module.

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

    # When it evaluates: the first monitor evaluates for all that are due, the model held still once ---------------

    def _begin(self, pl_module: pl.LightningModule) -> None:
        super()._begin(pl_module)
        self.governor.begin()
        self._allowed = None
        self._could_draw = True
        self._measured = set()
        self._names = Names(self.name, tuple(self.main_scalars))
        self._report(self._find_names)

    def _find_names(self) -> None:
        self._names = self.names()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the starting weights, before the first step."""
        super().on_train_start(trainer, pl_module)
        if self._leads(trainer):
            for monitor in monitors_of(trainer):
                monitor.timetable.begin(trainer)
                monitor._has_validation = why_no_validation(trainer) is None
            new = [monitor for monitor in monitors_of(trainer) if monitor._is_ready() and not monitor.scalars]
            label = f"step {trainer.global_step}" if trainer.global_step else "start"
            self._evaluate(trainer, pl_module, new, label)
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
        """Evaluate at the start of a validation: every other callback has put its weights in place by now."""
        if batch_idx == 0 and dataloader_idx == 0:
            self._evaluate_in_validation(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was found, or the last values again."""
        super().on_validation_epoch_end(trainer, pl_module)
        if trainer.sanity_checking:
            return
        # The images may only just have gone by; or no batch has, on this process.
        self._evaluate_in_validation(trainer, pl_module)
        self._end_epoch(trainer, pl_module)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As in a validation."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As in a validation."""
        self.on_validation_epoch_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluate after an optimizer step, where the cadence counts steps."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._leads(trainer):
            return
        due = [monitor for monitor in monitors_of(trainer) if monitor._due_after_batch(trainer)]
        self._evaluate(trainer, pl_module, due, f"step {trainer.global_step}")
        for monitor in due:
            monitor._write_now(trainer)
            # For ModelCheckpoint(every_n_train_steps=…).
            values = monitor._values(trainer)
            pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False, batch_size=1)
        if due:
            self._advise(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate and log here where the run has no validation."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._has_validation:
            return
        if self._leads(trainer):
            due = [monitor for monitor in monitors_of(trainer) if monitor._due_in_epoch(trainer)]
            self._evaluate(trainer, pl_module, due, f"epoch {trainer.current_epoch + 1}")
        if self.timetable.cadence.every_n_epochs is not None:
            self._end_epoch(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the weights that the run ends with, unless the last validation did."""
        super().on_train_end(trainer, pl_module)
        if self._leads(trainer):
            due = [monitor for monitor in monitors_of(trainer) if monitor._due_at_end(trainer)]
            self._evaluate(trainer, pl_module, due, f"step {trainer.global_step}")
            for monitor in due:
                monitor._write_now(trainer)

    def _leads(self, trainer: pl.Trainer) -> bool:
        """Whether it is the first monitor, which evaluates for all."""
        return monitors_of(trainer)[0] is self

    def _evaluate_in_validation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._leads(trainer) and not trainer.sanity_checking:
            due = [monitor for monitor in monitors_of(trainer) if monitor._due_in_validation(trainer)]
            self._evaluate(trainer, pl_module, due, label_of_validation(trainer))

    def _evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule, due: Sequence[Monitor], label: str) -> None:
        for monitor in due:
            monitor.timetable.evaluated(trainer)
            monitor.governor.takes(monitor.spent)
        self._together.evaluate(trainer, pl_module, due, label)

    def _is_ready(self) -> bool:
        return self.probe_set.is_frozen and not self._off

    def _due_in_validation(self, trainer: pl.Trainer) -> bool:
        if not self._is_ready() or self._pending is not None:
            return False
        return not is_fitting(trainer) or self._due_in_epoch(trainer)

    def _due_in_epoch(self, trainer: pl.Trainer) -> bool:
        if not self._is_ready() or (self.knows_enough() and not self.timetable.due_in_epoch(trainer)):
            return False
        if not self._has_validation and self.timetable.cadence.every_n_epochs is None:
            return False
        if self._allowed is None:  # asked once: processes without a batch come to it only at the validation's end
            self._allowed = self._has_time(trainer, is_last=self.timetable.is_last_validation(trainer))
        return self._allowed

    def _due_after_batch(self, trainer: pl.Trainer) -> bool:
        due = self.timetable.due_after_batch(trainer) and self._is_ready()
        return due and self._has_time(trainer, is_last=False)

    def _due_at_end(self, trainer: pl.Trainer) -> bool:
        due = self._is_ready() and self.timetable.due_at_end(trainer)
        return due and self._has_time(trainer, is_last=True)

    def _has_time(self, trainer: pl.Trainer, *, is_last: bool) -> bool:
        """Whether the monitor's share of the time has room for an evaluation; with a limit, a collective operation."""
        if self.governor.limit is None:
            return True
        has_time = bool(trainer.strategy.broadcast(self.governor.allows(self.spent, is_last=is_last)))
        if not has_time:
            if not self.governor.skipped:
                rank_zero_info(
                    f"{type(self).__name__} skips an evaluation: a further one would take more than "
                    f"max_overhead={self.governor.limit:g} of the time so far. It evaluates again when there is time, "
                    f"and logs {self._key('stretch')}."
                )
            self.governor.skips()
        return has_time

    @property
    def has_limit(self) -> bool:
        """Whether ``max_overhead`` says how much of the time it may take."""
        return self.governor.limit is not None

    def how_to_spend_less(self, example: float) -> str:
        """A limit, or a rarer evaluation."""
        rarer = "every_n_epochs=…" if self.timetable.cadence.every_n_steps is None else "a larger every_n_steps=…"
        return (
            f"{type(self).__name__}(max_overhead={example:g}) skips evaluations rather than take more than "
            f"{100 * example:.0f} %; {rarer} and a smaller num_images=… cost less as well"
        )

    def remarks(self) -> list[str]:
        """Evaluations that were skipped, beside what every monitor says."""
        skipped, limit = self.governor.skipped, self.governor.limit
        said = (
            [f"skipped {skipped} evaluations that were due, to keep max_overhead={limit:g}"]
            if skipped and limit
            else []
        )
        return [*said, *super().remarks()]

    # Where its numbers go ------------------------------------------------------------------------------------

    def take(self, measured: dict[str, float]) -> None:
        """Take in the numbers of an evaluation; what it has not measured stays for whatever waits for it."""
        self.scalars = self.scalars | measured
        self._measured = set(measured)

    def charts_shown(self) -> Charts:
        """Those of the numbers that are logged."""
        charts = self.charts()
        if self.which_scalars == "all":
            return charts
        return charts_of(charts, self.names())

    def names(self) -> Names:
        """Which of its numbers are main ones."""
        return Names(self.name, tuple(self.main_scalars), edges_of(self.charts()))

    def board_tag(self, name: str) -> str:
        """What TensorBoard calls one of its numbers.

        Args:
            name: of the scalar, without what stands in front, such as ``entropy``.

        Example:
            >>> import lightning_attngrad as attngrad
            >>> attngrad.AttentionMapMonitor().board_tag("entropy")
            'attngrad_maps/entropy'
        """
        return self.names().tag(name)

    def is_drawn(self, figure: str) -> bool:
        """Whether a figure of this name is asked for."""
        return self.figures is None or figure in self.figures

    def _end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the figures and numbers of an epoch."""
        self.timetable.end_epoch(trainer)
        self._allowed = None
        self._log_figures(trainer)
        values = self._values(trainer)
        logged = self._for_loggers(trainer, values)
        # By Lightning for whatever waits for them, and in a fit by us for the loggers: one that fails at a scalar would
        # end the run. The numbers agree already: synchronising keeps Lightning from warning of each of them.
        by_us = is_fitting(trainer)
        for is_logged in (True, False):
            part = {key: value for key, value in values.items() if (key in logged) == is_logged}
            shown = is_logged and not by_us  # outside a fit they are what `validate` and `test` return, too
            pl_module.log_dict(part, on_step=False, on_epoch=True, batch_size=1, sync_dist=True, logger=shown)
        if by_us:
            self._log_scalars(trainer, logged)
        self._keep(trainer)

    def _values(self, trainer: pl.Trainer) -> dict[str, float]:
        """What Lightning is given: the same keys on every process, so that EarlyStopping decides alike on all."""
        self.scalars |= self._costs()
        self._agree(trainer)
        scalars = self.scalars
        if self._off:
            # A curve that went on would lie, but a callback that waits for a number would end the run without it.
            scalars = {name: self.scalars.get(name, math.nan) for name in self._awaited(trainer)}
        shared = self._shared_seconds(trainer)
        return self._keyed(scalars) | (trainer.strategy.broadcast(shared) if shared else {})

    def _for_loggers(self, trainer: pl.Trainer, values: Mapping[str, float]) -> dict[str, float]:
        """Those that have been measured since loggers were last given any, by key: each point of a curve is one."""
        measured, self._measured = self._measured, set()
        if self._off:
            measured = set()
        elif self.which_scalars == "main":
            awaited = self._awaited(trainer)
            measured = {name for name in measured if self._names.is_logged(name) or name in awaited}
        keys = {_PROBE_SECONDS, *map(self._key, measured)}
        keys |= set() if self._off else set(map(self._key, COSTS))  # they are measured all the time
        return {key: value for key, value in values.items() if key in keys}

    def _log_scalars(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        tags = {key: self._names.tag(key.removeprefix(self._key(""))) for key in values}
        tags[_PROBE_SECONDS] = board_tag("probe", "seconds", "cost")
        log_scalars(trainer, values, scalar_step(trainer), tags)

    def _costs(self) -> dict[str, float]:
        """What the monitor took by itself since it was last asked, and its share of the fit so far."""
        costs = {"seconds": self.account.take(), "overhead": self.governor.overhead(self.spent)}
        return costs if self.governor.limit is None else costs | {"stretch": self.governor.stretch}

    def _shared_seconds(self, trainer: pl.Trainer) -> dict[str, float]:
        """What monitors did once for all since this was last logged; the first one logs it, while there is any."""
        if not self._leads(trainer) or all(monitor._all_off for monitor in monitors_of(trainer)):
            return {}
        return {_PROBE_SECONDS: self._together.shared_cost.take()}

    def _write_now(self, trainer: pl.Trainer) -> None:
        """Straight to the loggers: for moments at which nothing reaches them through ``log``."""
        if self._pending is None:
            return
        self._log_figures(trainer)
        self.scalars |= self._costs()
        values = self._keyed(self.scalars) | self._shared_seconds(trainer)
        self._log_scalars(trainer, self._for_loggers(trainer, values))
        self._keep(trainer)

    def _log_figures(self, trainer: pl.Trainer) -> None:
        pending, self._pending = self._pending, None
        if pending is None or not trainer.is_global_zero or self.figures == ():
            return
        try:
            with self._timed():
                drawn = {name: figure for name, figure in pending.figures().items() if self.is_drawn(name)}
                log_figures(trainer, self._keyed(drawn), scalar_step(trainer))
        except Exception as error:  # only this process draws: were it switched off now, the others would wait for it
            if self.on_error == "raise":
                raise
            if self._could_draw:
                self._could_draw = False
                rank_zero_warn(
                    f"{type(self).__name__} could not draw: {type(error).__name__}: {error}. Its numbers go on."
                )


def monitors_of(trainer: pl.Trainer) -> list[Monitor]:
    """The monitors of a Trainer, in its order."""
    return [other for other in trainer.callbacks if isinstance(other, Monitor)]  # type: ignore[attr-defined]
