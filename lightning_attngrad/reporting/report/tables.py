"""Tables of a report: how numbers went, checkpoints, settings and hashes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_attngrad.reporting.report.charts import number_text
from lightning_attngrad.reporting.report.reading import StoredMonitor, StoredRun

#: Numbers of the run itself in the table of checkpoints.
_MOST_METRICS = 4
_FIGURES = ("rewrite/median", "rewrite/area", "maps/entropy")


@dataclass(frozen=True)
class Table:
    """Words in rows.

    Attributes:
        columns: what stands above them.
        rows: as many words each.
        marked: numbers of rows that ask for attention.
        meanings: what the first word of each row says; empty where that is plain.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[int] = ()
    meanings: Sequence[str] = ()


def courses(runs: Sequence[StoredRun], names: Sequence[str]) -> Table:
    """First and last values of the main numbers of each monitor."""
    rows, meanings = [], []
    for monitor in monitors_of(runs):
        of_runs = [_named(run, monitor.name) for run in runs]
        for name, meaning in monitor.meanings.items():
            texts = [_course(one, name) for one in of_runs]
            if any(texts):
                rows.append([f"{monitor.name}/{name}", *(text or "–" for text in texts)])
                meanings.append(meaning)
    return Table(["number", *(names or ["first → last"])], rows, meanings=meanings)


def checkpoints(run: StoredRun) -> Table:
    """What the audits have written beside the checkpoints that are there."""
    records = run.records
    metrics = dict.fromkeys(name for record in records for name in record["metrics"])
    asked = sorted(metrics, key=lambda name: ("acc" not in name, "val" not in name, name))[:_MOST_METRICS]
    known = dict.fromkeys(name for record in records for name in record["figures"])
    figures = [name for start in _FIGURES for name in known if name.startswith(start)]
    hashes = [str(record.get("hash")) for record in records if record["figures"]]
    usual = max(set(hashes), key=hashes.count) if hashes else ""
    rows, marked = [], []
    for number, record in enumerate(records):
        differs = bool(record["figures"]) and str(record.get("hash")) != usual
        remark = str(record.get("why_empty") or record.get("weights") or "")
        if differs:
            marked.append(number)
            remark = "other images or settings: does not compare"
        values = {**record["metrics"], **record["figures"]}
        rows.append(
            [
                str(record.get("checkpoint", "")),
                str(int(record.get("epoch", 0)) + 1),
                str(record["global_step"]),
                *(number_text(name, values[name]) if name in values else "–" for name in (*asked, *figures)),
                str(record.get("hash") or "–")[:8],
                remark,
            ]
        )
    columns = ["file", "epoch", "step", *asked, *figures, "hash", "remark"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, rows, marked)


def settings(monitor: str, runs: Sequence[StoredRun], names: Sequence[str]) -> Table:
    """Of a monitor: what its numbers depend on, how its images are read, and a hash of all."""
    of_runs = [_named(run, monitor) for run in runs]
    columns = [_settings(one) for one in of_runs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = [[key, *(column.get(key, "–") for column in columns)] for key in keys]
    marked = [number for number, row in enumerate(rows) if len(set(row[1:])) > 1]
    return Table(["setting", *(names or ["value"])], rows, marked)


def run_settings(runs: Sequence[StoredRun], names: Sequence[str]) -> Table:
    """Of the runs themselves."""
    columns = []
    for run in runs:
        said = run.described
        fit = said.get("fit_seconds")
        columns.append(
            {
                "log directory": run.name,
                "began": said.get("began", ""),
                "module": said.get("module", ""),
                "precision": said.get("precision", ""),
                "processes": said.get("processes", ""),
                **{f"version of {name}": version for name, version in said.get("versions", {}).items()},
                "seconds of the fit": "not over yet, or broken off" if fit is None else f"{float(fit):.1f}",
                **{
                    f"seconds of {one.name}": f"{one.seconds:.1f}"
                    + (f" ({100 * one.seconds / float(fit):.1f} %)" if fit else "")
                    for one in run.monitors
                },
            }
        )
    keys = list(dict.fromkeys(key for column in columns for key in column))
    return Table(["run", *(names or ["value"])], [[key, *(str(c.get(key, "–")) for c in columns)] for key in keys])


def monitors_of(runs: Sequence[StoredRun]) -> list[StoredMonitor]:
    """Those of all runs, one of each name."""
    found: dict[str, StoredMonitor] = {}
    for run in runs:
        for monitor in run.monitors:
            found.setdefault(monitor.name, monitor)
    return list(found.values())


def what_differs(monitor: str, runs: Sequence[StoredRun]) -> list[str]:
    """Why the numbers of a monitor do not compare; empty where they do, or where one run has no such monitor."""
    of_runs = [one for run in runs if (one := _named(run, monitor)) is not None and one.evaluations]
    if len(of_runs) < 2:
        return []
    first, second = ({**one.settings, **one.conditions} for one in of_runs)
    return [
        f"{name} ({_word(first.get(name))} / {_word(second.get(name))})"
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    ]


def _named(run: StoredRun, name: str) -> StoredMonitor | None:
    return next((one for one in run.monitors if one.name == name), None)


def _course(monitor: StoredMonitor | None, name: str) -> str:
    values = [] if monitor is None else [one.numbers.get(name, math.nan) for one in monitor.evaluations]
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return ""
    first, last = number_text(name, known[0]), number_text(name, known[-1])
    return last if len(known) == 1 else f"{first} → {last}"


def _settings(monitor: StoredMonitor | None) -> dict[str, str]:
    if monitor is None:
        return {}
    all_of_them = {**monitor.settings, **monitor.conditions}
    content = json.dumps(all_of_them, sort_keys=True, default=str)
    return {
        "callback": monitor.kind,
        **{name: _word(value) for name, value in all_of_them.items()},
        **{f"images: {name}": _word(value) for name, value in monitor.probe.items()},
        **({"hash of all that numbers depend on": hashlib.sha256(content.encode()).hexdigest()} if all_of_them else {}),
    }


def _word(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_word(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_word(one) for one in value) or "none"
    return str(value)
