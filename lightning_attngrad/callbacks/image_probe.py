"""ImageProbe: a callback with a frozen set of validation images, at which it can look without disturbing the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_attngrad.callbacks.look import ROWS_AT_ONCE, Findings, Probe, shown_pixels
from lightning_attngrad.callbacks.monitor import Monitor
from lightning_attngrad.callbacks.story import Story
from lightning_attngrad.callbacks.timetable import is_fitting
from lightning_attngrad.probe import (
    MaskSource,
    ProbeImages,
    ProbeSet,
    Processes,
    RowSharing,
    check_class_names,
    check_normalisation,
    find_class_names,
    find_normalisation,
    isolated,
    probe_forward,
    resolve_model,
)


class ImageProbe(Monitor, ABC):
    """A callback that can look at a frozen set of validation images; when it does is for its subclasses to say.

    The images are frozen before the first training step, and every process has the same ones. Where one process has
    to rest, all rest: a sharded model would wait for it.

    Images, numbers and figures belong to one run: another Trainer's fit starts anew, while a fit that goes on from a
    checkpoint, or with the same Trainer, and a validation or test after it, keep them.
    """

    #: Images that go through the model at once, unless they do not fit into memory.
    rows_at_once = ROWS_AT_ONCE

    def __init__(
        self,
        *,
        name: str,
        num_images: int,
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
        mask: MaskSource | None = None,
    ) -> None:
        super().__init__(name, on_error)
        settings = ProbeImages(
            num_images,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            batch_adapter=batch_adapter,
            mask=mask,
            mean=mean,
            std=std,
            class_names=class_names,
            model=model,
            dataloader_idx=dataloader_idx,
        )
        # Made again for every run: a set is frozen for good.
        self._new_probe_set = partial(ProbeSet, settings)
        self.probe_set = self._new_probe_set()
        self._class_names = None if class_names is None else check_class_names(class_names)
        self._normalisation = check_normalisation(mean, std)
        self._model_path = model
        self._seed = seed
        self._sharing = RowSharing(self.rows_at_once)
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
        self.story = Story()

    # Before anything runs -----------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuse, before training starts, what can never work; start a run of its own with nothing of another."""
        self._refuse_twins(trainer)
        if stage == "fit" and trainer.global_step == 0:  # a checkpoint, if any, is read after this
            self.forget()
            self.probe_set = self._new_probe_set()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the model; a wrong path is an error now rather than in the first look."""
        self._begin(pl_module)
        super().on_fit_start(trainer, pl_module)

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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze the images before the first step."""
        self._freeze(trainer, pl_module)
        if self._streaming:
            # The decision of all processes: a stream may have given its images to some of them only.
            if trainer.strategy.reduce_boolean_decision(self.probe_set.is_full):
                self._end_of_stream(trainer)
            else:
                self.probe_set.start_over()  # the sanity check's images come again in the first validation
        self._forget_other_images()
        self._agree(trainer)

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

    # Looks --------------------------------------------------------------------------------------------------

    def _freeze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._resting:
            with self._guarded(trainer, "its images"), self._timed():
                self._streaming = not self.probe_set.read(trainer, pl_module)

    def _end_of_stream(self, trainer: pl.Trainer) -> None:
        """A collective operation: also a process whose monitor rests takes part, or the others would wait."""
        self._streaming = False
        with self._guarded(trainer, "its images"):
            self.probe_set.freeze(trainer)
        self._forget_other_images()
        self._agree(trainer)  # one process may have failed to read what went by: the others must not look alone

    def _forget_other_images(self) -> None:
        """Drop a history that came with the checkpoint of a run on other images: nothing of it may be logged again."""
        if self.probe_set.is_frozen:
            if self._hash not in (None, self.probe_set.hash):
                self.forget()
            self._hash = self.probe_set.hash

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule, label: str) -> None:
        if self._resting or self._model is None:
            return
        self._looked(trainer)
        self._forget_other_images()
        with (
            self._guarded(trainer, f"its look at {label}"),
            self._timed(),
            isolated(trainer, pl_module, seed=self._seed),
        ):
            processes = Processes.of(trainer)
            probe = processes.together(lambda: self._probe(trainer, pl_module, label))
            processes.share_buffers(probe.model)
            self._pending = self.look(probe, remember=is_fitting(trainer))
            self.scalars = dict(self._pending.scalars)
            if is_fitting(trainer):
                self.story.goes_on(label, self.scalars, self.main_scalars)

    def _probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule, label: str) -> Probe:
        assert self._model is not None
        images, targets = self.probe_set.to_device(trainer, pl_module)
        place = self.probe_set.dataloader_idx
        stated = self._normalisation or find_normalisation(trainer, pl_module, dataloader_idx=place)
        shown = stated or find_normalisation(trainer, pl_module, images=images, dataloader_idx=place)
        return Probe(
            model=self._model,
            forward=probe_forward(trainer, self._model),
            images=images,
            targets=None if targets is None else targets.cpu(),
            pixels=shown_pixels(images, shown),
            class_names=find_class_names(trainer, self._class_names),
            label=label,
            normalisation=stated,
            model_path=self._model_path,
            precision=str(trainer.precision),
            processes=Processes.of(trainer),
            masks=self.probe_set.masks,
            sharing=self._sharing,
        )

    def _looked(self, trainer: pl.Trainer) -> None:
        """A look begins."""

    # Resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only: checkpoints are read with ``weights_only=True``."""
        return {
            "probe_set": self.probe_set.state_dict(),
            "scalars": dict(self.scalars),
            "hash": self._hash,
            "story": self.story.plain(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Same images, and the last values until the next look."""
        self.probe_set.load_state_dict(state_dict["probe_set"])
        self.scalars = dict(state_dict["scalars"])
        self._hash = state_dict["hash"]
        self.story = Story.of(state_dict.get("story"))
