"""What an audit came to: its verdict, audit.json, audit.csv and the figures."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from matplotlib.figure import Figure
from matplotlib.image import imsave

from lightning_attngrad.audit.thresholds import Threshold
from lightning_attngrad.measure.audit_record import AuditRecord, as_json_number
from lightning_attngrad.reporting.canvas import figure_to_array
from lightning_attngrad.reporting.files import write_atomically

#: Of the layout of audit.json.
FORMAT = 1
#: Relative; float32 and another number of threads differ by less.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class AuditRow:
    """One checkpoint.

    Attributes:
        path: of the file.
        label: what it is called.
        record: what was found now, with the run's own metrics.
        logged: what the run recorded when the checkpoint was saved; None if nothing.
    """

    path: Path
    label: str
    record: AuditRecord
    logged: AuditRecord | None = None

    @property
    def values(self) -> dict[str, float]:
        """Metrics of the run, and what the audit found."""
        return {**self.record.metrics, **self.record.figures}

    @property
    def deviations(self) -> dict[str, tuple[float, float]] | None:
        """Numbers that are not what was logged: now and then; None where nothing comparable was logged."""
        logged = self.logged
        if logged is None or not logged.figures or logged.hash != self.record.hash:
            return None
        both = self.record.figures.keys() & logged.figures.keys()
        pairs = {name: (self.record.figures[name], logged.figures[name]) for name in sorted(both)}
        return {name: pair for name, pair in pairs.items() if not _equal(*pair)}


@dataclass(frozen=True)
class AuditOutcome:
    """What an audit came to.

    Attributes:
        rows: the checkpoints, in the order in which they were given.
        thresholds: conditions under which one fails.
        files: the figures that were written, by their paths in the output folder.
    """

    rows: Sequence[AuditRow]
    thresholds: Sequence[Threshold] = ()
    files: Sequence[str] = ()

    @property
    def broken(self) -> list[tuple[Threshold, list[AuditRow]]]:
        """The conditions that are met, and by which checkpoints."""
        found = [
            (threshold, [row for row in self.rows if threshold.is_broken_by(row.values)])
            for threshold in self.thresholds
        ]
        return [(threshold, rows) for threshold, rows in found if rows]

    def verdict(self) -> str:
        """Lines on what was logged before, and on each condition; each line with its end."""
        lines = self._against_the_log()
        broken = {threshold.text: rows for threshold, rows in self.broken}
        for threshold in self.thresholds:
            rows = broken.get(threshold.text, [])
            said = ", ".join(f"{row.label} ({row.values.get(threshold.name, math.nan):.4g})" for row in rows)
            lines.append(f"FAILED  {threshold.text}: {said}" if rows else f"passed  {threshold.text}: met by none")
        return "".join(f"{line}\n" for line in lines)

    def _against_the_log(self) -> list[str]:
        compared = [(row, deviations) for row in self.rows if (deviations := row.deviations) is not None]
        if not compared:
            return self._why_not_compared()
        other = [(row, deviations) for row, deviations in compared if deviations]
        lines = [f"{len(compared) - len(other)} of {len(self.rows)} equal what the run logged when they were saved"]
        for row, deviations in other:
            name = max(deviations, key=lambda name: _distance(*deviations[name]))
            now, then = deviations[name]
            lines.append(
                f"{row.label} does not: {name} is {now:.6g}, logged was {then:.6g} (the largest of {len(deviations)} "
                "differences; another device or version rounds otherwise)"
            )
        return lines

    def _why_not_compared(self) -> list[str]:
        """That numbers are not those that the run logged, and by which settings; empty where it logged none."""
        logged = [(row.record.settings, row.logged.settings) for row in self.rows if row.logged and row.logged.figures]
        changed = {
            name: f"{name}={now[name]!r} (in the run {then[name]!r})"
            for now, then in logged
            for name in now
            # Radii are in the units of their norm.
            if name in then and now[name] != then[name] and (name != "radii" or now["norm"] == then["norm"])
        }
        if not logged:
            return []
        return [f"not compared with what the run logged: {', '.join(changed.values()) or 'other images or classes'}"]

    def json(self) -> str:
        """All of it; ∞ and NaN are the strings ``"inf"`` and ``"nan"``."""
        values = {
            "format": FORMAT,
            "checkpoints": [_row_as_json(row) for row in self.rows],
            "thresholds": [
                {
                    "condition": threshold.text,
                    "broken_by": [row.label for row in self.rows if threshold.is_broken_by(row.values)],
                }
                for threshold in self.thresholds
            ],
            "files": list(self.files),
        }
        return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def csv(self) -> str:
        """A line a checkpoint; ∞ and NaN are ``inf`` and ``nan``, and what one has not is empty."""
        metrics = list(dict.fromkeys(name for row in self.rows for name in row.record.metrics))
        figures = list(dict.fromkeys(name for row in self.rows for name in row.record.figures))
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["checkpoint", "epoch", "global_step", "hash", *metrics, *figures])
        for row in self.rows:
            record = row.record
            numbers = [
                *(record.metrics.get(name, "") for name in metrics),
                *(record.figures.get(name, "") for name in figures),
            ]
            writer.writerow([row.label, record.epoch, record.global_step, record.hash, *numbers])
        return stream.getvalue()


def write_outcome(outcome: AuditOutcome, folder: Path) -> None:
    """Write ``audit.json`` and ``audit.csv``, each whole or not at all.

    Raises:
        OSError: if one cannot be written.
    """
    write_atomically(folder / "audit.json", outcome.json().encode())
    write_atomically(folder / "audit.csv", outcome.csv().encode())


def write_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures as ``<folder>/<name>.png``.

    Returns:
        The files.

    Raises:
        OSError: if one cannot be written.
    """
    files = []
    for name, figure in figures.items():
        picture = io.BytesIO()
        imsave(picture, figure_to_array(figure), format="png")
        files.append(folder / f"{name}.png")
        write_atomically(files[-1], picture.getvalue())
    return files


def remove_former(folder: Path) -> None:
    """Remove what an earlier audit wrote into a folder, so that no figure of it stands beside a new record.

    Its own ``audit.json`` names its figures: nothing else is touched.

    Raises:
        OSError: if one cannot be removed.
    """
    record = folder / "audit.json"
    try:
        written = json.loads(record.read_text(encoding="utf-8"))["files"]
        figures = [folder / PurePosixPath(name) for name in written]
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return  # there is none, or none of ours
    inside = [file for file in figures if file.suffix == ".png" and folder.resolve() in file.resolve().parents]
    for file in (record, folder / "audit.csv", *inside):
        file.unlink(missing_ok=True)
    for file in inside:
        for parent in file.relative_to(folder).parents:
            above = folder / parent
            if above != folder and above.is_dir() and not any(above.iterdir()):
                above.rmdir()


def _row_as_json(row: AuditRow) -> dict[str, Any]:
    deviations = row.deviations
    return {
        "label": row.label,
        **json.loads(row.record.json(str(row.path))),
        "equals_log": None if deviations is None else not deviations,
        "differs_from_log": {
            name: {"now": as_json_number(now), "logged": as_json_number(then)}
            for name, (now, then) in (deviations or {}).items()
        },
    }


def _equal(now: float, then: float) -> bool:
    return (math.isnan(now) and math.isnan(then)) or math.isclose(now, then, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _distance(now: float, then: float) -> float:
    """Relative; what is not finite on one side only is far away."""
    if not (math.isfinite(now) and math.isfinite(then)):
        return math.inf
    return abs(now - then) / max(abs(now), abs(then))
