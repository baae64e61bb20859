"""Together: the monitors of one Trainer share their images, and evaluate in one go at each moment of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_attngrad.callbacks.cost_advice import CostAdvice
from lightning_attngrad.callbacks.run_report import RunReport
from lightning_attngrad.probe import Account, Clock, Evaluation, ProbeImages, SharedProbe, isolated
from lightning_attngrad.probe.moment import averaging, is_fitting, updates_of_average, whose_weights
from lightning_attngrad.state import held_still


class Evaluates(Protocol):
    """What a monitor has to offer to evaluate together with others."""

    @property
    def shared(self) -> SharedProbe:
        """The images that it has in common with others."""

    def evaluate_now(self, trainer: pl.Trainer, evaluation: Evaluation) -> None:
        """Evaluate and keep what was found; an error switches the monitor off and is not raised."""

    def fails(self, trainer: pl.Trainer, what: str, error: Exception) -> None:
        """Switch the monitor off for an error, or raise it where the user wants that."""


class Together:
    """One probe for each setting, one clock, and one isolation at each moment, for all monitors of a Trainer.

    Attributes:
        clock: charges each second to one monitor, or to what they share.
        shared_cost: reading and moving images, and holding the model still.
        members: how many monitors there are.
        advice: on what they cost, in the fit that runs.
        report: what is kept for the report of the run, on the process that writes; None where nobody asks for one.
    """

    _of: ClassVar[WeakKeyDictionary[pl.Trainer, Together]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self.clock = Clock()
        self.shared_cost = Account()
        self.members = 1
        self.advice = CostAdvice()
        self.report: RunReport | None = None
        self._probes: dict[ProbeImages, SharedProbe] = {}
        self._average: tuple[int, int] | None = None  # step and updates at the last evaluation of the average
        self._warned_at: int | None = None

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Together:
        """That of a Trainer; made when it is first asked for."""
        return cls._of.setdefault(trainer, cls())

    def probe(self, settings: ProbeImages) -> SharedProbe:
        """The probe of a setting."""
        if settings not in self._probes:
            self._probes[settings] = SharedProbe(settings, lambda: self.clock.charge(self.shared_cost))
        return self._probes[settings]

    def evaluate(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, due: Sequence[Evaluates], label: str
    ) -> None:
        """Let monitors evaluate the weights as they are, the model held still once for all of them.

        Args:
            trainer: the Trainer.
            pl_module: the LightningModule.
            due: monitors with frozen images; the same ones on every process.
            label: when this is.
        """
        if not due:
            return
        whose = whose_weights(trainer, due[0])
        self._warn_if_the_average_stands_still(trainer, whose)
        label = f"{label} ({whose})" if whose else label
        wanted = False
        try:
            with self.clock.charge(self.shared_cost), isolated(trainer, pl_module, seed=due[0].shared.settings.seed):
                for probe in dict.fromkeys(monitor.shared for monitor in due):
                    left = [one for one in due if one.shared is probe]
                    try:
                        evaluation = probe.evaluation(trainer, pl_module, label, whose)
                        with held_still(evaluation.model):  # once: what each explanation does then is next to nothing
                            while left:
                                wanted = True  # whatever gets out of here, its user asked for with on_error="raise"
                                left.pop(0).evaluate_now(trainer, evaluation)
                                wanted = False
                    except Exception as error:  # images that others look at may be well
                        if wanted:
                            raise
                        wanted = True
                        for monitor in left:
                            monitor.fails(trainer, f"its evaluation at {label}", error)
                        wanted = False
        except Exception as error:
            if wanted:
                raise
            for monitor in due:  # what is said when the body is left concerns all
                monitor.fails(trainer, f"its evaluation at {label}", error)

    def _warn_if_the_average_stands_still(self, trainer: pl.Trainer, whose: str) -> None:
        """Say that epochs go by while the weights that are evaluated stay the same (Lightning's issue 21724)."""
        if not is_fitting(trainer) or not trainer.validating or not whose:
            return
        now = trainer.global_step, updates_of_average(trainer)
        before, self._average = self._average, now
        stands_still = before is not None and now[1] == before[1] and now[0] > before[0]
        if stands_still and self._warned_at != now[1]:
            self._warned_at = now[1]
            names = ", ".join(type(callback).__name__ for callback in averaging(trainer))
            rank_zero_warn(
                f"attngrad: {names} has not updated its average since step {before[0] if before else 0}: the run is at "
                f"step {now[0]}, and figures and numbers still show the {whose}. They will follow the training once it "
                "updates (see its update_starting_at_step, update_starting_at_epoch, update_every_n_steps)."
            )
