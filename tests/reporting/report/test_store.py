"""What a run has kept is read back as it was; a run that is resumed goes on, and one that begins anew does not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lightning_attngrad.reporting.report.options import ReportError
from lightning_attngrad.reporting.report.reading import Moment, read_run
from lightning_attngrad.reporting.report.store import RunStore
from tests.reporting.report.kept_runs import described, keep_run


def moment(step: int) -> dict[str, object]:
    return {"label": f"epoch {step // 10}", "step": step, "global_step": step, "images": "k"}


def keep(store: RunStore, step: int, value: float) -> None:
    store.keep("maps", moment(step), {"numbers": {"entropy": value}, "heatmap": np.full((1, 2, 2), value)})
    store.keep_metrics(moment(step), {"val_loss": value})
    store.write(described())


def kept(directory: Path) -> list[tuple[int, float, float]]:
    """Step, number and map of each evaluation."""
    (maps, *_) = read_run(directory).monitors
    return [
        (one.moment.step, one.numbers["entropy"], float(one.arrays["heatmap"][0, 0, 0])) for one in maps.evaluations
    ]


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    run = read_run(keep_run(tmp_path / "logs" / "version_3"))
    assert run.name == "logs/version_3"
    assert [one.name for one in run.monitors] == ["maps", "drift", "rewrite", "audit"]
    maps, _, rewrite, _ = run.monitors
    assert [one.moment for one in maps.evaluations][:2] == [Moment(0, "start"), Moment(10, "epoch 1")]
    assert maps.evaluations[1].arrays["heatmap"].shape == (3, 4, 4)
    assert maps.evaluations[1].arrays["heatmap"].dtype == np.float32
    assert rewrite.evaluations[0].numbers["median_linf"] == math.inf
    assert run.metrics[-1] == (Moment(30, "epoch 3"), {"val_accuracy": 0.875, "val_loss": 0.125, "train_time": 3.0})
    assert run.records[0]["figures"]["rewrite/area"] == math.inf
    assert run.images["abc123"].pixels.shape == (3, 32, 32, 3)


def test_numbers_are_json_that_any_reader_takes(tmp_path: Path) -> None:
    keep_run(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    files = list((tmp_path / "attngrad" / "report").rglob("*.json"))
    assert len(files) == 1 + 1 + 3 * 4
    for path in files:
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path), step=0)
    for step in (0, 10, 20):
        keep(store, step, step / 100)
    keep(RunStore(str(tmp_path), step=10), 20, 0.5)  # another course from step 10 on
    assert kept(tmp_path) == [(0, 0.0, 0.0), (10, 0.1, 0.1), (20, 0.5, 0.5)]
    assert [row[1]["val_loss"] for row in read_run(tmp_path).metrics] == [0.0, 0.1, 0.5]


def test_a_run_that_begins_forgets_an_earlier_one_of_its_directory(tmp_path: Path) -> None:
    keep(RunStore(str(tmp_path), step=0), 10, 0.1)
    keep(RunStore(str(tmp_path), step=0), 0, 0.7)
    assert kept(tmp_path) == [(0, 0.7, 0.7)]


def test_a_history_that_begins_anew_has_only_its_own_evaluations(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path), step=0)
    keep(store, 10, 0.1)
    store.keep("maps", moment(20), {"numbers": {"entropy": 0.2}, "heatmap": np.full((1, 2, 2), 0.2)}, anew=True)
    store.write(described())
    assert [step for step, *_ in kept(tmp_path)] == [20]


def test_images_are_written_once(tmp_path: Path) -> None:
    store = RunStore(str(tmp_path), step=0)
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    for value in (0, 9):
        store.keep_images("k", pixels + value, None, {"true": [""], "shown_as": ""})
    store.write(described())
    assert read_run(tmp_path).images["k"].pixels.max() == 0


def test_it_says_where_runs_are(tmp_path: Path) -> None:
    keep_run(tmp_path / "logs" / "version_0")
    with pytest.raises(ReportError, match=r"not the log directory of a run itself; expected one of .*version_0"):
        read_run(tmp_path / "logs")
    with pytest.raises(ReportError, match="is no folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ReportError, match="report=True"):
        read_run(tmp_path / "bare")


@pytest.mark.parametrize(
    ("content", "said"),
    [("not json", "is no record of a run"), ('{"format": 99}', "format 99"), ('{"format": 1}', "is not whole")],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str, said: str) -> None:
    folder = tmp_path / "attngrad" / "report"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(content)
    with pytest.raises(ReportError, match=said):
        read_run(tmp_path)
