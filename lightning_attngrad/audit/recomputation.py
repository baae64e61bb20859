"""The run's CheckpointAudit at work on one checkpoint after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
from matplotlib.figure import Figure

from lightning_attngrad.callbacks import CheckpointAudit
from lightning_attngrad.probe import Evaluation, Findings, ProbeImages
from lightning_attngrad.reporting.curves import success_curves
from lightning_attngrad.reporting.distances import Norm

#: Settings of the images of an audit; all others are of the rewriting.
IMAGE_ARGUMENTS = frozenset(
    (
        *("num_images", "seed", "dataloader_idx", "model", "mean", "std", "pixel_range", "channels"),
        *("image_key", "target_key", "batch_adapter", "task"),
    )
)


def constructor_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an audit, flat as in its record and in the command's options, as CheckpointAudit takes them.

    Args:
        arguments: by their names in `AuditSettings.arguments`.
    """
    of_images = {name: value for name, value in arguments.items() if name in IMAGE_ARGUMENTS}
    of_rewriting = {name: value for name, value in arguments.items() if name not in IMAGE_ARGUMENTS}
    return {"probe": ProbeImages(**of_images), **of_rewriting}


class Recomputation(CheckpointAudit):
    """Audits the weights of each validation anew, on images that stay frozen from one to the next.

    Args:
        arguments: of CheckpointAudit.
        state: of the run's audit, with its images and classes; None freezes those of the first validation.

    Attributes:
        needs_batches: whether the images are a stream, of which one batch may not be enough.
        curves: distances of the image–target pairs, by the label of the checkpoint.
    """

    def __init__(self, arguments: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        # A module may bring an audit of its own, and two of one name would be refused.
        super().__init__(**constructor_arguments(arguments), name="recomputed", on_error="raise")
        self.needs_batches = False
        self.curves: dict[str, list[float]] = {}
        self._label_of_checkpoint = ""
        if state is not None:
            self.restore_state(state)

    @property
    def state_key(self) -> str:
        """No key of a checkpoint, from which Lightning would restore this: all are audited on the same images."""
        return "lightning-attngrad audit"

    def _say_what_differs(self, what: str, found: list[str]) -> None:
        """Nothing: other settings are what was asked for."""

    def begin(self, label: str) -> None:
        """Make ready for other weights.

        Args:
            label: of the checkpoint, for the titles of its figures.
        """
        self._label_of_checkpoint = label
        self.record, self._evaluated_at, self._pending = None, None, None

    def evaluate(self, evaluation: Evaluation) -> Findings:
        """As in a run, under the name of the checkpoint."""
        findings = super().evaluate(replace(evaluation, label=self._label_of_checkpoint))
        self.curves[self._label_of_checkpoint] = self.distances
        return findings

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave a stream to the next validation, which has more batches."""
        if self.shared.streaming and not self.needs_batches:
            self.needs_batches = True
            self.probe_set.start_over()
            return
        super().on_validation_epoch_end(trainer, pl_module)

    def figures(self) -> dict[str, Figure]:
        """Draw what was found."""
        pending, self._pending = self._pending, None
        return {} if pending is None else dict(pending.figures())

    def comparison(self) -> dict[str, Figure]:
        """Draw all checkpoints in one figure."""
        norm = cast("Norm", self.rewriting.norm)
        title = "Rewritten within a radius"
        curves = {label: np.asarray(distances) for label, distances in self.curves.items() if distances}
        if not curves:
            return {}
        return {"success": success_curves(curves, radii=self.rewriting.radii, norm=norm, title=title)}
