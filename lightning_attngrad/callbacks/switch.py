"""Switch: an error inside a callback is reported once and switches it off, on all processes; the run goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

_log = logging.getLogger("lightning_attngrad")


class Switch(pl.Callback):
    """A callback with a name, under which it logs, and with errors that never end a run.

    Args:
        name: stands in ``attngrad/<name>/…``.
        on_error: ``log`` reports an error once and switches the callback off; ``raise`` raises it.

    Raises:
        ValueError: for another ``on_error``, or a name that is no word.

    Attributes:
        scalars: the last values, by name without what stands in front.
    """

    def __init__(self, name: str, on_error: Literal["log", "raise"]) -> None:
        if on_error not in ("log", "raise"):
            raise ValueError(f"on_error: got {on_error!r}; expected 'log' or 'raise'")
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split("/")):
            raise ValueError(f"name: got {name!r}; expected a word such as 'maps': it stands in attngrad/<name>/…")
        self.name = name
        self.on_error = on_error
        self.scalars: dict[str, float] = {}
        self._switch_on()

    def _switch_on(self) -> None:
        """Whatever was in another run is over."""
        self._off = False
        self._all_off = False  # and every process knows
        self._why_off = ""

    @contextmanager
    def guarded(self, trainer: pl.Trainer, what: str) -> Iterator[None]:
        """An error inside is reported once and switches this callback off; the run goes on."""
        try:
            yield
        except Exception as error:
            self.fails(trainer, what, error)

    def fails(self, trainer: pl.Trainer, what: str, error: Exception) -> None:
        """Switch off for an error, or raise it where the user wants that."""
        if self.on_error == "raise":
            raise error
        _log.debug("traceback of the error in %s", type(self).__name__, exc_info=error)
        self._switch_off(trainer, f"in {what}: {type(error).__name__}: {error} (on_error='raise' would stop here)")
        _let_go_of_frames(error)

    def _switch_off(self, trainer: pl.Trainer, why: str) -> None:
        if self._off:
            return
        self._off, self._why_off = True, why
        awaited = ", ".join(
            f"{self._key(name)} stays {self.scalars.get(name, math.nan):.3g}" for name in self._awaited(trainer)
        )
        # Four monitors without images are one piece of news.
        same = next((other for other in _switches_of(trainer) if other is not self and other._why_off == why), None)
        reason = why if same is None else f"for the same reason as {type(same).__name__}"
        rank_zero_warn(
            f"{type(self).__name__} is switched off for the remainder of this run, training goes on: {reason}."
            + (f" For what waits for them: {awaited}; early stopping on that would end the run." if awaited else "")
        )

    def _agree(self, trainer: pl.Trainer) -> None:
        """Where one process is switched off, all are; and all go on with the numbers of the first. Collective.

        Processes may differ in the statistics of a batch normalisation, in the last bits of a sum, or because only
        one had an error. Lightning's callbacks would decide differently on them, and then wait for each other.
        """
        if self._all_off:
            return
        if not trainer.strategy.reduce_boolean_decision(not self._off):
            self._all_off = True
            first_has_said_why = trainer.strategy.broadcast(self._off)
            if not self._off:
                self._switch_off(trainer, "another process had an error, which it reports itself")
            elif not first_has_said_why:
                _log.warning("%s on process %d: %s", type(self).__name__, trainer.global_rank, self._why_off)
        self.scalars = trainer.strategy.broadcast(self.scalars)

    def _awaited(self, trainer: pl.Trainer) -> list[str]:
        """Names of its scalars that checkpoints, early stopping and learning rates hang on."""
        waiting = [*trainer.callbacks, *trainer.lr_scheduler_configs]  # type: ignore[attr-defined]
        monitored = {str(getattr(one, "monitor", None)) for one in waiting}
        return sorted(key.removeprefix(self._key("")) for key in monitored if key.startswith(self._key("")))

    def _key(self, name: str) -> str:
        return f"attngrad/{self.name}/{name}"

    def _keyed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {self._key(name): value for name, value in values.items()}


def _let_go_of_frames(error: BaseException | None) -> None:
    """An error that is kept would keep all that the functions it went through have seen: the Trainer and its model."""
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _switches_of(trainer: pl.Trainer) -> list[Switch]:
    return [other for other in trainer.callbacks if isinstance(other, Switch)]  # type: ignore[attr-defined]
