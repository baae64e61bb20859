"""What monitors hand to Lightning and to loggers: floats, whatever a logger thinks of them, and what predict needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lightning_attngrad as attngrad
from tests.callbacks.small_runs import Classifier, Squares, fit, loader, make_trainer
from tests.callbacks.test_together import everything


class Records(Classifier):
    """Keeps what is logged through it, as it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, list[Any]] = {}

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        self.given.setdefault(name, []).append(value)
        super().log(name, value, *args, **options)


class Recorder(CSVLogger):
    """Keeps what reaches a logger."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.given: dict[str, list[Any]] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.given.setdefault(name, []).append(value)
        super().log_metrics(metrics, step)


@pytest.mark.parametrize("cadence", [{}, {"every_n_steps": 2}])
def test_all_that_any_monitor_logs_is_a_float(tmp_path: Path, cadence: dict[str, int]) -> None:
    """A tensor on the CPU with ``sync_dist=True`` ends every run on NCCL at its first validation."""
    module, recorder = Records(), Recorder(tmp_path)
    monitors = everything()
    for monitor in monitors:
        if isinstance(monitor, attngrad.Monitor) and cadence:
            monitor.timetable.cadence = type(monitor.timetable.cadence)(**cadence)
    options = {"enable_checkpointing": True, "logger": recorder}
    fit(*monitors, ModelCheckpoint(tmp_path), module=module, max_epochs=2, **options)
    ours = {name: values for name, values in module.given.items() if name.startswith("attngrad/")}
    assert {name.split("/")[1] for name in ours} == {"maps", "drift", "rewrite", "faithfulness", "probe"}
    assert {type(value) for values in ours.values() for value in values} == {float}
    written = {name: values for name, values in recorder.given.items() if name.startswith("attngrad/")}
    assert {name.split("/")[1] for name in written} == {"maps", "drift", "rewrite", "faithfulness", "audit", "probe"}
    assert {type(value) for values in written.values() for value in values} == {float}


class FailingLoggerOfMonitors(CSVLogger):
    """Cannot take our numbers: as a server whose keys may hold no slash."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if any(name.startswith("attngrad/") for name in metrics):
            raise ConnectionError("keys may hold no slash")
        super().log_metrics(metrics, step)


def test_a_logger_that_fails_at_a_scalar_is_named_once_and_the_run_goes_on(tmp_path: Path) -> None:
    fails, works = FailingLoggerOfMonitors(tmp_path / "fails"), Recorder(tmp_path / "works")
    checkpoint = ModelCheckpoint(tmp_path, monitor="attngrad/maps/entropy", save_top_k=-1)
    run = fit(*everything(), checkpoint, logger=[fails, works], max_epochs=3, enable_checkpointing=True)
    assert run.trainer.current_epoch == 3
    said = [message for message in run.messages if "keys may hold no slash" in message]
    assert len(said) == 1
    assert "FailingLoggerOfMonitors" in said[0]
    assert len(works.given["attngrad/maps/entropy"]) == 4
    assert len(checkpoint.best_k_models) == 3


def test_predict_needs_no_reference() -> None:
    """The checkpoint that drift is compared with may be gone by then."""
    monitor = attngrad.AttentionDriftMonitor(reference="gone.ckpt")
    trainer = make_trainer(monitor)
    predictions = trainer.predict(Classifier(), loader([image for image, _ in Squares(4)]))
    assert predictions is not None
    assert torch.cat(predictions).shape == (4, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reference: got 'gone\.ckpt'"):
        fit(monitor)


def test_a_signed_method_of_the_users_own_is_drawn_on_a_signed_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_attngrad.explain import METHODS, TokenScores, register_method
    from tests.callbacks.small_runs import captured_figures

    @register_method("tilted", source="the test", signed=True)
    def tilted(forward: Any, seeds: Any) -> TokenScores:
        scores = torch.linspace(-1, 1, forward.places.tokens).expand(forward.batch, 1, -1)
        return TokenScores(scores, zero_gradient=torch.zeros(forward.batch, dtype=torch.bool))

    drawn = captured_figures(monkeypatch)
    seen: list[str] = []
    from lightning_attngrad.measure import map_figures

    real = map_figures.map_grid
    monkeypatch.setattr(
        map_figures, "map_grid", lambda *a, scale, **k: seen.append(scale.kind) or real(*a, scale=scale, **k)
    )
    try:
        fit(attngrad.AttentionMapMonitor(num_images=2, method="tilted", on_error="raise"), max_epochs=1)
    finally:
        METHODS.pop("tilted")
    assert drawn
    assert set(seen) == {"signed"}
