"""What has to hold in an environment: ``python checks.py PACKAGE FOLDER`` prints a line of JSON for each check.

``PACKAGE`` is the Lightning that the program trains with. Nothing of `tests` is imported: see `program.py`.
"""

from __future__ import annotations

import csv
import importlib
import json
import random
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

#: The Lightning of `program.py` as it is written.
_WRITTEN_WITH = "lightning.pytorch"
_IMAGES, _CLASS = 3, 1


class Place:
    """A folder with the program, and the run of it that is watched."""

    def __init__(self, package: str, folder: Path) -> None:
        self.folder = folder
        source = Path(__file__).with_name("program.py").read_text(encoding="utf-8")
        self.path = folder / "program_of_a_user.py"
        self.path.write_text(source.replace(_WRITTEN_WITH, package), encoding="utf-8")
        sys.path.insert(0, str(folder))
        self.program: ModuleType = importlib.import_module(self.path.stem)
        self.watched = folder / "watched"

    def images(self) -> torch.Tensor:
        return torch.stack([self.program.squares(_IMAGES, 1)[index][0] for index in range(_IMAGES)])

    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return self.program.Classifier().eval()  # type: ignore[no-any-return]


def installed(place: Place) -> str:
    """What runs is the installed package, not a checkout."""
    import lightning_attngrad as attngrad

    assert "site-packages" in attngrad.__file__, attngrad.__file__
    return attngrad.__version__


def untouched(place: Place) -> str:
    """A fit with all callbacks ends as the fit without: weights, optimizer, random numbers, bit for bit."""
    import lightning_attngrad as attngrad

    probe = attngrad.ProbeImages(num_images=_IMAGES, mean=0.0, std=1.0)
    callbacks = [
        attngrad.AttentionMapMonitor(probe=probe, report=True, on_error="raise"),
        attngrad.AttentionDriftMonitor(probe=probe, on_error="raise"),
        attngrad.RewriteRobustnessMonitor(probe=probe, steps=4, on_error="raise"),
        attngrad.FaithfulnessMonitor(probe=probe, on_error="raise"),
        attngrad.CheckpointAudit(probe=probe, on_error="raise"),
    ]
    ends = []
    for folder, watching in ((place.folder / "alone", []), (place.watched, callbacks)):
        trainer = place.program.trained(folder, watching)
        ends.append([*_left_behind(trainer)])
    alone, watched = ends
    assert len(alone) == len(watched) > 10
    other = [name for (name, value), (_, its) in zip(alone, watched, strict=True) if value != its]
    assert not other, f"not as without callbacks: {other}"
    return f"{len(alone)} tensors and random streams"


def _left_behind(trainer: Any) -> Iterator[tuple[str, bytes]]:
    for name, value in trainer.model.state_dict().items():
        yield name, value.numpy().tobytes()
    (optimizer,) = trainer.optimizers
    for number, of_one in optimizer.state_dict()["state"].items():
        for name, value in of_one.items():
            yield f"optimizer {number} {name}", value.numpy().tobytes()
    yield "torch", torch.get_rng_state().numpy().tobytes()
    yield "numpy", np.random.get_state()[1].tobytes()  # type: ignore[index]  # noqa: NPY002
    yield "random", repr(random.getstate()).encode()


def logged(place: Place) -> str:
    """Numbers in both loggers, and figures on the board, at each evaluation."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(place.watched / "board"))
    board.Reload()
    figures = {tag.split("/")[0] for tag in board.Tags()["images"]}
    assert figures >= {"attngrad_maps", "attngrad_drift", "attngrad_rewrite"}, figures
    with (place.watched / "lines" / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("attngrad/maps/entropy")]
    assert len(rows) == 3, len(rows)  # the start and two epochs
    return f"{len(board.Tags()['images'])} figures"


def explained(place: Place) -> str:
    """Every method gives a finite map of each image, but the one that is for other models."""
    import lightning_attngrad as attngrad
    from lightning_attngrad.explain import METHODS

    model, images = place.model(), place.images()
    asked = [method for method in METHODS if method != "patch_sum"]  # which is for Hindered Transformers
    for method in asked:
        heatmap = attngrad.explain(model, images, target=_CLASS, method=method).heatmap
        assert heatmap.shape == (_IMAGES, 4, 4), (method, heatmap.shape)
        assert heatmap.isfinite().all(), method
        assert heatmap.std() > 0, method
    return f"{len(asked)} methods"


def rewritten(place: Place) -> str:
    """Images become another class, inside of the pixels' range, and the model says so itself."""
    import lightning_attngrad as attngrad

    model, images = place.model(), place.images()
    target = (model(images).argmax(dim=1) + 1) % place.program.CLASSES
    found = attngrad.rewrite(model, images, target, mean=0.0, std=1.0)
    assert found.success.all()
    assert (model(found.images).argmax(dim=1) == target).all()
    assert 0 <= found.images.min() <= found.images.max() <= 1
    return f"{_IMAGES} images"


def reported(place: Place) -> str:
    """The run has its page, and the command makes it anew."""
    page = place.watched / "board" / "attngrad" / "report.html"
    assert page.is_file(), sorted(str(one.relative_to(place.watched)) for one in place.watched.rglob("*.html"))
    _command("report", str(page.parent.parent), "--output", str(place.folder / "again.html"))
    again = (place.folder / "again.html").read_text(encoding="utf-8")
    assert again.count("data:image/png;base64,") >= _IMAGES
    assert "<script" in again
    assert "<style" in again
    return f"{len(again) >> 10} KiB"


def audited(place: Place) -> str:
    """The command compares the checkpoints of the run, and computes what the callback had."""
    checkpoints = sorted((place.watched / "checkpoints").glob("*.ckpt"))
    assert len(checkpoints) == 2, checkpoints
    output = place.folder / "audit"
    model, data = (f"{place.path}:{name}" for name in ("Classifier", "Squares"))
    _command("audit", *map(str, checkpoints), "--model", model, "--data", data, "--output", str(output))
    with (output / "audit.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2, rows
    json.loads((output / "audit.json").read_text(encoding="utf-8"))
    return f"{len(rows)} checkpoints"


def _command(*words: str) -> None:
    program = [sys.executable, "-m", "lightning_attngrad.cli", *words]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words[:1])}: {done.stdout[-400:]} {done.stderr[-800:]}"


#: In this order: what is logged, reported and audited is of the run that `untouched` watches.
CHECKS: dict[str, Callable[[Place], str]] = {
    check.__name__: check for check in (installed, untouched, logged, explained, rewritten, reported, audited)
}


def main(package: str, folder: str) -> int:
    """Every check, also where one before it failed.

    Args:
        package: which Lightning the program trains with.
        folder: empty; for what the runs write.

    Returns:
        1 where a check failed.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    place, failed = Place(package, Path(folder)), 0
    for name, check in CHECKS.items():
        error = None
        try:
            said = check(place)
        except Exception as caught:  # whatever is wrong in an environment is what is asked for
            traceback.print_exc()
            said, error = "", f"{type(caught).__name__}: {' '.join(str(caught).split()):.600}"
            failed = 1
        print(json.dumps({"check": name, "said": said, "error": error}), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
