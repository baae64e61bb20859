"""Pixels to images and back, and how their normalisation is found out or asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_attngrad.rewrite import (
    Normalisation,
    UnknownNormalisationError,
    check_normalisation,
    require_normalisation,
)
from lightning_attngrad.rewrite.pixels import are_pixels, as_numbers, configured_normalisation
from tests.rewrite.models import random

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Normalisation(MEAN, STD, "a test")


def columns(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def span(low: float, high: float, channels: int = 3) -> Tensor:
    """Images whose values reach from low to high."""
    return torch.linspace(low, high, 16).expand(2, channels, 4, 16).contiguous()


class Configured(nn.Module):
    def __init__(self, **configurations: Any) -> None:
        super().__init__()
        self.net = nn.Identity()
        for name, value in configurations.items():
            setattr(self.net, name, value)


CONFIGURED = Configured(pretrained_cfg={"mean": MEAN, "std": STD})


def test_images_are_the_formula_to_the_last_bit() -> None:
    pixels = random(2, 3, 5, 4)
    assert torch.equal(IMAGENET.to_images(pixels), (pixels - columns(MEAN)) / columns(STD))


def test_one_number_serves_every_channel() -> None:
    pixels = random(2, 4, 3, 3)
    assert torch.equal(Normalisation((0.5,), (0.25,), "").to_images(pixels), (pixels - 0.5) / 0.25)


@settings(max_examples=30, deadline=None)
@given(st.floats(-2, 2), st.floats(0.01, 5), st.integers(0, 10**6))
def test_pixels_come_back(mean: float, std: float, seed: int) -> None:
    pixels = random(1, 3, 4, 4, seed=seed)
    normalisation = Normalisation((mean,), (std,), "")
    back = normalisation.to_pixels(normalisation.to_images(pixels))
    torch.testing.assert_close(back, pixels, rtol=0, atol=1e-6)
    assert ((back >= 0) & (back <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_pixels_are_clamped_and_float32(dtype: torch.dtype) -> None:
    pixels = IMAGENET.to_pixels(torch.tensor([-40.0, 40.0], dtype=dtype).expand(1, 3, 1, 2))
    assert pixels.dtype == torch.float32
    assert pixels[0, 0, 0].tolist() == [0.0, 1.0]


def test_the_identity_gives_a_copy() -> None:
    """A model that normalises in place would otherwise write into the pixels of the search."""
    pixels = random(1, 3, 2, 2)
    images = Normalisation((0.0,), (1.0,), "").to_images(pixels)
    assert torch.equal(images, pixels)
    images.zero_()
    assert pixels.min() > 0


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_type_does_not_matter(default: torch.dtype) -> None:
    """Lightning's precision="bf16-true" sets it."""
    pixels = random(1, 3, 4, 4)
    expected = IMAGENET.to_images(pixels)
    torch.set_default_dtype(default)
    try:
        images, back = IMAGENET.to_images(pixels), IMAGENET.to_pixels(expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert images.dtype == back.dtype == torch.float32
    assert torch.equal(images, expected)
    assert torch.equal(back, IMAGENET.to_pixels(expected))


def test_the_gradient_passes() -> None:
    pixels = random(1, 3, 2, 2).requires_grad_()
    IMAGENET.to_images(pixels).sum().backward()
    assert pixels.grad is not None
    torch.testing.assert_close(pixels.grad, (1 / columns(STD)).expand(1, 3, 2, 2))


def test_other_numbers_of_channels_are_refused() -> None:
    for convert in (IMAGENET.to_pixels, IMAGENET.to_images, IMAGENET.fits):
        with pytest.raises(ValueError, match=r"got 3 numbers each \(a test\), but the images have 4 channels; pass"):
            convert(random(1, 4, 2, 2))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5, 0.5), "got 1 and 2 numbers"),
        ((), (), "got 0 and 0 numbers"),
        ((0.5,), (0.0,), "expected positive"),
        ((0.5, 0.5), (0.5, -0.1), "expected positive"),
        ((0.5,), (float("nan"),), "expected positive"),
    ],
)
def test_constants_that_cannot_be_are_refused(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalisation(mean, std, "a test")


@pytest.mark.parametrize("values", [0.5, [0.5], (0.5,), torch.tensor(0.5), torch.tensor([[0.5]]), np.array([0.5])])
def test_constants_may_be_numbers_sequences_and_tensors(values: Any) -> None:
    assert as_numbers(values) == (0.5,)
    known = check_normalisation(values, values)
    assert known is not None
    assert (known.mean, known.std, known.source) == ((0.5,), (0.5,), "arguments mean and std")


def test_arguments_go_together_and_are_numbers() -> None:
    assert check_normalisation(None, None) is None
    for mean, std in ((0.5, None), (None, 0.5)):
        with pytest.raises(ValueError, match="expected both, or neither"):
            check_normalisation(mean, std)
    for wrong in ("grey", ["a"], object(), [[0.5]]):
        with pytest.raises(ValueError, match="expected numbers, one a channel"):
            check_normalisation(wrong, 0.5)  # type: ignore[arg-type]


def test_what_counts_as_pixels() -> None:
    assert are_pixels(span(0, 1))
    assert are_pixels(span(-0.04, 1.04))
    assert not are_pixels(span(-0.06, 1))
    assert not are_pixels(span(0, 1.06))
    assert are_pixels(span(0, 255), tolerance=254)
    assert not are_pixels(torch.tensor([[[[0.5, float("nan")]]]]))


def test_the_configuration_of_a_timm_model() -> None:
    model = nn.Sequential(timm.create_model("test_vit", num_classes=2))
    found = configured_normalisation(model, 3)
    assert found is not None
    assert (found.mean, found.std, found.source) == ((0.5,) * 3, (0.5,) * 3, "pretrained_cfg of 0")
    assert configured_normalisation(model, 1) is None  # kept by timm with in_chans=1
    assert configured_normalisation(nn.Linear(2, 2), 3) is None
    assert configured_normalisation(Configured(pretrained_cfg="none", default_cfg=None), 3) is None
    assert configured_normalisation(Configured(pretrained_cfg={"mean": None, "std": None}), 3) is None
    older = configured_normalisation(Configured(default_cfg={"mean": MEAN, "std": STD}), 3)
    assert older is not None
    assert older.source == "default_cfg of net"


@pytest.mark.parametrize(
    ("model", "images", "mean"),
    [
        (nn.Identity(), span(0, 1), (0.0,)),
        (nn.Identity(), span(0.3, 0.6), (0.0,)),
        (nn.Identity(), span(-0.02, 1.01), (0.0,)),  # a bicubic resize
        (CONFIGURED, span(0, 1), (0.0,)),  # by chance, if they had been normalised
        (CONFIGURED, span(-0.02, 1.01), (0.0,)),
        (CONFIGURED, IMAGENET.to_images(span(0, 1)), MEAN),
        (CONFIGURED, IMAGENET.to_images(span(0, 1)).bfloat16(), MEAN),
        (Configured(pretrained_cfg={"mean": (0,) * 3, "std": (1,) * 3}), span(0.2, 0.8), (0.0,)),
        (CONFIGURED, span(0.2, 0.8, channels=1), (0.0,)),  # the constants are for other images
    ],
)
def test_a_normalisation_that_is_certain_is_found(model: nn.Module, images: Tensor, mean: tuple[float, ...]) -> None:
    assert require_normalisation(model, images, None).mean == mean


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (CONFIGURED, span(0.2, 0.8), r"Pass mean=0, std=1 if the model takes pixels in \[0, 1\]"),
        (CONFIGURED, span(0.2, 1), "pretrained_cfg of net says mean=.*0.485.* and std="),
        (CONFIGURED, span(0, 0.9), "Pass mean=0, std=1"),
        (CONFIGURED, span(0, 200), r"lie in \[0.00, 200.00\], and the pretrained_cfg of net does not fit; pass the"),
        (
            nn.Identity(),
            span(-2, 2),
            r"lie in \[-2.00, 2.00\], and nothing says how they were normalised; pass the mean",
        ),
        (CONFIGURED, span(-2, 2, channels=1), "nothing says"),
        (CONFIGURED, span(-10, 10), "the pretrained_cfg of net does not fit; pass"),
        # Normalised with 0.5 and 0.5: the constants of the configuration would take them for a grey image.
        (CONFIGURED, span(-1, 1), r"lie in \[-1.00, 1.00\], and the pretrained_cfg of net does not surely fit"),
    ],
)
def test_a_doubt_is_an_error_that_says_what_to_pass(model: nn.Module, images: Tensor, message: str) -> None:
    with pytest.raises(UnknownNormalisationError, match=message):
        require_normalisation(model, images, None)


