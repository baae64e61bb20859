"""What each of two processes does with the callbacks that rewrite; see ``scenarios``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader

import lightning_attngrad as attngrad
from lightning_attngrad.measure import rewriting
from lightning_attngrad.probe import Evaluation, Findings, shared
from tests.distributed.scenarios import dropping, fit_sharded, two_processes
from tests.integration.harness import BATCH, COSTS, TRAINING_IMAGES, Pictures, fit, make_trainer, plain
from tests.probe_options import with_probe

MEDIAN = "attngrad/rewrite/median_linf"
#: Images of an evaluation: with four at once three parts, which do not go round among two processes.
IMAGES, IMAGES_AT_ONCE = 11, 4
#: The pictures are noise around grey: so they lie in [0, 1] as pixels.
OPTIONS: dict[str, Any] = {"num_images": IMAGES, "steps": 3, "mean": 0.5, "std": 0.05}


class WatchedRewriting(attngrad.RewriteRobustnessMonitor):
    """The monitor as it is, drawing nothing, which counts what goes through the model in each evaluation."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.shared._sharing.at_once = IMAGES_AT_ONCE

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({**OPTIONS, "long_every": None, "on_error": "raise", **options}))
        self.labels: list[str] = []
        self.passes: list[list[int]] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.labels.append(evaluation.label)
        self.passes.append([])
        counted = counting(evaluation, self.passes[-1])
        findings = super().evaluate(counted)
        return Findings(findings.scalars, dict)


