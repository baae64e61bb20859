"""Whose time it is: what each monitor takes by itself, and what they take together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Account:
    """Seconds of one monitor, or of what the monitors of a Trainer share.

    Attributes:
        spent: since the fit began.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        self._unlogged = 0.0

    def add(self, seconds: float) -> None:
        """Record seconds that were taken."""
        self.spent += seconds
        self._unlogged += seconds

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self._unlogged = self._unlogged, 0.0
        return seconds


class Clock:
    """Charges each second to one account only: what is charged inside is not charged outside as well.

    Example:
        >>> clock, monitor, shared = Clock(), Account(), Account()
        >>> with clock.charge(monitor):
        ...     with clock.charge(shared):
        ...         time.sleep(0.1)
        >>> shared.spent >= 0.1 > monitor.spent
        True
    """

    def __init__(self) -> None:
        self._inside = [0.0]  # seconds charged within each block that is open

    @contextmanager
    def charge(self, account: Account) -> Iterator[None]:
        """Charge the block to an account."""
        began = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - began
            account.add(took - self._inside.pop())
            self._inside[-1] += took
