"""What makes an audit fail: conditions such as `rewrite/median_linf<2/255`."""

from __future__ import annotations

import difflib
import math
import operator
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*([^<>=]*[^<>=\s])\s*(<=|>=|<|>)\s*([^<>=\s]+)\s*")


@dataclass(frozen=True)
class Threshold:
    """A condition under which a checkpoint fails.

    Attributes:
        text: as it was written.
        name: of a number that the audit finds, or of a metric of the run.
        operator: ``<``, ``<=``, ``>`` or ``>=``.
        limit: what the value is compared with.
    """

    text: str
    name: str
    operator: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read a condition.

        Args:
            text: ``NAME OP VALUE``, where VALUE is a number or a fraction.

        Raises:
            ValueError: if it is none.

        Example:
            >>> Threshold.parse("rewrite/median_linf < 2/255").limit * 255
            2.0
        """
        found = _CONDITION.fullmatch(text)
        limit = None if found is None else _number(found[3])
        if found is None or limit is None:
            raise ValueError(
                f"got {text!r}; expected NAME, one of < <= > >=, and a number or a fraction, "
                "in quotes: 'rewrite/median_linf<2/255'"
            )
        return cls(text.strip(), found[1], found[2], limit)

    def is_broken_by(self, values: Mapping[str, float]) -> bool:
        """Whether a checkpoint with these values fails; it does where the value is NaN or missing.

        Both sides are rounded to float32, in which they are computed: a median of two steps of an 8-bit image does
        not exceed ``2/255`` by its last bit.

        Example:
            >>> [Threshold.parse("x<0.5").is_broken_by({"x": value}) for value in (0.4, 0.5, math.inf, math.nan)]
            [True, False, False, True]
        """
        value = values.get(self.name, math.nan)
        return math.isnan(value) or _OPERATORS[self.operator](_single(value), _single(self.limit))


def refuse_unknown(thresholds: Sequence[Threshold], figures: set[str], metrics: set[str]) -> None:
    """Refuse a condition on a name that no checkpoint has: a misspelt one would stand in a pipeline for years.

    Args:
        thresholds: the conditions.
        figures: names of what the audit finds.
        metrics: names of what the runs had logged.

    Raises:
        ValueError: naming the nearest name, and all that there are.

    Example:
        >>> refuse_unknown([Threshold.parse("rewrite/medain<1")], {"rewrite/median"}, {"val_loss"})
        Traceback (most recent call last):
        ValueError: there is no 'rewrite/medain'; did you mean 'rewrite/median'? there are rewrite/median, val_loss
    """
    there = figures | metrics
    for threshold in thresholds:
        if threshold.name in there:
            continue
        near = difflib.get_close_matches(threshold.name, there, n=1, cutoff=0.7)
        meant = f"did you mean {near[0]!r}? " if near else ""
        bare = "" if metrics else ". Metrics are known of runs that had a CheckpointAudit, which this one had not"
        raise ValueError(f"there is no {threshold.name!r}; {meant}there are {', '.join(sorted(there))}{bare}")


def _number(text: str) -> float | None:
    """A number or a fraction; None for anything else, NaN included."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        return None
    return None if math.isnan(value) else value


def _single(value: float) -> float:
    """As float32."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