def test_a_hint_from_elsewhere_is_believed_only_where_it_surely_fits() -> None:
    hint = Normalisation(MEAN, STD, "Normalize in Data.transform", certain=False)
    assert require_normalisation(nn.Identity(), hint.to_images(span(0, 1)), hint) is hint
    for images in (span(0, 1), span(-1, 1)):  # the model normalises inside; another transform was used
        with pytest.raises(UnknownNormalisationError, match=r"Normalize in Data\.transform"):
            require_normalisation(nn.Identity(), images, hint)


def test_what_is_known_wins_if_the_images_can_come_from_it() -> None:
    known = Normalisation((0.5,), (0.5,), "arguments mean and std")
    assert require_normalisation(CONFIGURED, span(-1, 1), known) is known
    assert require_normalisation(CONFIGURED, span(-1.05, 1.05), known) is known
    with pytest.raises(
        UnknownNormalisationError, match=r"got \(0.5,\) and \(0.5,\) .*arguments.* lie in \[-2.00, 2.00\]"
    ):
        require_normalisation(CONFIGURED, span(-2, 2), known)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_are_named_as_such(value: float) -> None:
    images = span(0, 1)
    images[0, 0, 0, 0] = value
    for known in (None, IMAGENET):
        with pytest.raises(ValueError, match="images: got NaN or infinite values") as error:
            require_normalisation(nn.Identity(), images, known)
        assert not isinstance(error.value, UnknownNormalisationError)  # no constants would help


