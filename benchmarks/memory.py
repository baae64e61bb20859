"""Peak memory of live tensors, and memory that a call does not give back.

The events of torch's profiler are used because they come from the allocator itself. They count what C++ autograd saves
for the backward pass and what a kernel allocates for itself; a dispatch mode would miss the second, ``gc`` both, and
the size of the process would add what the allocator merely has not returned yet.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile


class MemoryUse(NamedTuple):
    """Bytes above what was live before the call (weights, images): at the peak, and after its result is dropped."""

    peak: int
    held: int


def memory_of(function: Callable[[], object]) -> MemoryUse:
    """Memory of one call on the CPU, in bytes."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()  # its result is dropped at once
        gc.collect()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    return MemoryUse(peak=max(live, default=0), held=live[-1] if live else 0)
