"""One audit: the same images through each checkpoint, whatever devices they run on."""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lightning_attngrad.audit.checkpoints import SavedCheckpoint, read_checkpoints
from lightning_attngrad.audit.code import Recipe, describe, find_recipe, read_config
from lightning_attngrad.audit.options import AuditError, AuditOptions
from lightning_attngrad.audit.outcome import AuditOutcome, AuditRow, write_figures, write_outcome
from lightning_attngrad.audit.recomputation import Recomputation
from lightning_attngrad.audit.settings import AuditSettings, choose_settings, refuse_other_hash
from lightning_attngrad.audit.table import comparison_table, distance_text
from lightning_attngrad.audit.thresholds import Threshold
from lightning_attngrad.probe.package import lightning_package

# What Lightning says to people who train, and not to those who compare checkpoints.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*GPU available but not used.*",
    ".*when using `ckpt_path`, callbacks used to create the checkpoint need to be provided.*",
    ".*it is recommended to use `Trainer\\(devices=1.*",
    ".*LeafSpec.*deprecated.*",
    ".*isinstance.treespec, LeafSpec.*",
    r"\s*By default only one JsonargparseDeprecationWarning.*",  # of Lightning's own calls
    r"(?s).*was deprecated in v4\..*will be removed in v5.*",
)
_LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")


class ProcessError(AuditError):
    """An audit that failed at work, perhaps in one process only."""


def audit_exit_code(options: AuditOptions) -> int:
    """Run an audit and tell how it ended.

    Args:
        options: what was asked for.

    Returns:
        0, or 1 where a checkpoint breaks a threshold.

    Raises:
        AuditError: as `run_audit` does.
    """
    try:
        outcome = run_audit(options)
    except ProcessError:
        raise
    except AuditError:
        if _is_first_process():
            raise
        return 0  # the first process says it; Lightning would kill it first if this one ended with another code
    return int(bool(outcome.broken)) if _is_first_process() else 0


def run_audit(options: AuditOptions) -> AuditOutcome:
    """Audit checkpoints, print how they compare, and write tables and figures.

    Args:
        options: what was asked for.

    Returns:
        What came of it, on every process alike; the first one alone prints and writes.

    Raises:
        AuditError: bad input, or checkpoints that do not compare; the message is one line for the person who asked.
    """
    with _quiet():
        checkpoints = read_checkpoints(options.checkpoints, allow_unsafe=options.allow_unsafe)
        settings = choose_settings(options, checkpoints)
        config = read_config(options.config)
        model = find_recipe("model", options.model, config, options.model_args)
        data = find_recipe("data", options.data, config, options.data_args)
        assert model is not None  # find_recipe has raised
        try:
            rows = _audit_all(options, settings, checkpoints, model, data)
        except AuditError:
            _say("")  # ends the line of the checkpoint at which it came
            raise
    outcome = AuditOutcome(rows, options.thresholds)
    if _is_first_process():
        with _writing():
            write_outcome(outcome, options.output)
        print(f"\n{comparison_table(rows)}\n\n{outcome.verdict()}tables and figures: {options.output}")
    return outcome


