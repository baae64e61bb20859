"""The table that a demo run ends with."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import SEPARATING_LINE, DataRow, Line, TableFormat, tabulate

from lightning_attngrad.reporting.distances import distance_unit

#: As figures and the report have it: of 255, whatever the bit depth of the images was.
_GREY_VALUES = "n/255"
_ROWS = (
    ("val_accuracy", "validation accuracy", "{:.1%}"),
    ("val_accuracy_without_mark", "accuracy without the mark", "{:.1%}"),
    ("val_accuracy_wrong_mark", "accuracy, others' marks", "{:.1%}"),
    ("val_loss", "validation loss", "{:.3f}"),
    ("attngrad/maps/entropy", "map entropy", "{:.3f}"),
    ("attngrad/maps/border_mass", "map mass at the border", "{:.1%}"),
    ("attngrad/maps/corner_mass", "map mass in the corners", "{:.1%}"),
    ("attngrad/maps/mass_in_mask", "map mass on the strokes", "{:.1%}"),
    ("attngrad/maps/top_decile_mass", "map mass in the top tenth", "{:.1%}"),
    ("attngrad/guidance/mass_inside", "guided attention on them", "{:.1%}"),
    ("attngrad/drift/spearman", "maps moved, Spearman", "{:.2f}"),
    ("attngrad/drift/ratio/spearman", "the same over noise", "{:.1f}"),
    ("attngrad/rewrite/median_linf", "change that rewrites, L∞", _GREY_VALUES),
    ("attngrad/rewrite/survives_8_bit", "rewrites left after 8 bits", "{:.0%}"),
)
_SECONDS = (
    ("attngrad/maps/seconds", "on the maps"),
    ("attngrad/drift/seconds", "on their drift"),
    ("attngrad/rewrite/seconds", "on the rewrites"),
)
_FORMAT = TableFormat(
    lineabove=None,
    linebelowheader=Line("", "-", "--", ""),
    linebetweenrows=None,
    linebelow=None,
    headerrow=None,
    datarow=DataRow("", "  ", ""),
    padding=0,
    with_header_hide=None,
)


def _said(pattern: str, value: float) -> str:
    return distance_unit("linf").text(value) if pattern == _GREY_VALUES else pattern.format(value)


def summary_table(history: Sequence[Mapping[str, float]], training_seconds: float, directory: Path) -> str:
    """Put what a run came to in a table, and say where its figures are.

    Args:
        history: Scalars of the starting weights and then of each validation.
        training_seconds: Wall time of the fit.
        directory: Where event files and figures are.

    Returns:
        Lines without a trailing newline.

    Example:
        >>> history = [{"val_accuracy": 0.1}, {"val_accuracy": 0.97}]
        >>> print(summary_table(history, 60.0, Path("logs/version_0")))
        <BLANKLINE>
                             start    end
        ---------------------------------
        validation accuracy  10.0%  97.0%
        ---------------------------------
        epochs                          1
        seconds of training          60.0
        ---------------------------------
        figures      logs/version_0/attngrad
        report       logs/version_0/attngrad/report.html
        TensorBoard  ...--logdir logs/version_0
    """
    first, last = (history[0], history[-1]) if history else ({}, {})
    rows: list[Any] = [["", "start", "end"], SEPARATING_LINE]
    for key, label, pattern in _ROWS:
        if key in first or key in last:
            start, end = (_said(pattern, scalars[key]) if key in scalars else "" for scalars in (first, last))
            rows.append([label, start, end])
    rows += [
        SEPARATING_LINE,
        ["epochs", "", f"{max(0, len(history) - 1)}"],
        ["seconds of training", "", f"{training_seconds:.1f}"],
    ]
    for key, what in _SECONDS:
        if any(key in scalars for scalars in history):
            spent = sum(scalars.get(key, 0.0) for scalars in history)
            rows.append([f"of these, {what}", f"{spent / max(training_seconds, 1e-9):.0%}", f"{spent:.1f}"])
    rows.append(SEPARATING_LINE)
    board = ["tensorboard"]
    if shutil.which("tensorboard") is None:  # as after `make demo`, whose environment is not activated
        board = [sys.executable, "-m", "tensorboard.main"]
    table = tabulate(rows, tablefmt=_FORMAT, disable_numparse=True, colalign=("left", "right", "right"))
    places = tabulate(
        [
            ["figures", str(directory / "attngrad")],
            ["report", str(directory / "attngrad" / "report.html")],
            ["TensorBoard", shlex.join([*board, "--logdir", str(directory)])],
        ],
        tablefmt="plain",
        disable_numparse=True,
    )
    return f"\n{table}\n{places}"
