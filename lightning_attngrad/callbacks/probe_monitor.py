"""ProbeMonitor: when a monitor looks, at which images, and what becomes of its numbers, figures and errors."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_attngrad.probe import (
    Cadence,
    ProbeSet,
    find_class_names,
    find_normalisation,
    isolated,
    probe_forward,
    resolve_model,
)
from lightning_attngrad.reporting.loggers import log_figures, scalar_step

_log = logging.getLogger("lightning_attngrad")


@dataclass(frozen=True, eq=False)
class Probe:
    """What a monitor is given to look at.

    Attributes:
        model: the module to explain.
        forward: runs it in the precision of the run.
        images: (N, C, H, W), on the device, as the model takes them.
        targets: (N,) true classes, where the data has them.
        pixels: the same images to be shown, (N, C, H, W) in [0, 1], on the CPU.
        class_names: of all classes, where they are known.
        label: when this is: ``start``, ``epoch 3`` or ``step 200``.
    """

    model: nn.Module
    forward: Callable[[Tensor], Any]
    images: Tensor
    targets: Tensor | None
    pixels: Tensor
    class_names: tuple[str, ...] | None
    label: str

    def class_name(self, index: int) -> str:
        """The name of a class, or its number."""
        if self.class_names is not None and index < len(self.class_names):
            return self.class_names[index]
        return str(index)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a monitor saw.

    Attributes:
        scalars: by name, without the ``attngrad/<monitor>/`` in front.
        figures: likewise; drawn only on the process that logs.
    """

    scalars: dict[str, float]
    figures: Callable[[], dict[str, Figure]]


