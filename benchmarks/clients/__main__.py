"""Third-party projects as clients: ``python -m benchmarks.clients [FILE …]``.

Each is trained for a few steps by its own module and trainer on crops of photographs, with random weights, once by
itself and once with the callbacks of this package, as its user would write them (docs/clients.md). Asked is whether
figures were written, whether both runs ended with the same weights, bit for bit, and whether every message was true.

A project that is not installed is skipped. Nothing is downloaded. Exits 1 where something is not as expected.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning
import timm
import torch

import lightning_attngrad as attngrad
from benchmarks.clients.trial import Outcome

#: One a project, or a few that are alike.
FILES = (
    "lightly_train",
    "lightly",
    "torchgeo",
    "anomalib",
    "terratorch",
    "segmentation_models",
    "monai",
    "rfdetr",
    "open_clip",
    "hugging_face",
    "finetuning_scheduler",
)
#: No telemetry, no hub, no windows, no threads that other work waits for.
_QUIET = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
_LONGEST_TRIAL = 1200  # seconds


def main() -> int:
    options = _parse()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="clients-"))
    outcomes = [outcome for file in options.files or FILES for outcome in _tried(file, folder / file)]
    print("\n".join(report(outcomes)))
    for outcome in outcomes:
        if not outcome.is_well:
            print(f"\n{outcome.name} is not as expected (output: {folder}):", *troubles(outcome), sep="\n- ")
    return 0 if all(outcome.is_well for outcome in outcomes) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(FILES)}; all without one")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for figures and logs of the runs")
    options = parser.parse_args()
    for file in options.files:
        if file not in FILES:
            parser.error(f"got {file!r}; expected one of {', '.join(FILES)}")
    return options


def _tried(file: str, folder: Path) -> Iterator[Outcome]:
    """What comes of the clients of a file, in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{file} …", file=sys.stderr, flush=True)
    quiet = {name: value for name, value in os.environ.items() if name != "LIGHTNING_ATTNGRAD"} | _QUIET
    program = [sys.executable, "-m", "benchmarks.clients.trial", file, str(folder)]
    with (folder / "output.txt").open("w") as output:
        try:
            subprocess.run(program, env=quiet, stdout=output, stderr=output, timeout=_LONGEST_TRIAL, check=True)
        except subprocess.SubprocessError as error:
            yield Outcome(name=file, error=f"{error}; see {folder / 'output.txt'}")
            return
    yield from (Outcome(**one) for one in json.loads((folder / "outcomes.json").read_text(encoding="utf-8")))


def report(outcomes: Sequence[Outcome]) -> list[str]:
    """A table in Markdown."""
    lines = [
        f"{datetime.date.today()}, lightning-attngrad {attngrad.__version__}, torch {torch.__version__}, lightning "
        f"{lightning.__version__}, timm {timm.__version__}, CPU",
        "",
        "| client | version | watched by | figures | run untouched | as expected |",
        "|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        if one.skipped:
            lines.append(f"| {one.name} | – | – | – | – | skipped: {one.skipped} |")
            continue
        written = ", ".join(sorted({name.split("/")[0] for name in one.figures}))
        figures = f"{len(one.figures)} ({written})" if one.figures else "refused" if one.refused else "none"
        untouched, well = ("yes" if value else "**no**" for value in (one.untouched, one.is_well))
        lines.append(f"| {one.name} | {one.versions} | {one.watched_by} | {figures} | {untouched} | {well} |")
    return lines


def troubles(outcome: Outcome) -> list[str]:
    """What is not as expected, a line each."""
    said = [outcome.error] if outcome.error else []
    if not outcome.untouched and not outcome.error:
        said.append("the run ended with other weights, buffers or random numbers than by itself")
    if outcome.missing:
        said.append(f"not written: {', '.join(outcome.missing)}")
    if outcome.refused is False:
        said.append("it was not refused in the words that are true of it")
    return [*said, *(f"unexpected: {message}" for message in outcome.unexpected)]


if __name__ == "__main__":
    sys.exit(main())
