"""Which class an image is rewritten to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_attngrad.rewrite import TARGET_KINDS, choose_targets


def logits(batch: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(2, 6), st.integers(0, 10**6), st.sampled_from(TARGET_KINDS), st.booleans())
def test_no_kind_ever_gives_the_own_class(batch: int, classes: int, seed: int, kind: str, given_own: bool) -> None:
    scores = logits(batch, classes, seed)
    own = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed)) if given_own else None
    targets = choose_targets(scores, kind, avoid=own, seed=seed)
    assert targets.dtype == torch.int64
    assert targets.shape == (batch, classes - 1 if kind == "all" else 1)
    assert ((targets >= 0) & (targets < classes)).all()
    avoided = scores.argmax(1) if own is None else own
    assert (targets != avoided[:, None]).all()


@pytest.mark.parametrize("given_own", [False, True])
def test_each_kind_is_what_it_says(given_own: bool) -> None:
    scores = logits(12, 5)
    own = torch.arange(12) % 5 if given_own else scores.argmax(1)
    avoid = own if given_own else None
    for row in range(12):
        rivals = sorted((j for j in range(5) if j != own[row]), key=lambda j: float(scores[row, j]))
        assert choose_targets(scores, "runner_up", avoid=avoid)[row].tolist() == [rivals[-1]]
        assert choose_targets(scores, "least_likely", avoid=avoid)[row].tolist() == [rivals[0]]
        assert choose_targets(scores, "all", avoid=avoid)[row].tolist() == sorted(rivals)


def test_random_takes_each_other_class_alike() -> None:
    own = torch.zeros(4000, dtype=torch.int64)
    targets = choose_targets(logits(4000, 5), "random", avoid=own)
    counts = torch.bincount(targets.flatten(), minlength=5)
    assert counts[0] == 0
    assert (counts[1:] > 900).all()  # 1000 each, of standard deviation 27


def test_random_depends_on_the_own_class_the_seed_and_the_place_only() -> None:
    own = torch.arange(30) % 7
    one = choose_targets(logits(30, 7, 0), "random", avoid=own, seed=3)
    assert torch.equal(one, choose_targets(logits(30, 7, 1), "random", avoid=own, seed=3))
    assert not torch.equal(one, choose_targets(logits(30, 7, 0), "random", avoid=own, seed=4))
    # A longer batch begins alike, so the place in the batch tells; a batch that is split starts over.
    assert torch.equal(one[:20], choose_targets(logits(20, 7), "random", avoid=own[:20], seed=3))
    assert not torch.equal(one[10:], choose_targets(logits(20, 7), "random", avoid=own[10:], seed=3))


def test_random_leaves_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    choose_targets(logits(5, 4), "random")
    assert torch.equal(torch.get_rng_state(), before)


def test_random_is_drawn_on_the_cpu_whatever_the_default_device() -> None:
    scores = logits(5, 4)
    expected = choose_targets(scores, "random")
    with torch.device("meta"):
        assert torch.equal(choose_targets(scores, "random"), expected)


def test_classes_that_the_model_does_not_have_are_avoided_without_an_error() -> None:
    """Labels of a data set with more classes than the head, or -1 for unknown."""
    targets = choose_targets(logits(2, 3), "all", avoid=torch.tensor([-1, 9]))
    assert targets.tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize(
    ("kind", "classes", "message"),
    [
        ("nearest", 3, "got 'nearest'; expected a class, or one of random, runner_up, least_likely, all"),
        ("random", 1, "got 'random' for a model of 1 output; expected two classes or more"),
    ],
)
def test_what_cannot_be_chosen_is_refused(kind: Any, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_targets(logits(2, classes), kind)
