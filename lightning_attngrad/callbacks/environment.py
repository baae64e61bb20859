"""Monitors that the environment asks for: in any program that is built on Lightning, without a changed line of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_attngrad.callbacks.attention_drift_monitor import AttentionDriftMonitor
from lightning_attngrad.callbacks.attention_map_monitor import AttentionMapMonitor
from lightning_attngrad.callbacks.base import ProbeCallback, callbacks_of
from lightning_attngrad.callbacks.checkpoint_audit import CheckpointAudit
from lightning_attngrad.callbacks.faithfulness_monitor import FaithfulnessMonitor
from lightning_attngrad.callbacks.rewrite_robustness_monitor import RewriteRobustnessMonitor
from lightning_attngrad.probe import ProbeImages
from lightning_attngrad.probe.moment import is_fitting

#: Of each of the two monitors of `light`, in a run that did not ask for them in its code.
_LIGHT_IMAGES, _LIGHT_OVERHEAD = 8, 0.02


def _light() -> list[ProbeCallback]:
    images = ProbeImages(num_images=_LIGHT_IMAGES)
    return [kind(probe=images, max_overhead=_LIGHT_OVERHEAD) for kind in (AttentionMapMonitor, AttentionDriftMonitor)]


def _full() -> list[ProbeCallback]:
    return [
        AttentionMapMonitor(),
        AttentionDriftMonitor(),
        RewriteRobustnessMonitor(),
        FaithfulnessMonitor(),
        CheckpointAudit(),
    ]


#: What the variable may say instead of a path.
PRESETS: dict[str, Callable[[], list[ProbeCallback]]] = {"light": _light, "full": _full}

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
        asked: ``light`` (maps and drift of a few images, each within 2 % of the time), ``full`` (all monitors), or the
            path of a YAML file: a list of callbacks of this package, or of your own made of its `Monitor`, each with
            ``class_path`` and ``init_args`` as for LightningCLI.

    Returns:
        One callback; none where the variable is wrong, which is said once.
    """
    try:
        monitors = PRESETS[asked]() if asked in PRESETS else _listed_in(asked)
    except Exception as error:
        _refuse(f"{variable}={asked}", "nothing is watched, training goes on", str(error))
        return []
    return [EnvironmentMonitors(monitors, f"{variable}={asked}")]


def _listed_in(asked: str) -> list[ProbeCallback]:
    """The callbacks of a YAML file.

    Raises:
        ValueError: if there is no such file, or no list in it.
        Exception: whatever YAML, jsonargparse and the callbacks say about what is in it.
    """
    path = Path(asked).expanduser()
    words = ", ".join(repr(word) for word in PRESETS)
    if not path.is_file():
        raise ValueError(
            f"got {asked!r}; expected {words}, or the path of a YAML file that lists callbacks; there is no file "
            f"{path.absolute()}"
        )
    listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(listed, list) or not listed:
        raise ValueError(
            f"{path} holds {'nothing' if listed is None else type(listed).__name__}; expected a list of callbacks, "
            "such as\n- class_path: lightning_attngrad.AttentionMapMonitor\n  init_args: {num_images: 8}"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[ProbeCallback])
    made = parser.instantiate_classes(parser.parse_object({"callbacks": listed}))
    return list(made.callbacks)


def _refuse(setting: str, what: str, why: str) -> None:
    _say(rank_zero_warn, f"attngrad: {setting}: {what}: {why}")


def _say(how: Callable[[str], None], message: str) -> None:
    """Once in a process."""
    if message not in _said:
        _said.add(message)
        how(message)
