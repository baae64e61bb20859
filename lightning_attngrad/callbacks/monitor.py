"""Monitor: what becomes of the numbers, figures and errors of every monitor."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_attngrad.callbacks.look import Findings
from lightning_attngrad.reporting.loggers import log_figures, scalar_step

_log = logging.getLogger("lightning_attngrad")


class Monitor(pl.Callback):
    """A callback with a name, under which it logs, and with errors that never end a run.

    ``seconds`` is the time that the monitor took since it was last logged: reading the images, looking, drawing and
    writing the figures. It is 0 where nothing was looked at, so its sum over a run is the cost of the monitor.

    An error inside a look is reported once, with its cause; the monitor then rests, and training goes on.

    Args:
        name: stands in ``attngrad/<name>/…``.
        on_error: ``log`` or ``raise``.

    Raises:
        ValueError: for another ``on_error``, or a name that is no word.

    Attributes:
        scalars: the last values, by name without what stands in front.
        spent: seconds that the monitor has taken since the fit began.
    """

    def __init__(self, name: str, on_error: Literal["log", "raise"]) -> None:
        if on_error not in ("log", "raise"):
            raise ValueError(f"on_error: got {on_error!r}; expected 'log' or 'raise'")
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split("/")):
            raise ValueError(f"name: got {name!r}; expected a word such as 'maps': it stands in attngrad/<name>/…")
        self.name = name
        self.on_error = on_error
        self.scalars: dict[str, float] = {}
        self._wake()

    def _wake(self) -> None:
        """Whatever was in another run is over."""
        self._resting = False
        self._all_rest = False  # and every process knows
        self._why_resting = ""
        self._could_draw = True
        self._pending: Findings | None = None  # looked at, and not yet logged
        self._seconds = 0.0  # spent, and not yet logged
        self.spent = 0.0

    @property
    def state_key(self) -> str:
        """Two monitors in one run keep two states."""
        return self._generate_state_key(name=self.name)

    def _refuse_twins(self, trainer: pl.Trainer) -> None:
        twins = [other for other in trainer.callbacks if isinstance(other, Monitor) and other.name == self.name]  # type: ignore[attr-defined]
        if len(twins) > 1:
            raise ValueError(
                f"name: {len(twins)} monitors are called {self.name!r} and would write over each other; give each its "
                "own, as in AttentionMapMonitor(name='late_layers')"
            )

    def _values(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """The scalars to be logged: the same keys on every process, so that EarlyStopping decides alike on all."""
        self.scalars |= self._costs()
        self._agree(trainer)
        scalars = self.scalars
        if self._resting:
            # A curve that went on would lie, but a callback that waits for a number would end the run without it.
            scalars = {name: self.scalars.get(name, math.nan) for name in self._awaited(trainer)}
        return {self._key(name): torch.tensor(value, dtype=torch.float32) for name, value in scalars.items()}

    def _costs(self) -> dict[str, float]:
        """What the monitor took since it was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return {"seconds": seconds}

    def _write_now(self, trainer: pl.Trainer) -> None:
        """Straight to the loggers: for moments at which nothing reaches them through ``log``."""
        if self._pending is None:
            return
        self._log_figures(trainer)
        self.scalars |= self._costs()
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self._keyed(self.scalars), step=scalar_step(trainer))

    def _log_figures(self, trainer: pl.Trainer) -> None:
        pending, self._pending = self._pending, None
        if pending is None or not trainer.is_global_zero:
            return
        try:
            with self._timed():
                log_figures(trainer, self._keyed(pending.figures()), scalar_step(trainer))
        except Exception as error:  # only this process draws: if it rested now, the others would wait for it
            if self.on_error == "raise":
                raise
            if self._could_draw:
                self._could_draw = False
                rank_zero_warn(
                    f"{type(self).__name__} could not draw: {type(error).__name__}: {error}. Its numbers go on."
                )

    def _awaited(self, trainer: pl.Trainer) -> list[str]:
        """Names of this monitor's scalars that checkpoints, early stopping and learning rates hang on."""
        waiting = [*trainer.callbacks, *trainer.lr_scheduler_configs]  # type: ignore[attr-defined]
        monitored = {str(getattr(one, "monitor", None)) for one in waiting}
        return sorted(key.removeprefix(self._key("")) for key in monitored if key.startswith(self._key("")))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._seconds += took
            self.spent += took

    @contextmanager
    def _guarded(self, trainer: pl.Trainer, what: str) -> Iterator[None]:
        """An error inside is reported once and ends this monitor's work, not the run's."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            _log.debug("traceback of the error in %s", type(self).__name__, exc_info=True)
            self._rest(trainer, f"in {what}: {type(error).__name__}: {error} (on_error='raise' would stop here)")

    def _agree(self, trainer: pl.Trainer) -> None:
        """Where one process rests, all rest; and all go on with the numbers of the first. A collective operation.

        Processes may differ in the statistics of a batch normalisation, in the last bits of a sum, or because only
        one had an error. Lightning's callbacks would decide differently on them, and then wait for each other.
        """
        if self._all_rest:
            return
        if not trainer.strategy.reduce_boolean_decision(not self._resting):
            self._all_rest = True
            first_has_said_why = trainer.strategy.broadcast(self._resting)
            if not self._resting:
                self._rest(trainer, "another process had an error, which it reports itself")
            elif not first_has_said_why:
                _log.warning("%s on process %d: %s", type(self).__name__, trainer.global_rank, self._why_resting)
        self.scalars = trainer.strategy.broadcast(self.scalars)

    def _rest(self, trainer: pl.Trainer, why: str) -> None:
        self._resting, self._why_resting = True, why
        self._pending = None
        awaited = ", ".join(
            f"{self._key(name)} stays {self.scalars.get(name, math.nan):.3g}" for name in self._awaited(trainer)
        )
        rank_zero_warn(
            f"{type(self).__name__} rests for the remainder of this run, training goes on: {why}."
            + (f" For what waits for them: {awaited}; early stopping on that would end the run." if awaited else "")
        )

    def _key(self, name: str) -> str:
        return f"attngrad/{self.name}/{name}"

    def _keyed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {self._key(name): value for name, value in values.items()}
