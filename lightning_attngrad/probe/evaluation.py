"""What a monitor is given when it evaluates, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from lightning_attngrad.explain import UNSAID, Task, of_rows
from lightning_attngrad.probe.normalisation import Normalisation
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
        targets: (N,) true classes on the CPU, where the data has them.
        pixels: the same images to be shown, (N, 3 or 1, H, W) in [0, 1], on the CPU.
        masks: (N, H, W) in [0, 1], 1 on the object, on the CPU, where the user says where they are.
        class_names: of all classes, where they are known.
        label: when this is, and of which weights where the run averages them: ``start``, ``epoch 3``, ``step 200``,
            ``epoch 3 (averaged weights)``.
        in_history: whether this evaluation belongs to the history of the run: it does in ``fit``, and not in a
            ``validate`` or ``test`` of its own.
        normalisation: how the images were normalised, where the user or a transform says so; no guess.
        seed: of whatever a monitor draws at random.
        model_path: of ``model`` in the LightningModule; None is the module itself.
        precision: of the run.
        images_hash: SHA-256 of the images and their targets.
        processes: of the run, all of which evaluate at the same moment.
        sharing: how many images one of them takes at once.
        task: what the model's output means.
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
    masks: Tensor | None = None
    seed: int = 0
    model_path: str | None = None
    precision: str = "32-true"
    images_hash: str | None = None
    processes: Processes = field(default_factory=Processes)
    sharing: PartSharing = field(default_factory=lambda: PartSharing(IMAGES_AT_ONCE))
    task: Task = UNSAID
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

        def work(part: Tensor) -> Tensor:
            with torch.no_grad(), held_still(self.model):  # a compiled model would compile for so many images
                output = self.forward_of(part)(self.images[part.to(self.images.device)])
                return self.task.scores(output, len(part)).float().cpu()

        return self.once("scores", lambda: torch.cat(self.each(len(self.images), work)))

    def classes(self) -> Tensor:
        """The class that each image is explained for, (N,): the same ones in every evaluation of a run.

        The true class, or, where the data have none that the model knows, the one predicted at the first evaluation.
        """

        def choose() -> Tensor:
            logits = self.logits()
            predicted = logits.argmax(dim=1)
            if self.targets is None:
                return predicted
            known = (self.targets >= 0) & (self.targets < logits.shape[1])
            return torch.where(known, self.targets, predicted)

        found: Tensor = self.in_this_run.once("classes", choose)
        return found

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
    """

    scalars: Mapping[str, float]
    figures: Callable[[], dict[str, Figure]] = dict


def shown_pixels(images: Tensor, normalisation: Normalisation | None) -> Tensor:
    """Images as they can be shown.

    Where nothing tells how they were normalised, each is stretched to [0, 1]. Of more than three channels the first
    three are shown, of two the first.

    Args:
        images: (N, C, H, W), as the model takes them.
        normalisation: what to undo.

    Returns:
        (N, 3 or 1, H, W) in [0, 1], float32, on the CPU.
    """
    images = images.detach().float().cpu()
    if normalisation is not None:
        pixels = normalisation.to_pixels(images)
    else:
        low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
        pixels = (images - low) / (high - low).clamp_min(1e-12)
    return pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1]
