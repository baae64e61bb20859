"""What a monitor will cost is said before training, and asking leaves no trace."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks.forecast import CostForecast
from lightning_attngrad.probe import Evaluation, Findings, ProbeImages
from tests.callbacks.small_runs import Classifier, Squares, Stream, fit, loader, tiny_vit
from tests.still_clock import StillClock

STEP, EVALUATION = 1 / 16, 3 / 8  # which binary numbers add up without an error
CLOCK = StillClock()


@pytest.fixture(autouse=True)
def only_what_is_asked_for_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    CLOCK.take_over(monkeypatch)


class SlowClassifier(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        CLOCK.wait(STEP)
        return super().training_step(batch, batch_idx)


class SlowMonitor(attngrad.AttentionMapMonitor):
    def evaluate(self, evaluation: Evaluation) -> Findings:
        CLOCK.wait(EVALUATION)
        return Findings(super().evaluate(evaluation).scalars, dict)


def loaders(length: int = 40, **options: Any) -> tuple[Any, Any]:
    return loader(Squares(length), shuffle=True, **options), loader(Squares(9, seed=1))


def monitor(**options: Any) -> SlowMonitor:
    return SlowMonitor(num_images=2, **options)


def test_an_evaluation_and_a_step_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    found = monitor(max_overhead=0.05).dry_cost(SlowClassifier(), *loaders(), accelerator="cpu")
    assert found.evaluation_seconds == EVALUATION
    assert found.step_seconds == STEP
    assert found.steps_between == 10
    printed = capsys.readouterr().out
    assert printed.startswith(f"SlowMonitor 'maps': an evaluation takes {found.evaluation_seconds:.2g} s, as long as ")
    assert "one every 10 steps is " in printed
    assert "within max_overhead=0.05 one of " in printed


def test_the_forecast_is_what_a_fit_then_spends() -> None:
    found = monitor().dry_cost(SlowClassifier(), *loaders(), accelerator="cpu")
    watching = monitor(on_error="raise")
    fit(watching, module=SlowClassifier, train=loaders()[0], max_epochs=4)
    # One evaluation at the start and four after.
    watched, trained = 5 * EVALUATION, 4 * 10 * STEP
    assert watching.scalars["overhead"] == pytest.approx(watched / (watched + trained))
    assert found.overhead == pytest.approx(EVALUATION / (EVALUATION + 10 * STEP))


def test_steps_are_counted_as_the_optimizer_takes_them() -> None:
    found = monitor().dry_cost(SlowClassifier(), *loaders(), accelerator="cpu", accumulate_grad_batches=2)
    assert found.steps_between == 5
    assert found.step_seconds == 2 * STEP
    assert monitor(every_n_steps=3).dry_cost(SlowClassifier(), *loaders(), accelerator="cpu").steps_between == 3
    assert monitor(every_n_epochs=3).dry_cost(SlowClassifier(), *loaders(), accelerator="cpu").steps_between == 30


def test_asking_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    module, watching, order = (
        SlowClassifier(),
        attngrad.AttentionMapMonitor(num_images=2),
        torch.Generator().manual_seed(5),
    )
    train, validation = loaders(generator=order)
    weights = {name: value.clone() for name, value in module.state_dict().items()}

    def streams() -> list[Any]:
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        return [torch.get_rng_state().tolist(), order.get_state().tolist(), random.getstate(), str(numpy_state)]

    before = streams()
    watching.dry_cost(module, train, validation, accelerator="cpu")
    assert streams() == before
    assert module._trainer is None
    assert module.training
    assert module.losses == []
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not watching.scalars
    assert watching._shared is None
    assert not list(tmp_path.iterdir())


def test_a_module_of_the_other_lightning(capsys: pytest.CaptureFixture[str]) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Slow(other.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_vit()

        def forward(self, images: Any) -> Any:
            return self.net(images)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            CLOCK.wait(STEP)
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Data(other.LightningDataModule):  # type: ignore[name-defined, misc]
        def train_dataloader(self) -> Any:
            return loaders()[0]

        def val_dataloader(self) -> Any:
            return loaders()[1]

    for data in (loaders(), (None, None, Data())):
        found = monitor().dry_cost(Slow(), *data, accelerator="cpu")
        assert found.step_seconds == STEP
        assert found.evaluation_seconds == EVALUATION
        assert found.steps_between == 10
    assert "GPU available" not in capsys.readouterr().err


def test_what_is_no_lightning_module_is_refused() -> None:
    with pytest.raises(ValueError, match="dry_cost: got a VisionTransformer; expected a LightningModule"):
        monitor().dry_cost(tiny_vit(), *loaders(), accelerator="cpu")  # type: ignore[arg-type]


def test_without_an_evaluation_there_is_no_forecast() -> None:
    with pytest.raises(ValueError, match=r"dry_cost: .*can\s+be read before training \(no stream\)"):
        monitor().dry_cost(Classifier(), loaders()[0], loader(Stream()), accelerator="cpu")


def test_an_error_is_told() -> None:
    with pytest.raises(ValueError, match="model: "):
        SlowMonitor(probe=ProbeImages(num_images=2, model="nowhere")).dry_cost(
            Classifier(), *loaders(), accelerator="cpu"
        )


@pytest.mark.parametrize(
    ("forecast", "overhead", "stretch", "said"),
    [
        (CostForecast(1.0, 0.1, 190, None), 0.05, 1.0, "one every 190 steps is 5.0% of the time"),
        (CostForecast(1.0, 0.1, 190, 0.05), 0.05, 1.0, "every evaluation that is due is made"),
        (CostForecast(1.0, 0.1, 10, 0.05), 0.5, 19.0, "one of 19.0 is made"),
        (CostForecast(1.0, 0.1, math.inf, 0.05), 0.0, 1.0, "how long an epoch is cannot be known"),
    ],
)
def test_the_arithmetic(forecast: CostForecast, overhead: float, stretch: float, said: str) -> None:
    assert forecast.overhead == pytest.approx(overhead)
    assert forecast.stretch == pytest.approx(stretch)
    assert said in str(forecast)
