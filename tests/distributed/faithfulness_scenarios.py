"""What each of two processes does with the faithfulness monitor; see ``scenarios``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lightning_attngrad as attngrad
from lightning_attngrad.probe import Evaluation, Findings
from tests.distributed.rewriting_scenarios import Whole, loaders, numbers, unlabelled
from tests.distributed.scenarios import dropping, fit_sharded, two_processes
from tests.integration.harness import fit
from tests.probe_options import with_probe

#: Images of an evaluation: with four at once three parts, which do not go round among two processes.
IMAGES, IMAGES_AT_ONCE, STEPS = 11, 4, 4
#: Maps that are zero nowhere, whatever little the model has learnt.
OPTIONS: dict[str, Any] = {"num_images": IMAGES, "steps": STEPS, "method": "attn_lrp"}


class WatchedFaithfulness(attngrad.FaithfulnessMonitor):
    """The monitor as it is, drawing nothing, which counts the changed images of each evaluation."""

    #: As the checkpoint of a run would hold them.
    given_classes: Tensor | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.shared._sharing.at_once = IMAGES_AT_ONCE
        if self.given_classes is not None:
            self.shared._in_this_run.keep("classes", self.given_classes)

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({**OPTIONS, "every_n_epochs": 1, "on_error": "raise", **options}))
        self.labels: list[str] = []
        self.passes: list[list[int]] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.labels.append(evaluation.label)
        sizes: list[int] = []
        self.passes.append(sizes)

        def forward(images: Tensor) -> Any:
            if not torch.is_grad_enabled():
                sizes.append(len(images))
            return evaluation.forward(images)

        findings = super().evaluate(Evaluation(**{**vars(evaluation), "forward": forward}))
        return Findings(findings.scalars, dict)


def _seen_by(monitor: WatchedFaithfulness) -> dict[str, Any]:
    return {
        "labels": monitor.labels,
        "passes": monitor.passes,
        "scalars": numbers(monitor.scalars),
        "target": monitor.shared.classes,
        "switched off": monitor._off,
    }


def faithfulness_alone(directory: Path) -> dict[str, Any]:
    """Images without known classes, which the processes have to find alike."""
    without = fit(dropping(), loaders=loaders(), **two_processes())
    module, monitor = dropping(), WatchedFaithfulness(batch_adapter=unlabelled)
    left = fit(module, [monitor], loaders=loaders(), **two_processes())
    logged = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    return {
        "without": without,
        "fingerprint": left,
        "weights": module.state_dict(),
        "logged": logged,
        **_seen_by(monitor),
    }


def faithfulness_sharded(directory: Path) -> dict[str, Any]:
    monitor = WatchedFaithfulness()
    without = fit_sharded(Whole(), validation=loaders()[1])
    left = fit_sharded(whole := Whole(), monitor, validation=loaders()[1])
    return {"without": without, "fingerprint": left, "weights": whole.weights, **_seen_by(monitor)}


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (faithfulness_alone, faithfulness_sharded)
