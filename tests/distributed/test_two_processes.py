"""Two real processes on gloo: the run is that without the monitor, both have the same numbers, nobody waits in vain."""

from __future__ import annotations

import json
import os
import signal
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

from lightning_attngrad.measure.rewriting import FrozenTargets
from lightning_attngrad.reporting.report.reading import read_run
from tests.distributed import drift_scenarios
from tests.distributed.all_scenarios import SCENARIOS
from tests.distributed.drift_scenarios import WatchedDrift
from tests.distributed.faithfulness_scenarios import STEPS, WatchedFaithfulness
from tests.distributed.guidance_scenarios import WEIGHT, guided_in_one_process
from tests.distributed.rewriting_scenarios import (
    IMAGES,
    IMAGES_AT_ONCE,
    WatchedAudit,
    WatchedRewriting,
    in_one_process,
    unlabelled,
)
from tests.distributed.scenarios import MONITORED, dropping
from tests.distributed.sharing_scenarios import IMAGES as SHARED_IMAGES
from tests.distributed.sharing_scenarios import LIMIT as GOVERNED_SHARE
from tests.distributed.sharing_scenarios import SharingMonitor, loaders
from tests.integration.harness import COSTS, WatchedMonitor, differences, evaluate, make_trainer

#: That go through the model in an evaluation without sharing: each for its map and its heads, four for their classes.
IMAGES_OF_AN_EVALUATION = 2 * SHARED_IMAGES + 4

#: Seconds for all scenarios together; a collective operation without a partner ends them much earlier.
LIMIT = 400
#: Seconds within which the survivor of a pair has to end: starting both takes most of them.
LIMIT_OF_THE_KILLED = 120
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


