from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_attngrad.probe import ProbeInputError, split_batch
from lightning_attngrad.probe.labels import LabelsError, exclusive_classes, groups_of, join_labels, read_labels

IMAGES = torch.rand(4, 3, 8, 8)
NAMES = ("cat", "dog", "owl")
CLASSES = [1, 0, 2, 1]
ONE_HOT = [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
SOFT = [[0.1, 0.8, 0.1], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6], [0.3, 0.7, 0.0]]
SEVERAL = [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]]

#: What may stand for CLASSES in a batch.
OF_CLASSES: dict[str, Any] = {
    **{str(kind): torch.tensor(CLASSES, dtype=kind) for kind in (torch.uint8, torch.int32, torch.int64)},
    "floats": torch.tensor(CLASSES, dtype=torch.float64),
    "halves": torch.tensor(CLASSES, dtype=torch.float16),
    "a column": torch.tensor(CLASSES)[:, None],
    "a column of floats": torch.tensor(CLASSES).float()[:, None],
    "one-hot ints": torch.tensor(ONE_HOT),
    "one-hot bools": torch.tensor(ONE_HOT).bool(),
    "one-hot floats": torch.tensor(ONE_HOT).float(),
    "soft": torch.tensor(SOFT),
    "mixed up, in half precision": torch.tensor(SOFT).half(),
    "an array": np.array(CLASSES),
    "a list": CLASSES,
    "a list of tensors": [torch.tensor(one) for one in CLASSES],
    "words": ["dog", "cat", "owl", "dog"],
    "a tuple of words": ("dog", "cat", "owl", "dog"),
}
#: What may stand for SEVERAL.
OF_SEVERAL: dict[str, Any] = {
    "ints": torch.tensor(SEVERAL),
    "bools": torch.tensor(SEVERAL).bool(),
    "floats": torch.tensor(SEVERAL).float(),
    "an array": np.array(SEVERAL, dtype=np.float32),
    "a list of rows": SEVERAL,
}
#: Where they stand, and the key that leads there, if one is needed.
PLACES: dict[str, tuple[Any, Any]] = {
    "behind the images": (lambda labels: (IMAGES, labels), None),
    "third": (lambda labels: (IMAGES, ["a.png"] * 4, labels), 2),
    "by a common name": (lambda labels: {"image": IMAGES, "label": labels}, None),
    "further inside": (lambda labels: {"image": IMAGES, "truth": {"fine": [0, labels]}}, "truth.fine.1"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("clothes", OF_CLASSES)
def test_classes_in_all_their_clothes_wherever_they_stand(clothes: str, place: str) -> None:
    put, key = PLACES[place]
    said: list[str] = []
    _, labels = split_batch(put(OF_CLASSES[clothes]), target_key=key, class_names=lambda: NAMES, say=said.append)
    assert labels is not None
    classes = exclusive_classes(labels)
    assert classes is not None
    assert classes.dtype == torch.int64
    assert classes.tolist() == CLASSES
    assert said == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("clothes", OF_SEVERAL)
def test_several_labels_are_rows_of_them_and_never_class_numbers(clothes: str, place: str) -> None:
    put, key = PLACES[place]
    _, labels = split_batch(put(OF_SEVERAL[clothes]), target_key=key)
    assert labels is not None
    assert labels.dtype == torch.bool
    assert labels.int().tolist() == SEVERAL
    assert exclusive_classes(labels) is None


@pytest.mark.parametrize("ignored", [-100, -1, -7])
@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_classes_below_zero_are_none(ignored: int, kind: torch.dtype) -> None:
    labels = read_labels(torch.tensor([2, ignored, 0], dtype=kind), 3)
    classes = exclusive_classes(labels)
    assert classes is not None
    assert classes.tolist() == [2, -1, 0]


def test_numbers_are_no_classes() -> None:
    for numbers in (torch.tensor([0.5, 2.0, -3.0]), torch.tensor([[0.5, 2.0], [1.5, 0.0], [3.0, 4.0]])):
        labels = read_labels(numbers, 3)
        assert labels.dtype == torch.float32
        assert torch.equal(labels, numbers)
        assert exclusive_classes(labels) is None
        assert groups_of(labels) is None
    assert read_labels(torch.tensor([[0.5], [1.0]]), 2).shape == (2,)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.randint(3, 9, (4, 7)), "labels int64[4, 7] not understood: maps are of predicted classes"),
        (torch.zeros(4, 8, 8).long(), "labels int64[4, 8, 8] not understood: maps are of predicted classes"),
        (torch.tensor([1, 0]), "labels int64[2] not understood: maps are of predicted classes"),
        (["cat", "cow", "owl", "elk"], "'cow', 'elk' is no name of a class; they are 'cat', 'dog', 'owl'"),
        ({"boxes": torch.rand(4, 4)}, "if they are further inside, give ProbeImages(target_key=…)"),
        ([{"boxes": torch.rand(3, 4)}] * 4, "labels list(dict("),
        (torch.tensor([1, 0, 1, 1]) * 1j, "labels complex64[4] not understood"),
    ],
    ids=["several numbers an image", "masks", "another number of images", "words", "a dict", "boxes", "complex"],
)
def test_what_is_not_understood_is_said_in_one_line(labels: Any, said: str) -> None:
    heard: list[str] = []
    for batch in ((IMAGES, labels), {"image": IMAGES, "target": labels}):
        images, found = split_batch(batch, class_names=lambda: NAMES, say=heard.append)
        assert images is IMAGES
        assert found is None
    assert len(heard) == 2
    assert all(said in line and "\n" not in line for line in heard)


