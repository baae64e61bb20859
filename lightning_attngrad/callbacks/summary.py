"""What the monitors of a Trainer write together: which curves share a chart, and a summary at the end of a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lightning_attngrad.measure.story import Story
from lightning_attngrad.probe.clock import Account as Clocked
from lightning_attngrad.reporting.layout import Charts
from lightning_attngrad.reporting.loggers import log_layout, log_text, places, scalar_step
from lightning_attngrad.reporting.summary import Account, summary_text


class Reports(Protocol):
    """What a callback tells for charts and summary; see `ProbeCallback`."""

    name: str
    main_scalars: Mapping[str, str]
    scalars: dict[str, float]
    story: Story
    account: Clocked

    def charts_shown(self) -> Charts:
        """Which of the curves that are logged share a chart."""

    def remarks(self) -> list[str]:
        """What else there is to say."""

    def whereabouts(self) -> str:
        """Where its figures are."""


def write_layout(trainer: pl.Trainer, monitors: Sequence[Reports]) -> None:
    """Tell the loggers which curves share a chart; nothing is written twice."""
    log_layout(trainer, {monitor.name: monitor.charts_shown() for monitor in monitors})


def write_summary(trainer: pl.Trainer, monitors: Sequence[Reports], fit_seconds: float, shared_seconds: float) -> None:
    """Show what the fit has come to, and hand it to the loggers."""
    if not trainer.is_global_zero or trainer.fast_dev_run or getattr(trainer, "barebones", False):  # type: ignore[attr-defined]
        return
    text = summary_text([_account(monitor) for monitor in monitors], fit_seconds, places(trainer), shared_seconds)
    rank_zero_info(text)
    log_text(trainer, "attngrad/summary", text, scalar_step(trainer))


def _account(callback: Reports) -> Account:
    story = callback.story
    return Account(
        name=callback.name,
        kind=type(callback).__name__,
        evaluations=story.evaluations,
        since=story.since,
        meanings=callback.main_scalars,
        first=story.first,
        last={name: float(callback.scalars.get(name, math.nan)) for name in callback.main_scalars},
        seconds=callback.account.spent,
        remarks=callback.remarks(),
        figures=callback.whereabouts(),
    )
