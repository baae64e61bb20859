"""Runs that are killed while they save: ``python -m tests.integration.killed_runs DIRECTORY``.

One process loads the libraries and forks a child for each moment, trains in it, and kills it at that moment. What the
children leave lies in ``DIRECTORY/<moment>``; the test reads it.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fsspec.implementations.local import LocalFileOpener
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.callbacks.rewriting_runs import WatchedAudit, bright, fit_and_save

#: Seconds after which a child is given up that never reached its moment.
_LIMIT = 60.0
_MARK = "here"  # a file that says: now


def train(folder: Path, epochs: int = 500) -> None:
    """A checkpoint after each step, of which the last three and ``last.ckpt`` are kept."""
    checkpoint = ModelCheckpoint(
        folder, monitor="train_loss", save_top_k=3, save_last=True, every_n_train_steps=1, filename="{step}"
    )
    options: dict[str, Any] = {"num_sanity_val_steps": 0, "max_epochs": epochs}
    fit_and_save(WatchedAudit(num_images=2, steps=1), checkpoint, module=bright, **options)


def _stop_here(folder: Path) -> None:
    (folder / _MARK).touch()
    time.sleep(_LIMIT)


def _in_the_middle_of_a_record(folder: Path) -> None:
    real = Path.write_bytes
    written: list[Path] = []

    def half(self: Path, content: bytes) -> int:
        written.append(self)
        if len(written) < 4:
            return real(self, content)
        real(self, content[: len(content) // 2])
        _stop_here(folder)
        return len(content)

    Path.write_bytes = half  # type: ignore[method-assign, assignment]


def _before_a_record_has_its_name(folder: Path) -> None:
    real = Path.replace
    renamed: list[Path] = []

    def late(self: Path, target: Any) -> Path:
        renamed.append(self)
        if len(renamed) == 4:
            _stop_here(folder)
        return real(self, target)

    Path.replace = late  # type: ignore[method-assign, assignment]


def _in_the_middle_of_a_checkpoint(folder: Path) -> None:
    real = LocalFileOpener.write
    written: list[int] = []

    def half(self: Any, content: Any, *arguments: Any) -> Any:
        written.append(len(content))
        if len(written) < 4:
            return real(self, content, *arguments)
        real(self, bytes(content)[: len(content) // 2], *arguments)
        self.f.flush()
        _stop_here(folder)
        return len(content)

    LocalFileOpener.write = half


def _soon(folder: Path) -> None:
    """Killed by the clock, wherever it is."""


MOMENTS: dict[str, tuple[Callable[[Path], None], float | None]] = {
    "record": (_in_the_middle_of_a_record, None),
    "name": (_before_a_record_has_its_name, None),
    "checkpoint": (_in_the_middle_of_a_checkpoint, None),
    # seconds after the first record is there
    **{f"clock {delay}": (_soon, delay) for delay in (0.0, 0.013, 0.041, 0.087, 0.151)},
}


def _child(folder: Path, prepare: Callable[[Path], None]) -> None:
    torch.set_num_threads(1)
    prepare(folder)
    train(folder)


def kill(folder: Path, prepare: Callable[[Path], None], delay: float | None) -> bool:
    """Whether the child was killed at its moment."""
    folder.mkdir()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(folder, prepare))
    child.start()
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline and child.is_alive():
        if (folder / _MARK).exists() if delay is None else any(folder.glob("*.json")):
            time.sleep(delay or 0)
            child.kill()
            child.join()
            return True
        time.sleep(0.001)
    child.kill()
    child.join()
    return False


def main(directory: Path) -> None:
    for name, (prepare, delay) in MOMENTS.items():
        if not kill(directory / name, prepare, delay):
            raise SystemExit(f"{name}: the run never came there")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
