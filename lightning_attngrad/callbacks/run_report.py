"""RunReport: what the callbacks of a Trainer keep for the report of its run, and the page that is made of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_attngrad.measure.audit_record import own_metrics, record_address, versions_now
from lightning_attngrad.measure.kept import kept_images
from lightning_attngrad.measure.story import Story
from lightning_attngrad.probe import Account, Evaluation, Findings, ProbeImages
from lightning_attngrad.probe.checkpoint_files import checkpoint_files
from lightning_attngrad.probe.moment import label_of_validation, why_no_validation
from lightning_attngrad.reporting.files import write_to
from lightning_attngrad.reporting.layout import Charts, Margin
from lightning_attngrad.reporting.loggers import log_directory, logs_nothing, scalar_step
from lightning_attngrad.reporting.report.store import RunStore


class Kept(Protocol):
    """What a callback tells of itself; see `ProbeCallback`."""

    name: str
    report: bool
    probe: ProbeImages
    main_scalars: Mapping[str, str]
    scalars: dict[str, float]
    story: Story
    account: Account

    def charts(self) -> Charts:
        """Which of its curves share a chart."""

    def settings(self) -> dict[str, Any]:
        """What its numbers depend on."""

    def known_conditions(self) -> dict[str, Any]:
        """Under which its history was measured."""

    def remarks(self) -> list[str]:
        """What else there is to say."""


@dataclass(frozen=True, eq=False)
class Found:
    """An evaluation that is to be kept once it has been logged."""

    evaluation: Evaluation
    findings: Findings


class RunReport:
    """Keeps evaluations in the log directory, and makes the page when the fit ends.

    Only the process of rank zero has one; nothing in it is a collective operation.

    Args:
        trainer: at the start of its training, when a checkpoint has been read.
        callbacks: those of this package.

    Attributes:
        directory: the log directory.
        has_validation: whether the run's own numbers come with its validations.
    """

    def __init__(self, trainer: pl.Trainer, callbacks: Sequence[Kept]) -> None:
        self.directory = log_directory(trainer)
        self._callbacks = callbacks
        self._store = RunStore(self.directory, trainer.global_step)
        self._run = {
            "module": type(trainer.lightning_module).__name__,
            "precision": str(trainer.precision),
            "processes": trainer.world_size,
            "versions": versions_now(),
            "began": time.strftime("%Y-%m-%d %H:%M"),
        }
        self.has_validation = why_no_validation(trainer) is None

    @classmethod
    def of(cls, trainer: pl.Trainer, callbacks: Sequence[Kept]) -> RunReport | None:
        """That of a run whose callbacks ask for one; None on other processes, and in a run that leaves nothing."""
        asked = any(callback.report for callback in callbacks)
        return cls(trainer, callbacks) if asked and trainer.is_global_zero and not logs_nothing(trainer) else None

    def keep(self, trainer: pl.Trainer, callback: Kept, found: Found) -> None:
        """Write what a callback has found, and the list of all that is kept."""
        evaluation = found.evaluation
        key = (evaluation.images_hash or "")[:12]
        self._store.keep_images(key, *kept_images(evaluation))
        moment = {**_moment(trainer, evaluation.label), "images": key}
        kept = {name: _array(value) for name, value in found.findings.kept().items()}
        numbers = dict(callback.scalars)
        self._store.keep(callback.name, moment, {"numbers": numbers, **kept}, anew=callback.story.evaluations == 1)
        self._write(trainer)

    def keep_metrics(self, trainer: pl.Trainer) -> None:
        """Write the run's own numbers as they stand now: after a validation, or after an epoch of training."""
        found = own_metrics(trainer)
        if found:
            label = label_of_validation(trainer) if trainer.validating else f"step {trainer.global_step}"
            self._store.keep_metrics(_moment(trainer, label), found)
            self._write(trainer)

    def finish(self, trainer: pl.Trainer, fit_seconds: float) -> None:
        """Make the page."""
        # Matplotlib's scales and jinja2 only where there is a page to be made.
        from lightning_attngrad.reporting.report.page import report_html  # noqa: PLC0415
        from lightning_attngrad.reporting.report.reading import read_run  # noqa: PLC0415

        self._run["fit_seconds"] = fit_seconds
        self._write(trainer)
        address = f"{self.directory.rstrip('/')}/attngrad/report.html"
        write_to(address, report_html([read_run(self.directory)]).encode())
        rank_zero_info(f"attngrad: the report of the run is {address}")

    def _write(self, trainer: pl.Trainer) -> None:
        audits = [callback.name for callback in self._callbacks if "CheckpointAudit" in _lineage(callback)]
        records = [record_address(path, name) for path in checkpoint_files(trainer) for name in audits]
        self._store.write(
            {
                **self._run,
                "monitors": [_described(callback) for callback in self._callbacks],
                "records": [_relative(address, self.directory) for address in records],
            }
        )


def _described(callback: Kept) -> dict[str, Any]:
    charts = {
        title: {"band": [chart.value, chart.lower, chart.upper]} if isinstance(chart, Margin) else list(chart)
        for title, chart in callback.charts().items()
    }
    return {
        "name": callback.name,
        "kind": type(callback).__name__,
        "lineage": _lineage(callback),
        "settings": callback.settings(),
        "conditions": callback.known_conditions(),
        "probe": _options(callback.probe),
        "charts": charts,
        "meanings": dict(callback.main_scalars),
        "seconds": callback.account.spent,
        "remarks": callback.remarks(),
    }


def _lineage(callback: Kept) -> list[str]:
    """Names of its class and those that this is derived from."""
    return [kind.__name__ for kind in type(callback).__mro__]


def _options(probe: ProbeImages) -> dict[str, Any]:
    """As plain values: what is a function or an object, by its name."""
    given = {one.name: getattr(probe, one.name) for one in fields(probe)}
    return {name: _named(value) for name, value in given.items() if value is not None}


def _named(value: Any) -> Any:
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_named(one) for one in value]
    return getattr(value, "__name__", type(value).__name__)


def _moment(trainer: pl.Trainer, label: str) -> dict[str, Any]:
    return {"label": label, "step": scalar_step(trainer), "global_step": trainer.global_step}


def _array(value: Any) -> Any:
    return value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _relative(address: str, directory: str) -> str:
    """Within the log directory without it: a folder that is moved is still read."""
    inside = PurePosixPath(address).is_relative_to(directory)
    return str(PurePosixPath(address).relative_to(directory)) if inside else address
