"""Images become pictures by what is known of them, and never by a guess."""

from __future__ import annotations

import pytest
import torch

from lightning_attngrad.explain.displayed import STRETCHED, UNKNOWN, as_pixels, stretched


def photographs(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def test_pixels_are_shown_as_they_are() -> None:
    shown, words = as_pixels(photographs())
    assert torch.equal(shown, photographs())
    assert words == ""


def test_bytes_are_pixels() -> None:
    shown, words = as_pixels((255 * photographs()).round().to(torch.uint8))
    assert (shown - photographs()).abs().max() <= 0.5 / 255 + 1e-6
    assert words == ""


def test_a_normalisation_that_is_said_is_undone() -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    normalised = (photographs() - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    shown, words = as_pixels(normalised, mean, std)
    torch.testing.assert_close(shown, photographs())
    assert words == ""
    assert torch.allclose(as_pixels((photographs() - 0.5) / 0.5, 0.5, 0.5)[0], photographs(), atol=1e-6)


def test_without_one_each_image_is_stretched_and_the_words_say_so() -> None:
    normalised = (photographs() - 0.5) / 0.2
    shown, words = as_pixels(normalised)
    assert words == f"{UNKNOWN}; {STRETCHED}"
    assert shown.amin() == 0
    assert shown.amax() == 1
    # each by itself, all channels alike: an image does not change with the one beside it
    assert torch.equal(as_pixels(normalised[1:])[0], shown[1:])
    assert torch.equal(shown, stretched(normalised)[0])


def test_one_that_does_not_fit_is_refused() -> None:
    normalised = (photographs() - 0.5) / 0.2
    with pytest.raises(ValueError, match=r"mean, std: got 0\.5 and 0\.9, .* expected those with which they were"):
        as_pixels(normalised, 0.5, 0.9)
    with pytest.raises(ValueError, match="std: got 2 numbers, and the images have 3 channels"):
        as_pixels(normalised, 0.5, [0.5, 0.5])


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3), (13, 3)])
def test_channels_that_are_not_seen_are_said(channels: int, shown: int) -> None:
    pixels, words = as_pixels(photographs(channels))
    assert pixels.shape[1] == shown
    assert ("channel" in words) == (channels not in (1, 3))


def test_values_that_are_not_finite_are_never_taken_for_pixels() -> None:
    images = photographs()
    images[0, 0, 0, 0] = torch.nan
    shown, words = as_pixels(images)
    assert UNKNOWN in words
    assert torch.isfinite(shown[1]).all()


def test_other_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"images: got shape \(3, 8, 8\); expected \(N, C, H, W\)"):
        as_pixels(photographs()[0])
