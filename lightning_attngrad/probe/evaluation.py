"""What a monitor is given when it evaluates, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_attngrad.explain import UNSAID, NonFiniteOutputError, Task, find_embedding_vector, of_rows
from lightning_attngrad.probe.display import Display
from lightning_attngrad.probe.normalisation import KnownPixels, Normalisation
from lightning_attngrad.probe.sharing import IMAGES_AT_ONCE, PartSharing, Processes
from lightning_attngrad.state import held_still

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Forward = Callable[[Tensor], Any]


class Kept(Generic[T]):
    """What has been found already, by what was asked."""

    def __init__(self) -> None:
        self._found: dict[Hashable, T] = {}

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """The answer to ``key``, worked out the first time that it is asked for."""
        if key not in self._found:
            self._found[key] = work()
        return self._found[key]

    def keep(self, key: Hashable, value: T) -> None:
        """Give the answer to ``key``."""
        self._found[key] = value

    def get(self, key: Hashable) -> T | None:
        """The answer to ``key``, if it has been found."""
        return self._found.get(key)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The frozen images, the model as it is now, and the work that monitors share at one moment of a run.

    Attributes:
        model: the module to explain.
        forward: runs it in the precision of the run, on images (B, C, H, W) on the device. Where the model is given
            more of a sample than its image, it has to be asked for by :meth:`forward_of`.
        images: (N, C, H, W), on the device, as the model takes them.
        targets: (N,) true classes on the CPU, where the data has them, −1 for none; in multi-label classification
            (N, K) bool, which labels are there; in regression (N, K) float32, the numbers to be given.
        pixels: the same images to be shown, (N, 3 or 1, H, W) in [0, 1], on the CPU.
        masks: (N, H, W) in [0, 1], 1 on the object, on the CPU, where the user says where they are.
        class_names: of all classes, as the task numbers them, where they are known.
        label: when this is, and of which weights where the run averages them: ``start``, ``epoch 3``, ``step 200``,
            ``epoch 3 (averaged weights)``.
        in_history: whether this evaluation belongs to the history of the run: it does in ``fit``, and not in a
            ``validate`` or ``test`` of its own.
        normalisation: how the images were normalised, for sure; None in doubt.
        why_no_normalisation: what to write then.
        display: how ``pixels`` were made of the images.
        seed: of whatever a monitor draws at random.
        model_path: of ``model`` in the LightningModule; None is the module itself.
        precision: of the run.
        images_hash: SHA-256 of the images and their targets.
        processes: of the run, all of which evaluate at the same moment.
        sharing: how many images one of them takes at once.
        task: what the model's output means, the same for a whole run.
        about_task: what is to be said of it once, where it matters.
    """

    model: nn.Module
    forward: Forward
    images: Tensor
    targets: Tensor | None
    pixels: Tensor
    class_names: tuple[str, ...] | None
    label: str
    in_history: bool = True
    normalisation: Normalisation | None = None
    why_no_normalisation: str = "mean, std: not known; pass ProbeImages(mean=…, std=…)"
    display: Display = field(default_factory=Display)
    masks: Tensor | None = None
    seed: int = 0
    model_path: str | None = None
    precision: str = "32-true"
    images_hash: str | None = None
    processes: Processes = field(default_factory=Processes)
    sharing: PartSharing = field(default_factory=lambda: PartSharing(IMAGES_AT_ONCE))
    task: Task = UNSAID
    about_task: str = ""
    forward_with: Callable[[Mapping[str, Tensor]], Forward] | None = None
    at_this_moment: Kept[Any] = field(default_factory=Kept)
    in_this_run: Kept[Any] = field(default_factory=Kept)

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """Something that several monitors may ask for at this moment: worked out once, at the cost of the first.

        Args:
            key: all that the answer depends on, beside model and images.
            work: a collective operation if it calls :meth:`each`, and then made on every process.
        """
        found: T = self.at_this_moment.once(key, work)
        return found

    def each(self, count: int, work: Callable[[Tensor], T], *, at_most: int | None = None) -> list[T]:
        """Let the processes share some work, part by part; a collective operation: see :meth:`PartSharing.each`."""
        return self.sharing.each(self.processes, count, work, at_most=at_most)

    def forward_of(self, rows: Tensor) -> Forward:
        """The forward pass of some of the samples, for models that are given their metadata or other images too.

        Args:
            rows: (R,) ints, the numbers of the samples whose images it will be called with, in their order; a sample
                may be named more than once.

        Returns:
            From images (R, C, H, W), those of the samples or what has been made of them, to the model's output.
        """
        return of_rows(self.forward, rows)

    def with_weights(self, weights: Mapping[str, Tensor]) -> Evaluation:
        """The same evaluation of other weights, by the names of the model's ``state_dict()``; nothing is shared."""
        assert self.forward_with is not None
        return replace(self, forward=self.forward_with(weights), at_this_moment=Kept())

    def logits(self) -> Tensor:
        """What the model says of the images now, (N, C) float32 on the CPU; a collective operation.

        Raises:
            ValueError: if its output is not one row of logits an image.
        """
        return self.task.logits(self.scores())

    def scores(self) -> Tensor:
        """The score of each class that an image may be explained for, (N, K) float32 on the CPU, as the task has them.

        A collective operation.

        Raises:
            ValueError: if the output does not mean what the task says.
        """
        if self.about_task:
            self.in_this_run.once("about the task", lambda: rank_zero_warn(f"attngrad: {self.about_task}"))

        def work(part: Tensor) -> Tensor:
            with torch.no_grad(), held_still(self.model):  # a compiled model would compile for so many images
                output = self.forward_of(part)(self.images[part.to(self.images.device)])
                return self.task.scores(output, len(part)).float().cpu()

        return self.once("scores", lambda: torch.cat(self.each(len(self.images), work)))

    def classes(self) -> Tensor:
        """The class that each image is explained for, (N,): the same ones in every evaluation of a run.

        The true class (the first label that is there, in multi-label classification), or, where the data have none that
        the model knows, the one predicted at the first evaluation; in regression the first number.
        """

        def choose() -> Tensor:
            scores = self.scores()
            if self.targets is None:
                nothing = torch.full((len(scores),), -1)
                return self.task.class_of(nothing, scores) if not self.task.has_classes else self.task.chosen(scores)
            return self.task.class_of(self.targets, scores)

        found: Tensor = self.in_this_run.once("classes", choose)
        return found

    def true_names(self, image: int) -> tuple[str, ...]:
        """Names of what an image truly is; none where that is not known."""
        if self.targets is None or not (self.task.has_classes or self.targets.dim() == 1):
            return ()
        return tuple(self.class_name(index) for index in self.task.true_classes(self.targets[image]))

    def embeddings(self) -> Tensor:
        """The embedding of each image now, (N, D) float32 on the CPU; a collective operation.

        Raises:
            ValueError: if the output holds none, or they are not finite.
        """

        def work(part: Tensor) -> Tensor:
            with torch.no_grad(), held_still(self.model):
                output = self.forward_of(part)(self.images[part.to(self.images.device)])
                return find_embedding_vector(output, len(part)).float().cpu()

        found: Tensor = self.once("embeddings", lambda: torch.cat(self.each(len(self.images), work)))
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteOutputError("model: its embeddings are NaN or infinite; nothing can be compared with them")
        return found

    def known_normalisation(self) -> Normalisation:
        """How the images were normalised.

        Raises:
            UnknownNormalisationError: in doubt.
        """
        return KnownPixels(self.normalisation, None, self.why_no_normalisation).required()

    def class_name(self, index: int) -> str:
        """The name of a class, or its number."""
        if self.class_names is not None and 0 <= index < len(self.class_names):
            return self.class_names[index]
        return str(index)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a monitor found.

    Attributes:
        scalars: by name, without the ``attngrad/<monitor>/`` in front.
        figures: draws, by name likewise; called only on the process that logs.
        kept: arrays and plain values for the run report (docs/report.md); called only on that process, and only where
            ``report=True`` asks for it.
    """

    scalars: Mapping[str, float]
    figures: Callable[[], dict[str, Figure]] = dict
    kept: Callable[[], Mapping[str, Any]] = dict
