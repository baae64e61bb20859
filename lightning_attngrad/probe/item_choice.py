"""Which items of a loader's data set are read, as many of one class as of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from lightning_attngrad.probe.parts import Part
from lightning_attngrad.probe.reading import reader
from lightning_attngrad.probe.selection import balanced_choice, candidate_indices, known_targets

T = TypeVar("T")

#: Items that are read to find as many of one class as of another, where the data set does not tell without.
CANDIDATES_PER_IMAGE = 8


def choose_positions(
    loader: DataLoader[Any], count: int, seed: int, split: Callable[[Any], Part], of: str = "validation data"
) -> list[int]:
    """Positions in the loader's data set, balanced over its classes.

    Args:
        loader: over a map-style data set.
        count: how many; fewer if there are fewer items.
        seed: of the choice.
        split: images and targets of a batch.
        of: which data these are, for messages.

    Raises:
        ProbeInputError: if candidates had to be read, and could not.
    """
    targets = known_targets(loader.dataset)
    if targets is not None:
        return balanced_choice(targets, count, seed)
    candidates = candidate_indices(len(loader.dataset), CANDIDATES_PER_IMAGE * count, seed)  # type: ignore[arg-type]
    return choose_items(loader, candidates, count, seed, split, of)


def choose_items(
    loader: DataLoader[Any],
    candidates: Sequence[T],
    count: int,
    seed: int,
    split: Callable[[Any], Part],
    of: str = "validation data",
) -> list[T]:
    """Some of the candidates, balanced over the classes that reading them shows; else the first ones.

    Args:
        loader: over a map-style data set.
        candidates: positions, or what else indexes the data set.
        count: how many.
        seed: of the choice.
        split: images and targets of a batch.
        of: which data these are, for messages.

    Raises:
        ProbeInputError: if a candidate cannot be read.
    """
    found: list[int] = []
    with reader(loader, of) as read:
        for candidate in candidates:
            images, targets, _ = split(read([candidate])[0])
            if targets is None or len(images) != 1:  # no classes to balance, or items that are batches
                return list(candidates[:count])
            found.append(int(targets))
    return [candidates[place] for place in balanced_choice(found, count, seed)]