def _start(
    rank: int, port: int, directory: Path, module: str = "tests.distributed.all_scenarios"
) -> subprocess.Popen[bytes]:
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
            [sys.executable, "-m", module, str(directory)],
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
def test_both_processes_evaluate_the_same_images_and_have_the_same_numbers(
    outcome: Outcome, scenario: str, labels: list[str]
) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    for left in (first, second):
        assert left["labels"] == labels
        assert not left["switched off"]
    assert first["hash"] == second["hash"]
    assert first["scalars"]
    assert first["scalars"] == second["scalars"]
    for one, other in zip(first["images"], second["images"], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("when", ["first", "last"])
def test_the_maps_and_numbers_are_those_of_one_process(outcome: Outcome, when: str) -> None:
    two = outcome("every_epoch", 0)
    module, monitor = dropping(), WatchedMonitor()
    if when == "last":
        module.load_state_dict(two["weights"])
    evaluate("validate", module, [monitor])
    ((_, images, explanation),) = monitor.explained
    index = 0 if when == "first" else -1
    assert monitor.probe_set.hash == two["hash"]
    assert torch.equal(images, two["images"][index])
    assert torch.equal(torch.as_tensor(explanation.target), two["targets"][index])
    torch.testing.assert_close(explanation.heatmap, two["heatmaps"][index], rtol=1e-5, atol=1e-7)
    if when == "last":
        numbers = {name: value for name, value in monitor.scalars.items() if name not in COSTS}
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


def test_where_one_process_fails_in_its_evaluation_all_are_switched_off_and_training_goes_on(outcome: Outcome) -> None:
    first, second = (outcome("failing_evaluation", rank) for rank in RANKS)
    for rank, left in zip(RANKS, (first, second), strict=True):
        assert left["epochs"] == 4
        assert left["labels"] == ["start", "epoch 1"]
        assert left["switched off"]
        assert left["state"] == outcome("failing_evaluation_reference", rank)["state"]
    assert first["logged"] == second["logged"]
    assert first["best"] == second["best"]
    assert len(first["best"]) == 2


@pytest.mark.parametrize(("scenario", "epochs"), [("failing_images", None), ("failing_stream", 2)])
def test_where_one_process_cannot_read_its_images_nobody_waits(
    outcome: Outcome, scenario: str, epochs: int | None
) -> None:
    for rank in RANKS:
        left = outcome(scenario, rank)
        assert left["switched off"]
        assert epochs is None or left["epochs"] == epochs


@pytest.mark.parametrize("rank", RANKS)
def test_a_sharded_model_is_seen_and_trains_bit_identically(outcome: Outcome, rank: int) -> None:
    left = outcome("sharded", rank)
    assert left["without"]["shards"] > 20
    for kind in ("fingerprint", "every step", "failing"):
        assert differences(left["without"], left[kind]) == set(), kind
    assert all(heatmap.isfinite().all() and heatmap.sum() > 0 for heatmap in left["heatmaps"])


# Maps: the images are shared -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scenario", ["shared_maps", "shared_maps_sharded", "standing_in", "standing_in_sharded"])
def test_a_run_whose_images_are_shared_is_bit_identical(outcome: Outcome, scenario: str, rank: int) -> None:
    left = outcome(scenario, rank)
    assert left["without"]["steps"]
    assert differences(left["without"], left["fingerprint"]) == set()


@pytest.mark.parametrize(
    "scenario", ["shared_maps", "shared_maps_sharded", "standing_in", "standing_in_sharded", "out_of_memory"]
)
def test_each_process_explains_its_part_and_both_make_as_many_passes(outcome: Outcome, scenario: str) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    evaluations = list(zip(first["passes"], second["passes"], strict=True))
    assert len(evaluations) == 3
    for one, other in evaluations[1:]:  # in the first one memory may have run out
        assert len(one) == len(other)
        # Seven images in parts of two: each twice (maps, heads) and four of them for their classes.
        assert sum(one) < IMAGES_OF_AN_EVALUATION
        assert sum(other) < IMAGES_OF_AN_EVALUATION
    assert first["scalars"] == second["scalars"]
    assert not first["switched off"]
    # What a DistributedSampler gives twice is evaluated once.
    assert all(len(images) == SHARED_IMAGES for images in first["images"])
    assert len({bytes(image.numpy()) for image in first["images"][0]}) == SHARED_IMAGES


def test_shared_maps_have_the_numbers_of_one_process(outcome: Outcome) -> None:
    two = outcome("shared_maps", 0)
    module, monitor = dropping(), SharingMonitor()
    module.load_state_dict(two["weights"])
    make_trainer([monitor]).validate(module, loaders()[1], verbose=False)
    ((_, images, maps),) = monitor.explained
    assert torch.equal(images, two["images"][-1])
    assert torch.equal(maps.heatmap, two["heatmaps"][-1])
    numbers = {name: value for name, value in monitor.scalars.items() if name not in COSTS}
    assert len(numbers) > 6
    assert numbers == pytest.approx(two["scalars"], rel=1e-6)
    for rank in RANKS:
        logged = outcome("shared_maps", rank)["logged"]
        assert {name: logged[f"attngrad/maps/{name}"] for name in numbers} == pytest.approx(numbers, rel=1e-6)


def test_two_processes_write_one_report_with_the_maps_of_both(outcome: Outcome) -> None:
    written, alone = outcome("report_of_two", 0), outcome("shared_maps", 0)
    for rank in RANKS:
        left, without = outcome("report_of_two", rank)["fingerprint"], outcome("shared_maps", rank)["without"]
        assert differences(without, left) == set()
    run = read_run(written["log directory"])
    assert run.described["processes"] == 2
    (maps,) = run.monitors
    assert [one.moment.label for one in maps.evaluations] == ["start", "epoch 1", "epoch 2"]
    for one, heatmap in zip(maps.evaluations, alone["heatmaps"], strict=True):
        kept = torch.from_numpy(one.arrays["heatmap"])
        assert len(kept) == SHARED_IMAGES
        torch.testing.assert_close(kept / kept.sum((1, 2), keepdim=True), heatmap / heatmap.sum((1, 2), keepdim=True))
    page = (Path(written["log directory"]) / "attngrad" / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")


@pytest.mark.parametrize("scenario", ["standing_in", "standing_in_sharded"])
def test_both_processes_take_the_method_that_stands_in_and_the_first_says_so(outcome: Outcome, scenario: str) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    assert first["method"] == second["method"] == "gradient_guided"
    (line,) = first["warnings"]
    assert "maps are by 'gradient_guided', which stands in for the default" in line
    assert second["warnings"] == []


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scenario", ["shared_maps", "shared_maps_sharded"])
def test_nothing_stands_in_for_a_default_that_the_model_permits(outcome: Outcome, scenario: str, rank: int) -> None:
    """Also where its parameters are sharded, which puts functions of its own into the graph."""
    assert outcome(scenario, rank)["method"] == "guided_relevance"


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scenario", ["more_than_images", "more_than_images_of_a_stream"])
def test_more_than_images_is_explained_alike_on_both(outcome: Outcome, scenario: str, rank: int) -> None:
    left = outcome(scenario, rank)
    assert left["without"] == left["fingerprint"]
    assert left["labels"][-1] == "epoch 1"  # whoever mixes up samples has raised before
    assert left["hash"] == outcome(scenario, 0)["hash"]
    assert left["switched off"] == []


@pytest.mark.parametrize("rank", RANKS)
def test_where_nothing_fits_both_are_switched_off_and_train_on(outcome: Outcome, rank: int) -> None:
    left = outcome("nothing_fits", rank)
    assert left["without"] == left["fingerprint"]
    assert all("no way was found to run OwnWay" in one for one in left["switched off"])
    assert len(left["switched off"]) == (rank == 0)


def test_where_one_process_runs_out_of_memory_both_go_on_with_half(outcome: Outcome) -> None:
    enough = outcome("shared_maps", 0)
    for rank in RANKS:
        left = outcome("out_of_memory", rank)
        assert left["at once"] == 2
        assert not left["switched off"]
        assert left["labels"] == ["start", "epoch 1", "epoch 2"]
        assert left["scalars"] == enough["scalars"]
        assert all(max(sizes) == 2 for sizes in left["passes"][1:]), "the size that fits is remembered"
        assert differences(outcome("shared_maps", rank)["without"], left["fingerprint"]) == set()


def test_the_governor_keeps_its_share_and_decides_alike(outcome: Outcome) -> None:
    """Evaluations are due after every second of 400 steps, and slowed down: all of them would take half of the time."""
    first, second = (outcome("governed", rank) for rank in RANKS)
    assert first["share"] <= 1.5 * GOVERNED_SHARE
    assert first["labels"] == second["labels"]
    assert 2 < first["taken"] < 60
    assert first["taken"] == len(first["labels"])
    for left in (first, second):
        # The start, two hundred times in four hundred steps, and the end where the last step was skipped.
        assert left["taken"] + left["skipped"] in (201, 202)
        assert left["stretch"] > 2
    assert (first["taken"], first["skipped"]) == (second["taken"], second["skipped"])


# A process that dies ---------------------------------------------------------------------------------------------


def test_where_one_process_is_killed_in_an_evaluation_the_other_ends_with_an_error(tmp_path: Path) -> None:
    port = _free_port()
    processes = [_start(rank, port, tmp_path, "tests.distributed.killed_in_an_evaluation") for rank in RANKS]
    began = time.monotonic()
    try:
        ended = [process.wait(max(LIMIT_OF_THE_KILLED - (time.monotonic() - began), 1)) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = (tmp_path / "0.log").read_text(errors="replace")
    assert ended[1] == -signal.SIGKILL
    assert ended[0] not in (0, -signal.SIGKILL), said
    assert (tmp_path / "evaluating").exists(), "the first process had not begun to evaluate"
    assert "Connection closed by peer" in said or "gloo" in said.lower(), said[-2000:]


# Rewriting: the work is shared ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scenario", ["rewriting_alone", "rewriting_sharded"])
def test_a_run_with_rewriting_is_bit_identical(outcome: Outcome, scenario: str, rank: int) -> None:
    left = outcome(scenario, rank)
    assert left["without"]["steps"]
    assert differences(left["without"], left["fingerprint"]) == set()


@pytest.mark.parametrize("scenario", ["rewriting_alone", "audited", "rewriting_sharded"])
def test_an_uneven_number_of_images_gives_both_processes_the_same_numbers(outcome: Outcome, scenario: str) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    for left in (first, second):
        assert left["labels"][:3] == ["start", "epoch 1", "epoch 2"]
        assert not left["switched off"]
    assert first["hash"] == second["hash"]
    assert {name: str(value) for name, value in first["scalars"].items()} == {
        name: str(value) for name, value in second["scalars"].items()
    }
    assert 0 < first["scalars"]["median_linf"] < float("inf")
    # 11 images in parts of 4: two parts for each process, of which one that the second repeats
    for one, other in zip(first["passes"], second["passes"], strict=True):
        assert len(one) == len(other)
        assert set(one) - {1} == {IMAGES_AT_ONCE, IMAGES % IMAGES_AT_ONCE}
        assert set(other) - {1} == {IMAGES_AT_ONCE}
    assert 1 in first["passes"][0]  # one image, once, finds the method


@pytest.mark.parametrize("scenario", ["rewriting_alone", "rewriting_sharded"])
def test_the_numbers_of_rewriting_are_those_of_one_process(outcome: Outcome, scenario: str) -> None:
    two = outcome(scenario, 0)
    options: dict[str, Any] = {}
    if scenario == "rewriting_alone":
        options = {"target": "runner_up", "batch_adapter": unlabelled}
    monitor = WatchedRewriting(**options)
    if scenario == "rewriting_alone":  # the classes were those predicted at the start
        monitor._frozen = FrozenTargets(two["own"], two["targets"])
    in_one_process(two["weights"], monitor)
    assert monitor.rewrite_hash == two["hash"]
    compared = [name for name in monitor.scalars if "log_ratio" not in name and name not in {*COSTS, "short_over_long"}]
    assert len(compared) > 15
    for name in compared:
        assert monitor.scalars[name] == pytest.approx(two["scalars"][name], rel=1e-5, nan_ok=True), name
    if scenario == "rewriting_alone":
        for rank in RANKS:
            logged = outcome(scenario, rank)["logged"]
            for name in compared:
                assert logged[f"attngrad/rewrite/{name}"] == pytest.approx(two["scalars"][name], rel=1e-5, nan_ok=True)


def test_stopping_and_checkpoints_on_a_number_of_rewriting_decide_alike(outcome: Outcome) -> None:
    first, second = (outcome("audited", rank) for rank in RANKS)
    assert first["epochs"] == second["epochs"] == 2, "EarlyStopping did not stop, or not on both"
    assert first["best"] == second["best"]
    assert first["scores"] == second["scores"]
    assert len(first["scores"]) == 2


def test_each_checkpoint_of_two_processes_has_one_record_with_the_figures_of_one(outcome: Outcome) -> None:
    first, second = (outcome("audited", rank) for rank in RANKS)
    assert first["record"]["hash"] == second["record"]["hash"]
    assert str(first["record"]["figures"]) == str(second["record"]["figures"])
    assert [len(passes) for passes in first["audit passes"]] == [len(passes) for passes in second["audit passes"]]
    folder = Path(first["best"]).parent
    stems = sorted(first["scores"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{stem}{ending}" for stem in stems for ending in (".ckpt", ".audit.json")
    )
    for stem in stems:
        saved = torch.load(folder / f"{stem}.ckpt", weights_only=True)
        beside = json.loads((folder / f"{stem}.audit.json").read_text())
        (state,) = (state for key, state in saved["callbacks"].items() if "Audit" in key)
        assert beside["global_step"] == saved["global_step"] == state["record"]["global_step"]
        audit = WatchedAudit()
        in_one_process(saved["state_dict"], audit)
        assert audit.record is not None
        assert audit.record.hash == beside["hash"]
        assert audit.record.figures
        for name, value in audit.record.figures.items():
            for found in (beside["figures"][name], state["record"]["figures"][name]):
                assert float(found) == pytest.approx(value, rel=1e-5, nan_ok=True), name


@pytest.mark.parametrize("scenario", ["failing_search", "failing_before_it_is_shared"])
def test_where_one_process_fails_to_rewrite_all_are_switched_off(outcome: Outcome, scenario: str) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    for rank, left in zip(RANKS, (first, second), strict=True):
        assert left["epochs"] == 3
        assert left["labels"][0] == "start"
        assert left["switched off"]
        assert "the audit is switched off" in left["why"]
        assert left["state"] == outcome("failing_rewriting_reference", rank)["state"]
    assert first["logged"] == second["logged"]
    assert "ZeroDivisionError: on rank 1 only" in second["reason"]
    assert "another process had an error: ZeroDivisionError: on rank 1 only" in first["reason"]


def test_a_sharded_checkpoint_has_a_record_beside_it(
    outcome: Outcome, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = (outcome("rewriting_sharded", rank) for rank in RANKS)
    assert first["without"]["shards"] > 20
    assert str(first["record"]["figures"]) == str(second["record"]["figures"])
    assert first["record"]["global_step"] == first["fingerprint"]["progress"][0]
    assert first["record"]["figures"]["rewrite/median_linf"] == first["scalars"]["median_linf"]
    audit = WatchedAudit()
    in_one_process(first["weights"], audit)
    assert audit.record is not None
    for name, value in audit.record.figures.items():
        assert first["record"]["figures"][name] == pytest.approx(value, rel=1e-5, nan_ok=True), name


# Drift: three explanations an evaluation, shared -----------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scenario", ["drifting", "drifting_sharded"])
def test_a_run_that_measures_drift_is_bit_identical(outcome: Outcome, scenario: str, rank: int) -> None:
    left = outcome(scenario, rank)
    assert left["without"]["steps"]
    assert differences(left["without"], left["fingerprint"]) == set()


@pytest.mark.parametrize("scenario", ["drifting", "drifting_alarmed", "drifting_sharded"])
def test_both_processes_have_the_same_drift_from_as_many_passes(outcome: Outcome, scenario: str) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    for left in (first, second):
        assert left["labels"] == ["start", "epoch 1", "epoch 2"]
        assert not left["switched off"]
    assert first["hash"] == second["hash"]
    assert {name: str(value) for name, value in first["scalars"].items()} == {
        name: str(value) for name, value in second["scalars"].items()
    }
    assert first["scalars"]["spearman"] > 0
    # 11 images in parts of 4, three times over: two parts for each process, of which one that the second repeats
    for one, other in zip(first["passes"], second["passes"], strict=True):
        assert len(one) == len(other)
        assert sorted(set(one)) == [IMAGES % IMAGES_AT_ONCE, IMAGES_AT_ONCE]
        assert set(other) == {IMAGES_AT_ONCE}


@pytest.mark.parametrize("scenario", ["drifting", "drifting_sharded"])
def test_drift_against_the_start_is_that_of_one_process(outcome: Outcome, scenario: str) -> None:
    two = outcome(scenario, 0)
    monitor = WatchedDrift(**({"batch_adapter": unlabelled} if scenario == "drifting" else {}))
    # The maps and classes of the start, as the checkpoint of the run would hold them.
    monitor.given_classes, monitor._references = two["target"], {"": drift_scenarios.reference_of(two)}
    in_one_process(two["weights"], monitor)
    _compare_with_one_process(monitor, two["scalars"])
    if scenario == "drifting":
        for rank in RANKS:
            logged = outcome(scenario, rank)["logged"]
            for name, value in two["scalars"].items():
                assert logged[f"attngrad/drift/{name}"] == pytest.approx(value, rel=1e-6, nan_ok=True), name


def _compare_with_one_process(monitor: WatchedDrift, scalars: dict[str, float]) -> None:
    assert len(scalars) >= 20
    for name, value in scalars.items():
        assert monitor.scalars[name] == pytest.approx(value, abs=1e-6, rel=1e-6, nan_ok=True), name


def test_both_processes_compare_with_the_same_starting_embeddings(outcome: Outcome) -> None:
    first, second = (outcome("drifting_from_embeddings", rank) for rank in RANKS)
    assert first["switched off"] is second["switched off"] is False
    assert first["starting"][0] == second["starting"][0]
    assert len(first["starting"][1]) == drift_scenarios.IMAGES
    assert torch.equal(first["starting"][1], second["starting"][1])
    assert first["scalars"] == second["scalars"]
    assert first["scalars"]["spearman"] > 0


def test_drift_against_a_checkpoint_is_that_of_one_process(outcome: Outcome) -> None:
    two = outcome("drifting", 0)
    monitor = WatchedDrift(name="checkpoint", reference=two["reference path"])
    in_one_process(two["weights"], monitor)
    assert monitor.scalars["spearman"] > 0
    _compare_with_one_process(monitor, two["against the checkpoint"]["scalars"])
    first, second = (outcome("drifting", rank)["against the checkpoint"] for rank in RANKS)
    assert first["scalars"] == second["scalars"]
    assert [len(one) for one in first["passes"]] == [len(other) for other in second["passes"]]


@pytest.mark.parametrize("rank", RANKS)
def test_the_alarm_of_drift_ends_the_run_on_both_processes(outcome: Outcome, rank: int) -> None:
    left = outcome("drifting_alarmed", rank)
    assert (left["epochs"], left["steps"]) == (2, 2)
    assert left["scalars"]["alarm"] == 1


@pytest.mark.parametrize("rank", RANKS)
def test_a_checkpoint_in_the_place_of_shards_is_refused(outcome: Outcome, rank: int) -> None:
    assert "sharded parameters" in outcome("drifting_sharded", rank)["refused"]


# Faithfulness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["faithfulness_alone", "faithfulness_sharded"])
def test_faithfulness_of_two_processes_is_that_of_one(outcome: Outcome, scenario: str) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    for left in (first, second):
        assert left["without"]["steps"]
        assert differences(left["without"], left["fingerprint"]) == set()
        assert left["labels"] == ["start", "epoch 1", "epoch 2"]
        assert not left["switched off"]
        # 11 images in parts of 4: two parts for each process, and as many passes whatever the size of a part
        assert [len(sizes) for sizes in left["passes"]] == 3 * [2 * STEPS // 2]
    assert [sum(sizes) for sizes in first["passes"]] == 3 * [2 * STEPS * (4 + 3)]
    # of a second process, whose second part does not count
    assert [sum(sizes) for sizes in second["passes"]] == 3 * [2 * STEPS * (4 + 4)]
    assert first["scalars"] == second["scalars"]
    assert torch.equal(first["target"], second["target"])
    options: dict[str, Any] = {} if scenario == "faithfulness_sharded" else {"batch_adapter": unlabelled}
    monitor = WatchedFaithfulness(**options)
    monitor.given_classes = first["target"]  # those predicted at the start
    in_one_process(first["weights"], monitor)
    alone = {name: value for name, value in monitor.scalars.items() if name not in COSTS}
    assert set(alone) == {"srg", "deletion", "insertion", "class_sensitivity"}
    assert alone == pytest.approx(first["scalars"], rel=1e-5, abs=1e-6)
    if scenario == "faithfulness_alone":
        for left in (first, second):
            logged = {name: left["logged"][f"attngrad/faithfulness/{name}"] for name in alone}
            assert logged == pytest.approx(alone, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("scenario", ["several_labels", "several_labels_of_a_stream"])
def test_both_processes_have_the_labels_and_the_task_of_the_first(outcome: Outcome, scenario: str) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    assert first["switched off"] == ""
    assert first["task"] == second["task"] == "multilabel"
    assert first["hash"] == second["hash"]
    assert first["targets"].dtype == torch.bool
    assert first["targets"].shape == (5, 4)
    for name in ("targets", "classes"):
        assert torch.equal(first[name], second[name])
    costs = ("seconds", "overhead")
    numbers = [{name: one["scalars"][name] for name in one["scalars"] if name not in costs} for one in (first, second)]
    assert "also_changed" in numbers[0]
    assert numbers[1] == pytest.approx(numbers[0], nan_ok=True)


# Guidance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["guided", "guided_sharded"])
def test_guidance_of_two_processes_is_that_of_one(outcome: Outcome, scenario: str) -> None:
    first, second = (outcome(scenario, rank) for rank in RANKS)
    assert (first["guided"]["sharded"] > 20) == (scenario == "guided_sharded")
    alone = guided_in_one_process(WEIGHT)
    for name, value in first["guided"]["weights"].items():
        assert torch.equal(value, second["guided"]["weights"][name]), name
        assert torch.allclose(value, alone[name], atol=1e-6), name
        assert torch.equal(first["weight 0"]["weights"][name], first["without"]["weights"][name]), name
    projection = "backbone.blocks.0.attn.qkv.weight"
    apart = first["guided"]["weights"][projection] - first["without"]["weights"][projection]
    assert apart.abs().max() > 1e-3
