"""report=True: what a run keeps of itself, that it is otherwise the run that it was, and the page at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

import lightning_attngrad as attngrad
from lightning_attngrad.metrics.functional import times_uniform_share
from lightning_attngrad.reporting.report.reading import StoredRun, read_run
from tests.callbacks.small_runs import WatchedMonitor, fit
from tests.integration import harness

IMAGES = attngrad.ProbeImages(num_images=3, mean=0.0, std=1.0)


def files(directory: Path) -> CSVLogger:
    return CSVLogger(directory, name="", version="")


def monitor_of(run: StoredRun, name: str) -> Any:
    return next(one for one in run.monitors if one.name == name)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], StoredRun]:
    """A run of two epochs with all callbacks, one of which asks for the report."""
    directory = tmp_path_factory.mktemp("run")
    callbacks: dict[str, Any] = {
        "maps": WatchedMonitor(probe=IMAGES, report=True, on_error="raise", draws=False),
        "drift": attngrad.AttentionDriftMonitor(probe=IMAGES, on_error="raise"),
        "rewrite": attngrad.RewriteRobustnessMonitor(probe=IMAGES, steps=4, on_error="raise"),
        "faithfulness": attngrad.FaithfulnessMonitor(probe=IMAGES, steps=2, on_error="raise", every_n_epochs=1),
        "audit": attngrad.CheckpointAudit(probe=IMAGES, steps=4, on_error="raise"),
    }
    callbacks["maps"].evaluate = _with_kept(callbacks["maps"])
    saving = ModelCheckpoint(directory / "checkpoints", save_last=True)
    run = fit(*callbacks.values(), saving, logger=files(directory), enable_checkpointing=True)
    assert not [message for message in run.messages if "could not write" in message]
    return directory, callbacks, read_run(directory)


def _with_kept(monitor: WatchedMonitor) -> Any:
    """`WatchedMonitor` keeps findings, and hands on only their numbers."""
    evaluate = monitor.evaluate

    def with_kept(evaluation: attngrad.Evaluation) -> attngrad.Findings:
        evaluate(evaluation)
        found = monitor.evaluations[-1][1]
        return attngrad.Findings(found.scalars, dict, found.kept)

    return with_kept


def test_every_evaluation_of_every_monitor_is_kept(kept: tuple[Path, dict[str, Any], StoredRun]) -> None:
    _, callbacks, run = kept
    for name in ("maps", "drift", "rewrite", "faithfulness"):
        labels = [one.moment.label for one in monitor_of(run, name).evaluations]
        assert labels == ["start", "epoch 1", "epoch 2"], name
        numbers = monitor_of(run, name).evaluations[-1].numbers
        found = {key: value for key, value in callbacks[name].scalars.items() if key not in ("seconds", "overhead")}
        assert {key: numbers[key] for key in found} == pytest.approx(found, nan_ok=True), name


def test_maps_are_those_that_were_found(kept: tuple[Path, dict[str, Any], StoredRun]) -> None:
    _, callbacks, run = kept
    for (evaluation, findings), stored in zip(
        callbacks["maps"].evaluations, monitor_of(run, "maps").evaluations, strict=True
    ):
        asked = callbacks["maps"].asked(evaluation)
        explanation = asked.explain(evaluation.model, evaluation.images, evaluation.classes(), task=evaluation.task)
        assert stored.arrays["heatmap"].shape == explanation.heatmap.shape
        assert np.array_equal(stored.arrays["heatmap"], findings.kept()["heatmap"], equal_nan=True)
        assert stored.plain["captions"][0]["true"] == [str(int(evaluation.targets[0]))]
    last = torch.from_numpy(monitor_of(run, "maps").evaluations[-1].arrays["heatmap"])
    assert torch.allclose(
        last, times_uniform_share(explanation.heatmap), atol=1e-4, equal_nan=True
    )  # the weights are still these


def test_images_are_those_of_the_probe(kept: tuple[Path, dict[str, Any], StoredRun]) -> None:
    _, callbacks, run = kept
    (images,) = run.images.values()
    shown = callbacks["maps"].evaluations[0][0].pixels.permute(0, 2, 3, 1).numpy()
    assert np.abs(images.pixels / 255 - shown).max() <= 0.5 / 255 + 1e-6


def test_rewritten_images_are_kept_exactly(kept: tuple[Path, dict[str, Any], StoredRun]) -> None:
    found = monitor_of(kept[2], "rewrite").evaluations[-1].arrays
    largest = np.abs(found["difference"].astype(float)).reshape(len(found["difference"]), -1).max(axis=1)
    reached = np.isfinite(found["pair_distance"][: len(largest)])
    assert np.allclose(largest[reached], found["pair_distance"][: len(largest)][reached], rtol=2e-3)


def test_the_runs_own_numbers_and_checkpoints_are_there(kept: tuple[Path, dict[str, Any], StoredRun]) -> None:
    run = kept[2]
    assert [(moment.label, sorted(row)) for moment, row in run.metrics] == [
        ("epoch 1", ["train_loss", "val_loss"]),
        ("epoch 2", ["train_loss", "val_loss"]),
    ]
    assert {record["checkpoint"] for record in run.records} >= {"last.ckpt"}
    assert all(record["hash"] == run.records[0]["hash"] for record in run.records)


def test_the_page_is_written_when_the_fit_ends(kept: tuple[Path, dict[str, Any], StoredRun]) -> None:
    html = (kept[0] / "attngrad" / "report.html").read_text(encoding="utf-8")
    for words in ("Where the model looks", "How little rewrites a class", "last.ckpt", "val_loss", "epoch 2"):
        assert words in html


def test_a_run_with_a_report_is_the_run_without(tmp_path: Path) -> None:
    """Also the sampling of user code: the same batches in the same order, the same random streams at each step."""

    def life(report: bool) -> dict[str, Any]:
        harness.seed_everything(0)
        module = harness.TinyModule(harness.tiny_vit(proj_drop_rate=0.2))
        monitor = attngrad.AttentionMapMonitor(num_images=4, report=report, on_error="raise")
        return harness.fit(module, [monitor], logger=files(tmp_path / str(report)))

    assert not harness.differences(life(True), life(False))
    assert (tmp_path / "True" / "attngrad" / "report.html").exists()
    assert not (tmp_path / "False" / "attngrad" / "report").exists()


def test_a_run_that_is_resumed_goes_on_with_its_report(tmp_path: Path) -> None:
    def monitor() -> attngrad.Monitor:
        return Brightness(num_images=3, report=True, on_error="raise")

    first = fit(monitor(), max_epochs=1, logger=files(tmp_path), enable_checkpointing=True)
    first.trainer.save_checkpoint(tmp_path / "here.ckpt")
    fit(monitor(), max_epochs=2, logger=files(tmp_path), ckpt_path=tmp_path / "here.ckpt")
    (brightness,) = read_run(tmp_path).monitors
    assert [one.moment.label for one in brightness.evaluations] == ["start", "epoch 1", "epoch 2"]
    assert brightness.evaluations[0].arrays["of_images"].shape == (3,)  # what a monitor of one's own keeps


def test_a_run_without_validation_has_the_numbers_of_its_training(tmp_path: Path) -> None:
    fit(Brightness(num_images=3, report=True, on_error="raise"), val=None, logger=files(tmp_path))
    run = read_run(tmp_path)
    assert [sorted(row) for _, row in run.metrics] == [["train_loss"], ["train_loss"]]
    assert [moment.step for moment, _ in run.metrics] == [3, 6]


def test_nothing_is_left_by_a_trial_run(tmp_path: Path) -> None:
    fit(Brightness(num_images=3, report=True), fast_dev_run=True, default_root_dir=tmp_path)
    assert not list(tmp_path.rglob("*report*"))


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "attngrad").write_text("a file where the folder is to be")
    monitor = Brightness(num_images=3, report=True)
    run = fit(monitor, logger=files(tmp_path))
    assert len(run.losses) == 6
    assert monitor.scalars["mean"] > 0
    assert len([message for message in run.messages if "could not write" in message and "report" in message]) == 1


def test_what_is_no_flag_is_refused() -> None:
    with pytest.raises(ValueError, match=r"report: got 'run\.html'; expected True or False"):
        attngrad.AttentionMapMonitor(report="run.html")  # type: ignore[arg-type]


class Brightness(attngrad.Monitor):
    """A monitor of one's own, which keeps an array."""

    def evaluate(self, evaluation: attngrad.Evaluation) -> attngrad.Findings:
        bright: Tensor = evaluation.pixels.mean(dim=(1, 2, 3))
        return attngrad.Findings({"mean": bright.mean()}, kept=lambda: {"of_images": bright})
