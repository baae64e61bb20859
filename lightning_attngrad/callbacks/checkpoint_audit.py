"""CheckpointAudit: what each checkpoint is worth, written into it and beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn

from lightning_attngrad.callbacks.base import ProbeCallback
from lightning_attngrad.explain import TASKS
from lightning_attngrad.measure.audit_record import AuditRecord, own_metrics, record_address
from lightning_attngrad.measure.map_scalars import completeness_scalars
from lightning_attngrad.measure.maps import Maps, explain_images
from lightning_attngrad.measure.questions import question_of_maps
from lightning_attngrad.measure.rewrite_figures import rewrite_figures
from lightning_attngrad.measure.rewrite_scalars import ill_health, rewrite_scalar_names, rewrite_scalars
from lightning_attngrad.measure.rewriting import FrozenTargets, RewriteSettings, comparison_hash, rewrite_images
from lightning_attngrad.metrics.functional import map_statistics
from lightning_attngrad.metrics.functional.maps import MAP_STATISTICS
from lightning_attngrad.probe import Evaluation, Findings, ProbeImages
from lightning_attngrad.probe.checkpoint_files import CheckpointFile, checkpoint_files
from lightning_attngrad.probe.moment import Moment, averaging, is_fitting, moment, swaps_at_the_end, whose_weights
from lightning_attngrad.reporting.board import board_tag
from lightning_attngrad.reporting.files import remove_from
from lightning_attngrad.reporting.loggers import log_scalars, scalar_step


class CheckpointAudit(ProbeCallback):
    """Writes into each checkpoint, and into a small JSON file beside it, where it looks and how easily it is rewritten.

    When a checkpoint is saved, the frozen validation images are explained and rewritten with just these weights, once
    however many files are saved at that step. The figures stand under this callback's state in the checkpoint, and in
    ``<checkpoint>.audit.json`` beside it, together with the run's own scalars, the settings and a hash of all that has
    to be the same for two of them to compare. So the best, the last and the most robust checkpoint can be told apart
    without loading a weight. ``lightning-attngrad audit`` recomputes the same figures from the checkpoints.

    What another callback has found of the same images at the same step is not worked out again.
    A checkpoint saved with ``trainer.save_checkpoint`` holds its figures; a file beside it is written for those of
    ``ModelCheckpoint`` only, whose names are known, and is removed when ``ModelCheckpoint`` removes the checkpoint.
    With weight averaging a checkpoint holds the average, which is in place during validation alone: the audit then
    evaluates at each validation, and a checkpoint saved between validations says why it has no figures.
    Of a model of regression, which has no classes to rewrite, there are figures of maps alone.
    Maps are by the default method of :func:`lightning_attngrad.explain`, or by what stands in for it where the model
    does not permit it: the record's settings name it. Of a model of which no map can be made there are no such figures.

    Args:
        probe: the images and how they are read; None shares the default of the Trainer's other monitors.
        num_images: short for ``probe=ProbeImages(num_images=…)``.
        norm: see :class:`RewriteRobustnessMonitor`, as for the next three.
        steps: gradients an image.
        target: which class images are rewritten to.
        radii: at which success is reported.
        report: as for :class:`Monitor`: write the HTML report of the run when it ends.
        name: of this callback, where a run has several.
        on_error: ``log`` reports an error inside an evaluation once and switches this callback off; ``raise`` raises
            it.

    Raises:
        ValueError: for an argument that does not fit, at construction; for a wrong ``model`` path before training.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> audit = attngrad.CheckpointAudit(num_images=32)
        >>> # trainer = L.Trainer(callbacks=[audit, ModelCheckpoint(save_top_k=3, monitor="val_loss")])
    """

    needs_pixels = True

    def __init__(
        self,
        *,
        probe: ProbeImages | None = None,
        num_images: int | None = None,
        norm: Literal["linf", "l2", "l0", "l0_patches"] = "linf",
        steps: int = 16,
        target: Literal["random", "runner_up", "least_likely", "all"] | int = "random",
        radii: Sequence[float] | None = None,
        report: bool = False,
        name: str = "audit",
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        super().__init__(name=name, probe=probe, num_images=num_images, report=report, on_error=on_error)
        self.rewriting = RewriteSettings(norm, steps, target, () if radii is None else radii)
        self.main_scalars = {
            f"rewrite/median_{norm}": "smallest change found; less is easier",
            "rewrite/area": "under success; more is easier",
            "maps/entropy": "0 = one patch, 1 = spread evenly",
        }
        self.record: AuditRecord | None = None
        self.distances: list[float] = []  # of the image–target pairs of the last evaluation
        self.hash: str | None = None  # SHA-256 of images, classes and settings: figures of another do not compare
        self.method: str | None = None  # of the maps; None where no map can be made of the model
        self.task: Any = None  # in plain values; None where the model tells classes apart that exclude each other
        self._frozen: FrozenTargets | None = None
        self._evaluated_at: Moment | None = None
        self._described: dict[str, CheckpointFile] = {}  # checkpoints that have their file
        self._may_evaluate = False
        self._could_write = True

    # When it evaluates --------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images, and record the checkpoints that are there already."""
        super().on_train_start(trainer, pl_module)
        self._may_evaluate = self._could_write = True
        self._described = checkpoint_files(trainer)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate in a validation of its own, and where averaged weights are in place only now."""
        first = batch_idx == 0 and dataloader_idx == 0
        if first and not trainer.sanity_checking and (not is_fitting(trainer) or averaging(trainer)):
            self._audit(trainer, pl_module, averaged=True)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The images of a stream have gone by."""
        super().on_validation_epoch_end(trainer, pl_module)
        if not trainer.sanity_checking and not is_fitting(trainer):
            self._audit(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Evaluate the weights that are being saved, and put the figures into the checkpoint."""
        if is_fitting(trainer):
            self._audit(trainer, pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    # ModelCheckpoint comes last in every hook, so that its files are found in the hooks that follow.

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Describe what was saved after the last step."""
        self._describe_checkpoints(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise."""
        super().on_validation_start(trainer, pl_module)
        self._describe_checkpoints(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Describe what was saved at the end of the validation."""
        super().on_train_epoch_end(trainer, pl_module)
        self._describe_checkpoints(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Describe what was saved at the end of the epoch."""
        super().on_train_end(trainer, pl_module)
        self._describe_checkpoints(trainer, pl_module)
        if swaps_at_the_end(trainer):
            self._evaluated_at = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Describe what was saved at the end of training."""
        self._describe_checkpoints(trainer, pl_module)
        self._may_evaluate = False
        super().on_fit_end(trainer, pl_module)

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Evaluate no more: another process may be waiting somewhere else.

        What is saved from now on says in itself that it was not evaluated: no hook follows in which a file could be
        written.
        """
        self._may_evaluate = False
        self._describe_checkpoints(trainer, pl_module)

    def whereabouts(self) -> str:
        """It logs no figures."""
        return f"in each checkpoint, and in {Path(record_address('*.ckpt', self.name)).name} beside it"

    # What it finds ------------------------------------------------------------------------------------------

    def evaluate(self, evaluation: Evaluation) -> Findings:
        """Maps and rewrites of the frozen images; of numbers, which are no classes, maps alone."""
        rewrites = evaluation.task.name != TASKS["regression"].name
        self.task = evaluation.task.plain()
        if self._frozen is None and rewrites:
            self._frozen = FrozenTargets.of_this_run(evaluation, self.rewriting.target)
        question, _ = question_of_maps(evaluation)  # where there is none, the rewriting says why
        self.method = None if question is None else question.method
        self.hash = comparison_hash(evaluation, self.rewriting, self._frozen, method=self.method)
        numbers = {} if question is None else _map_numbers(explain_images(evaluation, question))
        if self._frozen is None:
            return Findings(numbers)
        pairs, shown = rewrite_images(evaluation, self.rewriting, self._frozen)
        self.distances = pairs.distance.tolist()
        rewritten = rewrite_scalars(pairs, self.rewriting)

        def draw() -> dict[str, Any]:
            curves = {evaluation.label: self.distances}
            return rewrite_figures(evaluation, self.rewriting, pairs, shown, curves, ill_health(rewritten))

        return Findings({**numbers, **{f"rewrite/{name}": value for name, value in rewritten.items()}}, draw)

    def how_to_spend_less(self, example: float) -> str:  # noqa: ARG002
        """Fewer checkpoints: it evaluates each."""
        return (
            "It evaluates every checkpoint that is saved: ModelCheckpoint(every_n_epochs=…) saves fewer, and "
            f"a smaller {type(self).__name__}(num_images=…) costs less"
        )

    def figure_names(self) -> set[str]:
        """Every name that a figure of its record may have; which of them it has depends on the model and its task."""
        of_maps = {f"maps/{name}" for name in (*MAP_STATISTICS, "completeness_error")}
        return of_maps | {f"rewrite/{name}" for name in rewrite_scalar_names(self.rewriting)}

    def _begin(self, pl_module: pl.LightningModule) -> None:
        super()._begin(pl_module)
        self._evaluated_at = None  # other weights may have been loaded since

    def _audit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, averaged: bool = False) -> None:
        """Make the record of the weights as they are; the same one for all checkpoints of a moment.

        Args:
            trainer: the Trainer.
            pl_module: the LightningModule.
            averaged: whether averaged weights, where there are any, are in place.
        """
        now = moment(trainer)
        if self.record is not None and self._evaluated_at == now and not self.record.why_empty:
            self.record = replace(self.record, metrics=own_metrics(trainer))  # a validation may have come between
            return
        why = self._why_not(trainer, averaged)
        weights = ""
        if not why:
            self._together.evaluate(trainer, pl_module, [self], _label(trainer))
            self._found = None  # the report reads the file beside the checkpoint
            self._agree(trainer)
            weights = whose_weights(trainer, self)
            why = f"the audit is switched off: {self._why_off}" if self._off else ""
        self._evaluated_at = now
        seconds = self.account.take()
        self._log_seconds(trainer, seconds)
        known = self.probe
        self.record = AuditRecord(
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
            figures={} if why else dict(self.scalars),
            metrics=own_metrics(trainer),
            images={"count": len(self.probe_set), "hash": self.probe_set.hash},
            settings={
                "num_images": known.num_images,
                "seed": known.seed,
                **self.rewriting.plain(),
                "dataloader_idx": known.dataloader_idx,
                "image_key": _plain_key(known.image_key),
                "target_key": _plain_key(known.target_key),
                "model": known.model,
                "mean": _plain_key(known.mean),
                "std": _plain_key(known.std),
                "task": known.task if isinstance(known.task, str) else self.task,
                "pixel_range": _plain_key(known.pixel_range),
                "channels": _plain_key(known.channels),
                "precision": str(trainer.precision),
                "method": self.method,
            },
            hash=self.hash,
            seconds=seconds,
            weights=weights,
            why_empty=why,
        )

    def _log_seconds(self, trainer: pl.Trainer, seconds: float) -> None:
        """Straight to the loggers: nothing can be logged otherwise while a checkpoint is saved."""
        if is_fitting(trainer):
            # A logger that fails, or is closed already, must not cost the checkpoint.
            with contextlib.suppress(Exception):
                tags = {self._key("seconds"): board_tag(self.name, "seconds", "cost")}
                log_scalars(trainer, {self._key("seconds"): seconds}, scalar_step(trainer), tags)

    def _why_not(self, trainer: pl.Trainer, averaged: bool) -> str:
        """Why no evaluation can be made now; empty if it can."""
        if self._off:
            return f"the audit is switched off: {self._why_off}"
        if not self.probe_set.is_frozen:
            return "the images were not known yet: no validation had given them"
        if trainer.state.status != TrainerStatus.RUNNING or (is_fitting(trainer) and not self._may_evaluate):
            return "the run had ended or failed, and these weights had not been evaluated before"
        if is_fitting(trainer) and averaging(trainer) and not averaged:
            return "the averaged weights are in place during a validation only, and there was none with these"
        return ""

    # The file beside a checkpoint ---------------------------------------------------------------------------

    def _describe_checkpoints(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the record beside each checkpoint that has none yet; a collective operation if there is one."""
        if not is_fitting(trainer) or trainer.sanity_checking:
            return
        there = checkpoint_files(trainer)
        new = {path: file for path, file in there.items() if file.is_new(self._described.get(path))}
        gone = self._described.keys() - there.keys()
        self._described = there
        asked = self.record  # for, when the last one was saved
        bare = self._record_of_weights_only(trainer, pl_module) if any(f.weights_only for f in new.values()) else None
        if not trainer.is_global_zero:
            return
        for path, file in new.items():
            self._write(path, bare if file.weights_only else asked)
        for path in gone:
            if "://" not in path and not Path(path).exists():  # ModelCheckpoint forgets some that it does not remove
                remove_from(record_address(path, self.name))

    def _record_of_weights_only(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> AuditRecord | None:
        """Of a checkpoint that was saved without callbacks, so that nobody asked for its figures."""
        self._audit(trainer, pl_module)
        if self.record is None or not averaging(trainer):
            return self.record
        why = "saved with weights only, it holds the weights before averaging, which were not evaluated"
        return replace(self.record, figures={}, why_empty=why)

    def _write(self, checkpoint: str, record: AuditRecord | None) -> None:
        if record is None:
            return
        try:
            record.write_beside(checkpoint, self.name)
        except Exception as error:  # object stores have errors of their own
            if self._could_write:
                self._could_write = False
                rank_zero_warn(
                    f"{type(self).__name__} could not write {record_address(checkpoint, self.name)}: {error}. The "
                    "figures are in the checkpoint itself; training goes on, and further failures are not reported in "
                    "this run."
                )

    # What is kept -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What is asked of each image."""
        return self.rewriting.plain()

    def saved_state(self) -> dict[str, Any]:
        """The record, beside what every callback keeps: also where the history begins anew."""
        return {**super().saved_state(), "record": None if self.record is None else self.record.plain()}

    def history(self) -> dict[str, Any]:
        """The frozen classes."""
        return {"frozen": None if self._frozen is None else self._frozen.plain()}

    def recall(self, history: Mapping[str, Any]) -> None:
        """The same classes."""
        self._frozen = None if history["frozen"] is None else FrozenTargets(**history["frozen"])

    def forget(self) -> None:
        """Drop what belongs to another run, or to other images."""
        super().forget()
        self.record = self.hash = self.method = self.task = self._frozen = self._evaluated_at = None


def _map_numbers(maps: Maps) -> dict[str, float]:
    """Of the maps of the images' own classes."""
    found = {**map_statistics(maps.heatmap), **completeness_scalars(maps)}
    return {f"maps/{name}": value for name, value in found.items()}


def _plain_key(key: Any) -> Any:
    """A key as a checkpoint may hold it: a path of several parts is a list."""
    return key if key is None or isinstance(key, str | int) else list(key)


def _label(trainer: pl.Trainer) -> str:
    return f"step {trainer.global_step}" if is_fitting(trainer) else str(getattr(trainer.state.fn, "value", "now"))
