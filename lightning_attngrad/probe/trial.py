"""One way of running a model, tried on the first samples of a probe without a trace in the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor, nn

from lightning_attngrad.attention import AttentionTap
from lightning_attngrad.explain import of_rows
from lightning_attngrad.probe.forward import ProbeForward
from lightning_attngrad.probe.isolation import isolated
from lightning_attngrad.probe.resolve import ProbeInputError
from lightning_attngrad.probe.samples import Samples, tensors_of
from lightning_attngrad.probe.ways import Way
from lightning_attngrad.state import held_still

#: Two outputs are of the same numbers if they differ by no more than this share of the largest: bfloat16 rounds.
_ALIKE = 0.05
_LONGEST_ERROR = 160


@dataclass(frozen=True)
class Tried:
    """What came of a way.

    Attributes:
        way: that was tried.
        error: why it is none; empty where it ran.
        by_image: whether something of its output is one an image.
    """

    way: Way
    error: str = ""
    by_image: bool = False

    @property
    def works(self) -> bool:
        """Whether it may be used."""
        return not self.error and self.by_image


@dataclass(frozen=True, eq=False)
class Output:
    """What a model returned for some images, told apart from the model's own memory.

    Attributes:
        tensors: all of them, in their order.
        length: of the list or tuple that it is, else None.
    """

    tensors: list[Tensor]
    length: int | None

    @classmethod
    def of(cls, output: Any) -> Output:
        """That of an output of any form."""
        length = len(output) if isinstance(output, list | tuple) else None
        return cls([tensor.detach().clone() for tensor in tensors_of(output)], length)

    def is_by_image(self, count: int) -> bool:
        """Whether something is one an image."""
        return self.length == count or any(one.ndim > 0 and len(one) == count for one in self.tensors)

    def is_first_of(self, other: Output, *, numbers: bool) -> bool:
        """Whether this, of one sample, is what the other, of two, says of its first.

        Args:
            other: what the same model says of that sample beside another.
            numbers: whether the numbers count; else their shapes alone.
        """
        if len(self.tensors) != len(other.tensors):
            return False
        for one, two in zip(self.tensors, other.tensors, strict=True):
            if one.shape == two.shape:
                continue
            if one.ndim == two.ndim > 0 and len(two) == 2 * len(one):
                if one.shape[1:] != two.shape[1:] or (numbers and not _alike(one, two[: len(one)])):
                    return False
            elif one.shape[:1] != two.shape[:1]:
                return False
        return True

    def equals(self, other: Output) -> bool:
        """Whether both are the same numbers."""
        return len(self.tensors) == len(other.tensors) and all(
            one.shape == two.shape and _alike(one, two) for one, two in zip(self.tensors, other.tensors, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Trial:
    """Where ways are tried, each in an isolation of its own.

    Attributes:
        trainer: the Trainer.
        pl_module: the LightningModule.
        model: the part of it that is run.
        images: (1 or 2, C, H, W), of the first samples, on the device.
        are_bytes: whether they were uint8 when a step would have got them.
    """

    trainer: pl.Trainer
    pl_module: pl.LightningModule
    model: nn.Module
    images: Tensor
    are_bytes: bool

    @property
    def rows(self) -> Tensor:
        """The samples that are tried."""
        return torch.arange(len(self.images))

    def of(self, way: Way, samples: Samples | None = None) -> Tried:
        """Try a way, and one that is given more of a sample than its image also on a sample alone.

        Args:
            way: the way.
            samples: those of the probe, for ways that need them.

        Raises:
            ProbeInputError: for images that are bytes, and have to be.
        """
        try:
            output = self._run(way, self.rows, samples)
            error = ""
            if way.needs_batch and len(self.images) > 1 and self._mixes(way, output, samples):
                error = "what it says of a sample depends on which others are in the batch, or on their number"
        except Exception as raised:
            if is_oom_error(raised) or isinstance(raised, MemoryError):
                raise
            return Tried(way, _in_one_line(raised))
        if not error and self.are_bytes:
            self._refuse_bytes_that_count(way, output, samples)
        return Tried(way, error, output.is_by_image(len(self.images)))

    def attends(self, part: nn.Module) -> bool:
        """Whether a part of the model runs on the images alone, and attends to something."""
        way = Way("part(images)", lambda _model, images, _batch: part(images), needs_batch=False)
        tap = AttentionTap(part, start=None)
        try:
            with tap:
                output = self._run(way, self.rows, None)
            return bool(tap.calls) and output.is_by_image(len(self.images))
        except Exception:
            return False
        finally:
            tap.release()

    def _run(
        self, way: Way, rows: Tensor, samples: Samples | None, *, seed: int = 0, images: Tensor | None = None
    ) -> Output:
        some = (self.images if images is None else images)[rows.to(self.images.device)]
        with isolated(self.trainer, self.pl_module, seed=seed), torch.no_grad(), held_still(self.model):
            forward = ProbeForward(self.trainer, self.model, way=way, samples=samples)
            return Output.of(of_rows(forward, rows)(some.clone()))

    def _mixes(self, way: Way, of_two: Output, samples: Samples | None) -> bool:
        """Whether the output of a sample hangs on which others are beside it."""
        of_one = self._run(way, self.rows[:1], samples)
        if of_one.is_first_of(of_two, numbers=True):
            return False
        # A model that draws random numbers gives others anyway.
        draws = not of_one.equals(self._run(way, self.rows[:1], samples, seed=1))
        return not (draws and of_one.is_first_of(of_two, numbers=False))

    def _refuse_bytes_that_count(self, way: Way, output: Output, samples: Samples | None) -> None:
        """Refuse images that are bytes, unless the model takes floats from 0 to 255 for the same."""
        try:
            same = self._run(way, self.rows, samples, images=self.images.to(torch.uint8)).equals(output)
            what = "gives something else for the same numbers as floats"
        except Exception as error:
            same, what = False, f"fails on them with {_in_one_line(error)}"
        if not same:
            raise ProbeInputError(
                f"batch: the images are uint8 {list(self.images.shape[1:])}, which no model differentiates, and "
                f"{way.words} {what}; convert them to float in the validation transform, in on_after_batch_transfer, "
                "or in a batch_adapter"
            )


def _alike(one: Tensor, two: Tensor) -> bool:
    one, two = one.double(), two.double()
    largest = max(float(two.abs().nan_to_num(posinf=0).max()), 1e-12) if two.numel() else 1.0
    return torch.allclose(one, two, rtol=0, atol=_ALIKE * largest, equal_nan=True)


def _in_one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}…"
