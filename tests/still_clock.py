"""A clock that stands still unless a test lets time pass, so that no verdict hangs on what else the machine does."""

from __future__ import annotations

import pytest


class StillClock:
    """Stands in for ``time.perf_counter`` while a test runs; waiting on it takes no time.

    Attributes:
        now: what it shows, in seconds.
    """

    def __init__(self) -> None:
        self.now = 100.0

    def read(self) -> float:
        """What ``time.perf_counter`` says."""
        return self.now

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def take_over(self, monkeypatch: pytest.MonkeyPatch) -> StillClock:
        """Be the clock of everything that is timed, until the test ends."""
        monkeypatch.setattr("time.perf_counter", self.read)
        return self
