"""AttentionDriftMonitor: how far the maps of a model have moved while it is being fine-tuned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attngrad.callbacks.drift import (
    LEADING,
    MOVED,
    DriftAlarm,
    LookBack,
    Reference,
    class_scalars,
    conditions_hash,
    drift_scalars,
    flip_scalars,
    measure_drift,
    what_moved,
)
from lightning_attngrad.callbacks.drift_figures import drift_figures
from lightning_attngrad.callbacks.frozen_maps import FrozenMaps
from lightning_attngrad.callbacks.look import Findings, Probe
from lightning_attngrad.callbacks.probe_monitor import ProbeMonitor
from lightning_attngrad.callbacks.reference_weights import hash_of_weights, on_device, read_checkpoint, weights_for
from lightning_attngrad.callbacks.timetable import is_fitting
from lightning_attngrad.explain import DEFAULT_METHOD
from lightning_attngrad.explain.corrections import CorrectionName
from lightning_attngrad.metrics.functional.drift import DRIFT_MEASURES
from lightning_attngrad.probe import jittered_copies, probe_forward
from lightning_attngrad.reporting.layout import Charts

_log = logging.getLogger("lightning_attngrad")


class AttentionDriftMonitor(ProbeMonitor):
    """Measures how far a Vision Transformer's maps have moved, and how much of that is more than noise.

    Every so often it explains a frozen, class-balanced set of validation images for classes that never change, compares
    each map with that of the same image at a reference, and logs, to every logger,

    - ``attngrad/drift/spearman``, ``cosine``, ``ssim``, ``top_iou``, ``jensen_shannon``, ``centroid``: the distance to
      the reference, mean of the images, exactly 0 for equal maps;
    - ``floor/<measure>``: the same distance between the maps of the image and of slightly jittered copies of it (one
      pixel aside, but at most an eighth of a patch; 1 % of noise), by the weights of now;
    - ``ratio/<measure>``: mean drift over mean floor. About 1 says nothing;
    - ``per_class/<name>``: Spearman drift of the images of a true class, of the first 20 classes;
    - ``flipped_map_stayed``: how many images are predicted otherwise than at the reference while their map is no
      further from it than its own floor; ``moved_prediction_stayed``: how many have a map further than ``alarm`` (else
      2) times its own floor under an unchanged prediction; both by Spearman;
    - ``alarm``, where one is set: 1 while it is raised, else 0;
    - figures ``layers`` (drift of each layer over the looks), ``moved`` (the images that moved most, before and after)
      and ``curves`` (every measure against its floor).

    The first look is its own reference, so that all distances start at 0. Maps without an order of patches, as a head
    of zeros gives them, are no reference: the next look is taken. The reference lies in the checkpoint, with a hash of
    images, classes, method, model path and precision; a resumed run compares with the same one, or says why it cannot.

    Args:
        num_images: how many validation images are looked at.
        every_n_epochs: look in every n-th epoch's validation; 1 where neither this nor ``every_n_steps`` is given.
        every_n_steps: look after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take, such as 0.05: it passes over looks that are
            due rather than take more, and never looks less closely. None is no limit.
        reference: ``start`` compares with the starting weights, ``previous`` with the look before; anything else is the
            path of a checkpoint of this model, whose weights are compared with.
        method: any that :func:`lightning_attngrad.explain` knows.
        objective: ``logit``, ``margin``, or a function from the model's output to one number an image.
        correction: for ``method="gradient_guided"``.
        alarm: warn, and log ``alarm`` as 1, while ``ratio/spearman`` is above this number; None never.
        alarm_after: so many looks in a row.
        alarm_stops: end the run when the alarm is raised, as early stopping would.
        class_names: names of the classes; else they are looked for on the datamodule, the data set and the model.
        image_key: where the images are in a batch, as in ``pixel_values`` or ``inputs.image``; else it is found out.
        target_key: where the classes are in a batch.
        batch_adapter: function, or its import path, from a batch to ``(images, targets or None)``.
        model: path of the part of the LightningModule that maps images to logits; None is the module itself.
        mean: per channel, with which the images were normalised; else it is looked for. Only for showing them.
        std: likewise.
        dataloader_idx: which validation loader the images come from.
        name: of this monitor, in ``attngrad/<name>/…``.
        seed: of the choice of images, and of the noise of their copies.
        on_error: ``log`` reports an error inside a look once and lets this monitor rest; ``raise`` raises it.

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
            "spearman": "distance to the reference; 0 = the same",
            "floor/spearman": "the same, from noise alone",
            "ratio/spearman": "of the two; 1 says nothing",
            "flipped_map_stayed": "images whose prediction alone changed",
            "moved_prediction_stayed": "images whose map alone changed",
        }
    )

    def __init__(
        self,
        *,
        num_images: int = 16,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
        reference: str = "start",
        method: str = DEFAULT_METHOD,
        objective: Literal["logit", "margin"] | Callable[[Any], Tensor] = "logit",
        correction: CorrectionName = "positive",
        alarm: float | None = None,
        alarm_after: int = 2,
        alarm_stops: bool = False,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        image_key: str | int | None = None,
        target_key: str | int | None = None,
        batch_adapter: Callable[[Any], tuple[Tensor, Tensor | None]] | str | None = None,
        model: str | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        dataloader_idx: int = 0,
        name: str = "drift",
        seed: int = 0,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        super().__init__(
            name=name,
            num_images=num_images,
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            max_overhead=max_overhead,
            class_names=class_names,
            image_key=image_key,
            target_key=target_key,
            batch_adapter=batch_adapter,
            model=model,
            mean=mean,
            std=std,
            dataloader_idx=dataloader_idx,
            seed=seed,
            on_error=on_error,
        )
        self.maps = FrozenMaps(method, objective, correction)
        if not isinstance(reference, str) or not reference:
            raise ValueError(f"reference: got {reference!r}; expected 'start', 'previous' or the path of a checkpoint")
        if isinstance(alarm_after, bool) or not isinstance(alarm_after, int) or alarm_after < 1:
            raise ValueError(f"alarm_after: got {alarm_after!r}; expected a positive number of looks")
        if not isinstance(alarm_stops, bool) or (alarm_stops and alarm is None):
            raise ValueError(
                f"alarm_stops: got {alarm_stops!r} with alarm={alarm!r}; expected a bool, and an alarm to stop at"
            )
        self.reference = reference
        self.alarm = None if alarm is None else DriftAlarm(alarm, alarm_after)
        self.alarm_stops = alarm_stops
        self._saved: dict[str, Tensor] | None = None  # of the checkpoint: the whole LightningModule
        self._weights: dict[str, Tensor] | None = None  # of the checkpoint: the part that is looked at
        self._reference_id = reference
        self._forward_then: Callable[[Tensor], Any] | None = None  # with the weights of the checkpoint
        self.forget()

    def charts(self) -> Charts:
        """Each measure with its floor, all ratios, and what became of predictions."""
        return {
            **{f"{measure}, and its floor": (measure, f"floor/{measure}") for measure in DRIFT_MEASURES},
            "ratio of drift to floor": ("ratio/",),
            "drift by class": ("per_class/",),
            "images: map and prediction apart": ("flipped_map_stayed", "moved_prediction_stayed"),
        }

    def forget(self) -> None:
        """Drop the history of another run, or of other images."""
        super().forget()
        self.maps.forget()
        self._forget_looks()

    def _forget_looks(self) -> None:
        self._reference: Reference | None = None
        self._looks: list[LookBack] = []
        self._history_hash: str | None = None  # that what is remembered was measured under
        if self.alarm is not None:
            self.alarm.looks = 0

    # Before anything runs -----------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Read the checkpoint, where one is the reference."""
        super().setup(trainer, pl_module, stage)
        if self.reference not in ("start", "previous"):
            self._saved = read_checkpoint(self.reference)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Let go of the checkpoint's weights: their maps are kept."""
        self._saved = self._weights = self._forward_then = None

    def _begin(self, pl_module: pl.LightningModule) -> None:
        super()._begin(pl_module)
        if self._saved is not None:
            assert self._model is not None
            self._weights = weights_for(self._model, self._saved, self._model_path)
            self._reference_id = hash_of_weights(self._weights)

    # Looks --------------------------------------------------------------------------------------------------

    def _probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule, label: str) -> Probe:
        probe = super()._probe(trainer, pl_module, label)
        if self._weights is not None:
            weights = on_device(self._weights, probe.images.device)
            self._forward_then = probe_forward(trainer, probe.model, weights)
        return probe

    def look(self, probe: Probe, *, remember: bool) -> Findings:
        """Explain the images and their jittered copies, and compare with the reference."""
        maps = self.maps.explain(probe)
        height, width = maps.heatmap.shape[-2:]
        copies = jittered_copies(probe.images, (height, width), self._seed)
        jittered = [self.maps.explain(probe, images) for images in copies]
        conditions = conditions_hash(probe, self.maps, self.probe_set.hash, self._reference_id)
        self._refuse_to_compare(conditions)
        now = Reference.of(maps, probe.label)
        reference = self._reference
        if reference is None and self._forward_then is not None:
            then = self.maps.explain(replace(probe, forward=self._forward_then))
            reference = Reference.of(then, "the checkpoint")
        elif reference is None and remember:
            reference = now
        drift = measure_drift(reference, maps, jittered)

        factor = MOVED if self.alarm is None else self.alarm.threshold
        scalars = drift_scalars(drift) | class_scalars(probe, drift) | flip_scalars(drift, reference, now, factor)
        if self.alarm is not None:
            if remember and self.alarm.hear(drift.ratio[LEADING]):
                rank_zero_warn(
                    f"{type(self).__name__}: maps have moved. At {probe.label} their Spearman drift is "
                    f"{scalars[LEADING]:.2f}, {drift.ratio[LEADING]:.1f} times what noise gives, and above "
                    f"alarm={self.alarm.threshold:g} for {self.alarm.after} looks in a row. "
                    f"{what_moved(probe, drift, maps.layer_names, scalars)}"
                )
            scalars["alarm"] = float(self.alarm.is_raised)
        looks = [*self._looks, LookBack.of(drift, probe.label)]

        def draw() -> dict[str, Figure]:
            return drift_figures(probe, self.maps, drift, reference, now, looks, maps.layer_names)

        if remember:
            self._history_hash = conditions
            self._looks = looks
            kept = now if self.reference == "previous" and now.says_something else reference
            self._reference = kept if kept is not None and kept.says_something else None
        return Findings(scalars, draw)

    def _refuse_to_compare(self, conditions: str) -> None:
        """Begin the history anew where it was measured under other conditions: a resumed run may have other ones."""
        if self._history_hash not in (None, conditions):
            _log.warning(
                "%s: images, classes, method, model path, precision or reference are not those of the looks before "
                "(hash %.8s… then, %.8s… now): nothing is compared with them, and the reference is taken anew",
                type(self).__name__,
                self._history_hash,
                conditions,
            )
            self._forget_looks()

    def knows_enough(self) -> bool:
        """Whether there is something to compare with; a ratio to a floor of 0 is a number too: ∞."""
        return bool(self.scalars) and self._reference is not None

    # The alarm ----------------------------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was seen, and stop where the alarm says so."""
        super().on_validation_epoch_end(trainer, pl_module)
        if is_fitting(trainer) and not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Likewise, where the cadence counts steps."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        """By the scalar, which all processes have from the first one."""
        if self.alarm_stops and not self._resting and self.scalars.get("alarm") == 1:
            trainer.should_stop = True

    # Resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The reference, the curves and the frozen classes, beside what every monitor keeps."""
        return {
            **super().state_dict(),
            "question": self.maps.question,
            "target": self.maps.target,
            "compared_with": self._reference_kind,
            "reference": None if self._reference is None else self._reference.plain(),
            "looks": [look.plain() for look in self._looks],
            "alarm_looks": 0 if self.alarm is None else self.alarm.looks,
            "drift_hash": self._history_hash,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same reference, unless something else is asked of the images now."""
        super().load_state_dict(state_dict)
        asked = [self.maps.question, self._reference_kind]
        if [state_dict["question"], state_dict["compared_with"]] != asked:
            _log.warning(
                "%s: method, objective or reference are not those of the run that is resumed (%s, %s then; %s, %s "
                "now): what was measured before is not compared with what follows, and the reference is taken anew",
                type(self).__name__,
                state_dict["question"],
                state_dict["compared_with"],
                *asked,
            )
            self.forget()
            return
        self.maps.target = state_dict["target"]
        self._reference = None if state_dict["reference"] is None else Reference(**state_dict["reference"])
        self._looks = [LookBack(**look) for look in state_dict["looks"]]
        if self.alarm is not None:
            self.alarm.looks = state_dict["alarm_looks"]
        self._history_hash = state_dict["drift_hash"]

    @property
    def _reference_kind(self) -> str:
        return self.reference if self.reference in ("start", "previous") else "a checkpoint"
