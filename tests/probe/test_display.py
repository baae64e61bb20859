"""How images become pictures: plain where their pixels are known, else stretched, and never without a word."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_attngrad.probe import KnownPixels, Normalisation, shown_pixels
from tests.probe.pictures import MEAN, RED_GREEN_BLUE, STD, WHITE, photographs, thirteen_bands

PLAIN = Normalisation((0.0,), (1.0,), "the test")
IMAGENET = Normalisation(MEAN, STD, "the test")
UNKNOWN = KnownPixels(None, None, "nobody knows")


def known(normalisation: Normalisation) -> KnownPixels:
    return KnownPixels(normalisation, normalisation)


def stretched(values: Tensor) -> Tensor:
    """By numpy: each image from its 2nd to its 98th percentile, all channels alike."""
    pictures = []
    for image in values.numpy():
        low, high = np.percentile(image, (2, 98), method="nearest")
        pictures.append(np.clip((image - low) / (high - low), 0, 1))
    return torch.from_numpy(np.stack(pictures)).float()


def test_known_pixels_are_shown_as_they_are_without_a_word() -> None:
    pixels, display = shown_pixels(IMAGENET.to_images(photographs()), known(IMAGENET))
    torch.testing.assert_close(pixels, photographs(), rtol=0, atol=1e-6)
    assert display.words == ""
    assert display.limits is None
    in_bytes = Normalisation((0.0,), (1.0,), "the test", pixel_range=(0, 255))
    pixels, _ = shown_pixels(255 * photographs()[:, :1], known(in_bytes))
    torch.testing.assert_close(pixels, photographs()[:, :1], rtol=0, atol=1e-6)


def test_an_unknown_normalisation_is_not_undone_but_stretched_and_said() -> None:
    images = IMAGENET.to_images(photographs())
    pixels, display = shown_pixels(images, UNKNOWN)
    torch.testing.assert_close(pixels, stretched(images), rtol=0, atol=1e-5)
    assert display.words == "normalisation unknown; each image stretched, 2–98 %"


@pytest.mark.parametrize(
    ("normalisation", "certain"),
    [
        (Normalisation(tuple(range(900, 913)), tuple(range(200, 213)), "the test", pixel_range=(0, WHITE)), True),
        (Normalisation(tuple(range(900, 913)), tuple(range(200, 213)), "the test", pixel_range=None), False),
    ],
)
def test_bands_are_stretched_together_in_the_units_of_the_sensor(normalisation: Normalisation, certain: bool) -> None:
    """Standardised band by band the colours would be others: what is undone needs no black and white for that."""
    counts = thirteen_bands()
    images = (counts - torch.arange(900.0, 913).view(-1, 1, 1)) / torch.arange(200.0, 213).view(-1, 1, 1)
    pixels, display = shown_pixels(
        images, KnownPixels(normalisation if certain else None, normalisation), RED_GREEN_BLUE
    )
    torch.testing.assert_close(pixels, stretched(counts[:, list(RED_GREEN_BLUE)]), rtol=0, atol=1e-4)
    # The photographs are in these bands up to one line for all three: so they come back, but for what is cut off.
    middle = (pixels > 0.1) & (pixels < 0.9)
    assert float((pixels - photographs()).abs()[middle].mean()) < 0.1
    assert display.words == "channels 3, 2, 1 of 0 to 12 as red, green, blue; each image stretched, 2–98 %"


@pytest.mark.parametrize(
    ("count", "channels", "words", "shown"),
    [
        (13, None, "channels 0, 1, 2 of 0 to 12 as red, green, blue", (0, 1, 2)),
        (13, (8,), "channel 8 of 0 to 12 in grey", (8,)),
        (4, None, "channels 0, 1, 2 of 0 to 3 as red, green, blue", (0, 1, 2)),
        (2, None, "channel 0 of 0 to 1 in grey", (0,)),
        (3, (2, 1, 0), "channels 2, 1, 0 of 0 to 2 as red, green, blue", (2, 1, 0)),
        (1, (0,), "channel 0 of 0 to 0 in grey", (0,)),
    ],
)
def test_which_channels_are_seen(
    count: int, channels: tuple[int, ...] | None, words: str, shown: tuple[int, ...]
) -> None:
    images = thirteen_bands()[:, :count] / WHITE
    pixels, display = shown_pixels(images, known(PLAIN), channels)
    torch.testing.assert_close(pixels, stretched(images[:, list(shown)]), rtol=0, atol=1e-5)
    assert display.words == f"{words}; each image stretched, 2–98 %"
    assert torch.equal(display.of_channels(images), images[:, list(shown)])


def test_channels_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"channels: got \[3, 2, 1\]; the images have 3 channels, 0 to 2"):
        shown_pixels(photographs(), known(PLAIN), RED_GREEN_BLUE)


def test_images_that_cannot_be_stretched() -> None:
    flat, spot = torch.full((1, 3, 8, 8), 7.0), torch.zeros(1, 3, 8, 8)
    spot[0, :, 0, 0] = 5.0  # 1 of 64 pixels
    broken = torch.tensor([[[[0.0, 1.0], [float("nan"), float("inf")]]]]).expand(1, 3, 2, 2)
    nothing = torch.full((1, 3, 2, 2), float("nan"))
    assert shown_pixels(flat, UNKNOWN)[0].unique().tolist() == [0.5]
    assert shown_pixels(spot, UNKNOWN)[0].unique().tolist() == [0.0, 1.0]
    assert shown_pixels(broken, UNKNOWN)[0][0, 0, 0].tolist() == [0.0, 1.0]
    assert torch.isnan(shown_pixels(nothing, UNKNOWN)[0]).all()
