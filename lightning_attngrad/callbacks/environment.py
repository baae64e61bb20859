"""Monitors that the environment asks for: in any program that is built on Lightning, without a changed line of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_attngrad.callbacks.base import ProbeCallback, callbacks_of
from lightning_attngrad.callbacks.presets import monitors
from lightning_attngrad.probe.moment import is_fitting

_said: set[str] = set()  # one message, however many Trainers a program makes


class EnvironmentMonitors(pl.Callback):
    """Puts monitors into a Trainer that has none of its own.

    Lightning asks for callbacks while a Trainer is being made, and does not say for which: what else is in its list,
    and what the module adds to it, is known when a run is set up. There is no error that ends the run: what cannot be
    watched is said once, and is not.

    Args:
        monitors: the callbacks, fresh ones for each Trainer.
        setting: the variable and what it says, for messages.
    """

    def __init__(self, monitors: Sequence[ProbeCallback], setting: str) -> None:
        self.monitors = list(monitors)
        self.setting = setting

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the monitors, unless the Trainer has some; theirs is called here, as Lightning goes through an old list.

        Early enough for a checkpoint that the run goes on from: Lightning reads it after this.
        """
        present = callbacks_of(trainer)
        if present:
            if not any(monitor in present for monitor in self.monitors):
                names = ", ".join(type(callback).__name__ for callback in present)
                _say(rank_zero_info, f"attngrad: {self.setting}: the Trainer has {names} already, so nothing is added")
            return
        everyone: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        behind = everyone.index(self) + 1
        trainer.callbacks = [*everyone[:behind], *self.monitors, *everyone[behind:]]  # type: ignore[attr-defined]
        self._each(trainer, self.monitors, lambda monitor: monitor.setup(trainer, pl_module, stage))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out those whose part of the model is not there: by themselves they would end the run now."""
        present = [monitor for monitor in callbacks_of(trainer) if monitor in self.monitors]
        self._each(trainer, present, lambda monitor: monitor.shared.begin(pl_module))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise in a validation of its own."""
        if not is_fitting(trainer):
            self.on_fit_start(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise in a test."""
        self.on_fit_start(trainer, pl_module)

    def _each(
        self, trainer: pl.Trainer, monitors: Sequence[ProbeCallback], do: Callable[[ProbeCallback], object]
    ) -> None:
        """Do something with each; those with which it cannot be done are left out, and what for is said once."""
        left_out: dict[str, list[str]] = {}
        for monitor in monitors:
            if reason := _error_of(do, monitor):
                trainer.callbacks.remove(monitor)  # type: ignore[attr-defined]  # it stands behind this in the list
                left_out.setdefault(reason, []).append(type(monitor).__name__)
        for reason, names in left_out.items():
            what = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} left out, training goes on"
            _refuse(self.setting, what, f"{reason}. What ProbeImages(…) says, a YAML file says under probe:")


def _error_of(do: Callable[[ProbeCallback], object], monitor: ProbeCallback) -> str:
    """In words; empty where there is none."""
    try:
        do(monitor)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def callbacks_asked_for(variable: str, asked: str) -> list[pl.Callback]:
    """What a Trainer that is being made is given.

    Args:
        variable: the name of the environment variable, for messages.
        asked: a preset, see :func:`~lightning_attngrad.monitors`.

    Returns:
        One callback; none where the variable is wrong, which is said once.
    """
    try:
        asked_for = monitors(asked)
    except Exception as error:
        _refuse(f"{variable}={asked}", "nothing is watched, training goes on", str(error))
        return []
    return [EnvironmentMonitors(asked_for, f"{variable}={asked}")]


def _refuse(setting: str, what: str, why: str) -> None:
    _say(rank_zero_warn, f"attngrad: {setting}: {what}: {why}")


def _say(how: Callable[[str], None], message: str) -> None:
    """Once in a process."""
    if message not in _said:
        _said.add(message)
        how(message)