def _audit_all(
    options: AuditOptions,
    settings: AuditSettings,
    checkpoints: Sequence[SavedCheckpoint],
    model: Recipe,
    data: Recipe | None,
) -> list[AuditRow]:
    """Evaluate each checkpoint, with a line on each as it goes."""
    try:
        audit = Recomputation(settings.arguments, settings.state)
    except ValueError as error:
        raise AuditError(str(error)) from error
    # Once, as all are to see the same images.
    loaders = {} if data is None else _data_argument(data.make(checkpoints[0].content))
    records = [saved.record(options.name) for saved in checkpoints]
    metrics = {name for record in records if record is not None for name in record.metrics}
    trainer: Any = None
    rows: list[AuditRow] = []
    for number, (saved, logged) in enumerate(zip(checkpoints, records, strict=True), start=1):
        _say(f"[{number}/{len(checkpoints)}] {saved.label} … ", end="")
        began = time.perf_counter()
        module = model.make(saved.content)
        if trainer is None:
            trainer = _trainer(options, settings, _package_of(module, model), audit)
        audit.begin(saved.label)
        _validate(trainer, audit, module, saved, options, loaders)
        record = audit.record
        if record is None or record.why_empty:
            raise ProcessError(
                f"{saved.label}: no numbers: {'no evaluation was made' if record is None else record.why_empty}"
            )
        first = (str(rows[0].record.hash), rows[0].label) if rows else None
        refuse_other_hash(record.hash, saved.label, settings, first)
        record = replace(
            record,
            epoch=saved.epoch,
            global_step=saved.global_step,
            # Those of the run: here, a batch or two went through the model.
            metrics={} if logged is None else dict(logged.metrics),
        )
        row = AuditRow(saved.path, saved.label, record, logged)
        if not rows:
            _refuse_unknown(options.thresholds, {*row.values, *metrics})
        rows.append(row)
        if _is_first_process():
            with _writing():
                write_figures(audit.figures(), options.output / saved.label)
        _say(f"median {distance_text(record)} in {time.perf_counter() - began:.0f} s")
    if _is_first_process():
        with _writing():
            write_figures(audit.comparison(), options.output)
    return rows


def _validate(
    trainer: Any,
    audit: Recomputation,
    module: Any,
    saved: SavedCheckpoint,
    options: AuditOptions,
    loaders: dict[str, Any],
) -> None:
    """Let Lightning load the weights, and the audit evaluate them in a validation of few batches."""
    arguments = {"ckpt_path": str(saved.path), "verbose": False, **loaders}
    if "weights_only" in inspect.signature(trainer.validate).parameters:
        arguments[
            "weights_only"
        ] = not options.allow_unsafe  # Lightning before 2.6 asks nobody; the file was read safely
    try:
        trainer.validate(module, **arguments)
        if audit.needs_batches and not audit.probe_set.is_frozen:
            trainer.limit_val_batches = audit.probe_set.settings.num_images  # each batch has one at least
            audit.begin(saved.label)
            trainer.validate(module, **arguments)
    except Exception as error:
        raise ProcessError(f"{saved.label} could not be audited: {describe(error)}") from error


def _trainer(options: AuditOptions, settings: AuditSettings, package: Any, audit: Recomputation) -> Any:
    try:
        return package.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=options.strategy,
            num_nodes=options.num_nodes,
            precision=options.precision or settings.precision,
            callbacks=[audit],
            limit_val_batches=1,
            default_root_dir=options.output,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
    except (ValueError, RuntimeError, TypeError, package.utilities.exceptions.MisconfigurationException) as error:
        raise AuditError(
            f"--accelerator, --devices, --strategy, --precision, --num-nodes: {describe(error)}"
        ) from error


def _package_of(module: Any, recipe: Recipe) -> Any:
    package = lightning_package(module) if isinstance(module, nn.Module) else None  # data have one too
    if package is None:
        raise AuditError(f"--model: {recipe.name} makes a {type(module).__name__}; expected a LightningModule")
    return package


def _data_argument(made: Any) -> dict[str, Any]:
    is_module = any(base.__name__ == "LightningDataModule" for base in type(made).__mro__)
    return {"datamodule" if is_module else "dataloaders": made}


def _refuse_unknown(thresholds: Sequence[Threshold], there: set[str]) -> None:
    """A condition on a misspelt name would stand in a pipeline for years."""
    for threshold in thresholds:
        if threshold.name not in there:
            raise AuditError(f"--fail-if: there is no {threshold.name!r}; there are {', '.join(sorted(there))}")


def _is_first_process() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0  # set by Lightning from the environment


def _say(text: str, end: str = "\n") -> None:
    if _is_first_process():
        print(text, end=end, flush=True)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # in one process only: the others are not to wait for it
        raise ProcessError(f"--output: cannot be written: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Only what concerns this audit is to be read."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
