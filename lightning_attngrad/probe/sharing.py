"""Work shared among the processes of a run, in parts that fit into memory."""

from __future__ import annotations

import io
import logging
import pickle
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import Tensor, nn

from lightning_attngrad.state import passes_begin_as_it_is

T = TypeVar("T")


class PartTooLargeError(RuntimeError):
    """A part of some work does not fit into the memory of a process; raised on all of them alike."""


@dataclass(frozen=True)
class _Told:
    """What the other processes are told of an error."""

    message: str
    out_of_memory: bool

    @classmethod
    def of(cls, error: Exception) -> _Told:
        # Lightning's rule knows CUDA and the CPU; MPS and XPU say it in their own words.
        too_large = is_oom_error(error) or isinstance(error, MemoryError) or "out of memory" in str(error)
        return cls(f"{type(error).__name__}: {error}", too_large)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and which of them this is.

    Attributes:
        rank: of this process among those that see different data, from 0.
        count: how many of these there are.
        world: how many processes there are; more than ``count`` where several share the layers of one model.

    Example:
        >>> Processes(rank=1, count=2).share(5)
        [(1, True), (3, True), (1, False)]
    """

    rank: int = 0
    count: int = 1
    world: int = 1

    @classmethod
    def of(cls, trainer: pl.Trainer) -> Processes:
        """Those of a Trainer.

        Under tensor parallelism several processes compute one model, and have to be given the same images: Lightning
        tells its samplers which ones see different data.
        """
        sampling = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        rank, count = sampling.get("rank", trainer.global_rank), sampling.get("num_replicas", trainer.world_size)
        return cls(rank, count, trainer.world_size)

    def share(self, parts: int) -> list[tuple[int, bool]]:
        """The parts of some work that this process does, in turn with the others.

        Every process does as many: a sharded model waits for all of them at each forward pass. Where the parts do not
        go round, a process repeats its first one (or the first of all), which then does not count.

        Args:
            parts: how many parts there are.

        Returns:
            Number of the part, and whether it counts; ⌈parts / count⌉ of them.
        """
        mine = [(part, True) for part in range(self.rank, parts, self.count)]
        idle = -(-parts // self.count) - len(mine)
        return mine + [(mine[0][0] if mine else 0, False)] * idle

    def gather(self, found: T) -> list[T]:
        """What each process found, in the order of their ranks; a collective operation. Tensors must be on the CPU."""
        if max(self.count, self.world) == 1:
            return [found]
        everyone: list[bytes] = [b""] * max(self.count, self.world)
        torch.distributed.all_gather_object(everyone, _packed(found))
        return [pickle.loads(packed) for packed in everyone]  # noqa: S301  (of this run's own processes)

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the buffers of the first, which a checkpoint holds; a collective operation.

        Each process has normalised its own batches since they were last alike. The body of :func:`isolated` is the
        place for it: they are put back afterwards. Those of a sharded tensor stay as they are.
        """
        if self.count == 1:
            return
        buffers = [buffer for buffer in module.buffers() if type(buffer) in (Tensor, nn.Buffer)]
        sent = [[buffer.detach().cpu() for buffer in buffers] if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(sent, src=0)
        with torch.no_grad():
            for buffer, value in zip(buffers, sent[0] or [], strict=True):
                buffer.copy_(value)
        passes_begin_as_it_is(module)

    def together(self, work: Callable[[], T]) -> T:
        """Let every process do the same, or none go on; a collective operation.

        Before work that is shared: where one process had an error, the others would wait for it there.

        Raises:
            PartTooLargeError: on every process, if one ran out of memory and none had another error.
            RuntimeError: if another process had an error.
        """
        error: Exception | None = None
        try:
            found = work()
        except Exception as raised:
            error = raised
            if _Told.of(error).out_of_memory:
                traceback.clear_frames(error.__traceback__)  # they hold on to what fills the memory
        _raise_any(error, self.gather(None if error is None else _Told.of(error)))
        return found

    def each(self, parts: int, work: Callable[[int], T]) -> list[T]:
        """Do all parts of some work together; a collective operation.

        An error in one part does not keep this process from the others, or the rest would wait for it: the first
        error is raised on its process when all parts are done, and on the others something is raised as well.

        Args:
            parts: how many.
            work: from the number of a part to what comes of it, on the CPU.

        Returns:
            What came of each part, on every process alike.

        Raises:
            PartTooLargeError: on every process, if one ran out of memory and none had another error.
            RuntimeError: if another process had an error.
        """
        done: dict[int, T] = {}
        first: Exception | None = None
        for part, counts in self.share(parts):
            try:
                found = work(part)
            except Exception as error:  # noqa: PERF203
                first = first or error
                if _Told.of(error).out_of_memory:
                    traceback.clear_frames(error.__traceback__)  # they hold on to what fills the memory
            else:
                if counts:
                    done[part] = found
        told = None if first is None else _Told.of(first)
        if parts < self.count:
            everything = self._from_few(done, first, told)
        else:
            gathered = self.gather((done, told))
            _raise_any(first, [there for _, there in gathered])
            everything = {part: found for found_there, _ in gathered for part, found in found_there.items()}
        return [everything[part] for part in range(parts)]

    def _from_few(self, done: dict[int, T], first: Exception | None, told: _Told | None) -> dict[int, T]:
        """What came of all parts, sent by those alone that have one.

        A gathering pads what every process sends to the longest, and every process receives it of all: with hundreds
        of processes, all but a few of which repeated a part, hundreds of times what there is.
        """
        gathered = self.gather((sorted(done), told))
        _raise_any(first, [there for _, there in gathered])
        senders: dict[int, int] = {}
        for rank, (parts, _) in enumerate(gathered):
            for part in parts:
                senders.setdefault(part, rank)
        everything: dict[int, T] = {}
        for rank in sorted(set(senders.values())):
            sent = [_packed(done) if torch.distributed.get_rank() == rank else b""]
            torch.distributed.broadcast_object_list(sent, src=rank)
            everything |= pickle.loads(sent[0])  # noqa: S301  (of this run's own processes)
        return everything


class _Packer(pickle.Pickler):
    """Packs of a tensor what it shows, and not all of the storage that it is a view of: one image, not its batch."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes:
            return value.clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


def _packed(found: Any) -> bytes:
    packed = io.BytesIO()
    _Packer(packed, pickle.HIGHEST_PROTOCOL).dump(found)
    return packed.getvalue()


def _raise_any(own: Exception | None, told: Sequence[_Told | None]) -> None:
    """Raise that memory ran out if that is all there is, else this process's own error or one about another's."""
    errors = [one for one in told if one is not None]
    if errors and all(one.out_of_memory for one in errors):
        raise PartTooLargeError(errors[0].message)
    if own is not None:
        raise own
    if errors:
        raise RuntimeError(f"another process had an error: {errors[0].message}")


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
