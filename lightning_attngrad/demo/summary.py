"""The table that a demo run ends with."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    ("attngrad/drift/spearman", "maps moved, Spearman", "{:.2f}"),
    ("attngrad/drift/ratio/spearman", "the same over noise", "{:.1f}"),
    ("attngrad/rewrite/median_linf", "change that rewrites, L∞", "{:.3f}"),
    ("attngrad/rewrite/survives_8_bit", "rewrites left after 8 bits", "{:.0%}"),
)
_SECONDS = (
    ("attngrad/maps/seconds", "on the maps"),
    ("attngrad/drift/seconds", "on their drift"),
    ("attngrad/rewrite/seconds", "on the rewrites"),
)


def summary_table(history: Sequence[Mapping[str, float]], training_seconds: float, directory: Path) -> str:
    """Put what a run came to in a table, and say how to look at its figures.

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
                                   start     end
        ------------------------------------------
        validation accuracy        10.0%   97.0%
        ------------------------------------------
        epochs                                 1
        seconds of training                 60.0
        ------------------------------------------
        figures      logs/version_0/attngrad
        TensorBoard  ...--logdir logs/version_0
    """
    rule = "-" * 42
    first, last = (history[0], history[-1]) if history else ({}, {})
    lines = ["", f"{'':26}{'start':>6}{'end':>8}", rule]
    for key, label, pattern in _ROWS:
        if key in first or key in last:
            start, end = (pattern.format(scalars[key]) if key in scalars else "" for scalars in (first, last))
            lines.append(f"{label:26}{start:>6}{end:>8}")
    lines += [
        rule,
        f"{'epochs':26}{max(0, len(history) - 1):>14}",
        f"{'seconds of training':26}{training_seconds:>14.1f}",
    ]
    for key, what in _SECONDS:
        if any(key in scalars for scalars in history):
            spent = sum(scalars.get(key, 0.0) for scalars in history)
            share = f"{spent:.1f} ({spent / max(training_seconds, 1e-9):.0%})"
            lines.append(f"{f'of these, {what}':26}{share:>14}")
    lines += [
        rule,
        f"figures      {directory / 'attngrad'}",
        f"TensorBoard  tensorboard --logdir {shlex.quote(str(directory))}",
    ]
    if shutil.which("tensorboard") is None:  # as after `make demo`, whose environment is not activated
        lines[-1] = (
            f"TensorBoard  {shlex.quote(sys.executable)} -m tensorboard.main --logdir {shlex.quote(str(directory))}"
        )
    return "\n".join(lines)
