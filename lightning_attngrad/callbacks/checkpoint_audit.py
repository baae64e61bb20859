"""CheckpointAudit: what each checkpoint is worth, written into it and beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_attngrad.attention import UnsupportedModelError
from lightning_attngrad.callbacks.audit_record import AuditRecord, record_address
from lightning_attngrad.callbacks.checkpoint_files import CheckpointFile, checkpoint_files
from lightning_attngrad.callbacks.image_probe import ImageProbe
from lightning_attngrad.callbacks.look import Findings, Probe
from lightning_attngrad.callbacks.rewrite_figures import rewrite_figures
from lightning_attngrad.callbacks.rewrite_robustness_monitor import RewriteRobustnessMonitor
from lightning_attngrad.callbacks.rewriting import (
    FrozenTargets,
    RewriteSettings,
    conditions_of,
    ill_health,
    rewrite_probe,
    rewrite_scalars,
)
from lightning_attngrad.callbacks.timetable import Moment, averaging, is_fitting, moment, swaps_at_the_end
from lightning_attngrad.explain import explain
from lightning_attngrad.metrics.functional import map_statistics
from lightning_attngrad.reporting.files import remove_from
from lightning_attngrad.reporting.loggers import scalar_step

_SHOWN = 6  # rows that are drawn


class CheckpointAudit(ImageProbe):
    """Writes into each checkpoint, and into a small JSON file beside it, where it looks and how easily it is rewritten.

    When a checkpoint is saved, the frozen validation images are explained and rewritten with just these weights, once
    however many files are saved at that step. The figures stand under this callback's state in the checkpoint, and in
    ``<checkpoint>.audit.json`` beside it, together with the run's own scalars, the settings and a hash of all that has
    to be the same for two of them to compare. So the best, the last and the most robust checkpoint can be told apart
    without loading a weight. ``lightning-attngrad audit`` recomputes the same figures from the checkpoints.

    What a :class:`RewriteRobustnessMonitor` of the same settings has measured at the same step is not measured again.
    A checkpoint saved with ``trainer.save_checkpoint`` holds its figures; a file beside it is written for those of
    ``ModelCheckpoint`` only, whose names are known, and is removed when ``ModelCheckpoint`` removes the checkpoint.
    With weight averaging a checkpoint holds the average, which is in place during validation alone: the audit then
    looks at each validation, and a checkpoint saved between validations says why it has no figures.

    Args:
        num_images: how many validation images are looked at.
        norm: see :class:`RewriteRobustnessMonitor`, as for the next three.
        steps: gradients an image.
        target: which class images are rewritten to.
        radii: at which success is reported.
        class_names: names of the classes, for figures.
        image_key: where the images are in a batch, as in ``pixel_values`` or ``inputs.image``; else it is found out.
        target_key: where the classes are in a batch.
        batch_adapter: function, or its import path, from a batch to ``(images, targets or None)``.
        model: path of the part of the LightningModule that maps images to logits; None is the module itself.
        mean: per channel, with which the images were normalised; else it is looked for.
        std: likewise.
        dataloader_idx: which validation loader the images come from.
        name: of this callback, where a run has several.
        seed: of the choice of images and random targets.
        on_error: ``log`` reports an error inside a look once and lets this callback rest; ``raise`` raises it.

    Raises:
        ValueError: for an argument that does not fit, at construction; for a wrong ``model`` path before training.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> audit = attngrad.CheckpointAudit(num_images=32)
        >>> # trainer = L.Trainer(callbacks=[audit, ModelCheckpoint(save_top_k=3, monitor="val_loss")])
    """

    def __init__(
        self,
        *,
        num_images: int = 16,
        norm: Literal["linf", "l2", "l0_patches"] = "linf",
        steps: int = 16,
        target: Literal["random", "runner_up", "least_likely", "all"] | int = "random",
        radii: Sequence[float] | None = None,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        image_key: str | int | None = None,
        target_key: str | int | None = None,
        batch_adapter: Callable[[Any], tuple[Tensor, Tensor | None]] | str | None = None,
        model: str | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        dataloader_idx: int = 0,
        name: str = "audit",
        seed: int = 0,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        super().__init__(
            name=name,
            num_images=num_images,
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
        self.settings = RewriteSettings(norm, steps, target, () if radii is None else radii)
        known = self._normalisation
        self._reading = {  # what else is needed to find the same figures again
            "dataloader_idx": dataloader_idx,
            "image_key": _plain_key(image_key),
            "target_key": _plain_key(target_key),
            "model": model,
            "mean": None if known is None else list(known.mean),
            "std": None if known is None else list(known.std),
        }
        self.main_scalars = {
            f"rewrite/median_{norm}": "smallest change found; less is easier",
            "rewrite/area": "under success; more is easier",
            "maps/entropy": "0 = one patch, 1 = spread evenly",
        }
        self.record: AuditRecord | None = None
        self.distances: list[float] = []  # of the rows of the last look that rewrote
        self._frozen: FrozenTargets | None = None
        self._looked_at: Moment | None = None
        self._conditions = ""  # of the last look
        self._now: Moment | None = None
        self._beside: list[RewriteRobustnessMonitor] = []  # what they have measured now is not measured again
        self._described: dict[str, CheckpointFile] = {}  # checkpoints that have their file
        self._may_look = False
        self._could_write = True

    def forget(self) -> None:
        """Drop what belongs to another run, or to other images."""
        super().forget()
        self.record, self._frozen, self._looked_at = None, None, None

    # When it looks ------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images, and take down the checkpoints that are there already."""
        super().on_train_start(trainer, pl_module)
        self._may_look = self._could_write = True
        self._described = checkpoint_files(trainer)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look in a validation of its own, and where averaged weights are in place only now."""
        first = batch_idx == 0 and dataloader_idx == 0
        if first and not trainer.sanity_checking and (not is_fitting(trainer) or averaging(trainer)):
            self._audit(trainer, pl_module, averaged=True)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The images of a stream have gone by."""
        if trainer.sanity_checking:
            return
        if self._streaming:
            self._end_of_stream(trainer)
        if not is_fitting(trainer):
            self._audit(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look at the weights that are being saved, and put the figures into the checkpoint."""
        if is_fitting(trainer):
            self._audit(trainer, pl_module)
        if "callbacks" in checkpoint:
            # Lightning has asked for the state already, before there were figures of these weights.
            checkpoint["callbacks"][self.state_key] = self.state_dict()

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
        self._describe_checkpoints(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Describe what was saved at the end of the epoch."""
        self._describe_checkpoints(trainer, pl_module)
        if swaps_at_the_end(trainer):
            self._looked_at = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Describe what was saved at the end of training."""
        self._describe_checkpoints(trainer, pl_module)
        self._may_look = False
        super().on_fit_end(trainer, pl_module)

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Look no more: another process may be waiting somewhere else.

        What is saved from now on says in itself that it was not seen: no hook follows in which a file could be written.
        """
        self._may_look = False
        self._describe_checkpoints(trainer, pl_module)

    def whereabouts(self) -> str:
        """It logs no figures."""
        return f"in each checkpoint, and in {Path(record_address('*.ckpt', self.name)).name} beside it"

    # What it sees -------------------------------------------------------------------------------------------

    def look(self, probe: Probe, *, remember: bool) -> Findings:  # noqa: ARG002
        """Maps and rewrites of the frozen images."""
        if self._frozen is None:
            shared = (other.frozen_for(self.settings, self.probe_set, self._seed) for other in self._beside)
            known = next((frozen for frozen in shared if frozen is not None), None)
            self._frozen = known or FrozenTargets.choose(probe, self.settings.target, self._seed)
        self._conditions = conditions_of(probe)
        figures = {f"maps/{name}": value for name, value in _map_figures(probe, self._frozen.own).items()}
        for other in self._beside:
            if (measured := other.measured(self._now, self.hash)) is not None:
                return Findings({**figures, **{f"rewrite/{name}": value for name, value in measured.items()}}, dict)
        rows, shown = rewrite_probe(probe, self.settings, self._frozen, shown=_SHOWN)
        self.distances = rows.distance.tolist()
        rewritten = rewrite_scalars(rows, self.settings)

        def draw() -> dict[str, Any]:
            curves = {probe.label: rows.distance.tolist()}
            return rewrite_figures(probe, self.settings, rows, shown, curves, ill_health(rewritten))

        return Findings({**figures, **{f"rewrite/{name}": value for name, value in rewritten.items()}}, draw)

    def _begin(self, pl_module: pl.LightningModule) -> None:
        super()._begin(pl_module)
        self._looked_at = None  # other weights may have been loaded since

    def _audit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, averaged: bool = False) -> None:
        """Make the record of the weights as they are; the same one for all checkpoints of a moment.

        Args:
            trainer: the Trainer.
            pl_module: the LightningModule.
            averaged: whether averaged weights, where there are any, are in place.
        """
        now = moment(trainer)
        if self.record is not None and self._looked_at == now and not self.record.why_empty:
            self.record = replace(self.record, metrics=_own_metrics(trainer))  # a validation may have come between
            return
        why = self._why_not(trainer, averaged)
        if not why:
            self._now = now
            # Under averaging a monitor that counts steps has seen the raw weights.
            self._beside = [] if averaging(trainer) else self._monitors_beside(trainer)
            self._look(trainer, pl_module, _label(trainer))
            self._agree(trainer)
            why = f"the audit rests: {self._why_resting}" if self._resting else ""
        self._looked_at = now
        seconds, self._seconds = self._seconds, 0.0
        self._log_seconds(trainer, seconds)
        self.record = AuditRecord(
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
            figures={} if why else dict(self.scalars),
            metrics=_own_metrics(trainer),
            images={"count": len(self.probe_set), "hash": self.probe_set.hash},
            settings={
                "num_images": self.probe_set.settings.num_images,
                "seed": self._seed,
                **self.settings.plain(),
                **self._reading,
                "precision": str(trainer.precision),
            },
            hash=self.hash,
            seconds=seconds,
            why_empty=why,
        )

    def _log_seconds(self, trainer: pl.Trainer, seconds: float) -> None:
        """Straight to the loggers: nothing can be logged otherwise while a checkpoint is saved."""
        if is_fitting(trainer) and trainer.is_global_zero:
            for logger in trainer.loggers:
                # A logger that fails, or is closed already, must not cost the checkpoint.
                with contextlib.suppress(Exception):
                    logger.log_metrics({self._key("seconds"): seconds}, step=scalar_step(trainer))

    def _why_not(self, trainer: pl.Trainer, averaged: bool) -> str:
        """Why no look can be made now; empty if it can."""
        if self._resting:
            return f"the audit rests: {self._why_resting}"
        if not self.probe_set.is_frozen:
            return "the images were not known yet: no validation had given them"
        if trainer.state.status != TrainerStatus.RUNNING or (is_fitting(trainer) and not self._may_look):
            return "the run had ended or failed, and these weights had not been looked at before"
        if is_fitting(trainer) and averaging(trainer) and not averaged:
            return "the averaged weights are in place during a validation only, and there was none with these"
        return ""

    def _monitors_beside(self, trainer: pl.Trainer) -> list[RewriteRobustnessMonitor]:
        """Monitors of this run that see the same images through the same part of the model."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        return [other for other in callbacks if isinstance(other, RewriteRobustnessMonitor) and other.sees_as(self)]

    @property
    def hash(self) -> str | None:
        """SHA-256 of images, classes and settings; None before the first look. Figures of another do not compare."""
        if self._frozen is None:
            return None
        return self._frozen.hash(self.probe_set.hash, self.settings, self._conditions)

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
        why = "saved with weights only, it holds the weights before averaging, which were not looked at"
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

    # Resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The record, and the frozen classes, beside what every probe keeps."""
        frozen = self._frozen
        return {
            **super().state_dict(),
            "settings": self.settings.plain(),
            "own": None if frozen is None else frozen.own,
            "targets": None if frozen is None else frozen.targets,
            "record": None if self.record is None else self.record.plain(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Same images and the same classes."""
        super().load_state_dict(state_dict)
        if state_dict["own"] is not None and state_dict["settings"] == self.settings.plain():
            self._frozen = FrozenTargets(state_dict["own"], state_dict["targets"])


def _map_figures(probe: Probe, own: Tensor) -> dict[str, float]:
    """Statistics of the maps of the images' own classes; none for a model whose attention cannot be read."""

    def work(rows: Tensor) -> Tensor:
        images = probe.images[rows.to(probe.images.device)]
        return explain(probe.model, images, own[rows].to(images.device), forward=probe.forward).heatmap.cpu()

    try:
        return map_statistics(torch.cat(probe.each(len(probe.images), work)))
    except UnsupportedModelError:
        return {}


def _own_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The user's scalars, without those of the monitors."""
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if not name.startswith("attngrad/") and value.numel() == 1}


def _plain_key(key: Any) -> Any:
    """A key as a checkpoint may hold it: a path of several parts is a list."""
    return key if key is None or isinstance(key, str | int) else list(key)


def _label(trainer: pl.Trainer) -> str:
    return f"step {trainer.global_step}" if is_fitting(trainer) else str(getattr(trainer.state.fn, "value", "now"))
