"""A shortcut planted in training and validation alike: accuracy praises the run, and the maps show what it reads."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import Subset

from lightning_attngrad.demo.data import DigitsDataModule
from lightning_attngrad.demo.models import demo_vision_transformer, load_backbone
from lightning_attngrad.demo.module import FineTuner
from lightning_attngrad.demo.shortcut import FAINT
from tests.callbacks.small_runs import WatchedMonitor, make_trainer

SEEDS = (0, 1, 2)
STEPS, EVERY = 40, 10


@dataclass
class Outcome:
    """Numbers of one run, one an evaluation: after 10, 20, … steps."""

    scalars: dict[str, list[float]]
    accuracy: list[float]
    without_mark: float
    wrong_mark: float


class Accuracies(pl.Callback):
    """Of each validation of the fit."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.found.append(float(trainer.callback_metrics["val_accuracy"]))


def run(seed: int, *, planted: bool) -> Outcome:
    """The demo's backbone, fine-tuned on faint digits for a few steps."""
    torch.manual_seed(seed)
    model = demo_vision_transformer()
    load_backbone(model)
    data = DigitsDataModule(batch_size=16, plant_shortcut=planted, contrast=FAINT)
    data.val_images = Subset(data.val_images, range(0, 1000, 5))  # type: ignore[assignment]
    monitor, accuracies = WatchedMonitor(mask=data.strokes, num_images=10, on_error="raise"), Accuracies()
    quiet: dict[str, Any] = {"num_sanity_val_steps": 0, "max_epochs": None}
    trainer = make_trainer(
        monitor, accuracies, max_steps=STEPS, val_check_interval=EVERY, check_val_every_n_epoch=None, **quiet
    )
    module = FineTuner(model, 10)
    trainer.fit(module, datamodule=data)
    evaluations = [findings.scalars for _, findings in monitor.evaluations[1:]]  # the first is at the starting weights
    honest = []
    for data.marks in ("none", "wrong"):
        honest.append(make_trainer().validate(module, datamodule=data, verbose=False)[0]["val_accuracy"])
    return Outcome(
        {name: [scalars[name] for scalars in evaluations] for name in evaluations[0]}, accuracies.found, *honest
    )


@pytest.fixture(scope="module")
def runs() -> Iterator[tuple[list[Outcome], list[Outcome]]]:
    """Planted and clean, three seeds each."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield [run(seed, planted=True) for seed in SEEDS], [run(seed, planted=False) for seed in SEEDS]
    logger.setLevel(level)


def separates(upper: list[float], lower: list[float]) -> bool:
    """Whether all of one kind lie above all of the other, by more than the spread over the seeds of either."""
    spread = max(max(values) - min(values) for values in (upper, lower))
    return min(upper) - max(lower) > spread


def first_separation(upper: list[Outcome], lower: list[Outcome], name: str) -> int | None:
    """The first evaluation at which a scalar separates two kinds of runs."""
    evaluations = range(STEPS // EVERY)
    high, low = ([[one.scalars[name][when] for one in kind] for when in evaluations] for kind in (upper, lower))
    return next((when for when in evaluations if separates(high[when], low[when])), None)


@pytest.mark.parametrize("name", ["corner_mass", "mass_outside_mask"])
def test_the_map_shows_the_shortcut_while_accuracy_warns_of_nothing(
    runs: tuple[list[Outcome], list[Outcome]], name: str
) -> None:
    planted, clean = runs
    found = first_separation(planted, clean, name)
    assert found is not None
    for when in range(STEPS // EVERY):
        marked, plain = ([one.accuracy[when] for one in kind] for kind in (planted, clean))
        assert not separates(plain, marked)  # at no evaluation would accuracies have warned of the planted run
        assert sum(marked) >= sum(plain)  # rather, they praise it
        if when >= found:
            high, low = ([one.scalars[name][when] for one in kind] for kind in (planted, clean))
            assert min(high) > max(low)


def test_without_the_mark_the_accuracy_is_gone(runs: tuple[list[Outcome], list[Outcome]]) -> None:
    planted, clean = runs
    for one in planted:
        assert one.accuracy[-1] > 0.7  # after as few steps; the example goes on
        assert one.without_mark < one.accuracy[-1] - 0.3
        assert one.wrong_mark < one.accuracy[-1] - 0.3
    for one in clean:  # whose digits carry no mark, whatever is asked for
        assert one.without_mark == one.wrong_mark == pytest.approx(one.accuracy[-1])
