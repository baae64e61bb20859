"""LIGHTNING_ATTNGRAD: monitors in programs that do not know this package, through Lightning's own entry points."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks import environment
from lightning_attngrad.callbacks.base import callbacks_of
from tests.callbacks.small_runs import Classifier, Squares, events, fit, listening, loader, make_trainer, tensorboard

ROOT = Path(attngrad.__file__).parent.parent
GROUPS = ("lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory")
PACKAGES = ("lightning.pytorch", "pytorch_lightning")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the entry points of this checkout's pyproject.toml, as an installation leaves them.

    The suite runs from a checkout, and an environment that several checkouts share may hold those of another one.
    """
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tables = re.findall(r'^\[project\.entry-points\."(.+?)"\]\n((?:\w+ = ".+"\n)+)', project, re.MULTILINE)
    folder = tmp_path_factory.mktemp("installed")
    metadata = folder / "lightning_attngrad-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-attngrad\nVersion: 0\n")
    lines = [f"[{group}]\n{entries}".replace('"', "") for group, entries in tables]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def asked(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Sets the variable for Trainers of this process; messages are said anew in each test."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setattr(environment, "_said", set())
    return lambda value: monkeypatch.setenv("LIGHTNING_ATTNGRAD", str(value))


def run(installed: Path, folder: Path, package: str, asked: str | None, *more: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key != "LIGHTNING_ATTNGRAD"}
    variables["PYTHONPATH"] = os.pathsep.join([str(installed), str(ROOT)])
    if asked is not None:
        variables["LIGHTNING_ATTNGRAD"] = asked
    program = [sys.executable, str(Path(__file__).with_name("another_program.py")), package, str(folder), *more]
    done = subprocess.run(program, env=variables, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done


def said(done: subprocess.CompletedProcess[str], what: str) -> str:
    return next(line for line in done.stdout.splitlines() if line.startswith(what))


def test_both_packages_find_the_factory(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(installed))
    for group in GROUPS:
        assert [entry.load()() for entry in entry_points(group=group, name="attngrad")] == [[]]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_program_is_watched_without_a_changed_line_and_ends_with_the_same_weights(
    installed: Path, tmp_path: Path, package: str
) -> None:
    plain = run(installed, tmp_path / "plain", package, None)
    assert said(plain, "modules:").split()[1:] == [
        "lightning_attngrad",
        "lightning_attngrad.callbacks_factory",
        "lightning_attngrad.version",
    ]
    assert "attngrad" not in plain.stderr
    watched = run(installed, tmp_path / "watched", package, "light")
    assert said(watched, "weights:") == said(plain, "weights:")
    found = events(tmp_path / "watched")
    assert {"attngrad/maps/overlay", "attngrad/maps/film", "attngrad/drift/layers"} <= set(found.Tags()["images"])
    assert {"attngrad/maps/entropy", "attngrad/drift/spearman"} <= set(found.Tags()["scalars"])
    assert not events(tmp_path / "plain").Tags()["images"]


def test_processes_that_lightning_starts_are_watched_together(installed: Path, tmp_path: Path) -> None:
    watched = run(installed, tmp_path, PACKAGES[0], "light", "2")
    assert {"attngrad/maps/overlay", "attngrad/drift/layers"} <= set(events(tmp_path).Tags()["images"])
    assert "switched off" not in watched.stderr + watched.stdout


# In this process: Trainers find the entry point by themselves -----------------------------------------------------


def names(trainer: Any) -> list[str]:
    return [callback.name for callback in callbacks_of(trainer)]


def watch_by(tmp_path: Path, *listed: Any) -> Path:
    path = tmp_path / "watch.yaml"
    path.write_text(yaml.safe_dump(list(listed)))
    return path


def test_full_is_every_monitor(asked: Any, tmp_path: Path) -> None:
    asked("full")
    ran = fit(module=Classifier, max_epochs=1, logger=tensorboard(tmp_path))
    assert names(ran.trainer) == ["maps", "drift", "rewrite", "faithfulness", "audit"]
    heads = {tag.split("/")[1] for tag in events(tmp_path).Tags()["scalars"] if tag.startswith("attngrad/")}
    assert heads >= {"maps", "drift", "faithfulness"}


def test_a_file_lists_callbacks_with_their_arguments(asked: Any, tmp_path: Path) -> None:
    probe = {"num_images": 3, "model": "net"}
    asked(
        watch_by(
            tmp_path,
            {"class_path": "lightning_attngrad.AttentionMapMonitor", "init_args": {"probe": probe, "name": "mine"}},
            {"class_path": "AttentionDriftMonitor", "init_args": {"probe": probe}},
        )
    )
    ran = fit(max_epochs=1)
    first, second = callbacks_of(ran.trainer)
    assert names(ran.trainer) == ["mine", "drift"]
    assert first.shared is second.shared
    in_python = attngrad.AttentionMapMonitor(probe=attngrad.ProbeImages(num_images=3, model="net"), name="mine")
    fit(in_python, max_epochs=1)
    costs = {"seconds", "overhead"}
    one, other = ({n: v for n, v in m.scalars.items() if n not in costs} for m in (first, in_python))
    assert one == other
    assert one


def test_a_program_with_monitors_of_its_own_gets_no_more(asked: Any) -> None:
    asked("full")
    own = attngrad.AttentionMapMonitor(num_images=3)
    ran = fit(own, max_epochs=1)
    assert callbacks_of(ran.trainer) == [own]

    class WithItsOwn(Classifier):
        def configure_callbacks(self) -> Any:
            return [attngrad.AttentionDriftMonitor(num_images=3)]

    ran = fit(module=WithItsOwn, max_epochs=1)
    assert names(ran.trainer) == ["drift"]


def test_each_trainer_has_its_own_and_each_run_has_them_once(asked: Any) -> None:
    asked("light")
    first = fit(max_epochs=1)
    images = loader(Squares(9, seed=1))
    first.trainer.validate(first.module, images, verbose=False)
    first.trainer.fit_loop.max_epochs = 2
    first.trainer.fit(first.module, loader(Squares()), images)
    assert names(first.trainer) == ["maps", "drift"]
    assert all(monitor.story.evaluations >= 2 for monitor in callbacks_of(first.trainer))
    second = make_trainer(max_epochs=1)
    second.test(first.module, images, verbose=False)
    assert names(second) == ["maps", "drift"]
    assert not set(callbacks_of(second)) & set(callbacks_of(first.trainer))


def test_a_run_goes_on_from_its_checkpoint_with_its_history(asked: Any, tmp_path: Path) -> None:
    asked("light")
    first = fit(max_epochs=1)
    first.trainer.save_checkpoint(tmp_path / "one.ckpt")
    went_on = fit(max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    maps, _ = callbacks_of(went_on.trainer)
    assert maps.film[0].label == "start"
    assert maps.story.evaluations > callbacks_of(first.trainer)[0].story.evaluations


MISTAKES: dict[str, tuple[list[Any], str]] = {
    "an argument that is none": (
        [{"class_path": "AttentionMapMonitor", "init_args": {"num_imagess": 3}}],
        "'num_imagess' is not accepted",
    ),
    "a value that can never work": (
        [{"class_path": "AttentionMapMonitor", "init_args": {"num_images": 0}}],
        "num_images: got 0; expected an int of at least 1",
    ),
    "another callback": (
        [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x"}}],
        "does not correspond to a subclass of ProbeCallback",
    ),
    "two of one name": (["AttentionMapMonitor", "AttentionMapMonitor"], "2 monitors are called 'maps'"),
    "a part that is not there": (
        [{"class_path": "AttentionMapMonitor", "init_args": {"probe": {"model": "student"}}}],
        "has no attribute 'student'",
    ),
    "nothing": ([], "expected a list of callbacks"),
}


def fit_and_listen() -> tuple[Any, list[str]]:
    """A run whose Trainer is made anew, and what was said of the variable, from the making on."""
    with listening() as messages:
        ran = fit(max_epochs=1)
    assert len(ran.module.losses) == 3
    assert all(math.isfinite(loss) for loss in ran.module.losses)
    return ran, [message for message in messages + ran.messages if "LIGHTNING_ATTNGRAD" in message]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_said_once_and_training_goes_on(asked: Any, tmp_path: Path, mistake: str) -> None:
    listed, expected = MISTAKES[mistake]
    asked(watch_by(tmp_path, *listed))
    messages = fit_and_listen()[1] + fit_and_listen()[1]
    assert len(messages) == 1, messages
    assert expected in messages[0]
    assert "training goes on" in messages[0]
    assert str(tmp_path / "watch.yaml") in messages[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("lite", "got 'lite'; expected 'light', 'full', or the path of a YAML file that lists callbacks; there is no"),
        ("/nowhere/watch.yaml", "there is no file /nowhere/watch.yaml"),
    ],
)
def test_what_is_neither_a_word_nor_a_file_is_said_once(asked: Any, value: str, expected: str) -> None:
    asked(value)
    messages = fit_and_listen()[1] + fit_and_listen()[1]
    assert len(messages) == 1, messages
    assert expected in messages[0]


def test_only_the_callback_that_is_wrong_is_left_out(asked: Any, tmp_path: Path) -> None:
    asked(
        watch_by(
            tmp_path,
            {"class_path": "AttentionMapMonitor", "init_args": {"probe": {"model": "student"}}},
            {"class_path": "AttentionDriftMonitor", "init_args": {"probe": {"num_images": 3}}},
        )
    )
    ran = fit(max_epochs=1)
    assert names(ran.trainer) == ["drift"]
    assert callbacks_of(ran.trainer)[0].scalars
    validated = make_trainer()
    validated.validate(ran.module, loader(Squares(9, seed=1)), verbose=False)
    assert names(validated) == ["drift"]


def test_what_cannot_be_imported_ends_no_program(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked("light")
    monkeypatch.setitem(sys.modules, "lightning_attngrad.callbacks.environment", None)
    ran, messages = fit_and_listen()
    assert not callbacks_of(ran.trainer)
    assert "it cannot be imported: ModuleNotFoundError" in messages[0]
