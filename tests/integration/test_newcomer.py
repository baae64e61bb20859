"""A newcomer's path, in a clone of what is committed: demo, report, callbacks in a script of one's own, figures.

What is typed stands in README; the demo and the script take few steps here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(*words: str, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "TMPDIR": str(cwd)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, f"{words}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists() or not shutil.which("git") or not shutil.which("make"):
        pytest.skip("this is no git repository, or git or make is not installed")
    folder = tmp_path_factory.mktemp("newcomer") / "lightning-attngrad"
    run("git", "clone", "--quiet", "--depth", "1", ROOT.as_uri(), str(folder), cwd=folder.parent)
    return folder


def test_the_demo_ends_with_a_report_that_opens(clone: Path) -> None:
    """`make demo`, in the environment that these tests run in, which counts as installed."""
    assert "make demo " in README
    stamp = f"{sys.prefix}/.installed-demo"
    short = "ARGS=--epochs 1 --max-steps 2 --batch-size 8 --accelerator cpu"
    said = run("make", "demo", f"VENV={sys.prefix}", "--old-file", stamp, short, cwd=clone)
    named = re.search(r"^report\s+(\S+)$", said, re.MULTILINE)
    assert named, said[-2000:]
    page = (clone / named[1]).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 16  # each image of the run, and its maps
    assert not re.search(r"(src|href)=.?https?://", page)  # nothing is asked of a network
    folder = (clone / named[1]).parent
    for monitor, figure in (("maps", "overlay"), ("maps", "film"), ("drift", "curves"), ("rewrite", "rewrites")):
        assert list((folder / monitor / figure).glob("*.png")), (monitor, figure)


def test_callbacks_are_added_to_a_script_of_ones_own(clone: Path) -> None:
    """The example without its marked lines is the script that a newcomer has; with README's callbacks it is watched."""
    source = (clone / "examples" / "finetune_folder.py").read_text(encoding="utf-8")
    own = "".join(line for line in source.splitlines(keepends=True) if not line.rstrip().endswith("# +attngrad"))
    assert "attngrad." not in own
    quick = ("--epochs", "1", "--batches", "1", "--image-size", "32")
    environment = ("env", f"PYTHONPATH={clone}", sys.executable)
    (clone / "train.py").write_text(own, encoding="utf-8")
    run(*environment, "train.py", *quick, "--output", "before", cwd=clone)
    assert not figures(clone / "before")

    added = 'callbacks=attngrad.monitors("light")'
    assert added in README
    watched = own.replace("trainer = L.Trainer(\n", f"trainer = L.Trainer(\n        {added},\n")
    watched = watched.replace(
        "import lightning as L\n", "import lightning as L\nimport lightning_attngrad as attngrad\n"
    )
    assert added in watched
    (clone / "train.py").write_text(watched, encoding="utf-8")
    run(*environment, "train.py", *quick, "--output", "after", cwd=clone)
    assert figures(clone / "after") >= {"attngrad_maps/overlay", "attngrad_maps/film", "attngrad_drift/curves"}


def figures(folder: Path) -> set[str]:
    """Names of the figures in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = set()
    for events in folder.glob("lightning_logs/version_*/events.*"):
        board = EventAccumulator(str(events))
        board.Reload()
        found |= set(board.Tags()["images"])
    return found
