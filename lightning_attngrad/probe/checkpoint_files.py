"""The files of the checkpoint callbacks of a run: which there are, and which of them have been written since."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl


@dataclass(frozen=True)
class CheckpointFile:
    """What is known of a checkpoint without opening it.

    Attributes:
        written: what changes when it is written again: ``score`` of one of the best, or the ``step`` of the last one
            saved, whose name (``last.ckpt``) comes again.
        weights_only: saved without callbacks: none was asked for its state, or to put averaged weights in.
    """

    written: tuple[str, float]
    weights_only: bool

    def is_new(self, earlier: CheckpointFile | None) -> bool:
        """Whether it has been written since, under a new name or over an old one."""
        return earlier is None or (earlier.written[0] == self.written[0] and earlier.written != self.written)


def checkpoint_files(trainer: pl.Trainer) -> dict[str, CheckpointFile]:
    """The files of all checkpoint callbacks of a Trainer, as far as they tell."""
    found: dict[str, CheckpointFile] = {}
    for callback in trainer.checkpoint_callbacks:
        weights_only = bool(getattr(callback, "save_weights_only", False))
        step = float(getattr(callback, "_last_global_step_saved", 0))
        names = ["last_model_path", "_last_checkpoint_saved"]
        if getattr(callback, "monitor", None) is None and getattr(callback, "save_top_k", 1) != 0:
            names.append("best_model_path")  # the one saved last; else of those below, or of a run before
        for name in names:
            if path := getattr(callback, name, ""):
                found[str(path)] = CheckpointFile(("step", step), weights_only)
        for path, score in getattr(callback, "best_k_models", {}).items():
            found[str(path)] = CheckpointFile(("score", float(score)), weights_only)
    return found
