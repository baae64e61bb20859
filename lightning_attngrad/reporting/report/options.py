"""What a report is asked for, and the error that bad input ends in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


class ReportError(ValueError):
    """Bad input to the report: the message is one line for the person who typed the command."""


@dataclass(frozen=True)
class ReportOptions:
    """Everything that `lightning-attngrad report` can be asked for, and how its help explains it.

    Attributes:
        runs: the log directory of a run with report=True; of two such runs on the same images they are compared.
        output: the HTML file (default: attngrad/report.html in the log directory; of two, attngrad_comparison.html in
            the working directory).

    Raises:
        ReportError: for more than two runs, or the same one twice.

    Example:
        >>> ReportOptions([Path("logs/version_0")]).file
        PosixPath('logs/version_0/attngrad/report.html')
    """

    runs: Sequence[Path] = field(metadata={"metavar": "LOGDIR"})
    output: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.runs) <= 2:
            raise ReportError(f"LOGDIR: got {len(self.runs)} of them; expected one, or two to be compared")
        if len({path.absolute() for path in self.runs}) < len(self.runs):
            raise ReportError(f"LOGDIR: {self.runs[0]} is given twice")

    @property
    def file(self) -> Path:
        """Where the page goes."""
        if self.output is not None:
            return self.output
        return self.runs[0] / "attngrad" / "report.html" if len(self.runs) == 1 else Path("attngrad_comparison.html")
