"""Two real processes on gloo: the run is that without the monitor, both have the same numbers, nobody waits in vain."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.distributed.scenarios import MONITORED, SCENARIOS, dropping
from tests.integration.harness import WatchedMonitor, differences, evaluate

#: Seconds for all scenarios together; a collective operation without a partner ends them much earlier.
LIMIT = 400
RANKS = (0, 1)
ROOT = Path(__file__).parents[2]

Outcome = Callable[[str, int], dict[str, Any]]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(rank: int, port: int, directory: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(len(RANKS)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with (directory / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.scenarios", str(directory)],
            cwd=directory,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _run_both(directory: Path) -> None:
    port = _free_port()
    processes = [_start(rank, port, directory) for rank in RANKS]
    deadline = time.monotonic() + LIMIT
    try:
        for process in processes:
            process.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        pass  # the scenarios that are missing say so
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What a scenario left on a rank; the two processes run once, whichever workers the tests are spread over."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = shared / "two_processes"
    with FileLock(f"{directory}.lock"):
        if not directory.exists():
            directory.mkdir()
            _run_both(directory)

    def read(scenario: str, rank: int) -> dict[str, Any]:
        path = directory / f"{scenario}-{rank}.pt"
        log = (directory / f"{rank}.log").read_text(errors="replace")[-3000:]
        assert path.exists(), f"rank {rank} never finished {scenario}\n{log}"
        left: dict[str, Any] = torch.load(path, weights_only=False)  # plain values and tensors of our own
        assert "error" not in left, f"{scenario} on rank {rank}: {left['error']}\n{log}"
        return left

    return read


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in SCENARIOS])
def test_every_scenario_ends(outcome: Outcome, scenario: str, rank: int) -> None:
    assert outcome(scenario, rank)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scenario", ["every_epoch", "every_step", "failing_images"])
def test_a_fit_is_bit_identical(outcome: Outcome, scenario: str, rank: int) -> None:
    without = outcome("without_monitor", rank)["fingerprint"]
    assert without["steps"]
    assert differences(without, outcome(scenario, rank)["fingerprint"]) == set()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scenario", ["validation", "uneven_stream", "stream_of_one_process"])
def test_validations_and_streams_are_bit_identical(outcome: Outcome, scenario: str, rank: int) -> None:
    left = outcome(scenario, rank)
    assert differences(left["without"], left["fingerprint"]) == set()


@pytest.mark.parametrize(
    ("scenario", "labels"),
    [
        ("every_epoch", ["start", "epoch 1", "epoch 2"]),
        ("every_step", ["start", "step 1", "step 2", "step 3", "step 4"]),
        ("validation", ["validate"]),
        ("uneven_stream", ["epoch 1", "epoch 2", "epoch 3"]),
        ("stream_of_one_process", ["epoch 1", "epoch 2", "epoch 3"]),
        ("sharded", ["start", "epoch 1", "epoch 2"]),
    ],
)
def test_both_processes_look_at_the_same_images_and_have_the_same_numbers(
    outcome: Outcome, scenario: str, labels: list[str]
) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    for left in (first, second):
        assert left["labels"] == labels
        assert not left["resting"]
    assert first["hash"] == second["hash"]
    assert first["scalars"]
    assert first["scalars"] == second["scalars"]
    for one, other in zip(first["images"], second["images"], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("look", ["first", "last"])
def test_the_maps_and_numbers_are_those_of_one_process(outcome: Outcome, look: str) -> None:
    two = outcome("every_epoch", 0)
    module, monitor = dropping(), WatchedMonitor()
    if look == "last":
        module.load_state_dict(two["weights"])
    evaluate("validate", module, [monitor])
    ((_, images, explanation),) = monitor.explained
    index = 0 if look == "first" else -1
    assert monitor.probe_set.hash == two["hash"]
    assert torch.equal(images, two["images"][index])
    assert torch.equal(torch.as_tensor(explanation.target), two["targets"][index])
    torch.testing.assert_close(explanation.heatmap, two["heatmaps"][index], rtol=1e-5, atol=1e-7)
    if look == "last":
        numbers = {name: value for name, value in monitor.scalars.items() if name != "seconds"}
        assert numbers == pytest.approx(two["scalars"], rel=1e-5)
        for rank in RANKS:
            logged = outcome("every_epoch", rank)["logged"]
            assert {name: logged[f"attngrad/maps/{name}"] for name in numbers} == pytest.approx(numbers, rel=1e-5)


def test_lightning_has_nothing_to_warn_of(outcome: Outcome) -> None:
    assert [outcome("every_epoch", rank)["warnings"] for rank in RANKS] == [[], []]


def test_early_stopping_and_checkpoints_on_a_scalar_decide_alike(outcome: Outcome) -> None:
    first, second = (outcome("waiting_for_a_scalar", rank) for rank in RANKS)
    assert first["epochs"] == second["epochs"] == 2, "EarlyStopping did not stop, or not on both"
    assert first["best"] == second["best"]
    assert Path(first["best"]).exists()
    assert first["scores"] == second["scores"]
    state = torch.load(first["best"], weights_only=True)
    assert any("AttentionMapMonitor" in key or "WatchedMonitor" in key for key in state["callbacks"])


def test_a_process_that_gets_no_batch_of_a_validation_has_the_numbers_all_the_same(outcome: Outcome) -> None:
    logged = [outcome("stream_of_one_process", rank)["logged"] for rank in RANKS]
    scalar = outcome("stream_of_one_process", 0)["scalars"][MONITORED.rpartition("/")[2]]
    assert logged == pytest.approx([scalar, scalar], rel=1e-6)


def test_where_one_process_fails_in_its_look_all_rest_and_training_goes_on(outcome: Outcome) -> None:
    first, second = (outcome("failing_look", rank) for rank in RANKS)
    for rank, left in zip(RANKS, (first, second), strict=True):
        assert left["epochs"] == 4
        assert left["labels"] == ["start", "epoch 1"]
        assert left["resting"]
        assert left["state"] == outcome("failing_look_reference", rank)["state"]
    assert first["logged"] == second["logged"]
    assert first["best"] == second["best"]
    assert len(first["best"]) == 2


@pytest.mark.parametrize(("scenario", "epochs"), [("failing_images", None), ("failing_stream", 2)])
def test_where_one_process_cannot_read_its_images_nobody_waits(
    outcome: Outcome, scenario: str, epochs: int | None
) -> None:
    for rank in RANKS:
        left = outcome(scenario, rank)
        assert left["resting"]
        assert epochs is None or left["epochs"] == epochs


@pytest.mark.parametrize("rank", RANKS)
def test_a_sharded_model_is_seen_and_trains_bit_identically(outcome: Outcome, rank: int) -> None:
    left = outcome("sharded", rank)
    assert left["without"]["shards"] > 20
    for kind in ("fingerprint", "every step", "failing"):
        assert differences(left["without"], left[kind]) == set(), kind
    assert all(heatmap.isfinite().all() and heatmap.sum() > 0 for heatmap in left["heatmaps"])
