"""Images that go through a model together: shared among processes, and fewer at once where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda
from torch import Tensor

from lightning_attngrad.probe.processes import PartTooLargeError, Processes

T = TypeVar("T")

_log = logging.getLogger("lightning_attngrad")

#: Images that go through the model at once, unless they do not fit into memory: few, so that processes can share them.
IMAGES_AT_ONCE = 8


class PartSharing:
    """How many images go through the model at once, as many for one process as for a hundred.

    So what is found does not depend on the number of processes. Where a process runs out of memory, all of them go on
    with half as many, then and in every later evaluation.

    Args:
        at_once: images to begin with.

    Attributes:
        at_once: the number that fits, as far as is known.

    Example:
        >>> PartSharing(at_once=2).each(Processes(), 5, lambda part: part.tolist())
        [[0, 1], [2, 3], [4]]
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def each(
        self, processes: Processes, count: int, work: Callable[[Tensor], T], *, at_most: int | None = None
    ) -> list[T]:
        """Do the work of all images, or of all image–target pairs, together; a collective operation.

        With a sharded model, whose processes wait for each other within a forward pass, memory that runs out on one
        of them only cannot be recovered from: the others end with the error of their backend.

        Args:
            processes: among which the work is shared.
            count: how many images, or pairs, there are.
            work: from the numbers of some of them (n,) to what comes of them, on the CPU.
            at_most: at once, where each of them is a lot of work.

        Returns:
            What came of each part, in their order, on every process alike.

        Raises:
            PartTooLargeError: if not even one fits.
            RuntimeError: if another process had an error.
        """
        while True:
            parts = torch.arange(count).split(self.at_once if at_most is None else min(at_most, self.at_once))
            try:
                return processes.each(len(parts), lambda part, parts=parts: work(parts[part]))  # type: ignore[misc]
            except PartTooLargeError as error:
                largest = max(map(len, parts))
                if largest == 1:
                    raise
                self.at_once = (largest + 1) // 2
                _log.warning(
                    "out of memory with %d images at once: going on with %d at once (%s)",
                    largest,
                    self.at_once,
                    str(error),
                )
            garbage_collection_cuda()
