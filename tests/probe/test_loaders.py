from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from lightning_attngrad.probe import isolated
from lightning_attngrad.probe.loaders import (
    dataset_chain,
    evaluation_datasets,
    evaluation_loaders,
    is_map_style,
)
from tests.probe.runs import Images, InHook, TinyModule, everything, run


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.rand(3, 8, 8), 0)] * 8)


class OwnIteration(DataLoader[Any]):
    def __iter__(self) -> Any:
        return (([images.flip(-1), targets]) for images, targets in super().__iter__())


class Step(TinyModule):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass


def found(loader: Any, stage: str = "fit", hook: str = "on_train_start", **options: Any) -> Any:
    answers: list[Any] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        answers.append(evaluation_loaders(trainer))
        answers.append(list(evaluation_datasets(trainer)))

    run(stage, Step(), InHook(hook, body, only_once=True), loader=loader, max_epochs=1, **options)
    return answers


def test_one_or_several_loaders_in_their_order() -> None:
    first, second = Images(4), Images(8)
    loaders = [DataLoader(first, batch_size=4), DataLoader(second, batch_size=4)]
    assert [loader.dataset for loader in found(loaders[0])[0]] == [first]
    assert [loader.dataset for loader in found(loaders)[0]] == [first, second]
    assert [loader.dataset for loader in found(dict(zip("ab", loaders, strict=True)))[0]] == [first, second]
    assert found(loaders)[1] == [first, second]


def test_loaders_that_are_mixed_into_one_batch_count_as_one() -> None:
    first, second = Images(4), Images(8)
    mixed = CombinedLoader([DataLoader(first, batch_size=4), DataLoader(second, batch_size=4)], "max_size")
    loaders, datasets = found(mixed)
    assert loaders == [mixed]
    assert datasets == [first, second]
    assert not is_map_style(mixed)


@pytest.mark.parametrize(
    ("stage", "hook"), [("validate", "on_validation_start"), ("test", "on_test_start"), ("fit", "on_validation_end")]
)
def test_the_loaders_of_the_running_stage(stage: str, hook: str) -> None:
    dataset = Images(4)
    assert found(DataLoader(dataset, batch_size=4), stage, hook)[1] == [dataset]


def test_loaders_that_lightning_has_not_asked_for_yet_are_asked_for_without_a_trace() -> None:
    class Random(TinyModule):
        def val_dataloader(self) -> Any:
            return DataLoader(Subset(Images(), torch.randperm(12)[:8].tolist()), batch_size=4)

        def train_dataloader(self) -> Any:
            return DataLoader(Images(16), batch_size=4, shuffle=True)

    lengths: list[int] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        assert trainer.val_dataloaders is None
        with isolated(trainer, pl_module):
            lengths.extend(len(loader.dataset) for loader in evaluation_loaders(trainer))

    outcomes = []
    for callbacks in ([], [InHook("on_train_start", body)]):
        torch.manual_seed(0)
        module = Random()
        run("fit", module, *callbacks, loader="the module's own", num_sanity_val_steps=0, check_val_every_n_epoch=2)
        outcomes.append(everything(module))
    assert lengths == [8]
    assert outcomes[0] == outcomes[1]


def test_a_run_without_validation_has_no_loaders() -> None:
    class NoValidation(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(torch.ones(1, 1)).sum()

        def train_dataloader(self) -> Any:
            return DataLoader(Images(4), batch_size=4)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    answers: list[Any] = []
    probe = InHook("on_train_start", lambda trainer, _: answers.append(evaluation_loaders(trainer)))
    run("fit", NoValidation(), probe, loader="the module's own", max_epochs=1)
    assert answers == [[]]


def test_what_can_be_read_item_by_item() -> None:
    assert is_map_style(DataLoader(Images()))
    assert is_map_style(DataLoader(Images(), batch_size=None))
    assert not is_map_style(DataLoader(Stream()))
    assert not is_map_style(OwnIteration(Images()))
    assert not is_map_style([1, 2])


def test_the_chain_of_wrapped_data_sets() -> None:
    first, second = Images(4), Images(8)
    inner = Subset(first, [0, 1])
    outer = ConcatDataset([inner, second])
    assert list(dataset_chain(outer)) == [outer, inner, second, first]
    assert list(dataset_chain(None)) == []