class ProbeMonitor(pl.Callback, ABC):
    """A callback that looks at a frozen set of validation images every so often, and never disturbs the run.

    The images are frozen before the first training step, and the first look is at the starting weights. Later looks
    happen at the start of a validation, when averaged weights, if the run validates with them, are in place; their
    scalars are logged at its end, where ``ModelCheckpoint`` and ``EarlyStopping`` find them. On epochs without a look
    the last values are logged again, so that the key is always there. Every process looks at the same images, so the
    numbers agree without a collective operation that could wait in vain.

    An error inside a look is reported once, with its cause; the monitor then rests, and training goes on.
    """

    def __init__(
        self,
        *,
        name: str,
        num_images: int,
        every_n_epochs: int | None,
        every_n_steps: int | None,
        class_names: Sequence[str] | None,
        image_key: str | None,
        target_key: str | None,
        batch_adapter: Callable[[Any], tuple[Tensor, Tensor | None]] | str | None,
        model: str | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        dataloader_idx: int,
        seed: int,
        on_error: Literal["log", "raise"],
    ) -> None:
        if on_error not in ("log", "raise"):
            raise ValueError(f"on_error: got {on_error!r}; expected 'log' or 'raise'")
        if not name or not all(part.isidentifier() for part in name.split("/")):
            raise ValueError(f"name: got {name!r}; expected a word such as 'maps': it stands in attngrad/<name>/…")
        self.name = name
        self.cadence = Cadence(every_n_epochs, every_n_steps)
        self.probe_set = ProbeSet(
            num_images,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            batch_adapter=batch_adapter,
            dataloader_idx=dataloader_idx,
        )
        self.on_error = on_error
        self.scalars: dict[str, float] = {}
        self._class_names = None if class_names is None else tuple(class_names)
        self._model_path = model
        self._mean, self._std = mean, std
        self._seed = seed
        self._model: nn.Module | None = None
        self._resting = False
        self._streaming = False  # the images are gathered as validation goes by
        self._pending: Findings | None = None  # looked at, and not yet logged
        self._last_step = -1
        self._last_epoch = -1
        self._said_of_figures = False

    @abstractmethod
    def look(self, probe: Probe, *, remember: bool) -> Findings:
        """Look once. ``remember`` is whether this look belongs to the history of a fit."""

    def forget(self) -> None:
        """Drop the history of another run."""
        self.scalars = {}

    @property
    @abstractmethod
    def scalar_names(self) -> tuple[str, ...]:
        """Scalars that every look gives, whatever the model."""

    # Before anything runs -----------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuse, before training starts, what can never work."""
        twins = [other for other in trainer.callbacks if isinstance(other, ProbeMonitor) and other.name == self.name]  # type: ignore[attr-defined]
        if len(twins) > 1:
            raise ValueError(
                f"name: {len(twins)} monitors are called {self.name!r} and would write over each other; give each its "
                "own, as in AttentionMapMonitor(name='late_layers')"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Find the model; a wrong path is an error now rather than in the first look."""
        self._begin(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images as early as there are loaders: in the sanity check, or in a validation of its own."""
        if not self._fitting(trainer):
            self._begin(pl_module)
            self._freeze(trainer, pl_module)
        elif trainer.sanity_checking:
            self._freeze(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise for a test."""
        self.on_validation_start(trainer, pl_module)

    def _begin(self, pl_module: pl.LightningModule) -> None:
        self._model = resolve_model(pl_module, self._model_path)
        self._resting = self._streaming = False
        self._pending = None

    # Looks --------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images and look at the starting weights, before the first step."""
        self._last_step, self._last_epoch = trainer.global_step, trainer.current_epoch - 1
        if trainer.global_step == 0:
            self.forget()  # a callback that saw another run before
        if trainer.limit_val_batches == 0 and self.cadence.every_n_steps is None:
            self._rest("validation is switched off (limit_val_batches=0), and this monitor looks during validation; "
                       "give every_n_steps=… to look during training")
            return
        self._freeze(trainer, pl_module)
        # The decision of all processes: a stream may have given its images to some of them only.
        if self._streaming and trainer.strategy.reduce_boolean_decision(self.probe_set.is_full):
            self._end_of_stream(trainer)
        if self.probe_set.is_frozen and not self.scalars:
            self._look(trainer, pl_module, "start")
            self._write_directly(trainer)

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
            self._look(trainer, pl_module, self._label(trainer))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,
    ) -> None:
        """Gather images from a stream, which cannot be read beforehand."""
        if self._streaming and not self._resting:
            with self._guarded("its images"):
                self.probe_set.collect(batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what was seen, or the last values again."""
        if trainer.sanity_checking:
            return
        if self._streaming:
            self._end_of_stream(trainer)
            if self._due_in_validation(trainer):
                self._look(trainer, pl_module, self._label(trainer))
        self._last_epoch = trainer.current_epoch
        self._log_scalars(trainer, pl_module, on_epoch=True)
        self._log_figures(trainer)

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
        step = trainer.global_step
        if step == self._last_step or not self.cadence.due_at_step(step) or not self.probe_set.is_frozen:
            return
        self._last_step = step  # gradient accumulation comes here several times with the same count
        self._look(trainer, pl_module, f"step {step}")
        if self._pending is not None:
            self._log_scalars(trainer, pl_module, on_epoch=False)
            self._log_figures(trainer)

    def _due_in_validation(self, trainer: pl.Trainer) -> bool:
        if trainer.sanity_checking or self._resting or not self.probe_set.is_frozen:
            return False
        if not self._fitting(trainer) or not self.scalars:
            return True
        if self.cadence.every_n_steps is not None:
            return False
        epoch = trainer.current_epoch
        is_last = trainer.max_epochs is not None and epoch + 1 == trainer.max_epochs
        # Epochs without a validation (check_val_every_n_epoch) may have been due: they are made up for.
        due = (self.cadence.due_at_epoch(passed) for passed in range(self._last_epoch + 1, epoch))
        return self.cadence.due_at_epoch(epoch, is_last=is_last) or any(due)

    def _freeze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._resting:
            with self._guarded("its images"):
                self._streaming = not self.probe_set.read(trainer, pl_module)

    def _end_of_stream(self, trainer: pl.Trainer) -> None:
        """A collective operation: also a process whose monitor rests takes part, or the others would wait."""
        self._streaming = False
        with self._guarded("its images"):
            self.probe_set.freeze(trainer)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, label: str) -> None:
        if self._resting or self._model is None:
            return
        began = time.perf_counter()
        with self._guarded(f"its look at {label}"), isolated(trainer, pl_module, seed=self._seed):
            images, targets = self.probe_set.to_device(trainer, pl_module)
            normalisation = find_normalisation(
                trainer, pl_module, mean=self._mean, std=self._std, images=images
            )
            probe = Probe(
                model=self._model,
                forward=probe_forward(trainer, self._model),
                images=images,
                targets=None if targets is None else targets.cpu(),
                pixels=_stretched(images) if normalisation is None else normalisation.to_pixels(images).float().cpu(),
                class_names=find_class_names(trainer, self._class_names),
                label=label,
            )
            findings = self.look(probe, remember=self._fitting(trainer))
            findings.scalars["seconds"] = time.perf_counter() - began
            self._pending = findings
            self.scalars = dict(findings.scalars)

    # What becomes of it -------------------------------------------------------------------------------------

    def _log_scalars(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, on_epoch: bool) -> None:
        scalars = self.scalars or self._missing_but_monitored(trainer)
        # Every process logs the same keys, so EarlyStopping decides alike on all of them.
        values = {self._key(name): torch.tensor(value, dtype=torch.float32) for name, value in scalars.items()}
        pl_module.log_dict(values, on_step=not on_epoch, on_epoch=on_epoch, batch_size=1)  # type: ignore[arg-type]

    def _write_directly(self, trainer: pl.Trainer) -> None:
        """The starting weights belong to no epoch that ``log`` could write to."""
        if self._pending is None:
            return
        step = scalar_step(trainer)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self._keyed(self._pending.scalars), step=step)
        self._log_figures(trainer)

    def _log_figures(self, trainer: pl.Trainer) -> None:
        pending, self._pending = self._pending, None
        if pending is None or not trainer.is_global_zero:
            return
        try:
            log_figures(trainer, self._keyed(pending.figures()), scalar_step(trainer))
        except Exception as error:  # only this process draws: if it rested now, the others would wait for it
            if self.on_error == "raise":
                raise
            if not self._said_of_figures:
                self._said_of_figures = True
                rank_zero_warn(f"{type(self).__name__} could not draw: {type(error).__name__}: {error}. Its numbers go on.")

    def _missing_but_monitored(self, trainer: pl.Trainer) -> dict[str, float]:
        """NaN where another callback waits for a number that this monitor failed to give: it would end the run."""
        monitored = {getattr(callback, "monitor", None) for callback in trainer.callbacks}  # type: ignore[attr-defined]
        return {name: math.nan for name in self.scalar_names if self._key(name) in monitored}

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """An error inside is reported once and ends this monitor's work, not the run's."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            _log.debug("traceback of the error in %s", type(self).__name__, exc_info=True)
            self._rest(f"in {what}: {type(error).__name__}: {error} (on_error='raise' would stop here)")

    def _rest(self, why: str) -> None:
        self._resting = True
        self._pending = None
        rank_zero_warn(f"{type(self).__name__} rests for the remainder of this run, training goes on: {why}.")

    def _key(self, name: str) -> str:
        return f"attngrad/{self.name}/{name}"

    def _keyed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {self._key(name): value for name, value in values.items()}

    @staticmethod
    def _fitting(trainer: pl.Trainer) -> bool:
        return trainer.state.fn == "fit"

    def _label(self, trainer: pl.Trainer) -> str:
        if not self._fitting(trainer):
            return str(getattr(trainer.state.fn, "value", "now"))  # validate, test
        if trainer.val_check_interval not in (None, 1.0) and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return f"step {trainer.global_step}"
        return f"epoch {trainer.current_epoch + 1}"

    # Resuming -----------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Two monitors in one run keep two states."""
        return self._generate_state_key(name=self.name)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only: checkpoints are read with ``weights_only=True``."""
        return {"probe_set": self.probe_set.state_dict(), "scalars": dict(self.scalars)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Same images, and the last values until the next look."""
        self.probe_set.load_state_dict(state_dict["probe_set"])
        self.scalars = dict(state_dict["scalars"])


def _stretched(images: Tensor) -> Tensor:
    """Images whose normalisation is not known, each stretched to [0, 1] so that it can be seen."""
    images = images.detach().float().cpu()
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)


