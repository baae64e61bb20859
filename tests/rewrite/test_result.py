"""The result: what is healthy, and rows put together."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from itertools import product

import pytest
import torch

from lightning_attngrad.rewrite import Health, Rewrite, rewrite
from lightning_attngrad.rewrite.result import joined
from tests.rewrite.models import PIXELS, linear_model, others, random


def test_healthy_is_what_nothing_speaks_against() -> None:
    rows = list(product([0.0, 0.1, 1.0], [False, True], [False, True], [False, True]))
    zero, unconverged, huge, beats = (torch.tensor(column) for column in zip(*rows, strict=True))
    good = Health(zero_gradient=zero, unconverged=unconverged, huge_radius=huge, beats_one_step=beats).good
    assert [row for row, fine in zip(rows, good, strict=True) if fine] == [(0.0, False, True, True)]


def result_of(rows: int, seed: int) -> Rewrite:
    model, images = linear_model(3, 48, seed), random(rows, 3, 4, 4, seed=seed)
    return rewrite(model, images, others(model, images), steps=3, **PIXELS)


def test_rows_are_joined_in_order() -> None:
    parts = [result_of(2, 0), result_of(1, 1), result_of(3, 2)]
    whole = joined(parts)
    for field in fields(Rewrite):
        if field.name not in ("norm", "health", "task"):
            expected = torch.cat([getattr(part, field.name) for part in parts], dim=int(field.name == "margin"))
            assert torch.equal(getattr(whole, field.name), expected)
    for field in fields(Health):
        expected = torch.cat([getattr(part.health, field.name) for part in parts])
        assert torch.equal(getattr(whole.health, field.name), expected)
    assert whole.margin.shape == (4, 6)
    assert whole.norm == "linf"
    assert joined(parts[:1]) is parts[0]


def test_results_are_frozen_and_compare_by_identity() -> None:
    result = result_of(1, 0)
    with pytest.raises(FrozenInstanceError):
        result.norm = "l2"  # type: ignore[misc]
    assert result != replace(result)  # tensors have no single truth
