"""The batches of a stream, for models that are given more of a sample than the image that was gathered from it."""

from __future__ import annotations

import pickle
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_attngrad.probe.resolve import ProbeInputError, describe
from lightning_attngrad.probe.samples import Path, Samples, map_tensors, path_to, tensors_of

#: What a checkpoint may hold, beside tensors, and is read again as it was.
_PLAIN = (str, int, float, bool, type(None))


class GatheredBatches:
    """Batches that have gone by, cut to the samples that were taken of them, on the CPU.

    Args:
        samples: of an earlier run.

    Attributes:
        samples: of all of them, once they have been shared.
    """

    def __init__(self, samples: Samples | None = None) -> None:
        self.samples = samples
        self._batches: list[Any] = []
        self._sizes: list[int] = []
        self._paths: list[Path | None] = []

    def add(self, batch: Any, images: Tensor, count: int) -> None:
        """Take the first samples of a batch.

        Args:
            batch: as a hook receives it.
            images: (B, C, H, W), as they were found in it.
            count: how many, at most.
        """
        path, taken = path_to(batch, images), min(count, len(images))
        cut = Samples(batch, len(images), path).rows(torch.arange(taken))
        self._batches.append(map_tensors(cut, lambda tensor: tensor.detach().cpu()))  # rows are copies
        self._sizes.append(taken)
        self._paths.append(path)

    @property
    def first(self) -> tuple[Any, Path | None]:
        """The first batch, and where its images are."""
        return (self._batches[0], self._paths[0]) if self._batches else (None, None)

    def share(self, trainer: pl.Trainer) -> None:
        """Give every process the batches of the first; a collective operation, outside of inference mode.

        Raises:
            ProbeInputError: on every process, if there are none, or they cannot be put together or sent.
        """
        if self.samples is not None:
            return
        # An error on rank 0 alone would leave the others waiting, so it travels in the place of the batches.
        received: Any = trainer.strategy.broadcast(self._of_all(trainer) if trainer.is_global_zero else None, src=0)
        if isinstance(received, str):
            raise ProbeInputError(received)
        # Of what went by in inference mode, tensors that may enter a graph.
        self.samples = received.map(lambda tensor: tensor.clone())
        self._batches, self._sizes, self._paths = [], [], []

    def _of_all(self, trainer: pl.Trainer) -> Samples | str:
        """What went by, or why it cannot be used."""
        if not self._batches:
            return (
                "batch: the probe images are those of the checkpoint that is resumed, which holds none of their "
                "batches, and the model is given more than images now; set another ProbeImages(seed=…) to gather anew"
            )
        try:
            samples = Samples.of(self._batches, self._sizes, self._paths)
            if trainer.world_size > 1:
                pickle.dumps(samples)
        except ProbeInputError as error:
            return str(error)
        except Exception as error:
            return f"batch: {describe(self._batches[0])} cannot be sent to the other processes: {error!r}"
        return samples

    def plain(self) -> dict[str, Any] | None:
        """The samples in plain values and tensors, for a checkpoint; None where they are more than that."""
        samples = self.samples
        if samples is None or not _is_plain(samples.batch):
            return None
        sizes = [tensor.nbytes for tensor in tensors_of(samples.batch)]
        path = None if samples.path is None else list(samples.path)
        return {"batch": samples.batch, "size": samples.size, "path": path, "bytes": sum(sizes)}

    @classmethod
    def restored(cls, state: dict[str, Any] | None) -> GatheredBatches:
        """Those of :meth:`plain`."""
        if state is None:
            return cls()
        path = state["path"]
        return cls(Samples(state["batch"], state["size"], None if path is None else tuple(path)))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return True
    if type(value) is dict:
        return all(type(key) in _PLAIN and _is_plain(item) for key, item in value.items())
    return type(value) in (list, tuple) and all(map(_is_plain, value))
