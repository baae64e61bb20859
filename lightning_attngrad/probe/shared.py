"""SharedProbe: the images of one setting, read once for all monitors of a Trainer, and what is found of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import ref

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import UNSAID, WHAT_WOULD_DO, Task, Undecided, check_task
from lightning_attngrad.probe.evaluation import Evaluation, Kept
from lightning_attngrad.probe.finding import find_way
from lightning_attngrad.probe.forward import ProbeForward
from lightning_attngrad.probe.isolation import isolated
from lightning_attngrad.probe.moment import Moment, fingerprint, is_fitting, moment
from lightning_attngrad.probe.normalisation import KnownPixels
from lightning_attngrad.probe.probe_set import ProbeSet
from lightning_attngrad.probe.resolve import resolve_model
from lightning_attngrad.probe.settings import ProbeImages
from lightning_attngrad.probe.sharing import IMAGES_AT_ONCE, PartSharing, Processes
from lightning_attngrad.probe.tasks import find_task, labels_for, task_in_a_word, task_of_a_word
from lightning_attngrad.probe.ways import Way
from lightning_attngrad.state import held_still


class _OutputMeaning(NamedTuple):
    """What a model's output means, of how many classes, and what is to be said of it."""

    task: Task
    classes: int | None
    about: str


def _outputs(evaluation: Evaluation, task: Task) -> Tensor | str:
    """Scores of the frozen images as the task has them, (N, K), on the CPU, or why there are none; collective."""

    def work(part: Tensor) -> Tensor | str:
        with torch.no_grad(), held_still(evaluation.model):
            output = evaluation.forward_of(part)(evaluation.images[part.to(evaluation.images.device)])
            try:
                return task.scores(output, len(part)).float().cpu()
            except ValueError as error:
                return str(error)

    rows = evaluation.each(len(evaluation.images), work)
    return next((one for one in rows if isinstance(one, str)), None) or torch.cat(rows)  # type: ignore[arg-type]


def _first(found: list[Any], processes: Processes) -> tuple[Task, str]:
    """What the first process has found, as the objects of this one."""
    task, about = found
    word, why, about = processes.gather((task_in_a_word(task), getattr(task, "why", ""), about))[0]
    return task_of_a_word(word) or Undecided(why), about


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
        # Hash of images, their classes, and what the output means.
        self._restored: tuple[str | None, Tensor | None, str | None] | None = None

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

    @property
    def task(self) -> Task | None:
        """What the model's output means; None before the first evaluation."""
        found: _OutputMeaning | None = self._in_this_run.get("task")
        return None if found is None else found.task

    def state(self) -> dict[str, Any]:
        """Images, classes and task, in plain values and tensors."""
        classes, task = self.classes, None if self.task is None else task_in_a_word(self.task)
        if self._restored is not None:
            classes = self._restored[1] if classes is None else classes
            task = self._restored[2] if self.task is None else task
        return {"set": self.images.state_dict(), "classes": classes, "task": task}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the images, classes and task of an earlier run; the first of several calls does it."""
        if self.images.is_frozen or self._restored is not None or not state.get("set"):
            return
        self.images.load_state_dict(state["set"])
        if state["classes"] is not None or state.get("task") is not None:
            self._restored = (state["set"]["hash"], state["classes"], state.get("task"))

    def go_on_from(self, other: SharedProbe) -> None:
        """Explain the images, if they are the same, for the classes of another Trainer's probe: its history goes on."""
        if other.classes is not None and self.classes is None and self._restored is None:
            word = None if other.task is None else task_in_a_word(other.task)
            self._restored = other.images.hash, other.classes, word

    def known_pixels(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> KnownPixels:
        """What is known of the normalisation of the frozen images, asked before the first evaluation."""
        with self._charge(), isolated(trainer, pl_module, seed=self.settings.seed):
            images, _ = self.images.to_device(trainer, pl_module)
            return self.images.known_pixels(trainer, pl_module, images)

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
            return self._with_task(trainer, replace(evaluation, at_this_moment=self._at_this_moment))

    def _with_task(self, trainer: pl.Trainer, evaluation: Evaluation) -> Evaluation:
        """What the output means, found out once a run, and labels and names as that has them; collective."""
        found: _OutputMeaning = self._in_this_run.once("task", lambda: self._find_task(trainer, evaluation))
        task, names = found.task, evaluation.class_names
        targets, said = labels_for(task, evaluation.targets, found.classes)
        if found.classes is not None:
            names = task.in_words(names, found.classes)
        return replace(
            evaluation,
            task=task,
            targets=targets,
            class_names=names,
            about_task=". ".join(one for one in (found.about, said) if one),
        )

    def _find_task(self, trainer: pl.Trainer, evaluation: Evaluation) -> _OutputMeaning:
        """As the settings say; as in the run that is resumed; or from outputs and labels. A collective operation."""
        restored, self._restored = self._restored, None
        if restored is not None and restored[0] != self.images.hash:
            restored = None
        given = check_task(self.settings.task)
        task = given if self.settings.task is not None else task_of_a_word(None if restored is None else restored[2])
        about, count = "", None
        if task is None or task.name != "embedding":
            asked = UNSAID if task is None else task
            rows = _outputs(evaluation, asked)
            if isinstance(rows, str):
                why = rows if task is not None else f"{rows} If it is an embedding: {WHAT_WOULD_DO}"
                task = Undecided(why, said=task)
            elif task is None:
                names = None if evaluation.class_names is None else len(evaluation.class_names)
                seen = self.images.seen_labels(trainer)
                task, about = find_task(rows, evaluation.targets, seen, names, evaluation.model)
                # As the first process has found it: data sets of others may know less of their labels.
                task, about = _first([task, about], evaluation.processes)
            if not isinstance(rows, str):
                with contextlib.suppress(ValueError):
                    scores = rows if task is asked else task.scores(rows, len(rows))
                    count = scores.shape[1]
                    evaluation.at_this_moment.keep("scores", scores)
        if restored is not None and restored[1] is not None:
            then = task_of_a_word(restored[2])
            if (None if then is None else then.plain()) == task.plain():
                self._in_this_run.keep("classes", restored[1])
        return _OutputMeaning(task, count, about)

    def _as_evaluation(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, label: str, model: nn.Module, way: Way
    ) -> Evaluation:
        images, targets = self.images.to_device(trainer, pl_module)
        known = self.images.known_pixels(trainer, pl_module, images)
        pixels, display = self.images.shown(trainer, pl_module, images)
        samples = self.images.samples
        return Evaluation(
            model=model,
            forward=ProbeForward(trainer, model, way=way, samples=samples),
            images=images,
            targets=None if targets is None else targets.cpu(),
            pixels=pixels,
            class_names=self.images.class_names(trainer),
            label=label,
            in_history=is_fitting(trainer),
            normalisation=known.normalisation,
            why_no_normalisation=known.why_not,
            display=display,
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
