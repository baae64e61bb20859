"""A run that is interrupted in the midst of an evaluation is, bit for bit, one that is interrupted beside it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

from tests.integration.harness import (
    Pictures,
    TinyModule,
    WatchedMonitor,
    differences,
    fingerprint,
    make_trainer,
    random_streams,
    seed_everything,
    tiny_vit,
    validation_loader,
)
from tests.integration.test_non_interference import DROPOUT, WatchedDrift, WatchedFaithfulness, WatchedRewriting

#: The step after which the signal comes.
STEP = 4
MONITORS: dict[str, Callable[[], pl.Callback]] = {
    "maps": lambda: WatchedMonitor(every_n_steps=2),
    "drift": lambda: WatchedDrift(every_n_steps=2),
    "rewriting": lambda: WatchedRewriting(every_n_steps=2),
    "faithfulness": lambda: WatchedFaithfulness(every_n_steps=2),
}


class Interrupted(TinyModule):
    """Gets a signal in a forward pass that belongs to no step of its own, so to an evaluation."""

    #: On the class, where nobody puts it back.
    passes: ClassVar[list[int]] = []
    signal_in: ClassVar[tuple[signal.Signals, int] | None] = None

    def __init__(self) -> None:
        super().__init__(tiny_vit(**DROPOUT))
        self.in_a_step = False
        self.backbone.set_grad_checkpointing(True)
        self.backbone.blocks[0].eval()

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if not self.in_a_step and self.trainer.global_step == STEP and self.signal_in is not None:
            self.passes.append(len(self.passes))
            which, number = self.signal_in
            if len(self.passes) == number:
                signal.raise_signal(which)
        return logits

    def loss(self, batch: dict[str, Any], stage: str) -> Tensor:
        self.in_a_step = True
        loss = super().loss(batch, stage)
        self.in_a_step = False
        return loss


class Beside(pl.Callback):
    """The same signal where the evaluation would be."""

    def __init__(self, which: signal.Signals) -> None:
        self.which = which

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == STEP:
            signal.raise_signal(self.which)


def exit_at_once(*_: Any) -> None:
    raise SystemExit(3)


@contextlib.contextmanager
def handlers(handler: Any) -> Iterator[None]:
    """A handler of SIGTERM as a user would have set it, or none; of Ctrl-C Python's own, which a job may lack."""
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for which, old in before.items():
            signal.signal(which, old)


def life(which: signal.Signals, handler: Any, callback: pl.Callback, passes: int | None) -> dict[str, Any]:
    """What a run leaves behind that a signal has ended."""
    seed_everything(0)
    module = Interrupted()
    Interrupted.passes, Interrupted.signal_in = [], None if passes is None else (which, passes)
    trainer = make_trainer([callback])
    seed_everything(3)
    raised: Any = None
    with handlers(handler):
        try:
            trainer.fit(module, DataLoader(Pictures(32, seed=1), batch_size=4, shuffle=True), validation_loader())
        except (SystemExit, KeyboardInterrupt, SIGTERMException) as error:
            raised = (type(error), *error.args)
    assert passes is None or len(Interrupted.passes) >= passes
    return fingerprint(trainer, module) | {"raised": raised, "streams": random_streams()}


#: Ctrl-C, SIGTERM as Lightning handles it (the run ends after the step), and with a user's handler that exits at once.
SIGNALS: dict[str, tuple[signal.Signals, Any, Any]] = {
    "ctrl-c": (signal.SIGINT, signal.SIG_DFL, (SystemExit, 1)),
    "sigterm": (signal.SIGTERM, signal.SIG_DFL, (SIGTERMException,)),
    "sigterm that exits": (signal.SIGTERM, exit_at_once, (SystemExit, 3)),
}


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize(
    ("monitor", "passes"), [("maps", 1), *((name, number) for name in list(MONITORS)[1:] for number in (1, 3))]
)
def test_a_signal_in_an_evaluation_leaves_nothing_changed(monitor: str, name: str, passes: int) -> None:
    which, handler, raised = SIGNALS[name]
    beside = life(which, handler, Beside(which), None)
    assert beside["raised"] == raised
    assert differences(beside, life(which, handler, MONITORS[monitor](), passes)) == set()
