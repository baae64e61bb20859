"""One audit: the same images through each checkpoint, whatever devices they run on."""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lightning_attngrad.audit.checkpoints import SavedCheckpoint, read_checkpoints
from lightning_attngrad.audit.code import Recipe, describe, find_recipe, read_config
from lightning_attngrad.audit.options import AuditError, AuditOptions
from lightning_attngrad.audit.outcome import AuditOutcome, AuditRow, remove_former, write_figures, write_outcome
from lightning_attngrad.audit.recomputation import Recomputation
from lightning_attngrad.audit.settings import AuditSettings, choose_settings, refuse_other_hash
from lightning_attngrad.audit.table import comparison_table, distance_text
from lightning_attngrad.audit.thresholds import Threshold, refuse_unknown
from lightning_attngrad.measure.audit_record import AuditRecord
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
        outcome = _audit_all(options, settings, checkpoints, model, data)
    if _is_first_process():
        with _writing():
            write_outcome(outcome, options.output)
        print(f"\n{comparison_table(outcome.rows)}\n\n{outcome.verdict()}tables and figures: {options.output}")
    return outcome


def _audit_all(
    options: AuditOptions,
    settings: AuditSettings,
    checkpoints: Sequence[SavedCheckpoint],
    model: Recipe,
    data: Recipe | None,
) -> AuditOutcome:
    """Evaluate each checkpoint, with a line on each as it goes."""
    try:
        audit = Recomputation(settings.arguments, settings.state)
    except ValueError as error:
        raise AuditError(str(error)) from error
    records = [saved.record(options.name) for saved in checkpoints]
    metrics = {name for record in records if record is not None for name in record.metrics}
    _refuse_unknown(options.thresholds, audit.figure_names(), metrics)
    # Once, as all are to see the same images.
    loaders = {} if data is None else _data_argument(data.make(checkpoints[0].content))
    trainer: Any = None
    rows: list[AuditRow] = []
    files: list[Path] = []
    for number, (saved, logged) in enumerate(zip(checkpoints, records, strict=True), start=1):
        began = time.perf_counter()
        with _line(f"[{number}/{len(checkpoints)}] {saved.label} … "):
            module = model.make(saved.content)
            if trainer is None:
                package = _package_of(module, model)
                _refuse_without_data(module, package, model.name, loaders)
                trainer = _trainer(options, settings, package, audit)
            audit.begin(saved.label)
            _validate(trainer, audit, module, saved, options, loaders)
            record = _recorded(audit, saved, logged)
            first = (str(rows[0].record.hash), rows[0].label) if rows else None
            refuse_other_hash(record.hash, saved.label, settings, first)
            row = AuditRow(saved.path, saved.label, record, logged)
            if not rows:
                _refuse_unknown(options.thresholds, set(record.figures), metrics)  # of this model, and of its task
            if _is_first_process():
                with _writing():
                    if not rows:
                        remove_former(options.output)
                    files += write_figures(audit.figures(), options.output / saved.label)
            rows.append(row)
        _say(f"median {distance_text(record)} in {time.perf_counter() - began:.0f} s")
    if _is_first_process():
        with _writing():
            files += write_figures(audit.comparison(), options.output)
    return AuditOutcome(rows, options.thresholds, [file.relative_to(options.output).as_posix() for file in files])


def _recorded(audit: Recomputation, saved: SavedCheckpoint, logged: AuditRecord | None) -> AuditRecord:
    """What was found of a checkpoint, beside what its run knew of it."""
    record = audit.record
    if record is None or record.why_empty:
        raise ProcessError(
            f"{saved.label}: no numbers: {'no evaluation was made' if record is None else record.why_empty}"
        )
    return replace(
        record,
        epoch=saved.epoch,
        global_step=saved.global_step,
        # Those of the run: here, a batch or two went through the model.
        metrics={} if logged is None else dict(logged.metrics),
    )


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


def _refuse_unknown(thresholds: Sequence[Threshold], figures: set[str], metrics: set[str]) -> None:
    try:
        refuse_unknown(thresholds, figures, metrics)
    except ValueError as error:
        raise AuditError(f"--fail-if: {error}") from error


def _refuse_without_data(module: Any, package: Any, model: str, loaders: Mapping[str, Any]) -> None:
    """Ask for the validation images where nothing gives them, before Lightning does in words of its own."""
    own = getattr(module.val_dataloader, "__func__", None)  # None where a loader was assigned
    if not loaders and own is package.LightningModule.val_dataloader:
        raise AuditError(
            f"--data: where are the validation images? {model} has no val_dataloader of its own, and neither --data "
            "nor the config names any data. Give --data package.module.Class or path/to/file.py:Name: a "
            "LightningDataModule, or a function that returns the validation loader"
        )


def _is_first_process() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0  # set by Lightning from the environment


def _say(text: str, end: str = "\n") -> None:
    if _is_first_process():
        print(text, end=end, flush=True)


@contextmanager
def _line(text: str) -> Iterator[None]:
    """A line that is begun, and that an error ends."""
    _say(text, end="")
    try:
        yield
    except AuditError:
        _say("")
        raise


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
