"""A run that is killed at any moment leaves no part of a record, and no part of a checkpoint, under its final name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.callbacks.rewriting_runs import WatchedAudit
from tests.integration.killed_runs import MOMENTS, train
from tests.measure.test_audit_record import KEYS

ROOT = Path(__file__).parents[2]
LIMIT = 200

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each killed run left; one process for all, as loading the libraries takes longest."""
    directory = tmp_path_factory.mktemp("killed")
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.killed_runs", str(directory)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return directory


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_lies_under_a_final_name_is_whole(killed: Path, moment: str) -> None:
    folder = killed / moment
    records = sorted(folder.glob("*.json"))
    checkpoints = sorted(folder.glob("*.ckpt"))
    assert records
    assert checkpoints
    for path in records:
        record = json.loads(path.read_text())
        assert record.keys() == KEYS, path
        assert record["figures"], path
        assert record["why_empty"] == ""
    for path in checkpoints:
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint["state_dict"], path
        (state,) = (state for key, state in checkpoint["callbacks"].items() if WatchedAudit.__name__ in key)
        assert state["record"]["global_step"] == checkpoint["global_step"], path
        beside = folder / f"{path.stem}.audit.json"
        # killed between the two it may be missing, or that of the step before where a name is used again
        if beside.exists() and path.stem != "last":
            assert json.loads(beside.read_text())["global_step"] == checkpoint["global_step"]


def test_the_moments_are_in_the_middle(killed: Path) -> None:
    """Half a record is there, under a name that nobody reads."""
    (unfinished,) = (killed / "record").glob(".*.json.*")
    with pytest.raises(json.JSONDecodeError):
        json.loads(unfinished.read_text())
    (unnamed,) = (killed / "name").glob(".*.json.*")
    assert json.loads(unnamed.read_text()).keys() == KEYS


@pytest.mark.parametrize("moment", ["record", "name"])
def test_a_run_in_the_same_folder_is_not_disturbed_by_what_was_left(killed: Path, moment: str) -> None:
    folder = killed / moment
    train(folder, epochs=1)
    for path in folder.glob("*.json"):
        assert json.loads(path.read_text()).keys() == KEYS
    assert {path.stem for path in folder.glob("*.ckpt")} >= {path.name.split(".")[0] for path in folder.glob("*.json")}
