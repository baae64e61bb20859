"""What the script of environments reads, and its checks in the environment of the suite."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments import __main__ as script
from tests.environments import checks
from tests.environments.link_torch import link_torch

ROOT = Path(__file__).parents[2]


def test_every_floor_of_the_project_is_read() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = script.floors(project)
    for name in ("torch", "lightning", "timm", "torchmetrics", "jsonargparse", "torchvision", "mlxtend"):
        assert re.search(rf'"{name}(\[\w+\])?>={re.escape(found[name])}[",]', project), name
    assert f'requires-python = ">={found["python"]}"' in project
    assert "pytest" not in found  # of the extra `dev`


def test_its_examples_hold() -> None:
    """pytest gathers none from a file of this name."""
    found = doctest.testmod(script)
    assert found.attempted >= 3
    assert found.failed == 0


def test_a_floor_that_cannot_be_installed_is_told() -> None:
    """As torchmetrics 1.5 cannot, beside numpy 2: a resolver then takes 1.5.2, and 1.5 is promised in vain."""
    asked = {"python": "3.10", "torchmetrics": "1.5", "numpy": "2.0", "pyyaml": "6.0", "torch": "2.6"}
    found = {"torchmetrics": "1.5.2", "numpy": "2.0.0", "pyyaml": "6.0", "torch": "2.6.0+cpu"}
    (line,) = script.not_met(asked, {**found, "python": "3.10.13"})
    assert line == "torchmetrics>=1.5 is not to be had beside the other floors, torchmetrics>=1.5.2 is"
    assert len(script.not_met(asked, {**found, "python": "3.11.1"})) == 2


def test_the_script_needs_nothing_but_python() -> None:
    program = [sys.executable, "-S", "-m", "tests.environments", "oldest", "none"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "got 'none'; expected some of newest, newest-lightning-alone" in done.stderr


def test_the_checks_pass_here_but_for_what_is_not_installed(tmp_path: Path) -> None:
    """The suite runs from a checkout, which is what the first check is there to find."""
    program = [sys.executable, str(Path(checks.__file__)), "lightning.pytorch", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    assert [one["check"] for one in found] == list(checks.CHECKS)
    assert [one for one in found if one["error"] and one["check"] != "installed"] == []


def test_a_callback_that_draws_a_random_number_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import lightning_attngrad as attngrad

    class Draws(attngrad.AttentionMapMonitor):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            torch.rand(1)

    monkeypatch.setattr(attngrad, "AttentionMapMonitor", Draws)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(AssertionError, match="not as without callbacks"):
        checks.untouched(checks.Place("lightning.pytorch", tmp_path))
    sys.modules.pop("program_of_a_user")


def test_a_torch_of_another_python_is_not_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.environments import link_torch as module

    folders = {"one": Path("lib/python3.10/site-packages"), "other": Path("lib/python3.11/site-packages")}
    monkeypatch.setattr(module, "_site_packages", folders.__getitem__)
    with pytest.raises(ValueError, match=r"got a torch of python3\.10; expected one of python3\.11"):
        link_torch("one", "other")
