"""The two callbacks that rewrite, as the tests run them: few images, few steps, nothing drawn; and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.small_runs import Classifier, Run, Squares, fit, loader, make_trainer
from tests.probe_options import with_probe

#: The squares are pixels; with them no evaluation depends on what their brightest one is.
PIXELS: dict[str, Any] = {"mean": 0.0, "std": 1.0}
CHEAP: dict[str, Any] = {"num_images": 3, "steps": 2, "on_error": "raise", **PIXELS}


class WatchedRewriting(attngrad.RewriteRobustnessMonitor):
    """The monitor as it is, which keeps what it saw; it draws only where asked to."""

    def __init__(self, *, draws: bool = False, **options: Any) -> None:
        super().__init__(**with_probe({**CHEAP, "long_every": None, "scalars": "all", **options}))
        self.draws = draws
        self.evaluations: list[tuple[Evaluation, Findings]] = []
        self.hashes: list[str | None] = []

    @property
    def labels(self) -> list[str]:
        return [evaluation.label for evaluation, _ in self.evaluations]

    def series(self, name: str) -> list[float]:
        return [findings.scalars[name] for _, findings in self.evaluations]

    def evaluate(self, evaluation: Evaluation) -> Findings:
        findings = super().evaluate(evaluation)
        self.evaluations.append((evaluation, findings))
        self.hashes.append(self.rewrite_hash)
        return findings if self.draws else Findings(findings.scalars, dict)


class WatchedAudit(attngrad.CheckpointAudit):
    """The audit as it is, which keeps what it saw."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({**CHEAP, **options}))
        self.evaluations: list[tuple[Evaluation, Findings]] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        findings = super().evaluate(evaluation)
        self.evaluations.append((evaluation, findings))
        return findings


class Bright(nn.Module):
    """Two or more classes by the mean of some pixels: no attention, and every image can be rewritten."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))  # type: ignore[no-any-return]


def bright() -> Classifier:
    return Classifier(Bright())


def beside_the_line_on_maps(messages: list[str]) -> list[str]:
    """What else was said in a run of `bright`, of which no map can be made: that is said in one line."""
    line = "no map can be made of the model, so numbers and figures of maps are left out"
    assert sum(line in message for message in messages) == 1
    return [message for message in messages if line not in message]


def saving(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, **{"save_top_k": -1, "filename": "{step}", **options})


def fit_and_save(*callbacks: Any, **options: Any) -> Run:
    return fit(*callbacks, enable_checkpointing=True, **options)


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON files of a folder, by the name of the checkpoint."""
    return {path.name.split(".")[0]: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def state_of(path: Path, name: str = "audit") -> dict[str, Any]:
    """What the audit of this name has put into a checkpoint, read as a stranger would."""
    states = torch.load(path, weights_only=True)["callbacks"]
    (state,) = (state for key, state in states.items() if "Audit" in key and repr(name) in key)
    return dict(state)


def numbers(figures: dict[str, Any]) -> dict[str, float]:
    """Figures of a record or of its JSON, as floats."""
    return {name: float(value) for name, value in figures.items()}


def figures_of(path: Path, *, module: Any = Classifier, weights_only: bool = True, **options: Any) -> dict[str, float]:
    """The figures of a checkpoint's weights, found anew by another audit in a validation of its own."""
    audit = WatchedAudit(**options)
    validation = loader(Squares(9, seed=1))
    make_trainer(audit).validate(module(), validation, ckpt_path=path, weights_only=weights_only, verbose=False)
    assert audit.record is not None
    assert len(audit.evaluations) == 1
    return numbers(audit.record.figures)


def figures_of_weights(weights: dict[str, Tensor], *, module: Any = Classifier, **options: Any) -> dict[str, float]:
    """The figures of a state dict, without any state of a callback."""
    audit, fresh = WatchedAudit(**options), module()
    fresh.load_state_dict(weights)
    make_trainer(audit).validate(fresh, loader(Squares(9, seed=1)), verbose=False)
    assert audit.record is not None
    return numbers(audit.record.figures)
