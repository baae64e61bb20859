"""One line in a run whose monitors take much of its time, and none in any other."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks import cost_advice
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.small_runs import Classifier, WatchedMonitor, fit
from tests.still_clock import StillClock

CLOCK = StillClock()


class SlowMonitor(WatchedMonitor):
    def __init__(self, seconds: float = 0.3, **options: Any) -> None:
        super().__init__(on_error="raise", **options)
        self.seconds = seconds

    def evaluate(self, evaluation: Evaluation) -> Findings:
        CLOCK.wait(self.seconds)
        return super().evaluate(evaluation)


class SlowTraining(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        CLOCK.wait(1.0)
        return super().training_step(batch, batch_idx)


Log = pytest.LogCaptureFixture


def advice(caplog: Log) -> list[str]:
    said = [record.getMessage() for record in caplog.records if "since training began" in record.getMessage()]
    caplog.clear()
    return said


@pytest.fixture(autouse=True)
def everything_is_heard(caplog: Log) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture(autouse=True)
def only_what_is_asked_for_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    CLOCK.take_over(monkeypatch)


@pytest.fixture(autouse=True)
def a_short_wait_is_worth_saying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_advice, "WORTH_SAYING", 0.2)


def test_it_names_the_dearest_and_what_to_write_once(caplog: Log) -> None:
    fit(WatchedMonitor(name="quick", on_error="raise"), SlowMonitor(name="slow"), max_epochs=3)
    (line,) = advice(caplog)
    assert line.startswith("attngrad: the monitors have taken ")
    assert ", SlowMonitor the most (" in line
    assert "SlowMonitor(max_overhead=0.05) skips evaluations rather than take more than 5 %; every_n_epochs=…" in line


def test_it_speaks_while_an_epoch_of_many_steps_runs(caplog: Log) -> None:
    monitor = SlowMonitor(every_n_steps=1)
    spoken_at: list[int] = []

    class Listening(Classifier):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.trainer.callbacks and monitor._together.advice._said:
                spoken_at.append(self.trainer.global_step)

    fit(monitor, module=Listening, max_epochs=1)
    (line,) = advice(caplog)
    assert "attngrad: SlowMonitor has taken" in line
    assert "a larger every_n_steps=…" in line
    assert spoken_at
    assert spoken_at[0] < 3, "before the epoch of three steps is over"


def test_the_evaluation_of_the_starting_weights_does_not_count(caplog: Log) -> None:
    monitor = SlowMonitor(every_n_epochs=100)
    fit(monitor, max_epochs=-1, max_steps=4)
    assert monitor.labels[0] == "start"
    assert not advice(caplog)


@pytest.mark.parametrize(
    ("monitor", "module"),
    [
        (SlowMonitor(), SlowTraining),  # a tenth of the time
        (SlowMonitor(max_overhead=100.0), Classifier),  # the user has thought of it
        (SlowMonitor(seconds=0.0), Classifier),
    ],
    ids=["a small share", "a limit", "no time at all"],
)
def test_it_is_silent(monitor: SlowMonitor, module: Any, caplog: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    if not monitor.seconds:  # as it is for users
        monkeypatch.setattr(cost_advice, "WORTH_SAYING", 30.0)
    fit(monitor, module=module, max_epochs=2)
    assert monitor.labels == ["start", "epoch 1", "epoch 2"]
    assert not advice(caplog)


def test_a_second_fit_is_watched_anew(caplog: Log) -> None:
    first = fit(SlowMonitor(), max_epochs=1)
    assert len(advice(caplog)) == 1
    first.trainer.fit_loop.max_epochs = 2
    fit(trainer=first.trainer, module=first.module)
    assert len(advice(caplog)) == 1


class SlowToAsk(Classifier):
    def forward(self, images: Any) -> Any:
        CLOCK.wait(0.0 if self.training else 0.1)
        return super().forward(images)


def test_an_audit_says_what_it_depends_on(tmp_path: Path, caplog: Log) -> None:
    audit = attngrad.CheckpointAudit(num_images=3, on_error="raise")
    saving = ModelCheckpoint(tmp_path, save_top_k=-1)
    fit(audit, saving, module=SlowToAsk, max_epochs=3, enable_checkpointing=True)
    (line,) = advice(caplog)
    assert "CheckpointAudit has taken" in line
    assert "evaluates every checkpoint that is saved: ModelCheckpoint(every_n_epochs=…) saves fewer" in line
