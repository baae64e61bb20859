"""What a fit has come to, in a few lines of text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

__all__ = ["Account", "summary_text"]

#: Columns that the text keeps within.
_COLUMNS = 100
_INDENT = " " * 4


@dataclass(frozen=True)
class Account:
    """What one monitor has to say at the end of a fit.

    Attributes:
        name: in ``attngrad/<name>/…``.
        kind: name of its class.
        evaluations: how many there were, those before a resumed run counted too.
        since: label of the first evaluation.
        meanings: what its main scalars say, in a few words, by name.
        first: their first values; a name may be missing.
        last: their last values; likewise.
        seconds: that it took of this fit.
        remarks: whatever else there is to know, such as why it was switched off.
        figures: where they are.
    """

    name: str
    kind: str
    evaluations: int
    since: str
    meanings: Mapping[str, str]
    first: Mapping[str, float]
    last: Mapping[str, float]
    seconds: float
    remarks: Sequence[str] = ()
    figures: str = field(default="")


def summary_text(
    accounts: Sequence[Account], fit_seconds: float, places: Sequence[str], shared_seconds: float = 0.0
) -> str:
    """A few lines on each monitor, within 100 columns.

    Args:
        accounts: of the monitors.
        fit_seconds: that the fit took, monitors included.
        places: where numbers and figures are, as in ``TensorBoardLogger in logs/version_0``.
        shared_seconds: what the monitors did once for all of them.

    Example:
        >>> maps = Account(
        ...     "maps", "AttentionMapMonitor", 5, "start", {"entropy": "1 = spread evenly"},
        ...     {"entropy": 0.9}, {"entropy": 0.75}, 2.0, figures="attngrad/maps/",
        ... )
        >>> print(summary_text([maps], 50.0, ["CSVLogger in logs/version_0"]))
        attngrad: what 1 monitor saw in a fit of 50 s
        <BLANKLINE>
        maps (AttentionMapMonitor), 5 evaluations since start
            entropy  0.9 → 0.75  down  1 = spread evenly
            took 2 s, 4 % of the fit; figures: attngrad/maps/
        <BLANKLINE>
        written to
            CSVLogger in logs/version_0
    """
    number = f"{len(accounts)} monitor{'s' if len(accounts) != 1 else ''}"
    together = sum(account.seconds for account in accounts) + shared_seconds
    both = f", of which they took {_share(together, fit_seconds)}" if len(accounts) > 1 else ""
    lines = [f"attngrad: what {number} saw in a fit of {_seconds(fit_seconds)}{both}"]
    for account in accounts:
        lines += ["", *_of_monitor(account, fit_seconds)]
    if shared_seconds:
        cost = f"{_seconds(shared_seconds)}, {_share(shared_seconds, fit_seconds)} of the fit"
        lines += ["", *_wrapped(f"once for all (images read, model held still): {cost}")]
    if places:
        lines += ["", "written to", *(_middle_out(f"{_INDENT}{place}") for place in places)]
    return "\n".join(lines)


def _of_monitor(account: Account, fit_seconds: float) -> list[str]:
    number = account.evaluations
    evaluations = {0: "no evaluation", 1: f"1 evaluation, at {account.since}"}.get(
        number, f"{number} evaluations since {account.since}"
    )
    rows = [
        (name, _course(account, name), _direction(account, name), meaning)
        for name, meaning in account.meanings.items()
        if not math.isnan(account.last.get(name, math.nan))
    ]
    lines = tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines()
    table = [f"{_INDENT}{line}" for line in lines]
    cost = f"took {_seconds(account.seconds)}, {_share(account.seconds, fit_seconds)} of the fit"
    cost += f"; figures: {account.figures}" if account.figures else ""
    prose = [line for text in (cost, *account.remarks) for line in _wrapped(text)]
    return [_shortened(line.rstrip()) for line in (f"{account.name} ({account.kind}), {evaluations}", *table, *prose)]


def _course(account: Account, name: str) -> str:
    last = _number(account.last[name])
    return f"{_number(account.first[name])} → {last}" if account.evaluations > 1 and name in account.first else last


def _direction(account: Account, name: str) -> str:
    first, last = account.first.get(name, math.nan), account.last[name]
    if account.evaluations < 2 or math.isnan(first):
        return ""
    if _number(first) == _number(last):
        return "same"  # as far as the digits that are shown tell
    return "up" if last > first else "down"


def _number(value: float) -> str:
    return {math.inf: "∞", -math.inf: "-∞"}.get(value, f"{value:.3g}")


def _seconds(value: float) -> str:
    if value < 60:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2g} %" if whole > 0 else "0 %"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _COLUMNS, initial_indent=_INDENT, subsequent_indent=_INDENT + "  ")


def _shortened(line: str) -> str:
    return line if len(line) <= _COLUMNS else f"{line[: _COLUMNS - 1]}…"


def _middle_out(line: str) -> str:
    """The end of a path tells more than what stands before it."""
    if len(line) <= _COLUMNS:
        return line
    head = _COLUMNS // 3
    return f"{line[:head]}…{line[head + 1 - _COLUMNS :]}"
