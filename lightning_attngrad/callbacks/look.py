"""What a monitor is given to look at, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_attngrad.probe import Normalisation, Processes, RowSharing

T = TypeVar("T")

#: Images that go through the model at once, unless they do not fit into memory: few, so that processes can share them.
ROWS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Probe:
    """What a monitor is given to look at.

    Attributes:
        model: the module to explain.
        forward: runs it in the precision of the run.
        images: (N, C, H, W), on the device, as the model takes them.
        targets: (N,) true classes, where the data has them.
        pixels: the same images to be shown, (N, 3 or 1, H, W) in [0, 1], on the CPU.
        class_names: of all classes, where they are known.
        label: when this is: ``start``, ``epoch 3`` or ``step 200``.
        normalisation: how the images were normalised, where the user or a transform says so; no guess.
        processes: of the run, all of which look at the same moment.
        sharing: how many rows of work one of them does at once.
        model_path: of ``model`` in the LightningModule; None is the module itself.
        precision: of the run.
    """

    model: nn.Module
    forward: Callable[[Tensor], Any]
    images: Tensor
    targets: Tensor | None
    pixels: Tensor
    class_names: tuple[str, ...] | None
    label: str
    normalisation: Normalisation | None = None
    processes: Processes = field(default_factory=Processes)
    model_path: str | None = None
    precision: str = "32-true"
    sharing: RowSharing = field(default_factory=lambda: RowSharing(ROWS_AT_ONCE))

    def each(self, rows: int, work: Callable[[Tensor], T], *, at_most: int | None = None) -> list[T]:
        """Let the processes share the work of some rows; a collective operation: see :meth:`RowSharing.each`."""
        return self.sharing.each(self.processes, rows, work, at_most=at_most)

    def class_name(self, index: int) -> str:
        """The name of a class, or its number."""
        if self.class_names is not None and 0 <= index < len(self.class_names):
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
