"""The trial of a client: what it finds of a project that is well, and of runs that are not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_attngrad as attngrad
from benchmarks.clients.__main__ import FILES, report, troubles
from benchmarks.clients.client import Client
from benchmarks.clients.trial import try_out
from tests.callbacks.small_runs import WatchedMonitor, fit


def train(folder: Path, callbacks: list[Any]) -> nn.Module:
    return fit(*callbacks, max_epochs=1, default_root_dir=folder).module  # type: ignore[no-any-return]


def watch() -> list[Any]:
    return [attngrad.AttentionMapMonitor(num_images=2)]


WELL = Client("a small run", ("timm",), train, watch, figures=("maps/overlay", "maps/film"))


class Disturbing(WatchedMonitor):
    """Draws from the run's own random stream."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        torch.rand(1)


def failing(evaluation: Any) -> torch.Tensor:
    raise ValueError("no number can be had")


@pytest.fixture(autouse=True)
def streams_as_they_were() -> Any:
    with torch.random.fork_rng():
        yield


def test_a_client_that_is_well(tmp_path: Path) -> None:
    outcome = try_out(WELL, tmp_path)
    assert outcome.is_well, troubles(outcome)
    assert {"maps/overlay", "maps/film"} <= set(outcome.figures)
    assert f"| a small run | timm {__import__('timm').__version__} | callbacks |" in report([outcome])[-1]


def test_a_run_that_is_disturbed_is_told(tmp_path: Path) -> None:
    outcome = try_out(replace(WELL, callbacks=lambda: [Disturbing(draws=True)]), tmp_path)
    assert not outcome.untouched
    assert not outcome.is_well
    assert any("other weights, buffers or random numbers" in said for said in troubles(outcome))


def test_what_is_not_drawn_and_what_is_said_instead_are_told(tmp_path: Path) -> None:
    def unable() -> list[Any]:
        return [attngrad.AttentionMapMonitor(num_images=2, objective=failing)]

    outcome = try_out(replace(WELL, callbacks=unable), tmp_path)
    assert outcome.untouched
    assert outcome.missing == ["maps/film", "maps/overlay"]
    assert any("no number can be had" in message for message in outcome.unexpected)
    expected = replace(
        WELL, callbacks=unable, figures=(), refused="switched off.*no number can be had", says=("attngrad: what 1",)
    )
    assert try_out(expected, tmp_path / "expected").is_well
    assert not try_out(replace(expected, refused="switched off.*volume"), tmp_path / "otherwise").is_well


def test_a_run_that_does_not_repeat_is_no_proof(tmp_path: Path) -> None:
    class Counter:
        runs = 0

    def differing(counter: Counter, folder: Path, callbacks: list[Any]) -> nn.Module:
        counter.runs += 1
        module = train(folder, callbacks)
        with torch.no_grad():
            next(module.parameters()).add_(counter.runs)
        return module

    outcome = try_out(replace(WELL, train=partial(differing, Counter())), tmp_path)
    assert "two runs by itself differ" in outcome.error
    assert not outcome.is_well


def test_what_is_not_installed_is_skipped_with_its_reason(tmp_path: Path) -> None:
    outcome = try_out(replace(WELL, packages=("no-such-distribution",)), tmp_path)
    assert "no-such-distribution" in outcome.skipped
    assert outcome.is_well
    assert "skipped" in report([outcome])[-1]


def test_every_file_is_tried() -> None:
    beside = {"__init__", "__main__", "client", "photographs", "reproducible", "trial"}
    files = {path.stem for path in Path(__import__("benchmarks.clients").clients.__file__).parent.glob("*.py")}
    assert files - beside == set(FILES)
