"""What becomes of a rewrite in a file of 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_attngrad.rewrite import Normalisation, rewrite, rounded_to_8_bits, survives_8_bits
from tests.rewrite.models import PIXELS, Counted, linear_model, others, random, tiny_vit, two_classes

AS_THEY_ARE = Normalisation((0.0,), (1.0,), "a test")


def test_rounding_is_that_of_an_image_file() -> None:
    pixels = random(2, 3, 16, 16)
    bytes_of_file = np.rint(pixels.double().numpy() * 255).astype(np.uint8)
    assert torch.equal(rounded_to_8_bits(pixels), torch.from_numpy(bytes_of_file).float() / 255)
    levels = torch.arange(256) / 255
    assert torch.equal(rounded_to_8_bits(levels), levels)


def test_changes_of_less_than_half_a_level_are_undone() -> None:
    """The first image needs a tenth of a level, the second three levels, the third cannot be rewritten at all."""
    images = torch.full((3, 3, 4, 4), 100 / 255)
    model, difference = two_classes(images[0], 0.1 / 255)
    lead = torch.tensor([0.0, 2.9 / 255, 1e3]) * difference.abs().sum()

    def forward(batch: Tensor) -> Tensor:
        return model(batch) + torch.stack([lead, torch.zeros(3)], dim=1)

    result = rewrite(model, images, 1, forward=forward, **PIXELS)
    assert result.success.tolist() == [True, True, False]
    rounded = forward(rounded_to_8_bits(result.pixels)).argmax(1) == 1
    survives = survives_8_bits(model, result, AS_THEY_ARE, forward=forward)
    assert survives.dtype == torch.bool
    assert survives.tolist() == (rounded & result.success).tolist()
    assert survives.tolist()[::2] == [False, False]


def test_a_large_change_survives() -> None:
    model, images = linear_model(3, 48), random(4, 3, 4, 4)
    result = rewrite(model, images, others(model, images), radius=0.5, steps=4, **PIXELS)
    assert result.success.any()
    assert torch.equal(survives_8_bits(model, result, AS_THEY_ARE), result.success)


def test_what_failed_does_not_survive_even_if_rounding_rewrites_it() -> None:
    images = torch.full((1, 1, 1, 1), 0.499)

    def forward(batch: Tensor) -> Tensor:
        at_level = (batch * 255 - (batch * 255).round()).abs() < 1e-4
        return torch.cat([~at_level.flatten(1), at_level.flatten(1)], dim=1).float() + 0 * batch.flatten(1)

    result = rewrite(torch.nn.Identity(), images, 1, forward=forward, radius=1e-6, steps=1, **PIXELS)
    assert not result.success
    assert forward(rounded_to_8_bits(result.pixels)).argmax(1).tolist() == [1]
    assert not survives_8_bits(torch.nn.Identity(), result, AS_THEY_ARE, forward=forward)


def test_the_normalisation_is_the_model_s() -> None:
    model, pixels = linear_model(3, 48), random(4, 3, 4, 4)
    constants: dict[str, Any] = {"mean": (0.1, 0.5, 0.4), "std": (0.2, 0.3, 0.4)}
    normalisation = Normalisation(*constants.values(), "a test")
    images = normalisation.to_images(pixels)
    result = rewrite(model, images, others(model, images), steps=4, **constants)
    expected = model(normalisation.to_images(rounded_to_8_bits(result.pixels))).argmax(1) == result.target
    assert torch.equal(survives_8_bits(model, result, normalisation), expected & result.success)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_pass_in_evaluation_mode_and_in_the_model_s_type(dtype: torch.dtype) -> None:
    model = tiny_vit(drop_rate=0.5).to(dtype)
    images = random(2, 3, 32, 32).to(dtype)
    result = rewrite(model, images, others(model, images), steps=2, **PIXELS)
    counted = Counted(model).train()
    first, second = (survives_8_bits(counted, result, AS_THEY_ARE) for _ in range(2))
    assert torch.equal(first, second)
    assert (counted.forwards, counted.modes) == (2, {False})
    assert counted.training
    assert model.training
