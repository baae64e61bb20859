"""AttentionDriftMonitor: how far the maps of a model have moved while it is being fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attngrad.callbacks.maps_monitor import MapsMonitor, objective_and_images
from lightning_attngrad.explain import Objective, Similarity
from lightning_attngrad.measure.drift import (
    LEADING,
    MOVED,
    DriftAlarm,
    PastDrift,
    Reference,
    class_scalars,
    disagreement_scalars,
    drift_scalars,
    measure_drift,
    what_moved,
)
from lightning_attngrad.measure.drift_figures import drift_figures
from lightning_attngrad.measure.kept import kept_drift, kept_maps
from lightning_attngrad.measure.maps import Maps, explain_images
from lightning_attngrad.measure.questions import check_question
from lightning_attngrad.measure.reference_weights import hash_of_weights, on_device, read_checkpoint, weights_for
from lightning_attngrad.metrics.functional.drift import DRIFT_MEASURES
from lightning_attngrad.probe import Evaluation, Findings, ProbeImages, jittered_copies
from lightning_attngrad.probe.moment import is_fitting
from lightning_attngrad.reporting.layout import Charts
from lightning_attngrad.reporting.style import PLAIN, FigureStyle


class AttentionDriftMonitor(MapsMonitor):
    """Measures how far a Vision Transformer's maps have moved, and how much of that is more than noise.

    Every so often it explains a frozen, class-balanced set of validation images for classes that never change, compares
    each map with that of the same image at a reference, and logs, to every logger,

    - ``attngrad/drift/spearman``, ``cosine``, ``ssim``, ``top_iou``, ``jensen_shannon``, ``centroid``: the distance to
      the reference, mean of the images, exactly 0 for equal maps;
    - ``floor/<measure>``: the noise floor, that is the same distance between the maps of the image and of slightly
      jittered copies of it (one pixel aside, but at most an eighth of a patch; 1 % of noise), by the weights of now;
    - ``ratio/<measure>``: mean drift over mean floor. About 1 says nothing;
    - ``per_class/<name>``: Spearman drift of the images of a true class, of the first 20 classes;
    - ``prediction_changed_map_stable``: how many images are predicted otherwise than at the reference while their map
      is no further from it than its own noise floor; ``map_changed_prediction_stable``: how many have a map further
      than ``alarm`` (else 2) times its own noise floor under an unchanged prediction; both by Spearman;
    - ``alarm``, where one is set: 1 while it is raised, else 0;
    - figures ``layers`` (drift of each layer over the evaluations), ``moved`` (the images that moved most, before and
      after) and ``curves`` (every measure against its noise floor).

    The first evaluation is its own reference, so that all distances start at 0. Maps without an order of patches, as a
    zero-initialised classifier gives them, are no reference: the next evaluation is taken. The reference lies in the
    checkpoint, with the conditions that it was measured under (images, question, part of the model, precision); a
    resumed run compares with the same one, or says what differs and takes a new one.

    Where several corrections are asked for, the figures and the plain names are of the first; numbers of the others
    have the correction behind the name, as in ``spearman/negative``.

    Args:
        probe: the images and how they are read; None shares the default of the Trainer's other monitors.
        num_images: short for ``probe=ProbeImages(num_images=…)``.
        every_n_epochs: evaluate in every n-th epoch's validation; 1 where neither this nor ``every_n_steps`` is given.
        every_n_steps: evaluate after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take, such as 0.05: evaluations that are due are
            skipped rather than take more, and never made with less care. None is no limit.
        scalars: ``main`` logs the numbers that the summary at the end of a fit shows, ``all`` every one; see
            :class:`Monitor`.
        figures: names of those that are drawn; None draws all, an empty list none.
        reference: ``start`` compares with the starting weights, ``previous`` with the evaluation before; anything else
            is the path of a checkpoint of this model, whose weights are compared with.
        method: as for :class:`AttentionMapMonitor`.
        objective: likewise.
        method_options: likewise.
        memory_budget: bytes for the temporaries of a block of attention rows; None follows the device.
        alarm: warn, and log ``alarm`` as 1, while ``ratio/spearman`` is above this number; None never.
        alarm_after: so many evaluations in a row.
        alarm_stops: end the run when the alarm is raised, as early stopping would.
        report: as for :class:`Monitor`: write the HTML report of the run when it ends.
        name: of this monitor, in ``attngrad/<name>/…``.
        style: how its figures look, see :class:`~lightning_attngrad.FigureStyle`.
        on_error: ``log`` reports an error inside an evaluation once and switches this monitor off; ``raise`` raises it.

    Raises:
        ValueError: for an argument that does not fit, at construction; before training for a wrong ``model`` path, for
            a checkpoint that cannot be read, is of another model, or meets sharded parameters.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> monitor = attngrad.AttentionDriftMonitor(every_n_epochs=2, alarm=5.0)
        >>> # trainer = L.Trainer(callbacks=[monitor])
    """

    main_scalars: Mapping[str, str] = MappingProxyType(
        {
            "spearman": "distance; 0 = as the reference",
            "floor/spearman": "noise floor: from noise alone",
            "ratio/spearman": "of the two; 1 says nothing",
            "prediction_changed_map_stable": "images",
            "map_changed_prediction_stable": "images",
        }
    )

    drawable = ("curves", "layers", "moved")

    def __init__(
        self,
        *,
        probe: ProbeImages | None = None,
        num_images: int | None = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
        scalars: Literal["main", "all"] = "main",
        figures: Sequence[str] | None = None,
        reference: str = "start",
        method: str | None = None,
        objective: Literal["logit", "margin", "start"] | Objective | Similarity | Callable[[Any], Tensor] = "logit",
        method_options: dict[str, Any] | None = None,
        memory_budget: int | None = None,
        alarm: float | None = None,
        alarm_after: int = 2,
        alarm_stops: bool = False,
        report: bool = False,
        name: str = "drift",
        style: FigureStyle = PLAIN,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        objective, probe, num_images = objective_and_images(objective, probe, num_images)
        super().__init__(
            name=name,
            probe=probe,
            num_images=num_images,
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            max_overhead=max_overhead,
            scalars=scalars,
            figures=figures,
            report=report,
            style=style,
            on_error=on_error,
        )
        self.question = check_question(method, objective, method_options, has_masks=self.probe.mask is not None)
        if not isinstance(reference, str) or not reference:
            raise ValueError(f"reference: got {reference!r}; expected 'start', 'previous' or the path of a checkpoint")
        if isinstance(alarm_after, bool) or not isinstance(alarm_after, int) or alarm_after < 1:
            raise ValueError(f"alarm_after: got {alarm_after!r}; expected a positive number of evaluations")
        if not isinstance(alarm_stops, bool) or (alarm_stops and alarm is None):
            raise ValueError(
                f"alarm_stops: got {alarm_stops!r} with alarm={alarm!r}; expected a bool, and an alarm to stop at"
            )
        self.reference = reference
        self.memory_budget = memory_budget
        self.alarm = None if alarm is None else DriftAlarm(alarm, alarm_after)
        if self.alarm is not None:
            self.main_scalars = {**self.main_scalars, "alarm": "1 while it is raised"}
        self.alarm_stops = alarm_stops
        self._saved: dict[str, Tensor] | None = None  # of the checkpoint: the whole LightningModule
        self._weights: dict[str, Tensor] | None = None  # of the checkpoint: the part that is explained
        self._reference_id: str | None = None  # of the checkpoint: hash of these weights
        self._references: dict[str, Reference] = {}  # by the name of the panel, "" for the first
        self.past: list[PastDrift] = []

    # Before anything runs -----------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Read the checkpoint, where one is the reference; a ``predict`` compares with nothing."""
        super().setup(trainer, pl_module, stage)
        if self.reference not in ("start", "previous") and stage != "predict":
            self._saved = read_checkpoint(self.reference)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Let go of the checkpoint's weights: their maps are kept."""
        self._saved = self._weights = None

    def _begin(self, pl_module: pl.LightningModule) -> None:
        super()._begin(pl_module)
        if self._saved is not None:
            assert self.shared.model is not None
            self._weights = weights_for(self.shared.model, self._saved, self.probe.model)
            self._reference_id = hash_of_weights(self._weights)

    # Evaluations --------------------------------------------------------------------------------------------

    def evaluate(self, evaluation: Evaluation) -> Findings:
        """Explain the images and their jittered copies, and compare with the reference."""
        question = self.asked(evaluation)
        maps = self._maps(evaluation)
        height, width = maps.heatmap.shape[-2:]
        copies = jittered_copies(evaluation.images, (height, width), evaluation.seed)
        jittered = [self._maps(evaluation, images) for images in copies]
        then = {} if self._references else self._maps_of_checkpoint(evaluation)

        scalars: dict[str, float] = {}
        measured = []
        for panel, now in maps.by_panel():
            beside = [dict(copy.by_panel())[panel] for copy in jittered]
            is_now = Reference.of(now, evaluation.label, evaluation.task)
            reference = self._references.get(panel) or then.get(panel)
            if reference is None and evaluation.in_history and self._weights is None:
                reference = is_now
            drift = measure_drift(reference, now, beside)
            factor = MOVED if self.alarm is None else self.alarm.threshold
            numbers = drift_scalars(drift) | class_scalars(evaluation, drift)
            numbers |= disagreement_scalars(drift, reference, is_now, factor)
            scalars |= {f"{name}{panel}": value for name, value in numbers.items()}
            measured.append((panel, reference, is_now, drift))
        _, reference, is_now, drift = measured[0]

        if self.alarm is not None:
            if evaluation.in_history and self.alarm.hear(drift.ratio[LEADING]):
                rank_zero_warn(
                    f"{type(self).__name__}: maps have moved. At {evaluation.label} their Spearman drift is "
                    f"{scalars[LEADING]:.2f}, {drift.ratio[LEADING]:.1f} times their noise floor, and above "
                    f"alarm={self.alarm.threshold:g} for {self.alarm.after} evaluations in a row. "
                    f"{what_moved(evaluation, drift, maps.layer_names, scalars)}"
                )
            scalars["alarm"] = float(self.alarm.is_raised)
        past = [*self.past, PastDrift.of(drift, evaluation.label)]

        def draw() -> dict[str, Figure]:
            return drift_figures(evaluation, question, drift, reference, is_now, past, maps, self.style)

        if evaluation.in_history:
            self.past = past
            for panel, compared, here, _ in measured:
                kept = here if self.reference == "previous" and here.says_something else compared
                if kept is not None and kept.says_something:
                    self._references[panel] = kept
                else:
                    self._references.pop(panel, None)

        def keep() -> dict[str, Any]:
            return {
                **kept_maps(evaluation, question, replace(maps, layers=None)),
                **kept_drift(drift, reference, maps.layer_names),
            }

        return Findings(scalars, draw, keep)

    def _maps(self, evaluation: Evaluation, images: Tensor | None = None) -> Maps:
        return explain_images(evaluation, self.asked(evaluation), images, memory_budget=self.memory_budget)

    def _maps_of_checkpoint(self, evaluation: Evaluation) -> dict[str, Reference]:
        if self._weights is None:
            return {}
        then = self._maps(evaluation.with_weights(on_device(self._weights, evaluation.images.device)))
        return {panel: Reference.of(maps, "the checkpoint", evaluation.task) for panel, maps in then.by_panel()}

    def knows_enough(self) -> bool:
        """Whether there is something to compare with; a ratio to a noise floor of 0 is a number too: ∞."""
        return bool(self.scalars) and "" in self._references

    # The alarm ----------------------------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was found, and stop where the alarm says so."""
        super().on_validation_epoch_end(trainer, pl_module)
        if is_fitting(trainer) and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise, where there is no validation."""
        super().on_train_epoch_end(trainer, pl_module)
        self._stop_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Likewise, where the cadence counts steps."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        """By the scalar, which all processes have from the first one."""
        if self.alarm_stops and not self._off and self.scalars.get("alarm") == 1:
            trainer.should_stop = True

    # What is kept -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The question that is asked of each image, and what the maps are compared with."""
        kind = self.reference if self.reference in ("start", "previous") else "a checkpoint"
        return {**super().settings(), "reference": kind}

    def further_conditions(self, evaluation: Evaluation) -> dict[str, Any]:
        """Also the weights of the checkpoint that is compared with."""
        return {**super().further_conditions(evaluation), "weights of the reference": self._reference_id}

    def history(self) -> dict[str, Any]:
        """The references and the curves."""
        return {
            **super().history(),
            "references": {panel: reference.plain() for panel, reference in self._references.items()},
            "past": [one.plain() for one in self.past],
            "alarm": 0 if self.alarm is None else self.alarm.evaluations,
            "alarm_at": None if self.alarm is None else [self.alarm.threshold, self.alarm.after],
        }

    def recall(self, history: Mapping[str, Any]) -> None:
        """Go on with the same references."""
        super().recall(history)
        self._references = {panel: Reference(**reference) for panel, reference in history["references"].items()}
        self.past = [PastDrift(**one) for one in history["past"]]
        if self.alarm is not None:
            at = [self.alarm.threshold, self.alarm.after]
            same = list(history.get("alarm_at") or at) == at  # evaluations above another threshold say nothing
            self.alarm.evaluations = history["alarm"] if same else 0
            if "alarm" in self.scalars:
                self.scalars["alarm"] = float(self.alarm.is_raised)

    def forget(self) -> None:
        """Drop the history of another run, or of other images."""
        super().forget()
        self._references = {}
        self.past = []
        if self.alarm is not None:
            self.alarm.evaluations = 0

    def charts(self) -> Charts:
        """Each measure with its noise floor, all ratios, and what became of predictions."""
        return {
            **{f"{measure}, and its noise floor": (measure, f"floor/{measure}") for measure in DRIFT_MEASURES},
            "ratio of drift to noise floor": ("ratio/",),
            "drift by class": ("per_class/",),
            "images: map and prediction apart": ("prediction_changed_map_stable", "map_changed_prediction_stable"),
        }
