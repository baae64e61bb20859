"""Masks come with the images of a probe set: the same items, through the same hooks, for all processes."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_attngrad.probe import ProbeInputError, probe_set
from lightning_attngrad.probe.parts import Part, hash_of
from tests.probe.runs import Images, bytes_of, everything, run, set_of
from tests.probe.test_probe_set import Labelled, Step, gather, read, resumed, saved


def mask_of(index: int) -> Tensor:
    """Another rectangle for each item; that of item 0 is empty."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[: index % 9, : 1 + index % 5] = True
    return mask


class Masked(Labelled):
    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return {"image": image, "label": target, "mask": mask_of(index)}


class MaskedStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.full((3, 8, 8), float(index)), index % 3, mask_of(index)) for index in range(10)])


def loader(dataset: Any = None) -> DataLoader[Any]:
    return DataLoader(Masked() if dataset is None else dataset, batch_size=4)


def test_masks_are_those_of_the_same_items() -> None:
    probe = read(loader(), set_of(6, mask="mask"))
    assert probe.indices is not None
    assert probe.masks is not None
    assert torch.equal(probe.masks, torch.stack([mask_of(index) for index in probe.indices]).float())
    assert not probe.masks.is_inference()


def test_masks_change_neither_the_choice_nor_the_run() -> None:
    plain, masked = read(loader()), read(loader(), set_of(6, mask="mask"))
    assert plain.indices == masked.indices
    assert plain.masks is None
    assert bytes_of(plain.images) == bytes_of(masked.images)

    class Trained(Step):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self._loss((batch["image"], batch["label"]) if isinstance(batch, dict) else batch)

    class Reading(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            set_of(6, mask="mask").read(trainer, pl_module)

    outcomes = []
    for callbacks in ([], [Reading()]):
        torch.manual_seed(0)
        module = Trained()
        run("fit", module, *callbacks, loader=loader())
        outcomes.append(everything(module))
    assert outcomes[0] == outcomes[1]


class Flipping(Step):
    """Moves images and masks on the device, at random."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, dict):
            return batch
        shift = int(torch.randint(1, 8, ()))
        return {**batch, "image": batch["image"].roll(shift, -1), "mask": batch["mask"].roll(shift, -1)}


def test_masks_go_through_the_transfer_hooks_as_the_images_of_every_look() -> None:
    class Pictures(Masked):
        """The image is its mask."""

        def __getitem__(self, index: int) -> Any:
            return {**super().__getitem__(index), "image": mask_of(index).float().expand(3, 8, 8)}

    probe = set_of(6, mask="mask")
    looks: list[Tensor] = []

    class Looking(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            probe.read(trainer, pl_module)

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                looks.append(probe.to_device(trainer, pl_module)[0])

    run("fit", Flipping(), Looking(), loader=loader(Pictures()), max_epochs=2)
    assert len(looks) == 2
    assert probe.masks is not None
    assert probe.images is not None
    assert not torch.equal(probe.images[:, 0], probe.masks)  # as collated: before the hooks
    for images in looks:
        assert torch.equal(images[:, 0], probe.masks)


def test_masks_of_another_size_are_refused_before_training() -> None:
    class Small(Masked):
        def __getitem__(self, index: int) -> Any:
            return {**super().__getitem__(index), "mask": mask_of(index)[:4]}

    with pytest.raises(ProbeInputError, match=r"mask: got masks of 4 × 8 pixels; expected 8 × 8"):
        read(loader(Small()), set_of(6, mask="mask"))


def test_items_that_are_batches_are_cut_with_their_masks() -> None:
    class Batches(Images):
        def __getitem__(self, index: int) -> Any:
            image, _ = super().__getitem__(index)
            return image.expand(4, 3, 8, 8), torch.arange(4), torch.stack([mask_of(4 * index + n) for n in range(4)])

    probe = read(DataLoader(Batches(), batch_size=None), set_of(6, mask=2))
    assert probe.masks is not None
    assert probe.masks.shape == (6, 8, 8)


def test_masks_of_a_stream_are_gathered_kept_and_found_again() -> None:
    stream = DataLoader(MaskedStream(), batch_size=4)
    first = gather(set_of(6, mask=2), stream, num_sanity_val_steps=0)
    expected = torch.stack([mask_of(index) for index in range(6)]).float()
    assert first.masks is not None
    assert torch.equal(first.masks, expected)
    state = saved(first)
    again = resumed(state, 6, mask=2)
    assert again.masks is not None
    assert torch.equal(again.masks, expected)
    assert again.hash == first.hash
    assert not resumed(state, 6).is_frozen  # no masks are asked for: those images have another hash
    assert not resumed(saved(gather(set_of(6), stream)), 6, mask=2).is_frozen


def test_a_state_from_before_there_were_masks_is_taken_up() -> None:
    state = saved(gather(set_of(6), DataLoader(MaskedStream(), batch_size=4)))
    del state["masks"]
    assert resumed(state, 6).is_frozen


def test_masks_count_towards_what_a_checkpoint_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = 6 * 3 * 8 * 8 * 4, 6 * 8 * 8 * 4
    stream = DataLoader(MaskedStream(), batch_size=4)
    for limit, kept in ((images + masks, True), (images + masks - 1, False)):
        monkeypatch.setattr(probe_set, "STATE_LIMIT_BYTES", limit)
        state = saved(gather(set_of(6, mask=2), stream))
        assert (state["masks"] is not None) is kept
        assert (state["images"] is not None) is kept


def test_the_masks_of_rank_zero_go_to_all() -> None:
    sent: list[Any] = []

    class Strategy:
        def broadcast(self, value: Any, src: int = 0) -> Any:
            sent.append(value)
            return sent[0]

    class Trainer:
        strategy = Strategy()
        is_global_zero = True

    first, second = set_of(1, mask=1), set_of(1, mask=1)
    first.collect((torch.zeros(1, 3, 8, 8), mask_of(4)[None]))
    first.freeze(Trainer())  # type: ignore[arg-type]
    second.collect((torch.zeros(1, 3, 8, 8), mask_of(7)[None]))
    Trainer.is_global_zero = False
    second.freeze(Trainer())  # type: ignore[arg-type]
    assert second.masks is not None
    assert torch.equal(second.masks[0], mask_of(4).float())
    assert first.hash == second.hash


def test_the_hash_is_that_of_before_without_masks_and_another_with_them() -> None:
    images, targets = torch.zeros(2, 3, 4, 2), torch.tensor([0, 1])
    masks = torch.zeros(2, 4, 2)
    hashes = [hash_of(Part(images, targets, rows)) for rows in (None, masks, masks + 1)]
    assert len(set(hashes)) == 3
    assert hashes[0] == "28e5fabe91b4c50b34d8e37d28f714f251c958cd3d854a6b7da59cada6e073eb"


def test_masks_that_say_nothing_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Empty(Masked):
        def __getitem__(self, index: int) -> Any:
            return {**super().__getitem__(index), "mask": torch.full((8, 8), index % 2 == 1)}

    with caplog.at_level(logging.WARNING, "lightning_attngrad"):
        read(loader(Empty()), set_of(6, mask="mask"))
    said = [record.message for record in caplog.records if "empty or full" in record.message]
    assert len(said) == 1
    assert said[0].startswith("mask: those of all 6 probe images")
