"""SharedProbe: the images of one setting, read once for all monitors of a Trainer, and what is found of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import ref

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_attngrad.probe.evaluation import Evaluation, Kept, shown_pixels
from lightning_attngrad.probe.finding import find_way
from lightning_attngrad.probe.forward import ProbeForward
from lightning_attngrad.probe.moment import Moment, fingerprint, is_fitting, moment
from lightning_attngrad.probe.probe_set import ProbeSet
from lightning_attngrad.probe.resolve import resolve_model
from lightning_attngrad.probe.settings import ProbeImages
from lightning_attngrad.probe.sharing import IMAGES_AT_ONCE, PartSharing, Processes
from lightning_attngrad.probe.ways import Way


class SharedProbe:
    """Frozen images, frozen classes, and the answers that several monitors ask for at one moment of the run.

    Args:
        settings: which images, and how they are read.
        charge: a block in which the time of what is done once for all is measured.

    Attributes:
        settings: likewise.
        images: the frozen set.
        streaming: whether the images are gathered as batches go by.
        failure: the error that kept the images from being read; the monitors of this probe are then switched off.
    """

    def __init__(self, settings: ProbeImages, charge: Callable[[], Any]) -> None:
        self.settings = settings
        self._charge = charge
        self._model: ref[nn.Module] | None = None  # a module knows its Trainer, under which this probe is kept
        self.streaming = False
        self.failure: Exception | None = None
        self._sharing = PartSharing(IMAGES_AT_ONCE)
        self.forget()

    def forget(self) -> None:
        """Drop the images and classes of another run."""
        self.images = ProbeSet(self.settings)
        self._way: Way | None = None  # in which the model runs on the images
        self._in_this_run: Kept[Any] = Kept()
        self._at_this_moment: Kept[Any] = Kept()
        self._when: tuple[Moment, tuple[float, ...], str] | None = None
        self._restored: tuple[str | None, Tensor] | None = None  # hash of images, and their classes

    @property
    def model(self) -> nn.Module | None:
        """The part of the LightningModule that is explained; None before the run begins, and when it is gone."""
        return None if self._model is None else self._model()

    def begin(self, pl_module: pl.LightningModule) -> None:
        """A run begins: find the model.

        Raises:
            ModelPathError: if the path in the settings leads to none.
        """
        self._model = ref(resolve_model(pl_module, self.settings.model, needs_forward=self.settings.forward is None))
        self.streaming, self.failure, self._when, self._way = False, None, None, None

    def freeze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the images; later calls do nothing.

        Raises:
            ProbeInputError: if there are none; the same error for every monitor that asks.
        """
        if self.failure is not None:
            raise self.failure
        if self.images.is_frozen or self.streaming:
            return
        try:
            with self._charge():
                self.streaming = not self.images.read(trainer, pl_module)
        except Exception as error:
            self.failure = error
            raise

    def find_way(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Way | None:
        """How the model runs on the images, found once they are there; a collective operation.

        Raises:
            ProbeInputError: if it does in no way; the same error for every monitor that asks.
        """
        if self.failure is not None:
            raise self.failure
        if self._way is None and self.images.is_frozen:
            assert self.model is not None
            try:
                with self._charge():
                    self._way, said = find_way(trainer, pl_module, self.model, self.images)
            except Exception as error:
                self.failure = error
                raise
            if said:
                self.images.say(trainer, said)
        return self._way

    def streams(self, *, training: bool) -> bool:
        """Whether the images are gathered from the batches of training, or of validation, that go by."""
        return self.streaming and (self.images.source == "training") == training

    def collect(self, batch: Any, dataloader_idx: int = 0) -> None:
        """Take images from a batch that goes by; what goes wrong is told when the stream ends."""
        if self.failure is None:
            try:
                self.images.collect(batch, dataloader_idx)
            except Exception as error:
                self.failure = error

    @property
    def has_enough(self) -> bool:
        """Whether this process need gather no more."""
        return self.images.is_full or self.failure is not None

    def after_sanity_check(self, trainer: pl.Trainer) -> None:
        """Keep a stream's images if the sanity check gave all of them, else start over; a collective operation."""
        if self.streaming:
            # The decision of all processes: a stream may have given its images to some of them only.
            if trainer.strategy.reduce_boolean_decision(self.images.is_full):
                self.end_of_stream(trainer)
            else:
                self.images.start_over()

    def end_of_stream(self, trainer: pl.Trainer) -> None:
        """Freeze what has been gathered; a collective operation, also for a process that had an error before."""
        self.streaming = False
        try:
            self.images.freeze(trainer)
        except Exception as error:
            self.failure = self.failure or error

    @property
    def classes(self) -> Tensor | None:
        """(N,) for which the images are explained; None before they are chosen."""
        return self._in_this_run.get("classes")

    def state(self) -> dict[str, Any]:
        """Images and classes, in plain values and tensors."""
        classes = self.classes
        if classes is None and self._restored is not None:
            classes = self._restored[1]
        return {"set": self.images.state_dict(), "classes": classes}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the images and classes of an earlier run; the first of several calls does it."""
        if self.images.is_frozen or self._restored is not None or not state.get("set"):
            return
        self.images.load_state_dict(state["set"])
        if state["classes"] is not None:
            self._restored = (state["set"]["hash"], state["classes"])

    def go_on_from(self, other: SharedProbe) -> None:
        """Explain the images, if they are the same, for the classes of another Trainer's probe: its history goes on."""
        if other.classes is not None and self.classes is None and self._restored is None:
            self._restored = other.images.hash, other.classes

    def _take_up_classes(self) -> None:
        """Those of the run that is resumed, if they are of the same images."""
        if self._restored is not None:
            of, classes = self._restored
            if of == self.images.hash:
                self._in_this_run.keep("classes", classes)
            self._restored = None

    def evaluation(self, trainer: pl.Trainer, pl_module: pl.LightningModule, label: str, whose: str = "") -> Evaluation:
        """What monitors are given now; a collective operation, to be called in the body of :func:`isolated`.

        Where the weights are those of the last call, what was found then is found already.

        Args:
            trainer: the Trainer.
            pl_module: the LightningModule.
            label: when this is.
            whose: which weights these are, where the run averages them.
        """
        model, processes = self.model, Processes.of(trainer)
        assert model is not None
        way = self.find_way(trainer, pl_module)  # of a stream, only now
        assert way is not None
        self._take_up_classes()
        with self._charge():
            # Together: where one process has an error, the others would wait for it in the work that follows.
            evaluation, now = processes.together(
                lambda: (
                    self._as_evaluation(trainer, pl_module, label, model, way),
                    (moment(trainer), fingerprint(model), whose if is_fitting(trainer) else label),
                )
            )
            # Asked of all: a process that found its answers kept would not join the others in working them out.
            if not all(processes.gather(now == self._when)):
                self._at_this_moment = Kept()
            self._when = now
            processes.share_buffers(model)
            return replace(evaluation, at_this_moment=self._at_this_moment)

    def _as_evaluation(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, label: str, model: nn.Module, way: Way
    ) -> Evaluation:
        images, targets = self.images.to_device(trainer, pl_module)
        stated = self.images.normalisation(trainer, pl_module)
        samples = self.images.samples
        shown = self.images.normalisation(trainer, pl_module, images)
        return Evaluation(
            model=model,
            forward=ProbeForward(trainer, model, way=way, samples=samples),
            images=images,
            targets=None if targets is None else targets.cpu(),
            pixels=self._in_this_run.once("pixels", lambda: shown_pixels(images, shown)),
            class_names=self.images.class_names(trainer),
            label=label,
            in_history=is_fitting(trainer),
            normalisation=stated,
            masks=self.images.masks,
            seed=self.settings.seed,
            model_path=self.settings.model,
            precision=str(trainer.precision),
            images_hash=self.images.hash,
            processes=Processes.of(trainer),
            sharing=self._sharing,
            forward_with=lambda weights: ProbeForward(trainer, model, weights, way=way, samples=samples),
            in_this_run=self._in_this_run,
        )
