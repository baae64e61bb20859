"""What hooks do to values, read off images of one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_attngrad.probe.hook_effect import HookEffect, measure_hooks


def measured(hook: Callable[[Tensor], Tensor], images: Tensor, images_in: Any = lambda batch: batch) -> HookEffect:
    batches = [images[:2].clone(), images[2:].clone()]
    before = [batch.clone() for batch in batches]
    found = measure_hooks("the hook", batches, images_in, lambda sent: torch.cat([hook(batch) for batch in sent]))
    for batch, old in zip(batches, before, strict=True):
        torch.testing.assert_close(batch, old, rtol=0, atol=0, equal_nan=True)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-2000, 2000), st.floats(0.01, 3000)), min_size=1, max_size=5),
    st.sampled_from([(0.0, 1.0), (0.0, 255.0), (0.0, 10_000.0), (-30.0, 5.0)]),
)
def test_mean_and_std_of_each_channel(constants: list[tuple[float, float]], span: tuple[float, float]) -> None:
    """As well as float32 has them: what goes in must not be lost beside the mean."""
    low, high = span
    constants = [(mean, std) for mean, std in constants if abs(mean) <= 10 * (high - low)] or [(0.0, 1.0)]
    mean, std = (torch.tensor([one[place] for one in constants]).view(-1, 1, 1) for place in (0, 1))
    images = low + (high - low) * torch.rand(4, len(constants), 3, 3)
    found = measured(lambda images: (images - mean) / std, images)
    assert found.is_known
    assert found.std == pytest.approx([one[1] for one in constants], rel=1e-3)
    for said, (true, width) in zip(found.mean, constants, strict=True):
        assert said == pytest.approx(true, abs=1e-3 * max(width, high - low))


def test_numbers_come_out_as_they_are_written() -> None:
    found = measured(lambda images: (images - 0.485) / 0.229, torch.rand(4, 3, 4, 4))
    assert (found.mean, found.std) == ((0.485,) * 3, (0.229,) * 3)
    found = measured(lambda images: (images.float() - 1354.4) / 245.72, 3000 * torch.rand(4, 13, 4, 4))
    assert (found.mean, found.std) == ((1354.4,) * 13, (245.72,) * 13)
    assert measured(lambda images: images.flip(2), torch.rand(4, 3, 4, 4)).is_identity
    assert measured(lambda images: images.float() / 255, torch.ones(4, 1, 2, 2).byte()).std == (255.0,)


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        (lambda images: images**2, "more than a mean and std"),
        (lambda images: -images, "more than a mean and std"),
        (lambda images: images.clamp(0.4, 0.6), "more than a mean and std"),
        (lambda images: images.flip(1), "more than a mean and std"),
        (lambda images: images.mean(1, keepdim=True).expand(-1, 3, -1, -1), "more than a mean and std"),
        (lambda images: images * torch.rand(len(images), 1, 1, 1), "does not come out as one"),
        (lambda images: images + torch.rand_like(images), "does not come out as one"),
        (lambda images: torch.nn.functional.pad(images, (1, 1, 1, 1)), "does not come out as one"),
        (lambda images: images[:, :1], "does not come out as one"),
        (lambda images: images / images.std(), "more than a mean and std|does not come out as one"),
        (lambda images: images.half(), "does not come out as one"),
        (lambda images: 1 / 0, "it raises ZeroDivisionError"),
    ],
)
def test_what_is_more_than_a_mean_and_std_is_not_known(hook: Any, why: str) -> None:
    found = measured(hook, torch.rand(4, 3, 4, 4))
    assert not found.is_known
    assert any(part in found.why_unknown for part in why.split("|"))


def test_images_that_cannot_be_written_into_are_not_measured() -> None:
    found = measured(lambda images: images / 2, torch.rand(4, 3, 4, 4), images_in=lambda batch: batch + 0)
    assert not found.is_known
    broken = torch.full((4, 3, 4, 4), float("nan"))
    assert measured(lambda images: images, broken).why_unknown == "the images are not finite"


def test_images_of_one_value_themselves() -> None:
    assert measured(lambda images: (images - 0.5) / 0.25, torch.ones(4, 3, 4, 4)).mean == (0.5,) * 3
