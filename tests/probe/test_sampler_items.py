"""Data sets that no integer indexes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SubsetRandomSampler

from lightning_attngrad.probe import ProbeInputError, ProbeSet
from tests.probe.runs import Images, InHook, TinyModule, everything, listening, rng_state, run, set_of
from tests.probe.training_runs import TrainingOnly, collecting


@dataclass(frozen=True)
class Box:
    left: int
    top: int
    side: int = 8


class Scene(Dataset[dict[str, Any]]):
    """One large image, of which boxes are read; its length is the number of its files, as torchgeo's."""

    def __init__(self, classes: bool = False) -> None:
        self.image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.classes = classes
        self.reads: list[Box] = []

    def __len__(self) -> int:
        return 1

    def __getitem__(self, box: Any) -> dict[str, Any]:
        if not isinstance(box, Box):
            raise TypeError(f"cannot unpack {type(box).__name__}")
        image = self.image[:, box.top : box.top + box.side, box.left : box.left + box.side]
        sample: dict[str, Any] = {"image": image + 0.001 * random.random(), "bounds": (box.left, box.top)}
        if self.classes:
            sample["label"] = box.left // 8 % 4
        return sample


class Grid(Sampler[Box]):
    """All boxes, row by row; counts its epochs."""

    def __init__(self, draws: bool = False) -> None:
        self.epochs = 0
        self.draws = draws
        self.generator = torch.Generator().manual_seed(3)

    def __len__(self) -> int:
        return 64

    def __iter__(self) -> Iterator[Box]:
        self.epochs += 1
        for number in range(64):
            place = number
            if self.draws:
                place = (int(64 * random.random()) + int(torch.randint(64, (), generator=self.generator))) % 64
            yield Box(8 * (place % 8), 8 * (place // 8))


class Batches(Sampler[list[Box]]):
    """As torchgeo's RandomBatchGeoSampler: lists of boxes."""

    def __init__(self) -> None:
        self.grid = Grid()

    def __len__(self) -> int:
        return 16

    def __iter__(self) -> Iterator[list[Box]]:
        boxes = list(self.grid)
        return iter([boxes[start : start + 4] for start in range(0, 64, 4)])


class Segmenter(TinyModule):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen.append(float(batch["image"].double().sum()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch["image"] if isinstance(batch, dict) else batch[0]
        self.seen.append(float(images.double().sum()))
        return self(images).square().mean()


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "bounds": [s["bounds"] for s in samples],
    }
    if "label" in samples[0]:
        made["label"] = torch.tensor([sample["label"] for sample in samples])
    return made


def boxes(**options: Any) -> DataLoader[Any]:
    return DataLoader(options.pop("dataset", None) or Scene(), collate_fn=collate, **options)


@pytest.mark.parametrize(
    "loader",
    [
        lambda: boxes(sampler=Grid(), batch_size=4),
        lambda: boxes(sampler=Grid(draws=True), batch_size=4),
        lambda: boxes(batch_sampler=Batches()),
        lambda: boxes(batch_sampler=BatchSampler(Grid(), 4, drop_last=False)),
        lambda: boxes(sampler=SubsetRandomSampler([Box(8 * n, 8) for n in range(7)]), batch_size=2),  # type: ignore[arg-type]
        lambda: boxes(sampler=[Box(8 * n, 0) for n in range(7)], batch_size=2),
    ],
)
def test_boxes_are_those_of_the_sampler_and_the_run_does_not_notice(loader: Any) -> None:
    found: list[ProbeSet] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        before = rng_state()
        for _ in range(2):
            probe = set_of(6)
            assert probe.read(trainer, pl_module)
            images, _ = probe.to_device(trainer, pl_module)
            assert images.shape == (6, 3, 8, 8)
            found.append(probe)
        assert rng_state() == before

    outcomes = []
    for callbacks in ([], [InHook("on_train_start", body)]):
        torch.manual_seed(0)
        module, data = Segmenter(), loader()
        run("fit", module, *callbacks, loader=data)
        sampler = data.sampler if isinstance(data.sampler, Grid) else Grid()
        outcomes.append((everything(module), sampler.epochs, sampler.generator.get_state().tolist()))
    assert outcomes[0] == outcomes[1]
    assert found[0].hash == found[1].hash
    assert (found[0].source, found[0].is_stream, found[0].indices) == ("validation", False, None)
    state = found[0].state_dict()
    again = set_of(6)
    said = listening(again)
    again.load_state_dict(state)
    run("fit", Segmenter(), InHook("on_train_start", again.read), loader=loader(), max_epochs=1)
    assert again.hash == found[0].hash
    assert said == []


#: The boxes of each batch. Of the whole module: what a collate function can reach by itself is put back.
READ: list[Any] = []


def test_boxes_are_spread_over_the_scene_and_balanced_where_they_have_classes() -> None:
    READ.clear()

    def keep(samples: Any) -> Any:
        READ.append([sample["bounds"] for sample in samples])
        return collate(samples)

    loader = DataLoader(Scene(classes=True), sampler=Grid(), batch_size=4, collate_fn=keep)
    probe = set_of(8)
    run("validate", Segmenter(), InHook("on_validation_start", probe.read), loader=loader)
    assert probe.targets is not None
    assert Counter(probe.targets.tolist()) == dict.fromkeys(range(4), 2)
    (chosen,) = [bounds for bounds in READ if len(bounds) == 8][:1]
    assert len({top for _, top in chosen}) > 2  # not the first row of the grid


def test_boxes_of_training_data() -> None:
    class Boxes(TrainingOnly):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch["image"]).square().mean()

        def train_dataloader(self) -> Any:
            return boxes(sampler=Grid(draws=True), batch_size=4)

    probe = set_of(6)
    said = listening(probe)
    run("fit", Boxes(), InHook("on_train_start", probe.read), loader="the module's own", max_epochs=1)
    assert (probe.source, len(probe), len(said)) == ("training", 6, 1)


class Unasked(Grid):
    """Keeps an iterator, which no one can put back."""

    def __init__(self) -> None:
        super().__init__()
        self.endless = super().__iter__()

    def __iter__(self) -> Iterator[Box]:
        return iter([next(self.endless) for _ in range(8)])

    def __len__(self) -> int:
        return 8


class Failing(Grid):
    """Works in a worker process only."""

    def __iter__(self) -> Iterator[Box]:
        if not self.epochs:
            raise RuntimeError("no worker here")
        return super().__iter__()


@pytest.mark.parametrize("sampler", [Unasked, Failing])
def test_a_sampler_that_cannot_be_asked_lets_its_images_go_by(sampler: Any) -> None:
    probe = set_of(6)
    said = listening(probe)
    made = sampler()
    callback = collecting(probe, "on_validation_batch_end")

    def ready(*_: Any) -> None:
        made.epochs = 1

    loader = boxes(sampler=made, batch_size=4)
    read = InHook("on_train_start", lambda *_: ready())  # after the set has asked
    run("fit", Segmenter(), callback, read, loader=loader, max_epochs=1, num_sanity_val_steps=0)
    assert (probe.is_stream, probe.source, len(probe)) == (True, "validation", 6)
    assert len(said) == 1
    assert "cannot be read ahead: the 6 probe images are gathered as validation goes by" in said[0]


def test_on_several_processes_boxes_are_those_that_go_by_on_the_first() -> None:
    """Each may have a sampler of its own, of which Lightning hands out a share."""
    answers: list[Any] = []
    probe = set_of(6)

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(trainer), "world_size", 2)
            answers.append(probe.read(trainer, pl_module))

    run("fit", Segmenter(), InHook("on_train_start", body), loader=boxes(sampler=Grid(), batch_size=4), max_epochs=1)
    assert answers == [False]
    assert probe.is_stream


def test_a_data_set_that_fails_for_its_own_reasons_says_them() -> None:
    class Broken(Images):
        def __getitem__(self, index: int) -> Any:
            raise OSError("no such file")

    probe = set_of(6)
    loader = [DataLoader(Images(), batch_size=4), DataLoader(Broken(), batch_size=4)]
    with pytest.raises(ProbeInputError, match=r"OSError\('no such file'\)"):
        run("validate", Segmenter(), InHook("on_validation_start", set_of(6, dataloader_idx=1).read), loader=loader)
    broken = boxes(dataset=Broken(), sampler=Grid(), batch_size=4)
    with pytest.raises(ProbeInputError, match=r"the items \[Box\(left=\d+, .*OSError"):
        run("validate", Segmenter(), InHook("on_validation_start", probe.read), loader=broken)
