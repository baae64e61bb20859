"""The settings of a demo run, beside the numbers that it ends with, on TensorBoard's page HParams."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lightning_attngrad.demo.options import DEMO_MODEL, DemoOptions
from lightning_attngrad.reporting.board import board_tag

#: By which runs are compared: TensorBoard shows the last value of each.
END_NUMBERS = (
    "val_accuracy",
    "val_loss",
    board_tag("maps", "entropy"),
    board_tag("maps", "corner_mass"),
    board_tag("drift", "spearman"),
    board_tag("rewrite", "median_linf"),
)


def show_settings(options: DemoOptions, epochs: int, board: TensorBoardLogger) -> None:
    """Tell TensorBoard what this run was asked for, and by which numbers to compare it with others.

    Not through ``log_hyperparams``, which would draw a point of each number that nobody has measured.

    Args:
        options: what was asked for.
        epochs: that will be trained: ``max_steps`` may leave fewer than were asked for.
        board: the logger, of the process of rank zero.
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
    writer = board.experiment._get_file_writer()
    for summary in hparams(settings, dict.fromkeys(END_NUMBERS, 0.0)):  # of these, only the names are written
        writer.add_summary(summary)


def _weights(options: DemoOptions) -> str:
    if options.weights is not None:
        return options.weights.name
    if options.pretrained:
        return "pretrained"
    return "demo backbone" if options.model_name == DEMO_MODEL and not options.from_scratch else "random"
