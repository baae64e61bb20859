from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lightning_attngrad.state import seeded_rng
from tests.probe.runs import fail, rng_state


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_streams_are_seeded_inside_and_go_on_outside(fails: bool) -> None:
    draw()
    before = rng_state()
    drawn = []
    for _ in range(2):
        try:
            with seeded_rng(7):
                drawn.append(draw())
                if fails:
                    fail()
        except ZeroDivisionError:
            pass
        assert rng_state() == before
    assert drawn[0] == drawn[1]
    with seeded_rng(8):
        assert all(new != old for new, old in zip(draw(), drawn[0], strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_a_seed_that_not_every_stream_accepts_is_refused(seed: float) -> None:
    before = rng_state()
    with pytest.raises(ValueError, match="seed: got"), seeded_rng(seed):  # type: ignore[arg-type]
        pass
    assert rng_state() == before
