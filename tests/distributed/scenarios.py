"""What each of two processes does: run as ``python -m tests.distributed.all_scenarios DIRECTORY``, once a rank.

All scenarios run in one pair of processes, since starting Python with its libraries takes longer than any of them.
Each leaves ``<name>-<rank>.pt`` behind. A collective operation that the other process never joins raises after
``TIMEOUT`` seconds: nothing here can hang for longer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.data import DataLoader, IterableDataset

from lightning_attngrad.probe import Evaluation, Findings
from tests.integration.harness import (
    BATCH,
    COSTS,
    TRAINING_IMAGES,
    Pictures,
    TinyModule,
    WatchedMonitor,
    evaluate,
    fit,
    plain,
    seed_everything,
    tiny_vit,
    validation_loader,
)

TIMEOUT = 30
MONITORED = "attngrad/maps/entropy"
DROPOUT = {"proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.2}


def two_processes() -> dict[str, Any]:
    """Options of a Trainer that works with the other process."""
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=TIMEOUT))
    return {"strategy": strategy, "devices": 2}


def dropping() -> TinyModule:
    seed_everything(0)
    return TinyModule(tiny_vit(**DROPOUT))


def seen_by(monitor: WatchedMonitor) -> dict[str, Any]:
    """What the monitor saw, without how long it took."""
    return {
        "labels": monitor.labels,
        "images": [images for _, images, _ in monitor.explained],
        "heatmaps": [explanation.heatmap for _, _, explanation in monitor.explained],
        "targets": [explanation.target for _, _, explanation in monitor.explained],
        "scalars": {name: value for name, value in monitor.scalars.items() if name not in COSTS},
        "hash": monitor.probe_set.hash,
        "switched off": monitor._off,
        "method": None if monitor._conditions is None else monitor._conditions["method"],
    }


def without_monitor(directory: Path) -> dict[str, Any]:
    return {"fingerprint": fit(dropping(), **two_processes())}


def every_epoch(directory: Path) -> dict[str, Any]:
    module, monitor = dropping(), WatchedMonitor()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        left = fit(module, [monitor], quiet=False, **two_processes())
    return {
        "fingerprint": left,
        **seen_by(monitor),
        "weights": module.state_dict(),
        "logged": {name: float(value) for name, value in module.trainer.callback_metrics.items()},
        "warnings": [str(one.message) for one in caught if "attngrad" in str(one.message)],
    }


def every_step(directory: Path) -> dict[str, Any]:
    module, monitor = dropping(), WatchedMonitor(every_n_steps=1)
    return {"fingerprint": fit(module, [monitor], **two_processes()), **seen_by(monitor)}


def validation(directory: Path) -> dict[str, Any]:
    without = evaluate("validate", dropping(), **two_processes())
    monitor = WatchedMonitor()
    return {
        "without": without,
        "fingerprint": evaluate("validate", dropping(), [monitor], **two_processes()),
        **seen_by(monitor),
    }


def waiting_for_a_scalar(directory: Path) -> dict[str, Any]:
    """EarlyStopping, ahead of the monitor in the list, and ModelCheckpoint hang on the entropy."""
    monitor = WatchedMonitor()
    stopping = EarlyStopping(monitor=MONITORED, patience=1, mode="max", min_delta=10.0)  # never that much better
    checkpoint = ModelCheckpoint(directory / "best", monitor=MONITORED, save_top_k=1, filename="{epoch}")
    module = dropping()
    fit(module, [stopping, monitor, checkpoint], max_epochs=5, enable_checkpointing=True, **two_processes())
    return {
        "epochs": module.trainer.current_epoch,
        "best": str(checkpoint.best_model_path),
        "best score": float(checkpoint.best_model_score),
        "scores": [float(score) for score in checkpoint.best_k_models.values()],
        **seen_by(monitor),
    }


class Lean(TinyModule):
    """No buffers, which DDP would synchronise at each forward, and no metrics, whose ends are collective operations.

    So this module alone can validate with shares of different length.
    """

    def build(self, backbone: nn.Module) -> None:
        super().build(backbone)
        self.stem = nn.Identity()
        del self.forwards
        self.forwards = 0

    def evaluation_step(self, batch: dict[str, Any], stage: str) -> None:
        self.order += batch["index"].tolist()
        self.loss(batch, stage)


class Shares(IterableDataset[dict[str, Any]]):
    """A stream of which each rank gets a different number of images."""

    def __init__(self, lengths: tuple[int, int]) -> None:
        self.lengths = lengths

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rank = torch.distributed.get_rank()
        pictures = Pictures(16, seed=10 + rank)
        yield from (pictures[index] for index in range(self.lengths[rank]))


def stream(lengths: tuple[int, int], directory: Path) -> dict[str, Any]:
    left = []
    for monitors in ([], [WatchedMonitor(num_images=6)]):
        seed_everything(0)
        module = Lean()
        stopping = [EarlyStopping(monitor=MONITORED, patience=9)] if monitors else []
        train = DataLoader(Pictures(TRAINING_IMAGES, seed=1), batch_size=BATCH, shuffle=True)
        loaders = (train, DataLoader(Shares(lengths), batch_size=2))
        left.append(fit(module, [*monitors, *stopping], loaders=loaders, max_epochs=3, **two_processes()))
    logged = float(module.trainer.callback_metrics[MONITORED])
    return {"without": left[0], "fingerprint": left[1], "logged": logged, **seen_by(monitors[0])}


def uneven_stream(directory: Path) -> dict[str, Any]:
    return stream((7, 3), directory)


def stream_of_one_process(directory: Path) -> dict[str, Any]:
    return stream((8, 0), directory)


class FailsOnOneRank(WatchedMonitor):
    """Raises in its second evaluation, after the model has run, on one process only."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        findings = super().evaluate(evaluation)
        if len(self.explained) == 2 and torch.distributed.get_rank() == 1:
            raise ZeroDivisionError("on rank 1 only")
        return findings


