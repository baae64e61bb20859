"""One run of the demo: data, model, Trainer with the monitors, and the table at the end."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from timm.data.config import resolve_model_data_config
from torch import nn

from lightning_attngrad.callbacks import (
    AttentionDriftMonitor,
    AttentionGuidance,
    AttentionMapMonitor,
    CheckpointAudit,
    RewriteRobustnessMonitor,
)
from lightning_attngrad.demo.data import DigitsDataModule, FolderDataModule, count_folder_classes
from lightning_attngrad.demo.forecast import TimeForecast
from lightning_attngrad.demo.models import build_model, load_backbone, load_weights
from lightning_attngrad.demo.module import FineTuner
from lightning_attngrad.demo.options import DEMO_MODEL, DemoError, DemoOptions
from lightning_attngrad.demo.settings import show_settings
from lightning_attngrad.demo.shortcut import FAINT
from lightning_attngrad.demo.summary import summary_table
from lightning_attngrad.probe import ProbeImages

#: Of guidance in the loss, with --guide.
GUIDANCE_WEIGHT = 10.0
_GUIDED = "; the attention is guided to the strokes"
#: An epoch of 4,000 small digits is little beside three monitors: what is dearer than a map is evaluated less often,
#: and the long search is left out, so that all of them take a tenth of the time. Checkpoints are saved where rewriting
#: is evaluated.
_DRIFT_EVERY, _REWRITE_EVERY = 2, 4

# What Lightning says to people who write a Trainer, and not to those who run a demo.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*GPU available but not used.*",
    ".*number of training batches.*smaller than the logging interval.*",
    ".*logs directory.*exists and is not empty.*",
    ".*LeafSpec.*deprecated.*",
    ".*isinstance.treespec, LeafSpec.*",
)


@dataclass
class DemoResult:
    """What a run came to.

    Attributes:
        history: Scalars of the starting weights and then of each validation, by name.
        training_seconds: Wall time of the fit, the monitor's share included.
        log_directory: Where the event files and figures are.
        table: The printed summary.
    """

    history: list[dict[str, float]]
    training_seconds: float
    log_directory: Path
    table: str


@dataclass
class ScalarHistory(Callback):
    """Keeps the scalars of each validation, and says the accuracy of each epoch above the progress bar.

    Args:
        monitors: Their scalars of the starting weights are in the first entry.
        start: Scalars that were measured before training.
    """

    monitors: Sequence[AttentionMapMonitor | AttentionDriftMonitor | RewriteRobustnessMonitor]
    start: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """The monitors, which stand before this callback, have just evaluated the starting weights."""
        seen = {
            f"attngrad/{monitor.name}/{name}": value
            for monitor in self.monitors
            for name, value in monitor.scalars.items()
        }
        self.history = [{**self.start, **seen}]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """One line an epoch."""
        if trainer.sanity_checking:
            return
        scalars = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.history.append(scalars)
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.print(
                f"epoch {trainer.current_epoch + 1:>2}/{trainer.max_epochs}   validation accuracy "
                f"{scalars['val_accuracy']:.1%}   loss {scalars['val_loss']:.3f}"
            )


class _ProgressBar(TQDMProgressBar):
    """Lightning's progress bar without the version number of the log directory."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


def run_demo(options: DemoOptions) -> DemoResult:
    """Fine-tune with the monitor attached, and print what came of it.

    Args:
        options: What was asked for.

    Returns:
        The scalars, times and places.

    Raises:
        DemoError: Bad input; the message is one line for the person who asked.
    """
    with _quiet(), _threads(1 if options.model_name == DEMO_MODEL else torch.get_num_threads()):
        L.seed_everything(options.seed, verbose=False)
        model, origin, data = _model_and_data(options)
        module = FineTuner(model, len(data.class_names), options.peak_learning_rate)
        # A checkpoint cannot hold a network's class: from these `fine_tuner` makes it anew for the audit.
        described = {"model_name": options.model_name, "class_count": len(data.class_names)}
        module.hparams.update(described, image_size=options.image_size)
        trainer, history, board = _trainer(options, data)
        directory = Path(board.log_dir)
        print(f"{data.description}{_planted(options)}\n{_describe(options, model)}, {origin}\n")
        history.start.update(_validate(options, module, data))
        if trainer.is_global_zero:
            show_settings(options, trainer.max_epochs or 0, board, history.monitors)
        began = time.perf_counter()
        trainer.fit(module, datamodule=data)
        seconds = time.perf_counter() - began
        if options.plant_shortcut:
            history.history[-1] |= _accuracy_without_shortcut(options, module, data)
    table = summary_table(history.history, seconds, directory) if trainer.is_global_zero else ""
    print(table)
    return DemoResult(history.history, seconds, directory, table)


