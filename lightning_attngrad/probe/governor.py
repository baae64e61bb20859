"""Governor: a monitor's share of the time of a fit, and the evaluations that it has to skip to keep it."""

from __future__ import annotations

import math
import time


class Governor:
    """Lets evaluations that are due be skipped, until the monitor has the time for one.

    What an evaluation asks of the images never changes, only how many there are: numbers stay comparable. An evaluation
    has the time if with it, and with one more that is kept for the end of the fit, the monitor has taken no more than
    its share so far; how long it will take is told by the one before. The evaluation of the starting weights, before
    which there is no time to share, is always taken.

    Args:
        limit: of the time of the fit, the share that the monitor may take; None is no limit.

    Raises:
        ValueError: for a limit that is no share.

    Attributes:
        taken: evaluations of this fit.
        skipped: evaluations of this fit that were due and for which there was no time.

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
        self._before: float | None = None  # spent, when the last evaluation began
        self.taken = 0
        self.skipped = 0

    def overhead(self, spent: float) -> float:
        """Share of the fit's time so far that the monitor has taken."""
        return spent / max(time.perf_counter() - self._began, spent, 1e-9)

    def last_evaluation(self, spent: float) -> float:
        """Seconds of the last evaluation; 0 before the first."""
        return 0.0 if self._before is None else spent - self._before

    @property
    def stretch(self) -> float:
        """Of how many evaluations that were due one was made."""
        return (self.taken + self.skipped) / max(self.taken, 1)

    def allows(self, spent: float, *, is_last: bool) -> bool:
        """Whether an evaluation that is due has the time; the answer of one process has to become that of all.

        Args:
            spent: seconds that the monitor has taken in this fit.
            is_last: whether none can follow.
        """
        if self.limit is None or self._before is None:
            return True
        expected = self.last_evaluation(spent)
        kept = 0.0 if is_last else expected
        return spent + expected + kept <= self.limit * (time.perf_counter() - self._began)

    def takes(self, spent: float) -> None:
        """Record that an evaluation begins."""
        self._before = spent
        self.taken += 1

    def skips(self) -> None:
        """Record that one that was due is skipped."""
        self.skipped += 1
