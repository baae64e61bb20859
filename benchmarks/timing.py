"""Interleaved timing: ratios of things measured side by side in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Seconds = dict[str, list[float]]


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds that one call takes.

    With a single thread this is the processor time of the process, which other programs on the machine disturb
    least; with several threads, where that would add them up, the time on the clock.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function()
    return clock() - start


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    """Call each function once a round, in turn and in alternating order, after one round that does not count.

    A machine that slows down or warms up does so for all of them alike.
    """
    seconds: Seconds = {name: [] for name in functions}
    for round_number in range(rounds + 1):
        names = list(functions) if round_number % 2 else list(functions)[::-1]
        for name in names:
            took = seconds_of(functions[name])
            if round_number:
                seconds[name].append(took)
    return seconds


def ratio(seconds: Seconds, name: str, against: str) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(one / other for one, other in zip(seconds[name], seconds[against], strict=True))