def test_words_need_the_names_of_classes() -> None:
    with pytest.raises(LabelsError, match=r"give ProbeImages\(class_names=…\)"):
        read_labels(["cat"], 1)


def test_two_views_are_no_labels_and_nothing_is_said_of_them() -> None:
    said: list[str] = []
    assert split_batch((IMAGES, torch.rand(4, 3, 8, 8)), say=said.append)[1] is None
    assert split_batch((IMAGES, None), say=said.append)[1] is None
    assert split_batch(IMAGES, say=said.append)[1] is None
    assert said == []


def test_what_cannot_be_read_gives_way_to_what_can() -> None:
    said: list[str] = []
    batch = {"image": IMAGES, "label": ["a", "b", "c", "d"], "y": torch.tensor(CLASSES)}
    _, labels = split_batch(batch, say=said.append)
    assert labels is not None
    assert labels.tolist() == CLASSES
    assert said == []


def test_one_row_with_several_labels_drops_no_other() -> None:
    joined = join_labels([read_labels(torch.tensor([row]), 1) for row in SEVERAL])
    assert joined is not None
    assert joined.int().tolist() == SEVERAL


def test_batches_of_other_forms_are_not_mixed_up() -> None:
    assert join_labels([torch.zeros(2, 3).bool(), torch.zeros(2, 4).bool()]) is None
    assert join_labels([torch.zeros(2).long(), torch.zeros(2, 4).bool()]) is None
    assert join_labels([torch.zeros(2).long(), torch.ones(1)]).tolist() == [0, 0, 1]  # type: ignore[union-attr]


def test_images_are_balanced_by_class_or_by_their_first_label() -> None:
    assert groups_of(torch.tensor(CLASSES)).tolist() == CLASSES  # type: ignore[union-attr]
    assert groups_of(torch.tensor(SEVERAL).bool()).tolist() == [0, 0, 3, 1]  # type: ignore[union-attr]


def test_a_batch_adapters_labels_are_read_likewise() -> None:
    def adapter(batch: Any) -> tuple[Tensor, Any]:
        return batch["x"], batch["words"]

    batch = {"x": IMAGES, "words": ["dog", "cat", "owl", "dog"]}
    _, labels = split_batch(batch, batch_adapter=adapter, class_names=lambda: NAMES)
    assert labels is not None
    assert labels.tolist() == CLASSES
    with pytest.raises(ProbeInputError):
        split_batch(batch, target_key="nothing")
