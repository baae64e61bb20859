"""Composites of stamps, from stamps drawn here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks import stamps
from benchmarks.stamps import Scene

SIZE = 56
CLASSES = {"red": ("red",), "blue": ("blue",)}
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(4):
            stamp = Image.new("RGBA", (60, 40))
            ImageDraw.Draw(stamp).ellipse((10, 5, 50, 35), fill=(*colour, 255))
            stamp.save(tmp_path / name / f"{number}.png")
        stamp.save(tmp_path / name / "0_mirror.png")
    grey = Image.fromarray(np.full((200, 300, 3), 128, dtype=np.uint8))
    monkeypatch.setattr(stamps, "_photograph", lambda name: grey)
    return tmp_path


def scene(folder: Path, part: tuple[int, ...] = (0, 1, 2, 3), seed: int = 0) -> Scene:
    return Scene(folder, CLASSES, lambda number: number in part, held_out=False, seed=seed, size=SIZE)


def test_the_mask_is_where_the_stamp_is(folder: Path) -> None:
    images, labels, masks = scene(folder).everything(2)
    assert images.shape == (16, 3, SIZE, SIZE)
    assert labels.bincount().tolist() == [8, 8]
    for image, label, mask in zip(images, labels, masks, strict=True):
        colour = torch.tensor(list(COLOURS.values())[label]).float() / 255
        inside, outside = mask == 1, mask == 0
        assert inside.any()
        torch.testing.assert_close(image[:, inside], colour[:, None].expand(3, int(inside.sum())))
        assert (image[:, outside] == 128 / 255).all()


def test_pairs_are_side_by_side_and_of_different_classes(folder: Path) -> None:
    images, labels, masks = scene(folder).pairs(6)
    assert images.shape == (6, 3, SIZE, SIZE)
    assert (labels[:, 0] != labels[:, 1]).all()
    assert (masks[:, 0, :, SIZE // 2 :] == 0).all()
    assert (masks[:, 1, :, : SIZE // 2] == 0).all()
    for image, label, mask in zip(images, labels, masks, strict=True):
        for side in (0, 1):
            colour = torch.tensor(list(COLOURS.values())[label[side]]).float() / 255
            inside = mask[side] == 1
            assert inside.any()
            torch.testing.assert_close(image[:, inside], colour[:, None].expand(3, int(inside.sum())))


def test_a_scene_has_only_its_own_stamps_and_follows_its_seed(folder: Path) -> None:
    assert [len(of_class) for of_class in scene(folder, (1, 3)).stamps] == [2, 2]  # mirrored ones are no others
    first, again, other = (scene(folder, seed=seed).batch(8) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
