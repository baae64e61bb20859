"""Looking for a learning rate or a batch size beside the monitors finds the same ones and leaves the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from tests.integration.harness import (
    TRAINING_IMAGES,
    VALIDATION_IMAGES,
    Pictures,
    TinyModule,
    WatchedMonitor,
    differences,
    fingerprint,
    make_trainer,
    seed_everything,
    tiny_vit,
)
from tests.integration.test_non_interference import (
    DROPOUT,
    WatchedAudit,
    WatchedDrift,
    WatchedFaithfulness,
    WatchedRewriting,
)


class Tunable(TinyModule):
    def __init__(self) -> None:
        super().__init__(tiny_vit(**DROPOUT))
        self.lr = 1e-3

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 2

    def train_dataloader(self) -> Any:
        return DataLoader(Pictures(TRAINING_IMAGES, seed=1), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Pictures(VALIDATION_IMAGES, seed=2), batch_size=self.batch_size)


def tune_learning_rate(trainer: pl.Trainer, module: Tunable, data: Data) -> Any:
    found = Tuner(trainer).lr_find(module, datamodule=data, num_training=25, min_lr=1e-5, max_lr=1e-1)
    assert found is not None
    return found.suggestion(), found.results


def tune_batch_size(trainer: pl.Trainer, module: Tunable, data: Data) -> Any:
    return Tuner(trainer).scale_batch_size(module, datamodule=data, max_trials=2, steps_per_trial=2)


#: What is done before the fit, and which of Lightning's callbacks do it within.
TUNINGS: dict[str, tuple[list[Callable[..., Any]], Callable[[], list[pl.Callback]]]] = {
    "learning rate": ([tune_learning_rate], list),
    "batch size": ([tune_batch_size], list),
    "both": ([tune_batch_size, tune_learning_rate], list),
    "learning rate, by callback": ([], lambda: [LearningRateFinder(num_training_steps=25, max_lr=1e-1)]),
    "batch size, by callback": ([], lambda: [BatchSizeFinder(max_trials=2)]),
}


def monitors() -> list[Any]:
    return [WatchedMonitor(), WatchedDrift(), WatchedRewriting(), WatchedFaithfulness(every_n_epochs=1), WatchedAudit()]


def life(name: str, watching: list[Any], before: bool, folder: Path) -> dict[str, Any]:
    """Tune, then train with what was found."""
    seed_everything(0)
    module, data = Tunable(), Data()
    tunings, finders = TUNINGS[name]
    callbacks = [*watching, *finders()] if before else [*finders(), *watching]
    trainer = make_trainer(callbacks, default_root_dir=folder)
    seed_everything(3)
    found = [tune(trainer, module, data) for tune in tunings]
    trainer.fit(module, datamodule=data)
    return fingerprint(trainer, module) | {"found": found, "settings": (module.lr, data.batch_size)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", TUNINGS)
def test_tuning_beside_the_monitors_is_bit_identical(name: str, before: bool, tmp_path: Path) -> None:
    if not TUNINGS[name][1]() and not before:
        pytest.skip("there is no callback to stand in front of or behind")
    watching = monitors()
    without = life(name, [], before, tmp_path / "without")
    assert differences(without, life(name, watching, before, tmp_path / "with")) == set()
    lr, batch_size = without["settings"]
    assert lr != 1e-3 or "rate" not in name
    assert batch_size != 2 or "batch" not in name
    labels = [callback.labels for callback in watching if not isinstance(callback, WatchedAudit)]
    assert all(of_one[-1] == "epoch 2" for of_one in labels), labels
