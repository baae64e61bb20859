"""Timeline: the moments of one run, or of two side by side, in one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_attngrad.reporting.report.reading import Moment, StoredRun

#: Beside the first.
_MOST_TICKS = 5


@dataclass(frozen=True)
class Timeline:
    """Moments in their order.

    Attributes:
        labels: of each, such as ``epoch 3``.
        positions: of each, from 0 to 1, as far apart as they are in the run.
    """

    labels: Sequence[str]
    positions: Sequence[float]
    _steps: Sequence[int | None]  # None where two runs call other steps by one label

    @classmethod
    def of(cls, runs: Sequence[StoredRun]) -> Timeline:
        """That of one run; of two, their moments in one order.

        Where both have done as many steps by the moments that they call alike, moments are the same that have the same
        step. Else, as with another size of batches, those that are called alike stand side by side.
        """
        own = [_moments(run) for run in runs]
        first = {moment.label: moment.step for moment in own[0]}
        if all(first.get(moment.label, moment.step) == moment.step for moments in own for moment in moments):
            together = sorted({moment: None for moments in own for moment in moments}, key=lambda one: one.step)
            last = max((moment.step for moment in together), default=0) or 1
            positions = [moment.step / last for moment in together]
            return cls([one.label for one in together], positions, [one.step for one in together])
        labels = list(dict.fromkeys(moment.label for moments in own for moment in moments))
        return cls(labels, [n / max(len(labels) - 1, 1) for n in range(len(labels))], [None] * len(labels))

    def place(self, moment: Moment) -> int:
        """Number of a moment."""
        for number, (label, step) in enumerate(zip(self.labels, self._steps, strict=True)):
            if label == moment.label and step in (None, moment.step):
                return number
        return max(number for number, step in enumerate(self._steps) if step == moment.step)  # of a run's own numbers

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Positions of a few moments, and what to write there."""
        count = len(self.labels)
        every = max(1, -(-(count - 1) // _MOST_TICKS))
        # From the last one backwards would leave out the start.
        chosen = [*range(0, count - every, every), count - 1]
        found: list[tuple[float, str]] = []
        for number in chosen:
            text = self.labels[number].removeprefix("epoch ").removeprefix("step ").split(" (")[0]
            if not found or self.positions[number] - found[-1][0] > 0.11:
                found.append((self.positions[number], text))
        return found

    @property
    def unit(self) -> str:
        """What the numbers of the ticks count."""
        kinds = {label.split(" ")[0] for label in self.labels} - {"start"}
        return kinds.pop() if len(kinds) == 1 else "epoch or step"


def _moments(run: StoredRun) -> list[Moment]:
    """Of evaluations, and of the run's own numbers where there is no evaluation at that step."""
    of_evaluations = [one.moment for monitor in run.monitors for one in monitor.evaluations]
    steps = {moment.step for moment in of_evaluations}
    own = [moment for moment, _ in run.metrics if moment.step not in steps]
    return sorted(dict.fromkeys([*of_evaluations, *own]), key=lambda moment: moment.step)