def failing_evaluation(directory: Path) -> dict[str, Any]:
    monitor = FailsOnOneRank(on_error="log")
    # The file's name holds the score: where the processes have different ones, Lightning's own checks for
    # a file of that name wait for each other for ever.
    checkpoint = ModelCheckpoint(
        directory / "failing", monitor=MONITORED, save_top_k=2, filename="{" + MONITORED + ":.6f}"
    )
    stopping = EarlyStopping(monitor=MONITORED, patience=9, mode="min")
    module = dropping()
    fit(module, [monitor, checkpoint, stopping], max_epochs=4, enable_checkpointing=True, **two_processes())
    return {
        "epochs": module.trainer.current_epoch,
        "logged": float(module.trainer.callback_metrics[MONITORED]),
        "best": sorted(checkpoint.best_k_models),
        "state": plain(module.state_dict()),
        **seen_by(monitor),
    }


def failing_evaluation_reference(directory: Path) -> dict[str, Any]:
    module = dropping()
    fit(module, max_epochs=4, **two_processes())
    return {"state": plain(module.state_dict())}


def fails_on_rank_one(batch: Any) -> tuple[Tensor, Tensor | None]:
    if torch.distributed.get_rank() == 1:
        raise ZeroDivisionError("on rank 1 only")
    return batch["image"], batch["label"]


def failing_images(directory: Path) -> dict[str, Any]:
    monitor = WatchedMonitor(on_error="log", batch_adapter=fails_on_rank_one, every_n_steps=2)
    module = dropping()
    left = fit(module, [monitor], **two_processes())
    return {"fingerprint": left, **seen_by(monitor)}


def failing_stream(directory: Path) -> dict[str, Any]:
    """The images of a stream are gathered together, also where one process cannot read its own."""
    monitor = WatchedMonitor(on_error="log", batch_adapter=fails_on_rank_one)
    seed_everything(0)
    module = Lean()
    train = DataLoader(Pictures(TRAINING_IMAGES, seed=1), batch_size=BATCH, shuffle=True)
    fit(module, [monitor], loaders=(train, DataLoader(Shares((6, 6)), batch_size=2)), **two_processes())
    return {"epochs": module.trainer.current_epoch, **seen_by(monitor)}


class Sharded(TinyModule):
    """FSDP2: every block a shard of its own."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        mesh: DeviceMesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for block in getattr(self.backbone, "blocks", None) or self.backbone.encoder.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(self.stem, mesh=mesh)  # else nobody would add up its gradients
        fully_shard(self.backbone, mesh=mesh)


def fit_sharded(
    *callbacks: pl.Callback,
    validation: Any = None,
    backbone: Callable[[], nn.Module] = lambda: tiny_vit(**DROPOUT),
    **options: Any,
) -> dict[str, Any]:
    strategy = ModelParallelStrategy(
        data_parallel_size=2,
        tensor_parallel_size=1,
        process_group_backend="gloo",
        timeout=timedelta(seconds=TIMEOUT),
    )
    seed_everything(0)
    module = Sharded(backbone())
    train = DataLoader(Pictures(TRAINING_IMAGES, seed=1), batch_size=BATCH, shuffle=True)
    loaders = (train, validation_loader() if validation is None else validation)
    left = fit(module, callbacks, loaders=loaders, strategy=strategy, devices=2, **options)
    return {**left, "shards": sum(hasattr(parameter, "to_local") for parameter in module.parameters())}


class FailsAfterItsForward(WatchedMonitor):
    """Raises where the forward has gathered the parameters and no backward has let go of them."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        with torch.no_grad():
            evaluation.forward(evaluation.images)
        raise ZeroDivisionError("after a forward")


def sharded(directory: Path) -> dict[str, Any]:
    monitor = WatchedMonitor()
    left = {
        "without": fit_sharded(),
        "fingerprint": fit_sharded(monitor),
        "every step": fit_sharded(WatchedMonitor(every_n_steps=1)),
        "failing": fit_sharded(FailsAfterItsForward(on_error="log")),
    }
    return {**left, **seen_by(monitor)}


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (
    without_monitor,
    every_epoch,
    every_step,
    validation,
    waiting_for_a_scalar,
    uneven_stream,
    stream_of_one_process,
    failing_evaluation_reference,
    failing_evaluation,
    failing_images,
    failing_stream,
    sharded,
)