class WatchedAudit(attngrad.CheckpointAudit):
    """Likewise the audit."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.shared._sharing.at_once = IMAGES_AT_ONCE

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({**OPTIONS, "on_error": "raise", **options}))
        self.passes: list[list[int]] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.passes.append([])
        return Findings(super().evaluate(counting(evaluation, self.passes[-1])).scalars, dict)


def counting(evaluation: Evaluation, sizes: list[int]) -> Evaluation:
    def forward(images: Tensor) -> Any:
        sizes.append(len(images))
        return evaluation.forward(images)

    return Evaluation(**{**vars(evaluation), "forward": forward})


def loaders() -> tuple[Any, Any]:
    train = DataLoader(Pictures(TRAINING_IMAGES, seed=1), batch_size=BATCH, shuffle=True)
    return train, DataLoader(Pictures(12, seed=2), batch_size=BATCH)


def numbers(scalars: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scalars.items() if name not in COSTS}


def seen_by(monitor: WatchedRewriting) -> dict[str, Any]:
    return {
        "labels": monitor.labels,
        "passes": monitor.passes,
        "scalars": numbers(monitor.scalars),
        "hash": monitor.rewrite_hash,
        "switched off": monitor._off,
        "own": None if monitor._frozen is None else monitor._frozen.own,
        "targets": None if monitor._frozen is None else monitor._frozen.targets,
    }


def rewriting_alone(directory: Path) -> dict[str, Any]:
    """Images without known classes, whose own ones the processes have to find alike."""
    without = fit(dropping(), loaders=loaders(), **two_processes())
    module, monitor = dropping(), WatchedRewriting(target="runner_up", batch_adapter=unlabelled, long_every=2)
    left = fit(module, [monitor], loaders=loaders(), **two_processes())
    logged = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    return {
        "without": without,
        "fingerprint": left,
        "weights": module.state_dict(),
        "logged": logged,
        **seen_by(monitor),
    }


def unlabelled(batch: Any) -> tuple[Tensor, None]:
    return batch["image"], None


def audited(directory: Path) -> dict[str, Any]:
    """All that waits for a number: the best checkpoint, the end of the run, and a record beside each file."""
    module, monitor, audit = dropping(), WatchedRewriting(steps=4), WatchedAudit()
    stopping = EarlyStopping(MEDIAN, mode="max", patience=1, min_delta=1.0, check_finite=False)  # never that much more
    checkpoint = ModelCheckpoint(directory / "audited", monitor=MEDIAN, mode="max", save_top_k=2, filename="{step}")
    fit(
        module,
        [stopping, monitor, audit, checkpoint],
        loaders=loaders(),
        max_epochs=5,
        enable_checkpointing=True,
        **two_processes(),
    )
    assert audit.record is not None
    return {
        "epochs": module.trainer.current_epoch,
        "best": str(checkpoint.best_model_path),
        "scores": {Path(path).stem: float(score) for path, score in checkpoint.best_k_models.items()},
        "record": audit.record.plain(),
        "audit passes": audit.passes,
        **seen_by(monitor),
    }


class Failing(pl.Callback):
    """Makes something fail on one process only, once training has begun."""

    def __init__(self, place: Any, name: str) -> None:
        self.place, self.name = place, name

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.real = real = getattr(self.place, self.name)

        def fails(*arguments: Any, **options: Any) -> Any:
            if trainer.global_step and torch.distributed.get_rank() == 1:
                raise ZeroDivisionError("on rank 1 only")
            return real(*arguments, **options)

        setattr(self.place, self.name, fails)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        setattr(self.place, self.name, self.real)


def failing(place: Any, name: str, directory: Path) -> dict[str, Any]:
    module, monitor, audit = dropping(), WatchedRewriting(on_error="log"), WatchedAudit(on_error="log")
    stopping = EarlyStopping(MEDIAN, patience=9, check_finite=False)
    checkpoint = ModelCheckpoint(directory / f"failing_{name}", filename="{step}", save_top_k=-1)
    fit(
        module,
        [Failing(place, name), monitor, audit, stopping, checkpoint],
        loaders=loaders(),
        max_epochs=3,
        enable_checkpointing=True,
        **two_processes(),
    )
    assert audit.record is not None
    return {
        "epochs": module.trainer.current_epoch,
        "state": plain(module.state_dict()),
        "logged": float(module.trainer.callback_metrics[MEDIAN]),
        "why": audit.record.why_empty,
        "reason": monitor._why_off,
        **seen_by(monitor),
    }


def failing_search(directory: Path) -> dict[str, Any]:
    """In the midst of the work that is shared."""
    return failing(rewriting, "survives_8_bits", directory)


def failing_before_it_is_shared(directory: Path) -> dict[str, Any]:
    """Where the others are about to wait in a collective operation."""
    return failing(shared, "ProbeForward", directory)


def failing_rewriting_reference(directory: Path) -> dict[str, Any]:
    module = dropping()
    fit(module, loaders=loaders(), max_epochs=3, **two_processes())
    return {"state": plain(module.state_dict())}


class Whole(pl.Callback):
    """Keeps the weights of all shards together, as they are in the end."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        self.weights = get_model_state_dict(pl_module, options=options)  # complete on rank 0


def rewriting_sharded(directory: Path) -> dict[str, Any]:
    monitor, audit = WatchedRewriting(), WatchedAudit()

    def saving(name: str) -> ModelCheckpoint:
        return ModelCheckpoint(directory / name, filename="{step}", save_top_k=-1)

    options: dict[str, Any] = {"validation": loaders()[1], "enable_checkpointing": True}
    without = fit_sharded(Whole(), saving("sharded_without"), **options)
    left = fit_sharded(whole := Whole(), monitor, audit, saving("sharded"), **options)
    assert audit.record is not None
    return {
        "without": without,
        "fingerprint": left,
        "weights": whole.weights,
        "record": audit.record.plain(),
        **seen_by(monitor),
    }


def in_one_process(weights: dict[str, Tensor], callback: Any) -> None:
    """Let a callback evaluate these weights in a validation of its own."""
    module = dropping()
    module.load_state_dict(weights)
    make_trainer([callback]).validate(module, loaders()[1], verbose=False)


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (
    rewriting_alone,
    audited,
    failing_rewriting_reference,
    failing_search,
    failing_before_it_is_shared,
    rewriting_sharded,
)
