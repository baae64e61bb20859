"""A safe place for a gradient computation inside any Lightning hook, and what the run does to a batch there."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_attngrad.state import preserved_flags, seeded_rng, untouched


@contextmanager
def isolated(trainer: pl.Trainer, pl_module: pl.LightningModule, *, seed: int = 0) -> Iterator[None]:
    """Make a gradient computation safe inside any hook of fit, validate or test.

    Inside the body gradients can be taken (inference mode is off), every module of ``pl_module`` evaluates
    (``.training`` is False, set by attribute), and all random streams of the process start from ``seed``. Afterwards,
    also when the body raises, the run is as it was: random streams of Python, numpy and torch on all devices; whatever
    the modules keep for themselves, see :func:`lightning_attngrad.state.untouched`, which also says what cannot be put
    back; fused-attention, cuDNN, autocast, default-dtype and determinism flags; and what ``self.log`` of a user's
    forward would have written.

    Metrics that synchronise in their ``forward`` do so on every rank, as all ranks run the same probe. May be entered
    again inside itself.

    Tensors made in inference mode (the batch of a validation hook) must be cloned **inside** the body;
    ``ProbeForward`` does that for its images.

    Args:
        trainer: the Trainer whose hook is running.
        pl_module: the LightningModule, unwrapped, as hooks receive it.
        seed: of the random streams inside, 0 to 2**32 − 1.

    Raises:
        ValueError: if ``seed`` is out of range, or if a parameter is lazy or was created in inference mode (no gradient
            could pass).
        RuntimeError: if the body left something in ``.grad``, which is undone first.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())  # said aloud: leaving inference mode happens to imply it
        stack.enter_context(preserved_flags())
        stack.enter_context(seeded_rng(seed))
        stack.enter_context(_discarded_log(trainer, pl_module))
        stack.enter_context(untouched(pl_module))
        yield


@contextmanager
def _discarded_log(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    """Let ``self.log`` in a user's forward write into a collection that is thrown away.

    Lightning has no public way to say this. Without it the value would be averaged into the epoch's own, or
    raise in the hooks where logging is forbidden; so the loop is lent an empty collection, and the hook's
    name is that of a step, where everything may be logged.
    """
    owner = _owner_of_results(trainer)
    results = None if owner is None else owner._results
    connector = trainer._logger_connector
    current_hook, last_logging_hook = pl_module._current_fx_name, connector._current_fx
    try:
        if owner is not None and results is not None:
            owner._results = type(results)(training=results.training)
            pl_module._current_fx_name = "training_step" if results.training else "validation_step"
        yield
    finally:
        if owner is not None and results is not None:
            owner._results = results
        pl_module._current_fx_name = current_hook
        connector._current_fx = last_logging_hook


def _owner_of_results(trainer: pl.Trainer) -> Any:
    """The loop whose ``_results`` a call of ``self.log`` writes to at this moment."""
    if trainer.training:
        return trainer.fit_loop.epoch_loop
    if trainer.sanity_checking or trainer.evaluating:
        return trainer._evaluation_loop
    return None


def transfer_batch(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    batch: Any,
    dataloader_idx: int,
    *,
    in_precision_of_run: bool = True,
) -> Any:
    """What lightning's evaluation loop does to a batch before the step, in its order.

    ``on_before_batch_transfer`` has no public caller, hence the private method, which picks the datamodule's
    hook or the module's; the strategy's ``batch_to_device`` calls the other two hooks in the same way. The
    hooks see images that the precision plugin has converted, so they do here; ``ProbeForward`` converting
    again changes nothing.

    Args:
        trainer: the Trainer.
        pl_module: the LightningModule.
        batch: as collated; it is copied, since hooks may write into it.
        dataloader_idx: passed on to the hooks.
        in_precision_of_run: whether the images are converted before the hooks see them, as they are in a run.

    Returns:
        The batch as ``validation_step`` would get it.
    """
    batch = copy.deepcopy(batch)
    with _validation_stage(trainer):
        if in_precision_of_run:
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


def hooks_of_batches(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    names: Sequence[str] = ("on_before_batch_transfer", "on_after_batch_transfer"),
) -> str | None:
    """The user's own hooks that change a batch on its way to the step, such as ``Net.on_after_batch_transfer``."""
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        for name in names:
            hook = getattr(type(owner), name, None)
            # By name: `pytorch_lightning` has classes of its own.
            if hook is not None and hook.__qualname__ != f"DataHooks.{name}":
                return f"{type(owner).__name__}.{name}"
    return None
