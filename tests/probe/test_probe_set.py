from __future__ import annotations

import io
import logging
from collections import Counter
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset

from lightning_attngrad.probe import ProbeImages, ProbeInputError, ProbeSet, probe_set
from lightning_attngrad.probe.parts import Part, hash_of
from tests.probe.runs import Images, InHook, TinyModule, bytes_of, everything, rng_state, run, set_of


class Step(TinyModule):
    """Takes whatever batch comes."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass


class Labelled(Images):
    """9 of 10 items are of class 0; the targets can be known without reading."""

    def __init__(self, length: int = 40) -> None:
        super().__init__(length)
        self.targets = [0 if index % 10 else 1 + index % 20 // 10 for index in range(length)]

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0], self.targets[index]


class Unlabelled(Labelled):
    """The same, but only the items tell."""

    def __init__(self, length: int = 40) -> None:
        super().__init__(length)
        self.hidden = self.targets
        del self.targets

    def __getitem__(self, index: int) -> Any:
        return Images.__getitem__(self, index)[0], self.hidden[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.full((3, 8, 8), float(index)), index % 3) for index in range(10)])


def read(loader: Any, probe: ProbeSet | None = None, module: Any = None, **options: Any) -> ProbeSet:
    """A set read in ``on_train_start`` of a run."""
    probe = set_of(6) if probe is None else probe
    hook = InHook("on_train_start", probe.read)
    run("fit", module or Step(), hook, loader=loader, max_epochs=1, **options)
    return probe


@pytest.mark.parametrize("hook", ["on_train_start", "on_validation_batch_end", "on_train_batch_end"])
@pytest.mark.parametrize("dataset", [Labelled(), Unlabelled()])
def test_reading_changes_neither_the_order_of_the_data_nor_any_random_stream(hook: str, dataset: Any) -> None:
    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        before = rng_state()
        probe = set_of(6)
        assert probe.read(trainer, pl_module)
        probe.to_device(trainer, pl_module)
        assert rng_state() == before

    outcomes = []
    for callbacks in ([], [InHook(hook, body)]):
        torch.manual_seed(0)
        module = TinyModule()
        generator = torch.Generator().manual_seed(1)
        loader = DataLoader(dataset, batch_size=4, shuffle=True, generator=generator)
        run("fit", module, *callbacks, loader=loader)
        outcomes.append((everything(module), bytes_of(generator.get_state())))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("dataset", [Labelled(), Unlabelled(), Subset(Labelled(), range(1, 40))])
def test_the_choice_is_balanced(dataset: Any) -> None:
    probe = read(DataLoader(dataset, batch_size=4))
    assert probe.targets is not None
    counts = Counter(probe.targets.tolist())
    assert set(counts) == {0, 1, 2}
    assert max(counts.values()) <= 3
    assert isinstance(probe.indices, list)
    assert [dataset[index][1] for index in probe.indices] == probe.targets.tolist()


def test_known_targets_make_reading_candidates_unnecessary() -> None:
    class Counting(Labelled):
        def __getitem__(self, index: int) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    reads: list[int] = []
    probe = set_of(6)

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        reads.clear()
        probe.read(trainer, pl_module)
        assert len(reads) == 6
        assert probe.read(trainer, pl_module)  # frozen: nothing is read again
        assert len(reads) == 6

    run("fit", Step(), InHook("on_train_start", body), loader=DataLoader(Counting(), batch_size=4), max_epochs=1)
    assert probe.is_frozen


def test_at_most_eight_candidates_an_image_are_read() -> None:
    class Counting(Unlabelled):
        def __getitem__(self, index: int) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    reads: list[int] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        reads.clear()
        set_of(2).read(trainer, pl_module)
        assert len(reads) == 8 * 2 + 2

    run("fit", Step(), InHook("on_train_start", body), loader=DataLoader(Counting(), batch_size=4), max_epochs=1)
    assert reads


@pytest.mark.parametrize("known", [False, True])
def test_the_records_of_a_large_data_set_are_gone_through_a_few_times_and_not_for_each_image(known: bool) -> None:
    class Records(list[Any]):
        through = 0

        def __iter__(self) -> Any:
            Records.through += 1
            return super().__iter__()

    class Folder(Images):
        def __init__(self) -> None:
            super().__init__(200)
            records = Records((f"{index}.jpg", index % 3) for index in range(200))
            setattr(self, "samples" if known else "records", records)

    probe = set_of(16)

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        Records.through = 0
        probe.read(trainer, pl_module)

    run("fit", Step(), InHook("on_train_start", body), loader=DataLoader(Folder(), batch_size=4), max_epochs=1)
    assert len(probe) == 16
    assert Records.through <= 4  # put back after the choice, and after the reading


def test_the_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    sets = [read(DataLoader(Labelled(), batch_size=b), set_of(6, seed)) for b, seed in ((4, 1), (7, 1), (4, 2))]
    assert sets[0].indices == sets[1].indices != sets[2].indices
    assert sets[0].hash == sets[1].hash != sets[2].hash  # random transforms included
    assert len({probe.hash for probe in sets}) == 2


def test_a_distributed_sampler_is_ignored() -> None:
    plain = read(DataLoader(Labelled(), batch_size=4))
    shares = [
        DataLoader(dataset := Labelled(), batch_size=4, sampler=DistributedSampler(dataset, num_replicas=2, rank=rank))
        for rank in range(2)
    ]
    hashes = {read(loader, use_distributed_sampler=False).hash for loader in shares}
    assert hashes == {plain.hash}


def test_the_loaders_collate_function_and_dictionaries() -> None:
    def collate(items: list[Any]) -> dict[str, Any]:
        return {"photo": torch.stack([image for image, _ in items]), "kind": torch.tensor([t for _, t in items])}

    loader = DataLoader(Labelled(), batch_size=4, collate_fn=collate)
    probe = read(loader, set_of(6, image_key="photo", target_key="kind"))
    assert len(probe) == 6
    assert probe.targets is not None
    with pytest.raises(ProbeInputError, match="'photo': float32"):
        read(loader)


def test_batch_adapter() -> None:
    probe = read(DataLoader(Labelled(), batch_size=4), set_of(2, batch_adapter=lambda batch: (batch[0], None)))
    assert probe.targets is None
    assert len(probe) == 2


def test_a_collate_function_without_images() -> None:
    with pytest.raises(ProbeInputError, match=r"no images .* list\(str, str\)"):
        read(DataLoader(Labelled(), batch_size=4, collate_fn=lambda items: ["a", "b"]))


def test_items_that_are_batches_are_cut_to_the_number_asked_for() -> None:
    class Batches(Images):
        def __getitem__(self, index: int) -> Any:
            image, _ = super().__getitem__(index)
            return image.expand(4, 3, 8, 8), torch.arange(4)

    probe = set_of(6)

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        probe.read(trainer, pl_module)
        images, targets = probe.to_device(trainer, pl_module)
        assert images.shape == (6, 3, 8, 8)
        assert targets is not None
        assert targets.tolist() == [0, 1, 2, 3, 0, 1]

    loader = DataLoader(Batches(), batch_size=None)
    run("fit", Step(), InHook("on_train_start", body), loader=loader, max_epochs=1)
    assert len(probe) == 6


@pytest.mark.parametrize(("classes", "size"), [(1, (3, 8, 8)), (3, (1, 8, 8)), (3, (3, 6, 10))])
def test_one_class_one_channel_and_images_that_are_not_square(classes: int, size: tuple[int, ...]) -> None:
    many, one = set_of(6), set_of(1)

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        assert many.read(trainer, pl_module)
        assert one.read(trainer, pl_module)

    loader = DataLoader(Images(12, classes, size), batch_size=4)
    run("validate", Step(size[0]), InHook("on_validation_start", body), loader=loader)
    assert many.images is not None
    assert many.images.shape == (6, *size)
    assert not many.images.is_inference()
    assert len(one) == 1


def test_fewer_images_than_asked_for_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    probe = set_of(50)
    body = InHook("on_train_batch_end", probe.read)
    with caplog.at_level(logging.WARNING, "lightning_attngrad"):
        run("fit", Step(), body, loader=DataLoader(Images(5), batch_size=4), max_epochs=1)
    assert len(probe) == 5
    messages = [record.message for record in caplog.records if record.name == "lightning_attngrad"]
    assert messages == ["50 probe images were asked for, the data set holds 5: using those"]


def test_several_loaders(caplog: pytest.LogCaptureFixture) -> None:
    loaders = [DataLoader(Images(12, size=(3, 8, 8 + 2 * number)), batch_size=4) for number in range(2)]
    with caplog.at_level(logging.WARNING, "lightning_attngrad"):
        first = read(loaders)
    assert [r.message for r in caplog.records if r.name == "lightning_attngrad"] == [
        "there are 2 validation loaders; the probe images come from dataloader_idx=0"
    ]
    second = read(loaders, set_of(6, dataloader_idx=1))
    assert first.images is not None
    assert second.images is not None
    assert (first.images.shape[-1], second.images.shape[-1]) == (8, 10)
    with pytest.raises(ProbeInputError, match="dataloader_idx: got 2; expected 0 to 1"):
        read(loaders, set_of(6, dataloader_idx=2))


def test_an_empty_data_set_is_refused() -> None:
    class Empty(Images):
        pass

    with pytest.raises(ProbeInputError, match="the data set is empty"):
        read([DataLoader(Images(4)), DataLoader(Empty(0), batch_size=4)], set_of(1, dataloader_idx=1))


class OnDevice(Step):
    """Converts uint8 images and adds noise, on the device."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, targets = batch
        return [images.float() / 255 + torch.rand(()), targets]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).sum()