def _model_and_data(
    options: DemoOptions,
) -> tuple[nn.Module, str, DigitsDataModule | FolderDataModule]:
    """The model, where its weights come from, and images in the size that it takes."""
    class_count = 10 if options.data is None else count_folder_classes(options.data)
    if options.model_name == DEMO_MODEL and options.data is not None:
        raise DemoError("--model: the demo model is made for digits; name one of timm's for a folder of images")
    model = build_model(
        options.model_name,
        class_count,
        options.image_size,
        pretrained=options.pretrained,
        drops_patches=not options.guide,
    )
    origin = "random weights"
    if options.weights is not None:
        origin = load_weights(model, options.weights)
    elif options.pretrained:
        origin = "weights from timm"
    elif options.model_name == DEMO_MODEL and not options.from_scratch:
        load_backbone(model)
        origin = "weights from the backbone that ships with this package"
    configuration: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    channels, height, width = configuration["input_size"]
    if options.image_size is not None:
        height = width = options.image_size
    if height != width:
        raise DemoError(f"--model: {options.model_name} takes {height}×{width} pixels; expected a square input")
    if options.data is None:
        contrast = FAINT if options.plant_shortcut else 1.0
        digits = DigitsDataModule(options.batch_size, channels, height, options.plant_shortcut, contrast)
        return model, origin, digits
    data = FolderDataModule(
        options.data,
        options.batch_size,
        height,
        configuration["mean"],
        configuration["std"],
        options.seed,
        options.plant_shortcut,
    )
    return model, origin, data


def _planted(options: DemoOptions) -> str:
    if not options.plant_shortcut:
        return ""
    faint = f", of {FAINT:.0%} contrast" if options.data is None else ""
    return f"{faint}; a mark in the upper left corner gives each one's class away{_GUIDED if options.guide else ''}"


def _describe(options: DemoOptions, model: nn.Module) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    name = "a small Vision Transformer" if options.model_name == DEMO_MODEL else options.model_name
    return f"{name}, {millions:.2f} M parameters"


def _trainer(
    options: DemoOptions, data: DigitsDataModule | FolderDataModule
) -> tuple[L.Trainer, ScalarHistory, TensorBoardLogger]:
    epochs, batches = options.epochs, len(data.train_dataloader())
    if options.max_steps is not None:
        # Whole epochs, shortened alike: Lightning validates only at their ends.
        epochs = min(epochs, math.ceil(options.max_steps / batches))
        batches = min(batches, options.max_steps // epochs)
    board = TensorBoardLogger(options.output, name="", default_hp_metric=False)
    # Beside the event files: a logger without pictures of its own gets the figures as PNG files.
    table = CSVLogger(options.output, name="", version=board.version)
    every = min(_REWRITE_EVERY, math.ceil(epochs / 2))  # twice in a short run
    monitors, audit = _monitors(options, data, every)
    guidance = []
    if options.guide and isinstance(data, DigitsDataModule):  # the options have seen to it
        guidance.append(AttentionGuidance(data.strokes, GUIDANCE_WEIGHT, model="model"))
    history = ScalarHistory(monitors, {})
    checkpoints = [
        ModelCheckpoint(Path(board.log_dir) / "checkpoints", filename, every_n_epochs=every, **kept)
        for filename, kept in (
            ("best", {"monitor": "val_accuracy", "mode": "max", "save_last": True}),
            ("most_robust", {"monitor": "attngrad/rewrite/area", "mode": "min"}),
        )
    ]
    with _trainer_errors():
        trainer = L.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            max_epochs=epochs,
            limit_train_batches=batches,
            logger=[board, table],
            callbacks=[
                *(*monitors, *guidance, audit, history, TimeForecast(monitors)),
                *(_ProgressBar(refresh_rate=5), *checkpoints),
            ],
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
        )
    return trainer, history, board


def _monitors(
    options: DemoOptions, data: DigitsDataModule | FolderDataModule, rewrite_every: int
) -> tuple[list[AttentionMapMonitor | AttentionDriftMonitor | RewriteRobustnessMonitor], CheckpointAudit]:
    """What watches the run."""
    each = None if options.max_overhead is None else options.max_overhead / 3  # of three monitors
    mask = data.strokes if isinstance(data, DigitsDataModule) else None
    images = ProbeImages(mask=mask, mean=data.mean, std=data.std)
    maps = AttentionMapMonitor(probe=images, max_overhead=each, report=True)
    drift = AttentionDriftMonitor(probe=images, every_n_epochs=_DRIFT_EVERY, max_overhead=each)
    rewrites = RewriteRobustnessMonitor(
        probe=images, radii=data.radii, every_n_epochs=rewrite_every, max_overhead=each, long_every=None
    )
    return [maps, drift, rewrites], CheckpointAudit(probe=images, radii=data.radii)


def _validate(
    options: DemoOptions, module: FineTuner, data: DigitsDataModule | FolderDataModule
) -> Mapping[str, float]:
    """Accuracy and loss, by a trainer that leaves no traces."""
    with _trainer_errors():
        trainer = L.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
    return trainer.validate(module, datamodule=data, verbose=False)[0]


def _accuracy_without_shortcut(
    options: DemoOptions, module: FineTuner, data: DigitsDataModule | FolderDataModule
) -> dict[str, float]:
    """What the accuracy is worth: that on images without the mark, and on images with the mark of another class."""
    found = {}
    shown: tuple[tuple[str, Literal["none", "wrong"]], ...] = (("without_mark", "none"), ("wrong_mark", "wrong"))
    for name, data.marks in shown:
        found[f"val_accuracy_{name}"] = _validate(options, module, data)["val_accuracy"]
    data.marks = "own"
    return found


@contextmanager
def _trainer_errors() -> Iterator[None]:
    try:
        yield
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DemoError(f"--accelerator, --devices: {reason}") from error


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads.

    The demo model's matrices are so small that threads mostly wait for each other: with other programs on the
    same two cores, two threads took ten times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Only the progress bar and what concerns this run is to be read."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
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
