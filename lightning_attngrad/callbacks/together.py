"""What the monitors of a Trainer write together: which curves share a chart, and a summary at the end of a fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lightning_attngrad.reporting.loggers import log_layout, log_text, places, scalar_step
from lightning_attngrad.reporting.summary import Account, summary_text

if TYPE_CHECKING:
    from lightning_attngrad.callbacks.monitor import Monitor


def write_layout(trainer: pl.Trainer, monitors: Sequence[Monitor]) -> None:
    """Tell the loggers which curves share a chart; nothing is written twice."""
    log_layout(trainer, {monitor.name: monitor.charts() for monitor in monitors})


def write_summary(trainer: pl.Trainer, monitors: Sequence[Monitor], fit_seconds: float) -> None:
    """Show what the fit has come to, and hand it to the loggers."""
    if not trainer.is_global_zero or trainer.fast_dev_run or getattr(trainer, "barebones", False):  # type: ignore[attr-defined]
        return
    text = summary_text([_account(monitor) for monitor in monitors], fit_seconds, places(trainer))
    rank_zero_info(text)
    log_text(trainer, "attngrad/summary", text, scalar_step(trainer))


def _account(monitor: Monitor) -> Account:
    story = monitor.story
    return Account(
        name=monitor.name,
        kind=type(monitor).__name__,
        evaluations=story.looks,
        since=story.since,
        meanings=monitor.main_scalars,
        first=story.first,
        last={name: float(monitor.scalars.get(name, math.nan)) for name in monitor.main_scalars},
        seconds=monitor.spent,
        remarks=monitor.remarks(),
        figures=monitor.whereabouts(),
    )
