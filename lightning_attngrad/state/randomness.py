"""Random streams: those of the process, and those that an object keeps for itself."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_LARGEST_SEED = 2**32 - 1  # what numpy accepts

#: How a stream is seeded, and how it is put back as it was.
_Stream = tuple[Callable[[int], Any], Callable[[], Any]]


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Run the body with every random stream of the process set to ``seed``, and put the streams back afterwards.

    Covers Python, numpy, torch on the CPU, and every CUDA, MPS and XPU device that is in use; also when the body
    raises. May be entered again inside itself.

    Args:
        seed: a number from 0 to 2**32 − 1.

    Raises:
        ValueError: if ``seed`` is outside that range.
    """
    check_seed(seed)
    streams = _streams_of_the_process()
    try:
        for reseed, _ in streams:
            reseed(seed)
        yield
    finally:
        for _, put_back in streams:
            put_back()


class RandomMoment:
    """The random streams of the process as they are now, so that what draws from them can be run once more.

    Example:
        >>> moment = RandomMoment()
        >>> drawn = torch.rand(2)
        >>> with moment.again():
        ...     same = torch.rand(2)
        >>> bool(torch.equal(drawn, same)), bool(torch.equal(torch.rand(2), same))
        (True, False)
    """

    def __init__(self) -> None:
        self._streams = _streams_of_the_process()

    def rewind(self) -> None:
        """Put every stream back as it was then."""
        for _, put_back in self._streams:
            put_back()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run the body with every stream as it was then, and put the streams back afterwards as they are now."""
        later = _streams_of_the_process()
        try:
            self.rewind()
            yield
        finally:
            for _, put_back in later:
                put_back()


def check_seed(seed: int) -> None:
    """Refuse a seed that not every random stream accepts.

    Raises:
        ValueError: if ``seed`` is not an int from 0 to 2**32 − 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"seed: got {seed!r}; expected an int from 0 to {_LARGEST_SEED}")


def _streams_of_the_process() -> list[_Stream]:
    # Not torch.manual_seed: on an idle CUDA runtime it would leave a seed waiting for the day it starts.
    torch_on_cpu = torch.default_generator
    streams: list[_Stream] = [
        (random.seed, partial(random.setstate, random.getstate())),
        (torch_on_cpu.manual_seed, partial(torch_on_cpu.set_state, torch_on_cpu.get_state())),
    ]
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        legacy = numpy.random  # the legacy global stream is what user transforms draw from
        streams.append((legacy.seed, partial(legacy.set_state, legacy.get_state())))
    # Any: torch leaves these modules without types. An idle runtime is not asked for its state: that would create a
    # context on it, and fail in a forked process.
    cuda: Any = torch.cuda
    if cuda.is_available() and cuda.is_initialized():
        streams.append((cuda.manual_seed_all, partial(cuda.set_rng_state_all, cuda.get_rng_state_all())))
    xpu: Any = torch.xpu
    if xpu.is_available() and xpu.is_initialized():
        streams.append((xpu.manual_seed_all, partial(xpu.set_rng_state_all, xpu.get_rng_state_all())))
    if torch.backends.mps.is_available():
        streams.append((torch.mps.manual_seed, partial(torch.mps.set_rng_state, torch.mps.get_rng_state())))
    return streams


def is_private_stream(cls: type) -> bool:
    """Whether objects of this class draw random numbers from a state of their own that can be put back."""
    if issubclass(cls, torch.Generator):
        return True
    if issubclass(cls, random.Random):
        return not issubclass(cls, random.SystemRandom)
    # Without numpy in the process there is no object of its classes either.
    drawing: Any = sys.modules.get("numpy.random")
    return drawing is not None and issubclass(cls, drawing.Generator | drawing.RandomState | drawing.BitGenerator)


class PrivateStream:
    """The state of a generator that some object keeps, to be put back into the very same generator."""

    def __init__(self, generator: Any) -> None:
        self._put_back: Callable[[], Any]
        if isinstance(generator, random.Random):
            self._put_back = partial(generator.setstate, generator.getstate())
        elif isinstance(generator, torch.Generator) or hasattr(generator, "get_state"):  # numpy's RandomState
            self._put_back = partial(generator.set_state, generator.get_state())
        else:
            bits = getattr(generator, "bit_generator", generator)
            self._put_back = partial(setattr, bits, "state", bits.state)

    def restore(self) -> None:
        """As if nothing had been drawn from it."""
        self._put_back()
