from __future__ import annotations

import dataclasses
from collections import UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_attngrad.probe.resolve import ProbeInputError
from lightning_attngrad.probe.samples import Samples, map_tensors, path_in_words, path_to, put

IMAGES = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2).contiguous()
ROWS = torch.tensor([2, 0, 2, 1])


class Pair(NamedTuple):
    image: Tensor
    numbers: Tensor


@dataclasses.dataclass(frozen=True)
class Record:
    image: Tensor
    names: list[str]


class Plain:
    def __init__(self, image: Tensor) -> None:
        self.image, self.kind = image, "plain"


def samples(batch: Any, images: Tensor = IMAGES) -> Samples:
    return Samples(batch, len(images), path_to(batch, images))


@pytest.mark.parametrize(
    ("batch", "path", "words"),
    [
        (IMAGES, (), "batch"),
        ([IMAGES, 1], (0,), "batch[0]"),
        (([0, IMAGES], 1), (0, 1), "batch[0][1]"),
        ({"a": {"b": IMAGES}}, ("a", "b"), "batch['a']['b']"),
        (UserDict(image=IMAGES), ("image",), "batch['image']"),
        (Pair(IMAGES, torch.zeros(3)), ("image",), "batch.image"),
        ([Record(IMAGES, ["a", "b", "c"])], (0, "image"), "batch[0].image"),
        (Plain(IMAGES), ("image",), "batch.image"),
    ],
)
def test_images_are_found_and_others_put_in_their_place(batch: Any, path: tuple[Any, ...], words: str) -> None:
    assert path_to(batch, IMAGES) == path
    assert path_in_words(path, batch) == words
    others = torch.rand(4, 3, 2, 2)
    changed = samples(batch).rows(ROWS, others)
    assert path_to(changed, others) == path
    assert type(changed) is type(batch)
    assert path_to(batch, IMAGES) == path  # the batch itself is as it was


def test_each_sample_keeps_what_goes_along_with_it() -> None:
    boxes = [{"boxes": torch.full((count, 4), float(index))} for index, count in enumerate((3, 0, 5))]
    batch = {
        "image": IMAGES,
        "label": torch.tensor([10, 11, 12]),
        "array": np.arange(6).reshape(3, 2),
        "names": ["a", "b", "c"],
        "files": ("x", "y", "z"),
        "boxes": boxes,
        "views": [IMAGES + 10, IMAGES + 20, IMAGES + 30],  # as many as there are samples
        "fields": {"deep": torch.tensor([1.0, 2.0, 3.0])},
        "classes": torch.eye(5),
        "temperature": torch.tensor(0.1),
        "epoch": 3,
        "nothing": None,
    }
    found = samples(batch).rows(ROWS)
    assert found["image"][:, 0, 0, 0].tolist() == [2, 0, 2, 1]
    assert found["label"].tolist() == [12, 10, 12, 11]
    assert found["array"].tolist() == [[4, 5], [0, 1], [4, 5], [2, 3]]
    assert found["names"] == ["c", "a", "c", "b"]
    assert found["files"] == ("z", "x", "z", "y")
    assert [len(one["boxes"]) for one in found["boxes"]] == [5, 3, 5, 0]
    assert [view[:, 0, 0, 0].tolist() for view in found["views"]] == [
        [12, 10, 12, 11],
        [22, 20, 22, 21],
        [32, 30, 32, 31],
    ]
    assert found["fields"]["deep"].tolist() == [3, 1, 3, 2]
    for shared in ("classes", "temperature", "epoch", "nothing"):
        assert found[shared] is batch[shared]


def test_what_the_images_lie_in_is_no_list_of_samples_however_long_it_is() -> None:
    two = IMAGES[:2].clone()
    batch = (two, ["a", "b"])  # two entries, two samples
    images, names = samples(batch, two).rows(torch.tensor([1]))
    assert images[:, 0, 0, 0].tolist() == [1]
    assert names == ["b"]
    mixed = [two, torch.tensor(0.5)]  # a scalar is of no sample
    images, scalar = samples(mixed, two).rows(torch.tensor([1, 1, 0]))
    assert len(images) == 3
    assert scalar is mixed[1]


def test_batches_are_put_together() -> None:
    batches = [
        {"image": IMAGES, "names": ["a", "b", "c"], "array": np.zeros((3, 2)), "scale": 2, "deep": (torch.ones(3),)},
        {"image": IMAGES[:1] + 5, "names": ["d"], "array": np.ones((1, 2)), "scale": 2, "deep": (torch.zeros(1),)},
    ]
    both = Samples.of(batches, [3, 1], [("image",), ("image",)])
    found = both.rows(torch.tensor([3, 1]))
    assert found["image"][:, 0, 0, 0].tolist() == [5, 1]
    assert found["names"] == ["d", "b"]
    assert found["array"].tolist() == [[1, 1], [0, 0]]
    assert found["scale"] == 2
    assert found["deep"][0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (
            {"text": torch.zeros(3, 5)},
            {"text": torch.zeros(1, 7)},
            r"batch\['text'\]: .* float32\[1, 7\] and float32\[3, 5\]",
        ),
        (
            {"scale": torch.tensor(1.0)},
            {"scale": torch.tensor(2.0)},
            r"batch\['scale'\]: .* differs from batch to batch",
        ),
        ({"index": 0}, {"index": 1}, r"batch\['index'\]: .* differs from batch to batch"),
    ],
)
def test_batches_that_cannot_be_put_together_are_refused(one: Any, other: Any, said: str) -> None:
    with pytest.raises(ProbeInputError, match=said):
        Samples.of([{"image": IMAGES, **one}, {"image": IMAGES[:1], **other}], [3, 1], [("image",), ("image",)])


def test_tensors_are_changed_wherever_they_are_and_the_rest_is_shared() -> None:
    names = ["a"]
    batch = {"image": IMAGES, "deep": [Pair(IMAGES, torch.zeros(3)), names]}
    changed = map_tensors(batch, lambda tensor: tensor + 1)
    assert changed["deep"][0].numbers.tolist() == [1, 1, 1]
    assert changed["deep"][1] is names
    assert batch["image"] is IMAGES
    assert put(batch, (), 3) == 3
