"""The examples run as they stand, as programs, for a few steps."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open

from benchmarks.stamps import STAMPS, missing
from lightning_attngrad.guidance import epipolar_mask

ROOT = Path(__file__).parents[2]


def run_example(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(cwd)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def has_figures(folder: Path) -> bool:
    events = list(folder.glob("lightning_logs/version_0/events.*"))
    return any(b"attngrad_maps/overlay" in file.read_bytes() for file in events)


def test_plain_script(tmp_path: Path) -> None:
    said = run_example("finetune_folder.py", "--epochs", "1", "--batches", "1", "--image-size", "32", cwd=tmp_path)
    assert "400 digits were written to" in said
    assert has_figures(tmp_path)
    source = (ROOT / "examples" / "finetune_folder.py").read_text()
    assert sum(line.endswith("# +attngrad") for line in source.splitlines()) <= 5


def test_lightning_cli(tmp_path: Path) -> None:
    run_example(
        "finetune_cli.py",
        "fit",
        f"--config={ROOT / 'examples' / 'finetune_folder.yaml'}",
        "--data.image_size=32",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        cwd=tmp_path,
    )
    assert has_figures(tmp_path)


def test_pretraining_writes_a_backbone_without_its_head(tmp_path: Path) -> None:
    said = run_example("pretrain_demo_backbone.py", "--epochs", "1", "--output", "b.safetensors", cwd=tmp_path)
    assert "sha256" in said
    with safe_open(tmp_path / "b.safetensors", "pt") as state:
        names = set(state.keys())
    assert "blocks.3.attn.qkv.weight" in names
    assert not any(name.startswith("head.") for name in names)


@pytest.mark.parametrize("example", ["segmentation", "depth", "detection", "texts", "clip"])
def test_beyond_classification(tmp_path: Path, example: str) -> None:
    said = run_example("beyond_classification.py", example, "--steps", "1", cwd=tmp_path)
    assert f"{example}.png was written" in said
    with Image.open(tmp_path / f"{example}.png") as figure:
        assert min(figure.size) > 300


def test_a_start_that_is_watched(tmp_path: Path) -> None:
    run_example("beyond_classification.py", "start", "--steps", "4", cwd=tmp_path)
    for monitor, figure in (("maps", "overlay"), ("maps", "film"), ("drift", "curves")):
        assert list(tmp_path.glob(f"attngrad/{monitor}/{figure}/*.png"))


def test_robustness_lost(tmp_path: Path) -> None:
    quick = ("--noisy-epochs", "1", "--epochs", "1", "--batches", "1", "--images", "2", "--output", "lost")
    said = run_example("robustness_lost.py", *quick, cwd=tmp_path)
    lines = [line for line in said.splitlines() if line.startswith(("start", "epoch"))]
    assert [line.split("  ")[0].strip() for line in lines] == ["start", "epoch 1"]
    assert all("/255" in line for line in lines)
    assert list(tmp_path.glob("lost/attngrad/rewrite/rewrites/*.png"))


def test_three_runs_on_marked_digits(tmp_path: Path) -> None:
    options = ["--guide", "--steps", "1", "--images", "2", "--output", "planted.png"]
    said = run_example("planted_shortcut.py", *options, cwd=tmp_path)
    table = said[said.index("without the mark  ") :] if "without the mark  " in said else said
    for kind in ("clean", "planted", "guided"):
        assert any(line.startswith(f"{kind} ") and line.count("%") == 15 for line in table.splitlines()), said
    assert (tmp_path / "planted.png").exists()


@pytest.mark.skipif(missing(STAMPS) is not None, reason=str(missing(STAMPS)))
def test_photographs(tmp_path: Path) -> None:
    quick = ("--steps", "1", "--batch", "2", "--images", "2", "--free", "--output", "photographs")
    said = run_example("photographs.py", *quick, cwd=tmp_path)
    assert any(line.startswith("epoch 1/1") for line in said.splitlines())
    assert ": L∞ " in said or "at no distance" in said
    for run in ("clean", "planted"):
        assert any(line.startswith(f"{run} ") and line.count("%") == 6 for line in said.splitlines()), said
    made = tmp_path / "photographs"
    for file in ("cat_to_dog.png", "watermark.png"):
        with Image.open(made / file) as figure:
            assert min(figure.size) > 300
    for figure in (
        "maps/overlay",
        "maps/film",
        "maps/classes",
        "drift/curves",
        "rewrite/rewrites",
        "faithfulness/curves",
    ):
        assert list(made.glob(f"version_0/attngrad/{figure}/*.png")), figure
    assert (made / "version_0" / "attngrad" / "report.html").exists()
    assert list(made.rglob("*.audit.json"))


def test_photographs_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "apt-get install tuxpaint-stamps-default" in str(missing(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "animals").mkdir()
    assert "pip install onnx" in str(missing(tmp_path))


def test_the_watermark_is_small_and_lies_on_what_it_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    made = importlib.import_module("photographs")
    covered = made.watermark() > 0
    assert 0.005 < float(covered.float().mean()) < 0.03
    assert bool(covered[made.SIZE // 2 :, made.SIZE // 2 :].any())
    assert not bool(covered[: made.SIZE // 2].any())
    pixels, labels = torch.full((2, 3, made.SIZE, made.SIZE), 0.2), torch.tensor([0, made.NAMES.index(made.MARKED)])
    plain, marked = (item["image"] for item in made.Pictures(pixels, labels, torch.zeros(2, 1, 1), marked=True))
    torch.testing.assert_close(plain, made.normalised(pixels[0]))
    changed = (marked - plain).abs().amax(0) > 1e-4
    assert torch.equal(changed, covered)


def test_two_views(tmp_path: Path) -> None:
    quick = ("--steps", "2", "--batch", "2", "--seeds", "2", "--test", "8", "--output", "two_views.png")
    said = run_example("two_views.py", *quick, cwd=tmp_path)
    rows = ["the right patch", "it or one beside it", "attention on the epipolar lines", "attention on the right patch"]
    assert all(any(line.startswith(row) and line.count("±") == 3 for line in said.splitlines()) for row in rows)
    with Image.open(tmp_path / "two_views.png") as figure:
        assert min(figure.size) > 600


def test_scenes_of_two_views_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch and its match look alike, and the match lies on the epipolar line; patches beside them do so less."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    made = importlib.import_module("two_view_scenes")
    pairs = made.scenes(16, made.photographs(made.HELD_OUT), torch.Generator().manual_seed(0))
    seen = pairs.matches >= 0
    assert 0.4 < float(seen.float().mean()) < 0.9  # some leave the picture, or are hidden
    near = epipolar_mask(pairs.geometry, made.GRID, made.GRID, 0.71)  # half the diagonal of a patch
    assert bool(near.gather(2, pairs.matches.clamp_min(0)[..., None])[..., 0][seen].all())
    colours = [F.avg_pool2d(view, made.PATCH).flatten(2).mT for view in (pairs.a, pairs.b)]
    apart = torch.cdist(*colours)  # (B, 64, 64)
    at_match = apart.gather(2, pairs.matches.clamp_min(0)[..., None])[..., 0]
    assert float(at_match[seen].mean()) < 0.5 * float(apart[seen].mean())
    here = apart.diagonal(dim1=1, dim2=2)
    moved = seen & (pairs.matches != torch.arange(64))
    assert float(at_match[moved].mean()) < float(here[moved].mean())
