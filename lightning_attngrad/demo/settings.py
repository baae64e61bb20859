"""The settings of a demo run, beside the numbers that it ends with, on TensorBoard's page HParams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lightning_attngrad.callbacks.monitor import Monitor
from lightning_attngrad.demo.options import DEMO_MODEL, DemoOptions

#: By which runs are compared, beside accuracy and loss: of each monitor. TensorBoard shows the last value of each.
_COMPARED = {"maps": ("entropy", "corner_mass"), "drift": ("spearman",), "rewrite": ("median_linf",)}


def show_settings(options: DemoOptions, epochs: int, board: TensorBoardLogger, monitors: Sequence[Monitor]) -> None:
    """Tell TensorBoard what this run was asked for, and by which numbers to compare it with others.

    Not through ``log_hyperparams``, which would draw a point of each number that nobody has measured.

    Args:
        options: what was asked for.
        epochs: that will be trained: ``max_steps`` may leave fewer than were asked for.
        board: the logger, of the process of rank zero.
        monitors: of the run.
    """
    settings: dict[str, Any] = {
        "model": options.model_name,
        "images": "digits" if options.data is None else options.data.name,
        "weights": _weights(options),
        "epochs": epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.peak_learning_rate,
        "planted_shortcut": options.plant_shortcut,
        "seed": options.seed,
    }
    if options.image_size is not None:
        settings["image_size"] = options.image_size
    compared = [monitor.board_tag(name) for monitor in monitors for name in _COMPARED[monitor.name]]
    numbers = dict.fromkeys(["val_accuracy", "val_loss", *compared], 0.0)
    writer = board.experiment._get_file_writer()
    for summary in hparams(settings, numbers):  # of the numbers, only their names are written
        writer.add_summary(summary)


def _weights(options: DemoOptions) -> str:
    if options.weights is not None:
        return options.weights.name
    if options.pretrained:
        return "pretrained"
    return "demo backbone" if options.model_name == DEMO_MODEL and not options.from_scratch else "random"
