"""Masks: where they may stand in a batch, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_attngrad.probe import ProbeInputError, load_mask_source, read_masks

IMAGES = torch.rand(2, 3, 8, 6)
MASKS = torch.rand(2, 8, 6) > 0.5


def bright(batch: Any) -> Tensor:
    return batch[0][:, 0] > 0.5


@pytest.mark.parametrize(
    ("batch", "mask"),
    [
        ((IMAGES, MASKS), 1),
        ((IMAGES, MASKS), "1"),
        ({"image": IMAGES, "mask": MASKS}, "mask"),
        ({"image": IMAGES, "target": {"mask": MASKS[:, None]}}, "target.mask"),
        ({"image": IMAGES, "target": {"mask": MASKS}}, ["target", "mask"]),
        ((IMAGES, MASKS.float()), 1),
        ((IMAGES, MASKS.long()), 1),
        ((IMAGES, MASKS.byte()[:, None]), 1),
        ((IMAGES, MASKS), lambda batch: batch[1]),
    ],
)
def test_masks_of_every_kind_and_place(batch: Any, mask: Any) -> None:
    found = read_masks(batch, load_mask_source(mask), IMAGES)
    assert found.dtype == torch.float32
    assert torch.equal(found, MASKS.float())


def test_soft_masks_keep_their_values() -> None:
    soft = torch.rand(2, 8, 6, dtype=torch.float64)
    assert torch.equal(read_masks((IMAGES, soft), 1, IMAGES), soft.float())


def test_what_is_found_does_not_share_the_memory_of_the_batch() -> None:
    masks = MASKS.float()
    found = read_masks((IMAGES, masks), 1, IMAGES)
    masks.zero_()
    assert torch.equal(found, MASKS.float())


def test_an_import_path_has_a_colon_and_a_key_has_none() -> None:
    source = load_mask_source(f"{__name__}:bright")
    assert source is bright
    assert torch.equal(read_masks((IMAGES, 0), source, IMAGES), (IMAGES[:, 0] > 0.5).float())
    assert load_mask_source(f"{__name__}.bright") == f"{__name__}.bright"
    with pytest.raises(ProbeInputError, match=r"leads nowhere.*written 'package.module:function'"):
        read_masks((IMAGES, MASKS), f"{__name__}.bright", IMAGES)


@pytest.mark.parametrize("mask", ["", (), True, 1.5, f"{__name__}:nothing", "no.such:thing", f"{__name__}:MASKS"])
def test_what_is_no_source_of_masks_is_refused(mask: Any) -> None:
    with pytest.raises(ValueError, match=r"mask: got .*expected a name, index or path in the batch"):
        load_mask_source(mask)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (MASKS[:, :4], r"got masks of 4 × 6 pixels; expected 8 × 6, .*resize and crop them as the images"),
        (MASKS[:1], "got 1 masks; expected 2, one an image"),
        (MASKS[:, None].expand(2, 3, 8, 6), r"got bool\[2, 3, 8, 6\]; expected a tensor \(B, H, W\)"),
        ("a path", "got str; expected a tensor"),
        (255 * MASKS.byte(), "from 0 to 255; expected bool, 0 and 1, .* by 255"),
        (2 * MASKS.long(), "from 0 to 2; expected bool"),
        (MASKS.float() - 0.5, "from -0.5 to 0.5"),
        (torch.full((2, 8, 6), torch.nan), "from nan to nan"),
    ],
)
def test_masks_that_do_not_fit_are_refused_with_what_to_do(masks: Any, message: str) -> None:
    with pytest.raises(ProbeInputError, match=message):
        read_masks((IMAGES, masks), 1, IMAGES)


def test_a_key_that_leads_nowhere_lists_what_there_is() -> None:
    with pytest.raises(ProbeInputError, match=r"mask: got 'masks', which leads nowhere .*'mask': bool\[2, 8, 6\]"):
        read_masks({"image": IMAGES, "mask": MASKS}, "masks", IMAGES)
