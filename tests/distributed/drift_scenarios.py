"""What each of two processes does with the monitor of drift; see ``scenarios``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lightning_attngrad as attngrad
from lightning_attngrad.measure.drift import Reference
from lightning_attngrad.probe import Evaluation, Findings
from tests.distributed.rewriting_scenarios import Whole, counting, loaders, numbers
from tests.distributed.scenarios import dropping, fit_sharded, two_processes
from tests.integration.harness import fit, seed_everything
from tests.probe_options import with_probe

#: Images of an evaluation: with four at once three parts, which do not go round among two processes.
IMAGES, IMAGES_AT_ONCE = 11, 4


class WatchedDrift(attngrad.AttentionDriftMonitor):
    """The monitor as it is, drawing nothing, which counts what goes through the model in each evaluation."""

    #: As the checkpoint of a run would hold them.
    given_classes: Tensor | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.shared._sharing.at_once = IMAGES_AT_ONCE
        if self.given_classes is not None:
            self.shared._in_this_run.keep("classes", self.given_classes)

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({"num_images": IMAGES, "on_error": "raise", **options}))
        self.labels: list[str] = []
        self.passes: list[list[int]] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.labels.append(evaluation.label)
        self.passes.append([])
        findings = super().evaluate(counting(evaluation, self.passes[-1]))
        return Findings(findings.scalars, dict)


def seen_by(monitor: WatchedDrift) -> dict[str, Any]:
    return {
        "labels": monitor.labels,
        "passes": monitor.passes,
        "scalars": numbers(monitor.scalars),
        "reference": monitor.saved_state()["history"]["references"][""],
        "target": monitor.shared.classes,
        "hash": monitor.saved_state()["conditions"],
        "switched off": monitor._off,
    }


def reference_of(left: dict[str, Any]) -> Reference:
    """The maps that a scenario compared with."""
    return Reference(**left["reference"])


def saved_weights(directory: Path) -> Path:
    """A checkpoint of other weights; each process writes its own, which are the same."""
    seed_everything(11)
    path = directory / f"drift_reference-{torch.distributed.get_rank()}.ckpt"
    torch.save({"state_dict": {name: _moved(value) for name, value in dropping().state_dict().items()}}, path)
    return path


def _moved(value: Tensor) -> Tensor:
    return value + 0.1 * torch.randn(value.shape) if value.is_floating_point() else value


def drifting(directory: Path) -> dict[str, Any]:
    """Against the start, and against a checkpoint: of the two monitors one has images without known classes."""
    without = fit(dropping(), loaders=loaders(), **two_processes())
    start = WatchedDrift(batch_adapter="tests.distributed.rewriting_scenarios.unlabelled")
    path = str(saved_weights(directory))
    module, checkpoint = dropping(), WatchedDrift(name="checkpoint", reference=path)
    left = fit(module, [start, checkpoint], loaders=loaders(), **two_processes())
    return {
        "without": without,
        "fingerprint": left,
        "weights": module.state_dict(),
        "logged": {name: float(value) for name, value in module.trainer.callback_metrics.items()},
        "reference path": path,
        "against the checkpoint": seen_by(checkpoint),
        **seen_by(start),
    }


def drifting_alarmed(directory: Path) -> dict[str, Any]:
    """The alarm ends the run on both processes alike."""
    module, monitor = dropping(), WatchedDrift(alarm=1e-6, alarm_stops=True)
    fit(module, [monitor], loaders=loaders(), max_epochs=5, **two_processes())
    by_steps, other = WatchedDrift(alarm=1e-6, alarm_stops=True, every_n_steps=1), dropping()
    fit(other, [by_steps], loaders=loaders(), max_epochs=5, **two_processes())
    return {"epochs": module.trainer.current_epoch, "steps": other.trainer.global_step, **seen_by(monitor)}


def drifting_sharded(directory: Path) -> dict[str, Any]:
    validation = loaders()[1]
    without = fit_sharded(whole := Whole(), validation=validation)
    monitor = WatchedDrift()
    left = fit_sharded(whole, monitor, validation=validation)
    refused = ""
    try:
        fit_sharded(WatchedDrift(reference=str(saved_weights(directory))), validation=validation)
    except ValueError as error:
        refused = str(error)
    return {"without": without, "fingerprint": left, "weights": whole.weights, "refused": refused, **seen_by(monitor)}


def drifting_from_embeddings(directory: Path) -> dict[str, Any]:
    """What stays of each image's own starting output, which the two processes find together."""
    module, monitor = dropping(), WatchedDrift(objective="start")
    fit(module, [monitor], loaders=loaders(), **two_processes())
    return {"starting": monitor._starting, **seen_by(monitor)}


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (
    drifting,
    drifting_alarmed,
    drifting_sharded,
    drifting_from_embeddings,
)
