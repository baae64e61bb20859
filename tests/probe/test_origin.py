"""Runs without a validation loader, data sets that no integer indexes, and how often the user's code is asked."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, SubsetRandomSampler
from torchvision.transforms import v2

from lightning_attngrad.probe import ProbeImages, ProbeInputError, ProbeSet
from tests.probe.runs import Data, Images, InHook, TinyModule, everything, rng_state, run, set_of


def listening(probe: ProbeSet) -> list[str]:
    """What the set says, in order."""
    said: list[str] = []
    probe._say = lambda trainer, message: said.append(message)  # type: ignore[method-assign]
    return said


# Training data --------------------------------------------------------------------------------------------------


class TrainingOnly(pl.LightningModule):
    """Self-supervised: several views, no validation loader, no validation step."""

    def __init__(self, dataset: Any = None, **options: Any) -> None:
        super().__init__()
        self.net = TinyModule().net
        self.dataset = Images(16) if dataset is None else dataset
        self.options = options
        self.seen: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch[0][0] if isinstance(batch[0], list) else batch[0]
        self.seen.append(float(images.double().sum()))
        return self(images).square().mean()

    def train_dataloader(self) -> Any:
        shuffle = not isinstance(self.dataset, IterableDataset)
        return DataLoader(self.dataset, batch_size=4, shuffle=shuffle, **self.options)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Views(Images):
    """Two random views of an image, its class, and a transform that normalises."""

    def __init__(self) -> None:
        super().__init__(16)
        self.transform = v2.Normalize([0.5] * 3, [0.25] * 3)
        self.classes = ["a", "b", "c"]

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return [self.transform(image), self.transform(image.flip(-1))], target


def test_a_run_without_a_validation_loader_reads_its_training_data_and_says_so_once() -> None:
    probe = ProbeSet(ProbeImages(6, image_key=[0, 0]))
    said = listening(probe)
    module = TrainingOnly(Views())
    run("fit", module, InHook("on_train_batch_end", probe.read), loader="the module's own", max_epochs=1)
    assert (len(probe), probe.source, probe.is_stream) == (6, "training", False)
    assert probe.targets is not None
    assert Counter(probe.targets.tolist()) == {0: 2, 1: 2, 2: 2}
    assert len(said) == 1
    assert said[0].startswith("the run has no validation loader: the probe images come from the training data")
    assert "ProbeImages(images=…)" in said[0]
    assert probe.class_names(module.trainer) == ("a", "b", "c")
    found = probe.normalisation(module.trainer, module)
    assert found is not None
    assert (found.source, found.certain) == ("Normalize in Views.transform", True)


def test_reading_training_data_leaves_the_run_as_it_was() -> None:
    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        before = rng_state()
        probe = ProbeSet(ProbeImages(6, image_key=[0, 0]))
        assert probe.read(trainer, pl_module)
        probe.to_device(trainer, pl_module)
        assert rng_state() == before

    outcomes = []
    for callbacks in ([], [InHook("on_train_start", body)]):
        torch.manual_seed(0)
        module = TrainingOnly(Views())
        run("fit", module, *callbacks, loader="the module's own")
        outcomes.append(everything(module))
    assert outcomes[0] == outcomes[1]


def test_several_views_are_pointed_to_where_nothing_says_where_the_images_are() -> None:
    with pytest.raises(
        ProbeInputError, match=r"set image_key to the name, index or path of the images, such as \[0, 0"
    ):
        probe = ProbeSet(ProbeImages(6))
        run("fit", TrainingOnly(Views()), InHook("on_train_start", probe.read), loader="the module's own")


class TrainingStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.full((3, 8, 8), float(index)), index % 3) for index in range(10)])


def collecting(probe: ProbeSet, hook: str) -> InHook:
    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        pass

    callback = InHook("on_train_start", lambda trainer, module: None if probe.read(trainer, module) else None)

    def collect(trainer: Any, pl_module: Any, outputs: Any, batch: Any, *rest: Any) -> None:
        probe.collect(batch, *rest[1:])

    setattr(callback, hook, collect)
    callback.on_train_end = lambda trainer, pl_module: probe.freeze(trainer)  # type: ignore[method-assign]
    return callback


def test_a_stream_of_training_data_is_gathered_as_it_goes_by() -> None:
    probe = set_of(6, dataloader_idx=0)
    said = listening(probe)
    module = TrainingOnly(TrainingStream())
    run("fit", module, collecting(probe, "on_train_batch_end"), loader="the module's own", max_epochs=1)
    assert (probe.source, probe.is_stream) == ("training", True)
    assert probe.images is not None
    assert probe.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(said) == 2
    assert said[1] == (
        "the training loader (DataLoader) cannot be read ahead: the 6 probe images are gathered as training goes by"
    )
    state = probe.state_dict()
    again = set_of(6)
    again.load_state_dict(state)
    assert (again.source, again.is_stream, again.hash) == ("training", True, probe.hash)


def test_a_stream_of_validation_that_nothing_goes_through_gives_way_to_training_data() -> None:
    probe = set_of(6)
    said = listening(probe)
    stream = DataLoader(TrainingStream(), batch_size=4)
    run("fit", TinyModule(), InHook("on_train_start", probe.read), loader=stream, limit_val_batches=0, max_epochs=1)
    assert (probe.source, len(probe)) == ("training", 6)
    assert said[0].startswith("no validation goes through its loader: the probe images come from the training data")


def test_validation_data_that_can_be_read_are_used_also_where_validation_is_off() -> None:
    probe = set_of(6)
    said = listening(probe)
    run("fit", TinyModule(), InHook("on_train_start", probe.read), limit_val_batches=0, max_epochs=1)
    assert (probe.source, len(probe), said) == ("validation", 6, [])


def test_nothing_went_by_in_training() -> None:
    probe = set_of(6)
    module = TrainingOnly(TrainingStream())
    with pytest.raises(ProbeInputError, match=r"^training data: no batch went by .* check limit_train_batches"):
        run("fit", module, collecting(probe, "on_nothing"), loader="the module's own", max_epochs=1)


def test_one_of_several_training_loaders_is_mixed_with_the_others() -> None:
    class Two(TrainingOnly):
        def train_dataloader(self) -> Any:
            return {"a": super().train_dataloader(), "b": super().train_dataloader()}

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], batch_idx)

    probe = set_of(6, image_key="b.0", target_key="b.1")
    run("fit", Two(), collecting(probe, "on_train_batch_end"), loader="the module's own", max_epochs=1)
    assert (probe.source, probe.is_stream, len(probe)) == ("training", True, 6)


def test_a_loader_that_there_is_not() -> None:
    probe = set_of(6, dataloader_idx=1)
    with pytest.raises(ProbeInputError, match="dataloader_idx: got 1; expected 0, as there is one training loader"):
        run("fit", TrainingOnly(), InHook("on_train_start", probe.read), loader="the module's own")


# Data sets that no integer indexes ------------------------------------------------------------------------------


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
            if self.draws:
                number = int(torch.randint(64, (), generator=self.generator))
                random.random()
            yield Box(8 * (number % 8), 8 * (number // 8))


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


def test_boxes_are_spread_over_the_scene_and_balanced_where_they_have_classes() -> None:
    read: list[Any] = []

    def keep(samples: Any) -> Any:
        read.append([sample["bounds"] for sample in samples])
        return collate(samples)

    loader = DataLoader(Scene(classes=True), sampler=Grid(), batch_size=4, collate_fn=keep)
    probe = set_of(8)
    run("validate", Segmenter(), InHook("on_validation_start", probe.read), loader=loader)
    assert probe.targets is not None
    assert Counter(probe.targets.tolist()) == dict.fromkeys(range(4), 2)
    (chosen,) = [bounds for bounds in read if len(bounds) == 8][:1]
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


# How often the user's code is asked ------------------------------------------------------------------------------


class Asked(TinyModule):
    """Counts its factories, which draw random numbers and make a data set with names and a transform."""

    def __init__(self, asked: list[str] | None = None) -> None:
        super().__init__()
        self.note = ([] if asked is None else asked).append  # elsewhere: what a module keeps is put back

    def train_dataloader(self) -> Any:
        self.note("train")
        return DataLoader(Images(16), batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        self.note("val")
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
            assert probe.normalisation(trainer, pl_module, images) is not None

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
        notes: list[str] = []
        module = Asked(notes)
        run("fit", module, *evaluating(*probes), loader="the module's own", max_epochs=4, **options)
        asked.append(Counter(notes))
        outcomes.append(everything(module))
    assert asked[1]["train"] == asked[0]["train"]
    assert asked[1]["val"] == asked[0]["val"] + more
    assert outcomes[0] == outcomes[1]


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


# Both packages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["validation", "training", "stream", "test"])
def test_pytorch_lightning_is_served_alike(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Module(other.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = TinyModule().net

        def forward(self, images: Tensor) -> Any:
            return self.net(images)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        test_step = validation_step

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            stages.append((self.trainer.state.stage.value, type(self.trainer.state.stage).__module__.split(".")[0]))
            return batch

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    stages: list[Any] = []
    moved: list[Any] = []
    probe = set_of(6)
    said = listening(probe)

    class Reading(other.Callback):  # type: ignore[name-defined,misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            probe.read(trainer, pl_module)
            if probe.is_frozen:
                stages.clear()
                probe.to_device(trainer, pl_module)
                moved.extend(stages)

        on_test_start = on_train_start

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if probe.is_stream:
                probe.collect(batch)

    trainer = other.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Reading()],
    )
    train = DataLoader(TrainingStream() if source == "stream" else Images(16), batch_size=4)
    if source == "test":
        trainer.test(Module(), DataLoader(Images(8), batch_size=4), verbose=False)
    else:
        trainer.fit(Module(), train, DataLoader(Images(8), batch_size=4) if source == "validation" else None)
    assert probe.source == ("training" if source in ("training", "stream") else "validation")
    assert probe.is_full
    assert len(said) == {"validation": 0, "test": 0, "training": 1, "stream": 2}[source]
    if source in ("validation", "training"):
        assert moved == [("validate", "pytorch_lightning")]


# Moving to the device -------------------------------------------------------------------------------------------


class Noisy(TinyModule):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + torch.rand(()), batch[1]]


@pytest.mark.parametrize("mask", [None, "mask"])
def test_the_images_of_every_evaluation_are_the_same_and_cannot_be_spoilt(mask: str | None) -> None:
    probe = set_of(4, mask=None if mask is None else lambda batch: batch[0][:, 0] > 0)
    found: list[Tensor] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        probe.read(trainer, pl_module)
        images, targets = probe.to_device(trainer, pl_module)
        found.append(images.clone())
        assert targets is not None
        images.zero_()
        targets.zero_()

    module = Noisy()
    run("fit", module, InHook("on_train_batch_end", body), max_epochs=1)
    assert all(torch.equal(images, found[0]) for images in found)
    assert probe.targets is not None
    targets = probe.to_device(module.trainer, module)[1]
    assert targets is not None
    assert targets.tolist() == probe.targets.tolist()


def test_the_hooks_are_called_again_only_for_another_module_or_precision() -> None:
    calls: list[str] = []

    class Counting(TinyModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            calls.append(str(batch[0].dtype))
            return batch

    probe = set_of(4)

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        calls.clear()
        probe.read(trainer, pl_module)
        for _ in range(3):
            images, _ = probe.to_device(trainer, pl_module)
        counted.append((list(calls), images.dtype))
        calls.clear()

    counted: list[Any] = []
    module = Counting()
    run("fit", module, InHook("on_train_start", body), max_epochs=1)
    run("fit", module, InHook("on_train_start", body), max_epochs=1)
    run("fit", module, InHook("on_train_start", body), max_epochs=1, precision="bf16-true")
    run("fit", Counting(), InHook("on_train_start", body), max_epochs=1)
    assert counted == [
        (["torch.float32"], torch.float32),
        ([], torch.float32),
        (["torch.bfloat16"], torch.bfloat16),
        (["torch.float32"], torch.float32),
    ]


def test_what_lies_on_a_device_is_not_pickled() -> None:
    import copy
    import pickle

    probe = set_of(4)
    module = TinyModule()
    run("fit", module, InHook("on_train_start", probe.read), max_epochs=1)
    probe.to_device(module.trainer, module)
    for again in (copy.deepcopy(probe), pickle.loads(pickle.dumps(probe))):
        assert again.hash == probe.hash
        assert again._on_device is None
    assert probe._on_device is not None


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
        assert probe.normalisation(trainer, pl_module) is not None
        before.append(rng_state())

    options = {"max_epochs": 2, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    run("fit", Asked(), InHook("on_train_start", body), loader="the module's own", **options)
    assert before[0] == before[1]


def test_stated_names_and_numbers_ask_nobody() -> None:
    probe = set_of(2, images=torch.rand(2, 3, 8, 8), class_names=["x"], mean=0.1, std=0.2)
    notes: list[str] = []
    module = Asked(notes)
    options = {"max_epochs": 2, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    answers: list[Any] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        probe.read(trainer, pl_module)
        answers.append(probe.class_names(trainer))
        answers.append(probe.normalisation(trainer, pl_module, probe.images).mean)  # type: ignore[union-attr]

    run("fit", module, InHook("on_train_start", body), loader="the module's own", **options)
    assert answers == [("x",), (0.1,)]
    assert notes.count("val") == 1  # by Lightning


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
