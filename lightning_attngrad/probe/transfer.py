"""A batch on its way to the device, through the hooks that a validation batch goes through."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl


def transfer_batch(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, dataloader_idx: int) -> Any:
    """What lightning's evaluation loop does to a batch before the step, in its order.

    ``on_before_batch_transfer`` has no public caller, hence the private method, which picks the datamodule's
    hook or the module's; the strategy's ``batch_to_device`` calls the other two hooks in the same way. The
    hooks see images that the precision plugin has converted, so they do here; ``probe_forward`` converting
    again changes nothing.

    Args:
        trainer: the Trainer.
        pl_module: the LightningModule.
        batch: as collated; it is copied, since hooks may write into it.
        dataloader_idx: passed on to the hooks.

    Returns:
        The batch as ``validation_step`` would get it.
    """
    batch = copy.deepcopy(batch)
    with _validation_stage(trainer):
        batch = trainer.precision_plugin.convert_input(batch)
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)


@contextmanager
def _validation_stage(trainer: pl.Trainer) -> Iterator[None]:
    """Let hooks that ask ``self.trainer.training`` see validation, wherever in fit this is called from."""
    stage = trainer.state.stage
    if stage == "train":
        trainer.state.stage = type(stage).VALIDATING  # of the package that the Trainer is of
    try:
        yield
    finally:
        trainer.state.stage = stage


def hooks_of_batches(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str | None:
    """The user's own hooks that change a batch on its way to the step, such as ``Net.on_after_batch_transfer``."""
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        for name in ("on_before_batch_transfer", "on_after_batch_transfer"):
            hook = getattr(type(owner), name, None)
            # By name: `pytorch_lightning` has classes of its own.
            if hook is not None and hook.__qualname__ != f"DataHooks.{name}":
                return f"{type(owner).__name__}.{name}"
    return None
