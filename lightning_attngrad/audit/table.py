"""The table that an audit ends with: a row a checkpoint, and the best of each column marked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, cast

from tabulate import SEPARATING_LINE, DataRow, Line, TableFormat, tabulate

from lightning_attngrad.audit.outcome import AuditRow
from lightning_attngrad.measure.audit_record import AuditRecord
from lightning_attngrad.measure.rewrite_scalars import ill_health
from lightning_attngrad.reporting.distances import Norm, distance_unit

WIDTH = 112
_LONGEST_LABEL = 36
_MOST_METRICS = 3
_LOWER = re.compile(r"loss|err|perplexity|nll|mse|mae|ece|brier", re.IGNORECASE)
_HIGHER = re.compile(r"acc|f1|auc|auroc|precision|recall|dice|iou|kappa|mcc|(^|[/_])map$", re.IGNORECASE)


_RULE = Line("", "-", "-", "")
_ROW = DataRow("", " ", "")
_FORMAT = TableFormat(
    lineabove=None,
    linebelowheader=_RULE,
    linebetweenrows=None,
    linebelow=_RULE,
    headerrow=_ROW,
    datarow=_ROW,
    padding=0,
    with_header_hide=None,
)


@dataclass(frozen=True)
class _Column:
    """One column of numbers.

    Attributes:
        title: above it.
        value: of a row; NaN where it has none.
        text: of a value that is finite.
        best: which end is better, if either is.
    """

    title: str
    value: Callable[[AuditRow], float]
    text: Callable[[float], str]
    best: Literal["highest", "lowest"] | None = None

    def cells(self, rows: Sequence[AuditRow]) -> list[str]:
        """The texts of all rows, a star behind the best."""
        values = [self.value(row) for row in rows]
        known = [value for value in values if not math.isnan(value)]
        best = math.nan
        if self.best is not None and len(set(known)) > 1:  # where all are alike none is best
            best = max(known) if self.best == "highest" else min(known)
        return [self._cell(value) + ("*" if value == best else " ") for value in values]

    def _cell(self, value: float) -> str:
        if math.isnan(value):
            return "nan"
        return self.text(value) if math.isfinite(value) else "∞" if value > 0 else "−∞"


def comparison_table(rows: Sequence[AuditRow]) -> str:
    """Put checkpoints side by side.

    Columns that do not fit into 112 characters are left out; all of them are in audit.csv.

    Args:
        rows: the checkpoints; at least one.

    Returns:
        Lines without a trailing newline.
    """
    table = [["checkpoint", *(_shortened(row.label) for row in rows)]]
    text = _aligned(table)
    for column in _columns(rows):
        table.append([f"{column.title} ", *column.cells(rows)])
        wider = _aligned(table)
        if max(map(len, wider.splitlines())) > WIDTH:
            break
        text = wider
    return "\n".join([text, *_notes(rows)])


def _aligned(columns: Sequence[Sequence[str]]) -> str:
    """Columns of texts, their titles first: the first one flush left, others right; rules below titles and end."""
    header, *lines = zip(*columns, strict=True)
    text: str = tabulate(
        [header, SEPARATING_LINE, *lines],  # as `headers=` it would be padded
        tablefmt=_FORMAT,
        disable_numparse=True,
        preserve_whitespace=True,  # the place of a star
        colalign=["left", *["right"] * (len(columns) - 1)],
    )
    lines_of_text = [line.rstrip() for line in text.splitlines()]
    width = max(len(line) for line in lines_of_text if line.strip("-"))  # no rule reaches below the place of a star
    return "\n".join(line[:width] for line in lines_of_text)


def distance_text(record: AuditRecord) -> str:
    """The median distance for people, as in ``3.1/255``."""
    norm = cast("Norm", record.settings["norm"])
    median = record.figures.get(f"rewrite/median_{norm}", math.nan)
    if math.isnan(median):
        return "none"
    return distance_unit(norm).text(median) if math.isfinite(median) else "∞"


def _columns(rows: Sequence[AuditRow]) -> list[_Column]:
    settings = rows[0].record.settings
    norm = cast("Norm", settings["norm"])
    figures = rows[0].record.figures
    robust = [name for name in figures if name.startswith("rewrite/robust_accuracy/")]
    every = list(dict.fromkeys(name for row in rows for name in row.record.metrics))
    metrics = [name for name in every if name.startswith("val")] or every  # by these people choose
    found = [
        _Column("epoch", lambda row: row.record.epoch, "{:.0f}".format),
        _Column("step", lambda row: row.record.global_step, "{:.0f}".format),
        *(_Column(name, _of(name), "{:.4g}".format, _better(name)) for name in metrics[:_MOST_METRICS]),
        _Column("median", _of(f"rewrite/median_{norm}"), distance_unit(norm).text, "highest"),
    ]
    if robust:
        name = min(robust, key=lambda name: abs(fmean(row.values.get(name, 1.0) for row in rows) - 0.5))  # tells most
        radius = name.removeprefix("rewrite/robust_accuracy/").replace("_", "/")
        found.append(_Column(f"robust at {radius}{distance_unit(norm).of_what}", _of(name), "{:.0%}".format, "highest"))
    found += [
        _Column("area", _of("rewrite/area"), "{:.3f}".format, "lowest"),
        _Column("map shift", _of("rewrite/map_shift"), "{:.2f}".format),
    ]
    if "maps/entropy" in figures:
        found += [
            _Column("map entropy", _of("maps/entropy"), "{:.3f}".format),
            _Column("at border", _of("maps/border_mass"), "{:.0%}".format),
        ]
    return found


def _of(name: str) -> Callable[[AuditRow], float]:
    return lambda row: row.values.get(name, math.nan)


def _better(metric: str) -> Literal["highest", "lowest"] | None:
    """By the name, where that says it."""
    if _LOWER.search(metric):
        return "lowest"
    return "highest" if _HIGHER.search(metric) else None


def _notes(rows: Sequence[AuditRow]) -> list[str]:
    record = rows[0].record
    settings = record.settings
    norm = distance_unit(cast("Norm", settings["norm"])).name
    what = f"class {settings['target']}" if isinstance(settings["target"], int) else f"{settings['target']} target"
    notes = [
        f"* best of the column. median: {norm} that rewrites half of {record.images['count']} images, an upper bound "
        f"({settings['steps']} steps, {what})",
        f"the same images, classes and settings for all: hash {record.hash!s:.12}…",
    ]
    for row in rows:
        figures = row.record.figures
        health = {
            name.removeprefix("rewrite/"): figures[name] for name in figures if name.startswith("rewrite/health/")
        }
        if health and (complaint := ill_health(health)):
            notes.append(f"{row.label}: {complaint}; its distances are less certain")
    return notes


def _shortened(label: str) -> str:
    if len(label) <= _LONGEST_LABEL:
        return label
    half = (_LONGEST_LABEL - 1) // 2
    return f"{label[:half]}…{label[-half:]}"
