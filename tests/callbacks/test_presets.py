"""Presets: the same lists in Python and from the environment, fresh ones each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lightning_attngrad as attngrad
from tests.callbacks.small_runs import Classifier, events, fit, tensorboard

FULL = ["maps", "drift", "rewrite", "faithfulness", "audit"]


def test_light_is_bounded_and_full_is_every_monitor_the_dearest_less_often() -> None:
    light = attngrad.monitors()
    assert [monitor.name for monitor in light] == ["maps", "drift"]
    assert {(monitor.probe.num_images, monitor.governor.limit) for monitor in light} == {(8, 0.02)}
    full = attngrad.monitors("full")
    assert [monitor.name for monitor in full] == FULL
    assert all(monitor.probe == attngrad.AttentionMapMonitor().probe for monitor in full)
    often = [monitor.timetable.cadence.every_n_epochs for monitor in full[:4]]
    assert often == [1, 1, 2, 4]
    public = {getattr(attngrad, name) for name in attngrad.__all__ if name.endswith(("Monitor", "Audit"))}
    assert {type(monitor) for monitor in full} == public - {attngrad.Monitor}, "a monitor is missing in `full`"


@pytest.mark.parametrize("preset", ["light", "full"])
def test_images_are_said_once_for_all(preset: str) -> None:
    images = attngrad.ProbeImages(num_images=3, mean=0.5, std=0.5)
    assert all(monitor.probe is images for monitor in attngrad.monitors(preset, probe=images))


def test_each_call_makes_callbacks_of_its_own() -> None:
    assert not set(attngrad.monitors("full")) & set(attngrad.monitors("full"))


def test_a_run_with_a_preset(tmp_path: Path) -> None:
    images = attngrad.ProbeImages(num_images=3)
    ran = fit(*attngrad.monitors("light", probe=images), module=Classifier, max_epochs=1, logger=tensorboard(tmp_path))
    assert not ran.complaints or all("skips an evaluation" in complaint for complaint in ran.complaints)
    assert {"attngrad/maps/overlay", "attngrad/drift/layers"} <= set(events(tmp_path).Tags()["images"])


def test_a_file_is_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "watch.yaml"
    path.write_text("- class_path: lightning_attngrad.AttentionMapMonitor\n  init_args: {num_images: 3, name: mine}\n")
    for given in (path, str(path)):
        (monitor,) = attngrad.monitors(given)
        assert (monitor.name, monitor.probe.num_images) == ("mine", 3)
    with pytest.raises(ValueError, match=r"probe: got one beside the file .*watch\.yaml, which says it itself"):
        attngrad.monitors(path, probe=attngrad.ProbeImages())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"preset": "heavy"}, "got 'heavy'; expected 'light', 'full', or the path of a YAML file"),
        ({"preset": "full", "probe": 3}, r"probe: got int; expected attngrad\.ProbeImages"),
    ],
)
def test_what_is_no_preset_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        attngrad.monitors(**arguments)
