"""Projects whose runs differ from one another by themselves: made to repeat, so that two runs compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def seeded_albumentations() -> Iterator[None]:
    """Albumentations draws from generators of its own, which the operating system seeds: here a number does."""
    from albumentations.core.composition import BaseCompose

    set_random_seed = BaseCompose.set_random_seed

    def seeded(compose: Any, seed: int | None) -> None:
        set_random_seed(compose, 0 if seed is None else seed)

    with mock.patch.object(BaseCompose, "set_random_seed", seeded):
        yield
