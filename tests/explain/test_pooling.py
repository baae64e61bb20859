"""How pooling is read off the gradient."""

from __future__ import annotations

import pytest
import torch

from lightning_attngrad.attention.places import CallPlaces, TokenPlaces
from lightning_attngrad.explain.pooling import pooling_weights, read_pooling


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),  # class token
        ([3, 1, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0, 0]),  # class and distillation token
        ([0, 0, 2, 1, 1, 3], [0, 0, 0.25, 0.25, 0.25, 0.25]),  # mean of the patches
        ([1, 1, 1, 1, 1, 1], [1 / 6] * 6),  # mean of all
        ([9, 0, 1, 1, 1, 1], [0.5, 0, 0.125, 0.125, 0.125, 0.125]),  # class token beside the mean of the patches
        ([0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]),  # no gradient at all
    ],
)
def test_pooling_is_read_off_the_gradient(norms: list[float], expected: list[float]) -> None:
    weights = pooling_weights(torch.tensor([norms], dtype=torch.float32), torch.ones(1, 6, dtype=torch.bool), slots=2)
    torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([0, 1, 1, 0, 0, 0], [0, 0.5, 0.5, 0, 0, 0]),  # queries alone: all alike
        ([0, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]),  # the first slot that is there
        ([0, 0, 0, 1, 1, 0], [0, 0, 0, 0.5, 0.5, 0]),  # patches, of which some are none of the call
    ],
)
def test_without_a_gradient_only_tokens_of_the_call_are_taken(present: list[int], expected: list[float]) -> None:
    weights = pooling_weights(torch.zeros(1, 6), torch.tensor([present], dtype=torch.bool), slots=3)
    torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float32))


def test_a_norm_that_is_not_finite_gives_nan_to_its_image_alone() -> None:
    norms = torch.tensor([[1.0, torch.nan], [1.0, 0.0]])
    weights = pooling_weights(norms, torch.ones(2, 2, dtype=torch.bool), slots=1)
    assert weights.isnan().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("heads_have_places", [False, True])
def test_gradients_are_gathered_from_the_windows_of_an_image(heads_have_places: bool) -> None:
    """Two images of two windows and two heads; the second image is pooled at one patch, and padding does not count."""
    place = torch.tensor([[1, 3, -1], [2, 4, -1]]).repeat(2, 1).unsqueeze(1)
    image = torch.where(place < 0, -1, torch.arange(2).repeat_interleave(2).view(-1, 1, 1))
    if heads_have_places:
        place, image = place.expand(-1, 2, -1).clone(), image.expand(-1, 2, -1).clone()
        place[:, 1, :2] = place[:, 1, :2].flip(-1)
    tokens = TokenPlaces(image, place, (2, 2))
    gradient = torch.zeros(4, 2, 3, 5)
    gradient[:2, :, :] = 1.0
    gradient[3, 0, 1, 2] = -1e-20
    gradient[:, :, 2] = 7.0
    call = CallPlaces("call", (4, 2, 3, 3), tokens, tokens, 2, "tokens", frozenset())
    weights, zero = read_pooling(call, gradient, slots=1, batch=2)
    torch.testing.assert_close(weights, torch.tensor([[[0, 0.25, 0.25, 0.25, 0.25]], [[0.0, 0, 0, 0, 1]]]))
    assert zero.tolist() == [False, False]
    assert read_pooling(call, gradient * 0, slots=1, batch=2)[1].tolist() == [True, True]
