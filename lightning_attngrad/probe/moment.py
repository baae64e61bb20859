"""At which moment of a run an evaluation is made, of whose weights, and what it is called."""

from __future__ import annotations

from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

Moment: TypeAlias = tuple[int, int, int]


def moment(trainer: pl.Trainer) -> Moment:
    """What stays the same as long as the weights and buffers do that a checkpoint would hold.

    Optimizer steps; batches, since those of an accumulated gradient write buffers too; and updates of an average.
    """
    batches = trainer.fit_loop.epoch_loop.batch_progress.total
    return trainer.global_step, batches.processed, updates_of_average(trainer)  # type: ignore[attr-defined]


@torch.no_grad()
def fingerprint(model: nn.Module) -> tuple[float, ...]:
    """Length and sum of each parameter and buffer (of this process's part of it), which other weights do not have.

    Callbacks write other weights into a model between two steps, and back: averages, pruned ones. Many do it through
    ``.data``, of which no counter tells.
    """
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    parts = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    parts = [part for part in parts if part.is_floating_point() and part.numel() and part.layout is torch.strided]
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for part in parts:
        by_kind.setdefault((part.device, part.dtype), []).append(part)
    described = []
    for same in by_kind.values():
        described.append(torch.stack(list(torch._foreach_norm(same))).float())
        described.append(torch.stack([part.sum(dtype=torch.float32) for part in same]))
    return tuple(value for some in described for value in some.tolist())


def averaging(trainer: pl.Trainer) -> list[Any]:
    """Callbacks that put averaged weights into checkpoints; by name, as older versions of Lightning lack the class."""
    return [callback for callback in _callbacks(trainer) if _is_a(callback, "WeightAveraging")]


def updates_of_average(trainer: pl.Trainer) -> int:
    """How often the averages of a run have been updated."""
    return sum(int(getattr(getattr(one, "_average_model", None), "n_averaged", 0)) for one in averaging(trainer))


def swaps_at_the_end(trainer: pl.Trainer) -> bool:
    """Whether a callback puts other weights into the model when training ends."""
    return any(_is_a(callback, "StochasticWeightAveraging") for callback in _callbacks(trainer))


def whose_weights(trainer: pl.Trainer, monitor: Any) -> str:
    """Of which weights an evaluation is that is made now, where a run averages them; empty where it does not.

    Args:
        trainer: the Trainer.
        monitor: the callback that evaluates: at the end of training those listed before it have put the average in.
    """
    if not is_fitting(trainer) or not (callbacks := averaging(trainer)):
        return ""
    order = _callbacks(trainer)
    at_the_end = getattr(trainer.lightning_module, "_current_fx_name", None) == "on_train_end"
    in_place = trainer.validating or (at_the_end and all(order.index(one) < order.index(monitor) for one in callbacks))
    if not in_place:
        return "weights before averaging"
    return "averaged weights" if updates_of_average(trainer) else "starting weights, nothing averaged yet"


def is_fitting(trainer: pl.Trainer) -> bool:
    """Whether this is a fit, and not a validation or a test of its own."""
    return trainer.state.fn == "fit"


def label_of_validation(trainer: pl.Trainer) -> str:
    """What an evaluation in the validation that now runs is called, as in ``epoch 3``, ``step 200``, ``validate``."""
    if not is_fitting(trainer):
        return str(getattr(trainer.state.fn, "value", "now"))
    if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
        return f"epoch {trainer.current_epoch + 1}"
    return f"step {trainer.global_step}"


def why_no_validation(trainer: pl.Trainer) -> str | None:
    """Why this run has no validation in which to evaluate; None if it has."""
    if trainer.enable_validation:
        return None
    if trainer.limit_val_batches == 0:
        return "validation is switched off (limit_val_batches=0)"
    if not trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined():
        return "the run has no validation loader"
    return "the LightningModule has no validation_step"


def _callbacks(trainer: pl.Trainer) -> list[Any]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def _is_a(callback: Any, name: str) -> bool:
    return any(base.__name__ == name for base in type(callback).__mro__)
