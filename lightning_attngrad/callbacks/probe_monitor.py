"""ProbeMonitor: which images a monitor looks at, and when."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_attngrad.callbacks.look import Findings, Probe, shown_pixels
from lightning_attngrad.callbacks.monitor import Monitor
from lightning_attngrad.callbacks.timetable import Timetable, is_fitting, label_of_validation, why_no_validation
from lightning_attngrad.probe import (
    Cadence,
    ProbeSet,
    check_class_names,
    check_normalisation,
    find_class_names,
    find_normalisation,
    isolated,
    probe_forward,
    resolve_model,
)

__all__ = ["Findings", "Probe", "ProbeMonitor"]


class ProbeMonitor(Monitor, ABC):
    """A callback that looks at a frozen set of validation images every so often, and never disturbs the run.

    The images are frozen before the first training step, and the first look is at the starting weights. Later looks
    happen at the start of a validation, when averaged weights, if the run validates with them, are in place; their
    scalars are logged at its end, where ``ModelCheckpoint`` and ``EarlyStopping`` find them. On epochs without a look
    the last values are logged again, so that the key is always there. A run that ends between two looks gets one more.
    Every process looks at the same images, and all of them log the numbers of the first one, whose weights and buffers
    a checkpoint holds. Where one process has to rest, all rest: a sharded model would wait for it.

    Images, numbers and figures belong to one run: another Trainer's fit starts anew, while a fit that goes on from a
    checkpoint, or with the same Trainer, and a validation or test after it, keep them.
    """

    def __init__(
        self,
        *,
        name: str,
        num_images: int,
        every_n_epochs: int | None,
        every_n_steps: int | None,
        class_names: Sequence[str] | Mapping[int, str] | None,
        image_key: str | int | None,
        target_key: str | int | None,
        batch_adapter: Callable[[Any], tuple[Tensor, Tensor | None]] | str | None,
        model: str | None,
        mean: Sequence[float] | float | None,
        std: Sequence[float] | float | None,
        dataloader_idx: int,
        seed: int,
        on_error: Literal["log", "raise"],
    ) -> None:
        super().__init__(name, on_error)
        if model is not None and (not isinstance(model, str) or not model):
            raise ValueError(
                f"model: got {type(model).__name__} {model!r:.60}; expected the path of a part of the LightningModule, "
                "such as 'net' for self.net, or None for the LightningModule itself"
            )
        for argument, key in (("image_key", image_key), ("target_key", target_key)):
            if key is not None and (
                isinstance(key, bool) or not isinstance(key, str | int | Sequence) or key in ("", ())
            ):
                raise ValueError(
                    f"{argument}: got {key!r}; expected a name such as 'pixel_values', an index, or a path such as "
                    "'inputs.image'"
                )
        # Made again for every run: a set is frozen for good.
        self._new_probe_set = partial(
            ProbeSet,
            num_images,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            batch_adapter=batch_adapter,
            dataloader_idx=dataloader_idx,
        )
        self.probe_set = self._new_probe_set()
        self._timetable = Timetable(Cadence(every_n_epochs, every_n_steps))
        self._class_names = None if class_names is None else check_class_names(class_names)
        self._normalisation = check_normalisation(mean, std)
        self._model_path = model
        self._seed = seed
        self._model: nn.Module | None = None
        self._streaming = False  # the images are gathered as validation goes by
        self._hash: str | None = None  # of the images that the history is of

    @abstractmethod
    def look(self, probe: Probe, *, remember: bool) -> Findings:
        """What this monitor does with the images.

        Args:
            probe: images, model and names.
            remember: whether this look belongs to the history of the run (it does in ``fit`` only).
        """

    def forget(self) -> None:
        """Drop the history: it is of another run, or of other images."""
        self.scalars = {}

    # Before anything runs -----------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuse, before training starts, what can never work; start a run of its own with nothing of another."""
        self._refuse_twins(trainer)
        if stage == "fit" and trainer.global_step == 0:  # a checkpoint, if any, is read after this
            self.forget()
            self.probe_set = self._new_probe_set()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Find the model; a wrong path is an error now rather than in the first look."""
        self._begin(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images as early as there are loaders: in the sanity check, or in a validation of its own."""
        if not is_fitting(trainer):
            self._begin(pl_module)
            self._freeze(trainer, pl_module)
            self._agree(trainer)
        elif trainer.sanity_checking:
            self._freeze(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise for a test."""
        self.on_validation_start(trainer, pl_module)

    def _begin(self, pl_module: pl.LightningModule) -> None:
        self._model = resolve_model(pl_module, self._model_path)
        self._streaming = False
        self._wake()

    # Looks --------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images and look at the starting weights, before the first step."""
        self._timetable.begin(trainer)
        if self._timetable.cadence.every_n_steps is None and (why := why_no_validation(trainer)):
            self._rest(
                trainer, f"it looks during validation, and {why}; or give every_n_steps=… to look during training"
            )
            return
        self._freeze(trainer, pl_module)
        if self._streaming:
            # The decision of all processes: a stream may have given its images to some of them only.
            if trainer.strategy.reduce_boolean_decision(self.probe_set.is_full):
                self._end_of_stream(trainer)
            else:
                self.probe_set.start_over()  # the sanity check's images come again in the first validation
        self._agree(trainer)
        if self.probe_set.is_frozen and not self.scalars:
            self._look(trainer, pl_module, f"step {trainer.global_step}" if trainer.global_step else "start")
            self._write_now(trainer)
        self._agree(trainer)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at the start of a validation: every other callback has put its weights in place by now."""
        first = batch_idx == 0 and dataloader_idx == 0
        if first and self._due_in_validation(trainer):
            self._look(trainer, pl_module, label_of_validation(trainer))

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
        if self._streaming and not self._resting:
            with self._guarded(trainer, "its images"):
                self.probe_set.collect(batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was seen, or the last values again."""
        if trainer.sanity_checking:
            return
        if self._streaming:
            self._end_of_stream(trainer)
        if self._pending is None and self._due_in_validation(trainer):
            # The images have only just gone by; or no batch has, on this process.
            self._look(trainer, pl_module, label_of_validation(trainer))
        self._timetable.end_validation(trainer)
        self._log_figures(trainer)
        values = self._values(trainer)
        # The numbers agree already: synchronising keeps Lightning from warning of each of them.
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As in a validation."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

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

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As in a validation."""
        self.on_validation_epoch_end(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Look after an optimizer step, where the cadence counts steps."""
        if self._timetable.due_after_batch(trainer) and self.probe_set.is_frozen:
            self._look(trainer, pl_module, f"step {trainer.global_step}")
            self._write_now(trainer)
            # For ModelCheckpoint(every_n_train_steps=…). Without the loggers: to them Lightning hands on only what
            # falls on its own log_every_n_steps.
            pl_module.log_dict(self._values(trainer), on_step=True, on_epoch=False, logger=False, batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the weights that the run ends with, unless the last validation did."""
        if self.probe_set.is_frozen and self._timetable.due_at_end(trainer):
            self._look(trainer, pl_module, f"step {trainer.global_step}")
            self._write_now(trainer)

    def _due_in_validation(self, trainer: pl.Trainer) -> bool:
        if trainer.sanity_checking or self._resting or not self.probe_set.is_frozen:
            return False
        # Without a number yet, perhaps because a head of zeros gives no map at the start: the next chance is due.
        knows_all = self.scalars and all(math.isfinite(value) for value in self.scalars.values())
        return not is_fitting(trainer) or not knows_all or self._timetable.due_in_validation(trainer)

    def _freeze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._resting:
            with self._guarded(trainer, "its images"), self._timed():
                self._streaming = not self.probe_set.read(trainer, pl_module)

    def _end_of_stream(self, trainer: pl.Trainer) -> None:
        """A collective operation: also a process whose monitor rests takes part, or the others would wait."""
        self._streaming = False
        with self._guarded(trainer, "its images"):
            self.probe_set.freeze(trainer)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, label: str) -> None:
        if self._resting or self._model is None:
            return
        self._timetable.looked(trainer)
        if self._hash not in (None, self.probe_set.hash):
            self.forget()  # a checkpoint came from a run on other images
        self._hash = self.probe_set.hash
        with (
            self._guarded(trainer, f"its look at {label}"),
            self._timed(),
            isolated(trainer, pl_module, seed=self._seed),
        ):
            images, targets = self.probe_set.to_device(trainer, pl_module)
            normalisation = self._normalisation or find_normalisation(trainer, pl_module, images=images)
            probe = Probe(
                model=self._model,
                forward=probe_forward(trainer, self._model),
                images=images,
                targets=None if targets is None else targets.cpu(),
                pixels=shown_pixels(images, normalisation),
                class_names=find_class_names(trainer, self._class_names),
                label=label,
            )
            self._pending = self.look(probe, remember=is_fitting(trainer))
            self.scalars = dict(self._pending.scalars)

    # Resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only: checkpoints are read with ``weights_only=True``."""
        return {"probe_set": self.probe_set.state_dict(), "scalars": dict(self.scalars), "hash": self._hash}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Same images, and the last values until the next look."""
        self.probe_set.load_state_dict(state_dict["probe_set"])
        self.scalars = dict(state_dict["scalars"])
        self._hash = state_dict["hash"]