def test_images_come_to_the_device_through_the_hooks_and_always_the_same() -> None:
    class Bytes(Labelled):
        def __getitem__(self, index: int) -> Any:
            image, target = super().__getitem__(index)
            return (200 * image).byte(), target

    seen: list[Tensor] = []
    probe = set_of(4)

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        assert probe.read(trainer, pl_module)
        before = rng_state()
        images, targets = probe.to_device(trainer, pl_module)
        assert rng_state() == before
        assert images.is_floating_point()
        assert not images.is_inference()
        assert targets is not None
        seen.append(images)

    loader = DataLoader(Bytes(), batch_size=4)
    run("fit", OnDevice(), InHook("on_train_start", body), InHook("on_validation_epoch_end", body), loader=loader)
    run("validate", OnDevice(), InHook("on_validation_epoch_end", body), loader=loader)
    assert probe.images is not None
    assert probe.images.dtype == torch.uint8
    assert len(seen) >= 4
    assert all(torch.equal(images, seen[0]) for images in seen)


def gather(probe: ProbeSet, loader: Any, stage: str = "fit", module: Any = None, **options: Any) -> ProbeSet:
    """Feed a set from validation, and freeze it at the end of the epoch."""

    class Gathering(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if not probe.is_frozen:
                assert not probe.read(trainer, pl_module)

        def on_validation_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            probe.collect(batch, dataloader_idx)

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                probe.freeze(trainer)
                images, _ = probe.to_device(trainer, pl_module)
                assert not images.is_inference()

    run(stage, module or Step(), Gathering(), loader=loader, **options)
    return probe


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_stream_is_gathered_as_it_goes_by(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lightning_attngrad"):
        probe = gather(set_of(6), DataLoader(Stream(), batch_size=4), stage, num_sanity_val_steps=0)
    assert probe.is_full
    assert probe.images is not None
    assert probe.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert probe.targets is not None
    assert probe.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert probe.indices is None
    said = [r.message for r in caplog.records if "gathered as validation goes by" in r.message]
    assert len(said) == (1 if stage == "fit" else 0)


def test_loaders_of_other_kinds_are_gathered() -> None:
    batches = [(torch.full((2, 3, 8, 8), float(index)), torch.tensor([0, 1])) for index in range(3)]

    class Batches:
        def __iter__(self) -> Any:
            return iter(batches)

        def __len__(self) -> int:
            return 3

    probe = gather(set_of(3), Batches(), num_sanity_val_steps=0)
    assert probe.images is not None
    assert probe.images[:, 0, 0, 0].tolist() == [0, 0, 1]
    mixed = CombinedLoader({"a": DataLoader(Images(), batch_size=2)}, "max_size")
    assert len(gather(set_of(3, image_key="a.0", target_key="a.1"), mixed)) == 3


def test_a_stream_takes_only_its_own_loader_and_says_when_there_is_too_little(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaders = [DataLoader(Images(), batch_size=4), DataLoader(Stream(), batch_size=4)]
    with caplog.at_level(logging.WARNING, "lightning_attngrad"):
        probe = gather(set_of(20, dataloader_idx=1), loaders, num_sanity_val_steps=0)
    assert probe.images is not None
    assert probe.images[:, 0, 0, 0].tolist() == list(range(10))
    assert any("20 probe images were asked for, 10 went by" in record.message for record in caplog.records)


def test_freezing_broadcasts_the_images_of_rank_zero() -> None:
    """As on rank 1 of two: what the strategy broadcasts is taken, not what this rank has gathered."""
    received = (torch.full((2, 3, 8, 8), 7.0), torch.tensor([1, 2]))
    probe = set_of(2)
    probe.collect((torch.zeros(2, 3, 8, 8), torch.tensor([0, 0])))

    class Strategy:
        def broadcast(self, value: Any, src: int = 0) -> Any:
            assert src == 0
            return received

    class Trainer:
        strategy = Strategy()
        is_global_zero = False

    probe.freeze(Trainer())  # type: ignore[arg-type]
    assert probe.images is received[0]
    assert probe.targets is received[1]


def test_nothing_gathered_is_an_error_on_every_rank() -> None:
    class Strategy:
        def broadcast(self, value: Any, src: int = 0) -> Any:
            return value

    class Trainer:
        strategy = Strategy()
        is_global_zero = True

    with pytest.raises(ProbeInputError, match="no batch went by"):
        set_of(2).freeze(Trainer())  # type: ignore[arg-type]
    uneven = set_of(2)
    uneven.collect(torch.rand(1, 3, 4, 4))
    uneven.collect(torch.rand(1, 3, 8, 8))
    with pytest.raises(ProbeInputError, match="different sizes"):
        uneven.freeze(Trainer())  # type: ignore[arg-type]
    with pytest.raises(ProbeInputError, match="there are no images yet"):
        set_of(2).to_device(Trainer(), None)  # type: ignore[arg-type]


def saved(probe: ProbeSet) -> dict[str, Any]:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(probe.state_dict(), file)
    file.seek(0)
    return dict(torch.load(file, weights_only=True))


def resumed(state: dict[str, Any], *arguments: Any, **options: Any) -> ProbeSet:
    probe = set_of(*arguments, **options)
    probe.load_state_dict(state)
    return probe


def test_a_resumed_run_reads_the_same_images(caplog: pytest.LogCaptureFixture) -> None:
    first = read(DataLoader(Unlabelled(), batch_size=4))
    state = saved(first)
    assert state["images"] is None
    state["indices"] = [*reversed(state["indices"])]  # the indices are taken from the state, not chosen again
    again = resumed(state, 6)
    assert again.state_dict() == state  # not lost by a checkpoint written before the images are read
    read(DataLoader(Unlabelled(), batch_size=4), again)
    assert again.indices == state["indices"]
    state["indices"] = [*reversed(state["indices"])]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lightning_attngrad"):
        same = read(DataLoader(Unlabelled(), batch_size=4), resumed(state, 6))
    assert same.hash == first.hash
    assert not [record for record in caplog.records if record.name == "lightning_attngrad"]


@pytest.mark.parametrize("change", ["data", "length", "seed", "num_images"])
def test_a_resume_with_other_images_is_said_once(change: str, caplog: pytest.LogCaptureFixture) -> None:
    class Changed(Labelled):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0] + 1, self.targets[index]

    state = saved(read(DataLoader(Labelled(), batch_size=4)))
    dataset: Any = {"data": Changed(), "length": Labelled(30)}.get(change, Labelled())
    probe = resumed(state, 5 if change == "num_images" else 6, 1 if change == "seed" else 0)
    with caplog.at_level(logging.WARNING, "lightning_attngrad"):
        read(DataLoader(dataset, batch_size=4), probe)
    said = [record.message for record in caplog.records if record.name == "lightning_attngrad"]
    assert len(said) == 1
    assert "not those of the run that is resumed" in said[0]
    assert len(probe) == probe.settings.num_images  # and the run goes on with today's images
    assert probe.hash != state["hash"]


def test_the_images_of_a_stream_are_in_the_state() -> None:
    first = gather(set_of(6), DataLoader(Stream(), batch_size=4))
    again = resumed(saved(first), 6)
    assert again.is_frozen
    assert again.hash == first.hash
    assert first.images is not None
    assert again.images is not None
    assert torch.equal(first.images, again.images)
    assert not resumed(saved(first), 5).is_frozen  # another number was asked for


def test_a_large_stream_is_not_in_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_set, "STATE_LIMIT_BYTES", 6 * 3 * 8 * 8 * 4 - 1)
    first = gather(set_of(6), DataLoader(Stream(), batch_size=4))
    state = saved(first)
    assert state["images"] is None
    again = resumed(state, 6)
    assert not again.is_frozen
    assert gather(again, DataLoader(Stream(), batch_size=4)).hash == first.hash


def test_an_empty_state_is_no_state() -> None:
    probe = set_of(2)
    assert probe.state_dict() == {}
    probe.load_state_dict({})
    assert not probe.is_frozen


def test_the_hash_tells_images_shapes_and_targets_apart() -> None:
    images, targets = torch.zeros(2, 3, 4, 2), torch.tensor([0, 1])
    hashes = [
        hash_of(Part(images, targets)),
        hash_of(Part(images + 1, targets)),
        hash_of(Part(images.reshape(2, 3, 2, 4), targets)),
        hash_of(Part(images.bfloat16(), targets)),
        hash_of(Part(images, 1 - targets)),
        hash_of(Part(images, None)),
    ]
    assert len(set(hashes)) == 6
    assert hash_of(Part(images.clone(), targets.clone())) == hashes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images: got 0"),
        ({"num_images": 2.0}, r"num_images: got 2\.0"),
        ({"seed": -1}, "seed: got -1"),
        ({"dataloader_idx": -1}, "dataloader_idx: got -1"),
        ({"batch_adapter": "nothing"}, "batch_adapter: got 'nothing'"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeImages(**options)


def test_a_stream_is_moved_to_the_device_as_normal_tensors() -> None:
    class Strategy:
        root_device = torch.device("meta")  # a device other than that of the images

        def broadcast(self, value: Any, src: int = 0) -> Any:
            return value

    class Trainer:
        strategy = Strategy()
        is_global_zero = True

    probe = set_of(2)
    with torch.inference_mode():
        probe.collect((torch.rand(2, 3, 4, 4), torch.tensor([0, 1])))
        probe.freeze(Trainer())  # type: ignore[arg-type]
        images, targets = probe.to_device(Trainer(), None)  # type: ignore[arg-type]
    assert probe.images is not None
    assert targets is not None
    assert images.device.type == targets.device.type == "meta"
    assert not any(tensor.is_inference() for tensor in (probe.images, images, targets))


def test_starting_over_forgets_what_was_gathered() -> None:
    probe = set_of(2)
    probe.collect(torch.zeros(2, 3, 4, 4))
    assert probe.is_full
    probe.start_over()
    assert not probe.is_full
