"""ProbeCallback: a callback with frozen images, which evaluates without disturbing the run, and never ends it."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_attngrad.callbacks.cost_advice import CostAdvice
from lightning_attngrad.callbacks.memory import Memory
from lightning_attngrad.callbacks.run_report import Found, RunReport
from lightning_attngrad.callbacks.summary import write_layout, write_summary
from lightning_attngrad.callbacks.together import Together
from lightning_attngrad.probe import Account, Evaluation, Findings, ProbeImages, ProbeSet, SharedProbe
from lightning_attngrad.probe.moment import is_fitting
from lightning_attngrad.reporting.layout import Charts
from lightning_attngrad.state import seeded_rng


class ProbeCallback(Memory, ABC):
    """What monitors and the checkpoint audit have in common: images, errors, cost, and what a checkpoint keeps.

    A subclass says what it finds in :meth:`evaluate`. Where its numbers depend on settings it names them in
    :meth:`settings`, and where it compares evaluations it keeps what it needs in :meth:`history`, :meth:`recall` and
    :meth:`forget`.

    Images and history belong to one run: another Trainer's fit starts anew, while a fit that goes on from a checkpoint,
    or with the same Trainer, and a validation or test after it, keep them. Where the conditions of the history (images,
    settings, part of the model, precision) are not those of now, it says what differs and starts a new one.

    An error inside is reported once, with its cause; the callback is then switched off, on all processes, and training
    goes on.

    Args:
        name: stands in ``attngrad/<name>/…``.
        probe: the images and how they are read; None shares the default of the Trainer's other monitors.
        num_images: short for ``probe=ProbeImages(num_images=…)``.
        report: write the HTML report of the run when it ends, and keep maps and numbers of each evaluation beside it;
            one callback that asks for it is enough, it is of all.
        on_error: ``log`` reports an error inside an evaluation once and switches this callback off; ``raise`` raises
            it.

    Raises:
        ValueError: for another ``on_error``, a name that is no word, or both ``probe`` and ``num_images``.

    Attributes:
        scalars: the last values, by name without what stands in front.
        needs_pixels: whether its numbers are in units of pixels, so that the images' normalisation has to be certain;
            where it is not, it is asked for before training.
        main_scalars: those that the summary at the end of a fit shows, and what each says in a few words. A monitor
            logs these alone unless it is asked for all; where there are none, it logs all.
        story: how the run began, and how many evaluations there were.
    """

    needs_pixels = False
    main_scalars: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        *,
        name: str | None = None,
        probe: ProbeImages | None = None,
        num_images: int | None = None,
        report: bool = False,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        name = type(self).__name__ if name is None else name
        super().__init__(name, on_error)
        if probe is not None and not isinstance(probe, ProbeImages):
            raise ValueError(f"probe: got {type(probe).__name__}; expected attngrad.ProbeImages(…), or None")
        if probe is not None and num_images is not None:
            raise ValueError(
                f"num_images: got {num_images!r} beside probe=…; say it there, ProbeImages(num_images={num_images!r})"
            )
        self.probe = probe or (ProbeImages() if num_images is None else ProbeImages(num_images=num_images))
        if report is not True and report is not False:
            raise ValueError(f"report: got {report!r}; expected True or False")
        self.report = report
        self.account = Account()
        self._shared: SharedProbe | None = None
        self._probe_before: SharedProbe | None = None  # of the Trainer before this one, until the run begins
        self._together = Together()
        self._fit_began = math.nan
        self._could_report = True
        self._restored: dict[str, Any] | None = None  # state of the images, until there is a Trainer
        self._pending: Findings | None = None  # found, and not yet logged
        self._found: Found | None = None  # and not yet kept for the report

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a Trainer: a copy meets its own."""
        return {**vars(self), "_shared": None, "_probe_before": None, "_together": Together()}

    # What a subclass says ------------------------------------------------------------------------------------

    @abstractmethod
    def evaluate(self, evaluation: Evaluation) -> Findings:
        """What is found of the frozen images and the model as it is now.

        Called on every process; work on the images goes through :meth:`Evaluation.each`, which shares it out.
        """

    def charts(self) -> Charts:
        """Which of its curves share a chart, by title; names are without what stands in front, see `Chart`."""
        return {}

    def charts_shown(self) -> Charts:
        """Those of them that have curves."""
        return self.charts()

    def remarks(self) -> list[str]:
        """What else the summary at the end of a fit says, a paragraph each."""
        return [f"switched off: {self._why_off}"] if self._off else []

    def whereabouts(self) -> str:
        """Where its figures are, for the summary."""
        return self._key("")

    # Images --------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> SharedProbe:
        """The images and answers that it has in common with the other monitors of its Trainer."""
        if self._shared is None:
            raise RuntimeError(f"{type(self).__name__} has not met its Trainer yet: there are no images")
        return self._shared

    @property
    def probe_set(self) -> ProbeSet:
        """The frozen images."""
        return self.shared.images

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuse, before training starts, what can never work; start a run of its own with nothing of another."""
        self._refuse_twins(trainer)
        self._together = Together.of(trainer)
        self._together.members = len(callbacks_of(trainer))
        anew = stage == "fit" and trainer.global_step == 0  # a checkpoint, if any, is read after this
        if anew:
            self.forget()
            self._restored = None
        self._probe_before, self._shared = self._shared, self._together.probe(self.probe)
        if anew:
            self._probe_before = None
            self._shared.forget()

    def _refuse_twins(self, trainer: pl.Trainer) -> None:
        everyone = callbacks_of(trainer)
        if sum(other is self for other in everyone) > 1:
            raise ValueError(
                f"callbacks: the same {type(self).__name__} stands in the list more than once; leave one of them out"
            )
        twins = [other for other in everyone if other.name == self.name]
        if len(twins) > 1:
            raise ValueError(
                f"name: {len(twins)} monitors are called {self.name!r} and would write over each other; give each its "
                "own, as in AttentionMapMonitor(name='late_layers')"
            )

    def _is_first(self, trainer: pl.Trainer) -> bool:
        return callbacks_of(trainer)[0] is self

    def _begin(self, pl_module: pl.LightningModule) -> None:
        """A fit, validation or test begins; a wrong path of the model is an error now."""
        self._switch_on()
        self._pending = self._found = None
        self.account = Account()
        self.shared.begin(pl_module)
        if self._restored is not None:
            self.shared.restore(self._restored)
            self._restored = None
        if self._probe_before is not None:
            self.shared.go_on_from(self._probe_before)
            self._probe_before = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the model; a wrong path is an error now. The first callback writes the charts of all."""
        self._begin(pl_module)
        self._fit_began = time.perf_counter()
        if self._is_first(trainer):
            self._together.shared_cost = Account()
            self._together.advice = CostAdvice()
            self._report(lambda: write_layout(trainer, callbacks_of(trainer)))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images as early as there are loaders: in the sanity check, or in a validation of its own."""
        if not is_fitting(trainer):
            if self._is_first(trainer):
                for callback in callbacks_of(trainer):  # all, before any reads images
                    callback._begin(pl_module)
            self._freeze(trainer, pl_module)
            self._agree(trainer)
            self._find_way(trainer, pl_module)
        elif trainer.sanity_checking:
            self._freeze(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise for a test."""
        self.on_validation_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images before the first step."""
        if self._is_first(trainer):
            self._report(lambda: self._begin_report(trainer))
            for callback in callbacks_of(trainer):
                callback._freeze(trainer, pl_module)
            # A stream's images of the sanity check come again in the first validation, unless there are enough.
            for probe in _probes_of(trainer):
                probe.after_sanity_check(trainer)
            for callback in callbacks_of(trainer):
                callback._images_are_there(trainer)
                callback._find_way(trainer, pl_module)
                callback._ask_for_normalisation(trainer, pl_module)
                callback.begin_anew_where_conditions_differ(callback.conditions(trainer))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """What monitors take from now on is a share of the time of training; without validation, metrics are kept."""
        if self._is_first(trainer):
            self._together.advice.begin(callbacks_of(trainer))
        self._keep_metrics(trainer, of_validation=False)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        """Gather images from a stream, which cannot be read beforehand."""
        self._collect(trainer, batch, dataloader_idx, training=False)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """As in a validation."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Gather images from training, where there is no validation to gather them from."""
        self._collect(trainer, batch, 0, training=True)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """The images of a stream have gone by."""
        self._end_streams(trainer, training=False)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """As in a validation."""
        self._end_streams(trainer, training=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Likewise those of training. The first callback says, once, if all take much of the time."""
        self._end_streams(trainer, training=True)
        if self._is_first(trainer):
            self._advise(trainer)

    def _collect(self, trainer: pl.Trainer, batch: Any, dataloader_idx: int, *, training: bool) -> None:
        if not self._is_first(trainer):
            return
        for probe in _probes_of(trainer):
            if probe.streams(training=training):
                probe.collect(batch, dataloader_idx)
                # An epoch of training may take days: the images are there once every process has enough of them.
                if training and trainer.strategy.reduce_boolean_decision(probe.has_enough):
                    self._end_stream(trainer, probe)

    def _end_streams(self, trainer: pl.Trainer, *, training: bool) -> None:
        if self._is_first(trainer) and not trainer.sanity_checking:
            for probe in _probes_of(trainer):
                if probe.streams(training=training):
                    self._end_stream(trainer, probe)

    @staticmethod
    def _end_stream(trainer: pl.Trainer, probe: SharedProbe) -> None:
        probe.end_of_stream(trainer)
        for callback in callbacks_of(trainer):
            if callback.shared is probe:
                callback._images_are_there(trainer)

    def _freeze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._off:
            with self.guarded(trainer, "its images"):
                self.shared.freeze(trainer, pl_module)

    def _find_way(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find how the model runs on the images, before training needs to know; a collective operation."""
        if not self._off:
            with self.guarded(trainer, "its images"):
                self.shared.find_way(trainer, pl_module)

    def _images_are_there(self, trainer: pl.Trainer) -> None:
        """Switch off where one process could not read them: the others must not go on alone."""
        if self.shared.failure is not None and not self._off:
            self.fails(trainer, "its images", self.shared.failure)
        self._agree(trainer)

    def _ask_for_normalisation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Switch off now, and not at an evaluation hours from here, where it is needed and nothing tells."""
        if self.needs_pixels and self.probe_set.is_frozen and not self._off:
            with self.guarded(trainer, "its images"):
                self.shared.known_pixels(trainer, pl_module).required()
            self._agree(trainer)

    def images_state(self) -> dict[str, Any]:
        """Those of the Trainer's probe, or those that were restored and have not met a Trainer yet."""
        return self._restored or ({} if self._shared is None else self.shared.state())

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from a checkpoint; a validation or test of one, after a fit, leaves the history of the fit as it is."""
        if is_fitting(trainer) or not (self.story.evaluations and self.probe_set.is_frozen):
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def restore_images(self, state: Mapping[str, Any]) -> None:
        """Keep them until the run begins."""
        self._restored = dict(state)

    def conditions(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Also the images, once they are frozen, and the part of the model."""
        frozen = {"images": self.probe_set.hash} if self.probe_set.is_frozen else {}
        return {**frozen, "part of the model": self.probe.model, **super().conditions(trainer)}

    # Evaluations ---------------------------------------------------------------------------------------------

    def evaluate_now(self, trainer: pl.Trainer, evaluation: Evaluation) -> None:
        """Evaluate, in the body of an isolation that may be shared; an error switches this callback off."""
        with self.guarded(trainer, f"its evaluation at {evaluation.label}"), self._timed(), seeded_rng(evaluation.seed):
            conditions = self.conditions(trainer) | self.further_conditions(evaluation)
            self.begin_anew_where_conditions_differ(conditions)
            self._pending = self.evaluate(evaluation)
            self.take({name: float(value) for name, value in self._pending.scalars.items()})
            if evaluation.in_history:
                self._found = None if self._together.report is None else Found(evaluation, self._pending)
                self._conditions = conditions
                self.story.goes_on(evaluation.label, self.scalars, self.main_scalars)

    def take(self, measured: dict[str, float]) -> None:
        """Take in the numbers of an evaluation."""
        self.scalars = measured

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """The last callback writes the summary of all, and the charts that another layout has pushed aside."""
        everyone = callbacks_of(trainer)
        if everyone[-1] is self:
            first = everyone[0]
            first._report(lambda: write_layout(trainer, everyone))
            fit_seconds, shared = time.perf_counter() - first._fit_began, self._together.shared_cost.spent
            first._report(lambda: write_summary(trainer, everyone, fit_seconds, shared))
            if (report := self._together.report) is not None:
                first._report(lambda: report.finish(trainer, fit_seconds))

    # The report of the run -----------------------------------------------------------------------------------

    def _begin_report(self, trainer: pl.Trainer) -> None:
        self._together.report = None
        self._together.report = RunReport.of(trainer, callbacks_of(trainer))

    def _keep(self, trainer: pl.Trainer) -> None:
        """Write for the report what has been found, once it has been logged."""
        found, self._found = self._found, None
        report = self._together.report
        if found is not None and report is not None:
            with self._timed():
                self._report(lambda: report.keep(trainer, self, found))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """The run's own numbers are there by now."""
        if is_fitting(trainer) and not trainer.sanity_checking:
            self._keep_metrics(trainer, of_validation=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Likewise."""
        self._keep_metrics(trainer, of_validation=False)

    def _keep_metrics(self, trainer: pl.Trainer, *, of_validation: bool) -> None:
        report = self._together.report
        if report is not None and report.has_validation == of_validation and self._is_first(trainer):
            self._report(lambda: report.keep_metrics(trainer))

    def _report(self, write: Callable[[], None]) -> None:
        """Write something for all monitors; an error costs no more than that, and is reported once."""
        try:
            write()
        except Exception as error:
            if self.on_error == "raise":
                raise
            if self._could_report:
                self._could_report = False
                rank_zero_warn(
                    "attngrad could not write the charts, the summary or the report of its monitors: "
                    f"{type(error).__name__}: {error}. Nothing else is missing."
                )

    # Cost ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self) -> Iterator[None]:
        with self._together.clock.charge(self.account):
            yield

    @property
    def spent(self) -> float:
        """Seconds of this fit: its own, and its share of what the monitors of the Trainer do together."""
        return self.account.spent + self._together.shared_cost.spent / max(self._together.members, 1)

    @property
    def has_limit(self) -> bool:
        """Whether the user has said how much of the time it may take."""
        return False

    def how_to_spend_less(self, example: float) -> str:  # noqa: ARG002
        """What to write where it takes much of the time, with a share of it as an example."""
        return f"A smaller {type(self).__name__}(num_images=…) costs less"

    def _advise(self, trainer: pl.Trainer) -> None:
        if line := self._together.advice.line(callbacks_of(trainer)):
            rank_zero_info(line)


def callbacks_of(trainer: pl.Trainer) -> list[ProbeCallback]:
    """The monitors and audits of a Trainer, in its order."""
    return [other for other in trainer.callbacks if isinstance(other, ProbeCallback)]  # type: ignore[attr-defined]


def _probes_of(trainer: pl.Trainer) -> list[SharedProbe]:
    return list(dict.fromkeys(callback.shared for callback in callbacks_of(trainer)))
