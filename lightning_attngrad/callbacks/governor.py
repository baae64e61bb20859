"""Governor: a monitor's share of the time of a fit, and the looks that it has to pass over to keep it."""

from __future__ import annotations

import math
import time


class Governor:
    """Lets looks that are due pass by, until the monitor has the time for one.

    What a look asks of the images never changes, only how many looks there are: numbers stay comparable. A look has
    the time if with it, and with one more that is kept for the end of the fit, the monitor has taken no more than its
    share so far; how long it will take is told by the one before. The look at the starting weights, before which there
    is no time to share, is always taken.

    Args:
        limit: of the time of the fit, the share that the monitor may take; None is no limit.

    Raises:
        ValueError: for a limit that is no share.

    Attributes:
        taken: looks of this fit.
        passed: looks of this fit that were due and for which there was no time.

    Example:
        >>> governor = Governor(limit=0.05)
        >>> governor.begin()
        >>> governor.allows(spent=0.0, is_last=False)  # the starting weights
        True
        >>> governor.takes(spent=0.0)
        >>> governor.allows(spent=2.0, is_last=False)  # that took two seconds, and training has only begun
        False
    """

    def __init__(self, limit: float | None) -> None:
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if limit is not None and not (number and 0 < limit < math.inf):
            raise ValueError(
                f"max_overhead: got {limit!r}; expected the share of the fit's time that the monitor may take, such as "
                "0.05, or None for no limit"
            )
        self.limit = limit
        self.begin()

    def begin(self) -> None:
        """A fit begins."""
        self._began = time.perf_counter()
        self._before_look: float | None = None  # spent, when the last look began
        self.taken = 0
        self.passed = 0

    def overhead(self, spent: float) -> float:
        """Share of the fit's time so far that the monitor has taken."""
        return spent / max(time.perf_counter() - self._began, spent, 1e-9)

    def last_look(self, spent: float) -> float:
        """Seconds of the last look; 0 before the first."""
        return 0.0 if self._before_look is None else spent - self._before_look

    @property
    def stretch(self) -> float:
        """Of how many looks that were due one was taken."""
        return (self.taken + self.passed) / max(self.taken, 1)

    def allows(self, spent: float, *, is_last: bool) -> bool:
        """Whether a look that is due has the time; the answer of one process has to become that of all.

        Args:
            spent: seconds that the monitor has taken in this fit.
            is_last: whether no look can follow.
        """
        if self.limit is None or self._before_look is None:
            return True
        expected = self.last_look(spent)
        kept = 0.0 if is_last else expected
        return spent + expected + kept <= self.limit * (time.perf_counter() - self._began)

    def takes(self, spent: float) -> None:
        """Take down that a look begins."""
        self._before_look = spent
        self.taken += 1

    def passes(self) -> None:
        """Take down that a look that was due passes by."""
        self.passed += 1
