"""From a run to what each logger holds afterwards."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from tests.callbacks.small_runs import (
    FIGURES,
    SCALARS,
    WatchedMonitor,
    events,
    fit,
    image_steps,
    listening,
    scalar_points,
    tensorboard,
)

STEPS = [0, 2]  # the start, and the end of an epoch of three batches
#: What is logged of a run with this monitor alone.
KEYS = {"attngrad/probe/seconds", *(f"attngrad/maps/{name}" for name in SCALARS)}
FILES = [f"step-{step:06d}.png" for step in STEPS]


def monitor() -> WatchedMonitor:
    return WatchedMonitor(draws=True, on_error="raise", num_images=1, top_k=2)


class NumbersOnly(Logger):
    """A logger of the user's own, which knows nothing of pictures."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name, version = "mine", 0

    @property
    def save_dir(self) -> str:
        return str(self.directory)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing to keep."""


def pictures(folder: Path) -> dict[str, list[str]]:
    return {
        path.name: sorted(file.name for file in path.iterdir()) for path in (folder / "attngrad" / "maps").iterdir()
    }


def test_several_loggers_at_once_each_get_everything(tmp_path: Path) -> None:
    mine = NumbersOnly(tmp_path / "own")
    lines = CSVLogger(tmp_path, name="csv")
    board = tensorboard(tmp_path / "board", prefix="fold0")
    fit(monitor(), logger=[lines, board, mine], max_epochs=1)

    assert pictures(Path(lines.log_dir)) == dict.fromkeys(FIGURES, FILES)
    with (Path(lines.log_dir) / "metrics.csv").open() as text:
        rows = [row for row in csv.DictReader(text) if row["attngrad/maps/entropy"]]
    assert [int(row["step"]) for row in rows] == STEPS
    assert {key for key in rows[0] if key.startswith("attngrad/")} == KEYS

    written = events(tmp_path / "board")
    for name in FIGURES:
        assert image_steps(written, f"fold0-attngrad/maps/{name}") == STEPS
    for name in SCALARS:
        assert [step for step, _ in scalar_points(written, f"fold0-attngrad/maps/{name}")] == STEPS

    assert pictures(tmp_path / "own" / "mine" / "version_0") == dict.fromkeys(FIGURES, FILES)
    ours = [(step, row) for step, row in mine.rows if "attngrad/maps/entropy" in row]
    assert [step for step, _ in ours] == STEPS
    for _, row in ours:
        assert {key for key in row if key.startswith("attngrad/")} == KEYS


def test_without_a_logger_pictures_lie_where_lightning_would_put_its_files(tmp_path: Path) -> None:
    fit(monitor(), logger=False, default_root_dir=tmp_path, max_epochs=1)
    assert pictures(tmp_path) == dict.fromkeys(FIGURES, FILES)


def test_a_trial_run_leaves_no_pictures(tmp_path: Path) -> None:
    fit(monitor(), logger=True, default_root_dir=tmp_path, fast_dev_run=True)
    assert list(tmp_path.rglob("*.png")) == []


def test_a_logger_that_refuses_pictures_does_not_cost_the_others_theirs(tmp_path: Path, monkeypatch: Any) -> None:
    board = tensorboard(tmp_path / "board")
    writer = board.experiment._get_file_writer()
    add = writer.add_summary

    def refuse_pictures(summary: Any, *arguments: Any) -> None:
        if any(value.HasField("image") for value in summary.value):
            raise ZeroDivisionError
        add(summary, *arguments)

    monkeypatch.setattr(writer, "add_summary", refuse_pictures)
    lines = CSVLogger(tmp_path, name="csv")
    with listening():
        run = fit(monitor(), logger=[board, lines], max_epochs=1)
    (message,) = run.messages
    assert "TensorBoardLogger: the figure 'attngrad/maps/" in message
    assert pictures(Path(lines.log_dir)) == dict.fromkeys(FIGURES, FILES)
    assert [step for step, _ in scalar_points(events(tmp_path / "board"), "attngrad/maps/entropy")] == STEPS


def test_validation_and_test_after_training_log_where_the_run_ended(tmp_path: Path) -> None:
    mine = monitor()
    run = fit(mine, logger=tensorboard(tmp_path), max_epochs=1)
    (validated,) = run.trainer.validate(run.module, run.trainer.val_dataloaders, verbose=False)
    written = events(tmp_path)
    # Lightning logs what `validate` returns, under the names that it returns: in a group apart from the curves of fit.
    assert [event.step for event in written.raw.Scalars("attngrad_maps/entropy")] == STEPS
    assert [event.step for event in written.raw.Scalars("attngrad/maps/entropy")] == [3]
    assert float(validated["attngrad/maps/entropy"]) == pytest.approx(mine.evaluations[-1][1].scalars["entropy"])
    assert image_steps(written, "attngrad/maps/overlay") == [*STEPS, 3]


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: Any) -> None:
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    logged: list[tuple[set[str], int]] = []
    record = logger.experiment.log

    def log(row: dict[str, Any], step: int | None = None, **options: Any) -> None:
        logged.append((set(row), row.get("trainer/global_step", step)))
        record(row, step=step, **options)

    monkeypatch.setattr(logger.experiment, "log", log)
    fit(monitor(), logger=logger, max_epochs=1)
    logger.experiment.finish()  # or the next WandbLogger of this process would write into the same run
    wandb.teardown()  # ends its helper process
    for name in FIGURES | SCALARS:
        assert [step for keys, step in logged if f"attngrad/maps/{name}" in keys] == STEPS, name
    media = [path.name for path in tmp_path.rglob("*.png")]
    assert len(media) == len(FIGURES) * len(STEPS)


def test_mlflow(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}", experiment_name="maps")
    fit(monitor(), logger=logger, max_epochs=1)
    found = {
        f"{Path(entry.path).name}/{Path(file.path).name}"
        for entry in logger.experiment.list_artifacts(logger.run_id, "attngrad/maps")
        for file in logger.experiment.list_artifacts(logger.run_id, entry.path)
    }
    assert found == {f"{name}/{file}" for name in FIGURES for file in FILES}
    for name in SCALARS:
        history = logger.experiment.get_metric_history(logger.run_id, f"attngrad/maps/{name}")
        assert [entry.step for entry in history] == STEPS
    json.dumps(logger.experiment.get_run(logger.run_id).data.metrics)
