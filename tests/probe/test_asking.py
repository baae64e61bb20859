"""How often the user's factories are asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import lightning_attngrad as attngrad
from lightning_attngrad.probe import ProbeSet
from tests.callbacks.small_runs import Classifier, Squares
from tests.callbacks.small_runs import loader as small_loader
from tests.probe.runs import Data, Images, InHook, TinyModule, everything, rng_state, run, set_of
from tests.probe.training_runs import Views

#: Which factories were asked. Of the whole module: whatever a LightningModule can reach by itself is put back.
ASKED: list[str] = []


class Asked(TinyModule):
    """Notes that its factories are asked; they draw random numbers and make a data set with names and a transform."""

    def train_dataloader(self) -> Any:
        ASKED.append("train")
        return DataLoader(Images(16), batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        ASKED.append("val")
        dataset = Views()
        dataset.length = 8 + int(torch.randint(4, ()))
        return DataLoader(dataset, batch_size=4)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.append(float(batch[0][0].double().sum()))


def evaluating(*probes: ProbeSet) -> list[pl.Callback]:
    """Reads, moves and names the images at every turn, for each set."""

    def body(probe: ProbeSet) -> Any:
        def evaluate(trainer: pl.Trainer, pl_module: Any) -> None:
            assert probe.read(trainer, pl_module)
            images, _ = probe.to_device(trainer, pl_module)
            assert probe.class_names(trainer) == ("a", "b", "c")
            probe.shown(trainer, pl_module, images)

        return evaluate

    hooks = ("on_train_start", "on_train_batch_end", "on_validation_epoch_end", "on_train_end")
    return [InHook(hook, body(probe)) for probe in probes for hook in hooks]


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, 0),
        ({"num_sanity_val_steps": 0}, 0),  # Lightning has asked before the first step
        ({"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}, 1),
        ({"check_val_every_n_epoch": 2}, 0),
        ({"reload_dataloaders_every_n_epochs": 1}, 0),
        ({"reload_dataloaders_every_n_epochs": 2, "num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}, 1),
        ({"limit_val_batches": 0}, 1),
    ],
)
def test_factories_are_asked_once_more_at_most_for_all_sets_and_evaluations(options: Any, more: int) -> None:
    asked, outcomes = [], []
    for probes in ((), (set_of(4, image_key=[0, 0]), set_of(2, seed=5, image_key=[0, 0]))):
        torch.manual_seed(0)
        ASKED.clear()
        module = Asked()
        run("fit", module, *evaluating(*probes), loader="the module's own", max_epochs=4, **options)
        asked.append(Counter(ASKED))
        outcomes.append(everything(module))
    assert asked[1]["train"] == asked[0]["train"]
    assert asked[1]["val"] == asked[0]["val"] + more
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("options", [{}, {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}])
def test_monitors_ask_the_users_factories_once_more_at_most(options: Any, tmp_path: Path) -> None:
    class Small(Classifier):
        def train_dataloader(self) -> Any:
            ASKED.append("train")
            return small_loader(Squares())

        def val_dataloader(self) -> Any:
            ASKED.append("val")
            return small_loader(Squares())

    asked = []
    for callbacks in ([], [attngrad.AttentionMapMonitor(num_images=2), attngrad.AttentionDriftMonitor(num_images=2)]):
        ASKED.clear()
        run(
            "fit",
            Small(),
            *callbacks,
            loader="the module's own",
            max_epochs=4,
            default_root_dir=tmp_path,
            **options,
        )
        asked.append(Counter(ASKED))
    assert asked[1]["train"] == asked[0]["train"]
    assert asked[1]["val"] - asked[0]["val"] == (1 if options else 0)


def test_loaders_that_were_asked_for_early_are_let_go_of_when_lightning_has_its_own() -> None:
    from lightning_attngrad.probe.loaders import _asked

    probe = set_of(4, image_key=[0, 0])
    kept: list[bool] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        probe.read(trainer, pl_module)
        probe.to_device(trainer, pl_module)
        kept.append(trainer in _asked)

    hooks = [InHook(hook, body) for hook in ("on_train_start", "on_validation_epoch_end")]
    options = {"max_epochs": 2, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    run("fit", Asked(), *hooks, loader="the module's own", **options)
    assert kept == [True, False]


def test_two_runs_of_one_trainer_are_asked_for_their_own_loaders() -> None:
    trainer = run("fit", TinyModule(), loader=DataLoader(Images(4), batch_size=4), max_epochs=1)
    lengths: list[int] = []
    for length in (8, 12):
        probe = set_of(20)
        trainer.callbacks[:] = [InHook("on_train_start", probe.read)]
        trainer.fit_loop.max_epochs += 1
        trainer.num_sanity_val_steps = 0
        trainer.fit(
            TinyModule(), DataLoader(Images(16), batch_size=4), DataLoader(Images(length), batch_size=4), ckpt_path=None
        )
        lengths.append(len(probe))
    assert lengths == [8, 12]


def test_names_and_normalisation_of_images_from_a_checkpoint() -> None:
    """Frozen before it has read anything, so the loaders are asked when the names are."""
    state = {"num_images": 2, "seed": 0, "dataloader_idx": 0, "dataset_length": None, "indices": None, "hash": "-"}
    probe = set_of(2)
    probe.load_state_dict({**state, "images": torch.rand(2, 3, 8, 8), "targets": None, "masks": None})
    before: list[Any] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        before.append(rng_state())
        assert probe.read(trainer, pl_module)
        assert probe.class_names(trainer) == ("a", "b", "c")
        assert probe.stated_normalisation(trainer, pl_module) is not None
        before.append(rng_state())

    options = {"max_epochs": 2, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    run("fit", Asked(), InHook("on_train_start", body), loader="the module's own", **options)
    assert before[0] == before[1]


def test_stated_names_and_numbers_ask_nobody() -> None:
    probe = set_of(2, images=torch.rand(2, 3, 8, 8), class_names=["x"], mean=0.1, std=0.2)
    ASKED.clear()
    module = Asked()
    options = {"max_epochs": 2, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    answers: list[Any] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        probe.read(trainer, pl_module)
        answers.append(probe.class_names(trainer))
        answers.append(probe.known_pixels(trainer, pl_module, probe.images).required().mean)

    run("fit", module, InHook("on_train_start", body), loader="the module's own", **options)
    assert answers == [("x",), (0.1,)]
    assert ASKED.count("val") == 1  # by Lightning


def test_the_datamodule_is_asked_as_little() -> None:
    class Counting(Data):
        asked = 0

        def val_dataloader(self) -> Any:
            Counting.asked += 1
            return DataLoader(Images(), batch_size=4)

    data = Counting(class_names=["a", "b", "c"], transform=nn.Sequential(v2.Normalize([0.5], [0.5])))
    probes = (set_of(4), set_of(2))
    run(
        "fit",
        TinyModule(),
        *evaluating(*probes),
        datamodule=data,
        max_epochs=4,
        check_val_every_n_epoch=2,
        num_sanity_val_steps=0,
    )
    assert Counting.asked == 2
