"""The images of every evaluation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from tests.probe.runs import InHook, TinyModule, run, set_of


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
