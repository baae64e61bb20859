"""What is known of a client: how its users train, how they would watch it, and what has to come of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

#: What the two monitors of most clients draw.
MAPS = ("maps/overlay", "maps/layers", "maps/film")
DRIFT = ("drift/layers", "drift/curves")


@dataclass(frozen=True)
class Client:
    """A project, one way of using it, and what is expected.

    Attributes:
        name: of the project, and of the way of using it behind a colon.
        packages: distributions that it needs; the first is the project.
        train: trains in a folder with callbacks as its own documentation says, with the random streams as they are;
            returns what was trained.
        callbacks: as its user writes them; with ``watched_by``, none.
        watched_by: what ``LIGHTNING_ATTNGRAD`` says, or the file that it names: for projects that take no callbacks.
        figures: names of those that have to be written; none where the project has to be refused.
        refused: a regular expression that the refusal has to match, where figures cannot be had.
        says: regular expressions of what else this package may say about the run: all true, and useful.
    """

    name: str
    packages: tuple[str, ...]
    train: Callable[[Path, list[Any]], nn.Module]
    callbacks: Callable[[], list[Any]] = list
    watched_by: Sequence[dict[str, Any]] | str = ()
    figures: tuple[str, ...] = (*MAPS, *DRIFT)
    refused: str = ""
    says: tuple[str, ...] = field(default=())
