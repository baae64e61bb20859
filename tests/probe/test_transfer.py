from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_attngrad.probe import isolated
from lightning_attngrad.probe.isolation import transfer_batch
from tests.probe.runs import Data, InHook, TinyModule, run


class Hooked(TinyModule):
    """Notes what each transfer hook was given, and leaves its mark on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Any] = []
        self.received: Tensor | None = None

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.noted.append(("before", batch[0].dtype, dataloader_idx, self.trainer.training))
        batch[0].add_(1)  # in place: the caller's images must survive it
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        self.noted.append(("transfer", device.type, dataloader_idx))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.noted.append(("after", dataloader_idx))
        batch[0].mul_(2)
        return batch


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_end", "on_validation_epoch_end"])
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_the_hooks_are_called_as_in_validation(hook: str, precision: Any, dtype: torch.dtype) -> None:
    images = torch.ones(2, 3, 8, 8)
    results: list[Any] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        stage = trainer.state.stage
        with isolated(trainer, pl_module):
            pl_module.noted = []
            batch = transfer_batch(trainer, pl_module, [images, torch.tensor([0, 1])], 0)
            results.append((list(pl_module.noted), batch[0].unique().tolist()))
        assert trainer.state.stage == stage

    run("fit", Hooked(), InHook(hook, body, only_once=True), max_epochs=1, precision=precision)
    assert results == [([("before", dtype, 0, False), ("transfer", "cpu", 0), ("after", 0)], [4.0])]
    assert images.unique().tolist() == [1.0]  # the hooks wrote into a copy


def test_the_datamodules_hooks_are_called() -> None:
    class Doubling(Data):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [2 * batch[0], batch[1]]

    results: list[Any] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        with isolated(trainer, pl_module):
            batch = transfer_batch(trainer, pl_module, [torch.ones(1, 3, 8, 8), torch.tensor([0])], 0)
        results.append(float(batch[0].max()))

    run("fit", TinyModule(), InHook("on_train_start", body), datamodule=Doubling(), max_epochs=1)
    assert results == [2.0]
