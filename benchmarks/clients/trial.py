"""The clients of a file, each trained twice, by itself and watched: ``python -m benchmarks.clients.trial FILE FOLDER``.

Writes an outcome a client to ``FOLDER/outcomes.json``. In a process of its own: projects change what is global.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import random
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from benchmarks.clients.client import Client

#: The summary at the end of a fit, where nothing was switched off.
_SUMMARY = r"^attngrad: what \d+ monitors? saw(?!.*switched off)"
#: True of a run of two epochs on eight images, and said where the machine is slow.
_ADVICE = r"the monitors have taken \d+ % of the time since training began"
_OURS = ("attngrad", "Monitor", "Audit")
_LOGGERS = ("lightning_attngrad", "lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "pytorch_lightning")


@dataclasses.dataclass
class Outcome:
    """What came of a client.

    Attributes:
        name: of the client.
        versions: of its packages.
        watched_by: how the user asks for monitors.
        skipped: why it was not tried; empty where it was.
        error: with which it ended; empty where it did not.
        figures: names of those that were written.
        missing: names of those that were not and should have been.
        untouched: whether weights, buffers and random streams are those of the run by itself, bit for bit.
        unexpected: messages of this package that the client does not expect.
        refused: whether it was refused in the expected words, where it had to be.
        said: every message.
    """

    name: str
    versions: str = ""
    watched_by: str = ""
    skipped: str = ""
    error: str = ""
    figures: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    untouched: bool = False
    unexpected: list[str] = dataclasses.field(default_factory=list)
    refused: bool | None = None
    said: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether all is as expected."""
        is_wrong = self.error or self.missing or self.unexpected or self.refused is False
        return bool(self.skipped) or (self.untouched and not is_wrong)


def try_out(client: Client, folder: Path) -> Outcome:
    """Train by itself, train watched, compare.

    Args:
        client: the project.
        folder: for what the runs write; emptied before.
    """
    try:
        versions = ", ".join(f"{name} {version(name)}" for name in client.packages)
    except PackageNotFoundError as error:
        return Outcome(client.name, skipped=f"{error}")
    shutil.rmtree(folder, ignore_errors=True)  # figures of an earlier trial are no figures of this one
    outcome = Outcome(client.name, versions, "environment" if client.watched_by else "callbacks")
    try:
        by_itself = _state_after(client.train, folder / "by itself", [])
        with _messages() as said, _environment(client, folder):
            watched = _state_after(client.train, folder / "watched", client.callbacks())
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        return outcome
    outcome.untouched = watched == by_itself
    if not outcome.untouched and _state_after(client.train, folder / "by itself again", []) != by_itself:
        outcome.error = "two runs by itself differ: whether it is untouched cannot be told"
    outcome.said = list(dict.fromkeys(said))
    outcome.figures = figures_of(folder / "watched")
    outcome.missing = sorted(set(client.figures) - set(outcome.figures))
    if client.refused:
        outcome.refused = any(re.search(client.refused, message, re.DOTALL) for message in outcome.said)
    expected = [_SUMMARY, _ADVICE, *client.says, *([client.refused] if client.refused else [])]
    outcome.unexpected = [
        message for message in outcome.said if not any(re.search(one, message, re.DOTALL) for one in expected)
    ]
    return outcome


def _state_after(train: Callable[[Path, list[Any]], nn.Module], folder: Path, callbacks: list[Any]) -> str:
    """A hash of what a run from fixed seeds has come to: its weights and buffers, and the random streams behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  (clients draw from it)
    torch.manual_seed(1)
    module = train(folder, callbacks)
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    streams = random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002
    return f"{digest.hexdigest()} {streams}"


@contextmanager
def _environment(client: Client, folder: Path) -> Iterator[None]:
    """The variable that asks for monitors, where the client takes no callbacks."""
    if not client.watched_by:
        yield
        return
    if not any(entry.name == "attngrad" for entry in entry_points(group="pytorch_lightning.callbacks_factory")):
        raise RuntimeError(
            "the entry point of this package is not installed: install it, as in `pip install --no-deps -e .`"
        )
    asked = client.watched_by
    if not isinstance(asked, str):
        path = folder / "watch.yaml"
        path.write_text(yaml.safe_dump(list(asked)), encoding="utf-8")
        asked = str(path)
    os.environ["LIGHTNING_ATTNGRAD"] = asked
    try:
        yield
    finally:
        del os.environ["LIGHTNING_ATTNGRAD"]


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Everything that this package says: warnings, and lines of the log."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear = Ear(logging.INFO)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(ear)
    show = warnings.showwarning

    def hear(message: Warning | str, *more: Any, **options: Any) -> None:
        said.append(str(message))
        show(message, *more, **options)

    warnings.showwarning = hear  # type: ignore[assignment]
    heard: list[str] = []
    try:
        yield heard
    finally:
        warnings.showwarning = show
        for logger in loggers:
            logger.removeHandler(ear)
        heard += [message for message in said if any(word in message for word in _OURS)]


def figures_of(folder: Path) -> list[str]:
    """Names, such as ``maps/overlay``, of the figures below a folder: PNG files, and those in TensorBoard's events.

    The latter are written out beside the events, to be looked at.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = {"/".join(path.parts[-3:-1]) for path in folder.glob("**/attngrad/*/*/*.png")}
    for path in {events.parent for events in folder.glob("**/events.*")}:
        found = EventAccumulator(str(path), size_guidance={"images": 0})
        found.Reload()
        for tag in found.Tags()["images"]:
            if tag.startswith("attngrad_"):  # each group of figures has a tab of its own: attngrad_maps/overlay
                names.add(tag.removeprefix("attngrad_"))
                last = found.Images(tag)[-1]
                (path / f"{tag.replace('/', '_')}.png").write_bytes(last.encoded_image_string)
    return sorted(names)


def main() -> None:
    file, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    try:
        clients = import_module(f"benchmarks.clients.{file}").CLIENTS
    except ImportError as error:
        outcomes = [Outcome(name=file, skipped=f"{error}")]
    else:
        outcomes = [try_out(client, folder / re.sub(r"\W+", "-", client.name)) for client in clients]
    (folder / "outcomes.json").write_text(json.dumps([dataclasses.asdict(one) for one in outcomes]), encoding="utf-8")


if __name__ == "__main__":
    main()