def test_units_of_mean_and_std() -> None:
    """The same normalisation, written in three units."""
    pixels = random(1, 3, 4, 4)
    for low, high in ((0.0, 255.0), (0.0, 10_000.0), (-30.0, 5.0)):
        mean, std = (
            [low * shift + (high - low) * value for value in values] for values, shift in ((MEAN, 1), (STD, 0))
        )
        other = check_normalisation(mean, std, (low, high))
        assert other is not None
        torch.testing.assert_close(other.to_images(pixels), IMAGENET.to_images(pixels), rtol=0, atol=1e-4)
        torch.testing.assert_close(other.to_pixels(IMAGENET.to_images(pixels)), pixels, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            other.undone(IMAGENET.to_images(pixels)), low + (high - low) * pixels, rtol=1e-4, atol=1e-3
        )
        assert other.in_pixels.mean == pytest.approx(MEAN)
        assert not other.is_identity
    assert check_normalisation(None, None, (0, 255)) == Normalisation(
        (0.0,), (1.0,), "argument pixel_range", pixel_range=(0.0, 255.0)
    )
    assert not Normalisation((0.0,), (1.0,), "", pixel_range=(0, 255)).is_identity
    assert Normalisation((0.0,), (255.0,), "", pixel_range=(0, 255)).is_identity


def test_without_black_and_white_there_are_no_pixels() -> None:
    nobody_says = Normalisation((900.0,), (200.0,), "a test", pixel_range=None)
    for convert in (nobody_says.to_pixels, nobody_says.to_images, nobody_says.fits):
        with pytest.raises(
            UnknownNormalisationError, match=r"pixel_range: nothing says which values are black and white"
        ):
            convert(span(-1, 1))
    assert nobody_says.undone(span(-1, 1)).aminmax() == (700.0, 1100.0)


@pytest.mark.parametrize(
    ("written", "images", "found"),
    [
        (Normalisation((0.0,), (255.0,), "", pixel_range=None), span(0.1, 0.6), (0.0, 255.0)),  # a division
        (Normalisation((0.0,), (3000.0,), "", pixel_range=None), span(0.1, 2.0), None),
        (Normalisation((124.0,), (58.0,), "", pixel_range=None), (span(0, 255) - 124) / 58, (0.0, 255.0)),
        (Normalisation((0.4,), (0.3,), "", pixel_range=None), (span(0, 1) - 0.4) / 0.3, (0.0, 1.0)),
        (Normalisation((124.0,), (58.0,), "", pixel_range=None), (span(0, 200) - 124) / 58, None),
        (Normalisation((124.0,), (58.0,), "", pixel_range=(0, 300)), (span(0, 255) - 124) / 58, (0, 300)),
    ],
)
def test_the_range_is_taken_from_the_images_only_where_it_is_certain(
    written: Normalisation, images: Tensor, found: Any
) -> None:
    assert written.with_range_of(images).pixel_range == found


def test_images_from_0_to_255_are_recognised() -> None:
    found = require_normalisation(nn.Identity(), span(0, 255), None)
    assert (found.pixel_range, found.source) == ((0.0, 255.0), "images that lie in [0, 255] already")
    assert require_normalisation(CONFIGURED, span(3, 252), None).pixel_range == (0.0, 255.0)
    for low, high in ((0, 200), (40, 255), (0, 300), (-20, 255)):
        with pytest.raises(UnknownNormalisationError, match="mean, std: the images lie in"):
            require_normalisation(nn.Identity(), span(low, high), None)


def test_hints_are_believed_in_their_order_where_they_surely_fit() -> None:
    target = Normalisation((3.2,), (1.1,), "constants of the targets", certain=False)
    other = Normalisation((0.5,) * 4, (0.5,) * 4, "of other channels", certain=False)
    right = Normalisation(MEAN, STD, "the right ones", certain=False)
    images = IMAGENET.to_images(span(0, 1))
    assert require_normalisation(None, images, None, [target, other, right]) is right
    assert require_normalisation(None, span(0, 1), None, [right]).source == "images that lie in [0, 1] already"
    with pytest.raises(UnknownNormalisationError, match="but the the right ones says mean="):
        require_normalisation(None, span(0.2, 0.7), None, [right])
