"""Classes are said in one way to `explain` and `rewrite`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lightning_attngrad as attngrad
from lightning_attngrad.explain.targets import classes_of
from tests.zoo import ZOO

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (3, [[3], [3]]),
        ([3], [[3], [3]]),
        ([3, 4], [[3, 4], [3, 4]]),  # as many as there are images, and yet both for each
        ((3, 4, 0), [[3, 4, 0], [3, 4, 0]]),
        (torch.tensor(3), [[3], [3]]),
        (torch.tensor([3, 4]), [[3], [4]]),
        (np.array([3, 4]), [[3], [4]]),
        (torch.tensor([[3, 4, 1], [0, 1, 2]]), [[3, 4, 1], [0, 1, 2]]),
    ],
    ids=str,
)
def test_explain_and_rewrite_mean_the_same(target: Any, classes: list[list[int]]) -> None:
    vit = ZOO["vit"]
    model, images = vit.build(), vit.images().sigmoid()
    explanation = attngrad.explain(model, images, target)
    assert explanation.target.reshape(2, -1).tolist() == classes
    result = attngrad.rewrite(model, images, target, steps=1, mean=0.0, std=1.0)
    assert result.target.reshape(2, -1).tolist() == classes
    assert result.index.reshape(2, -1).tolist() == [[row] * len(classes[0]) for row in range(2)]
    assert torch.equal(result.original, images[result.index])


def test_rows_of_several_targets_are_those_of_each_alone() -> None:
    vit = ZOO["vit"]
    model, images = vit.build(), vit.images().sigmoid()
    options: dict[str, Any] = {"steps": 4, "mean": 0.0, "std": 1.0}
    both = attngrad.rewrite(model, images, [3, 4], **options)
    for column, target in enumerate((3, 4)):
        alone = attngrad.rewrite(model, images, target, **options)
        torch.testing.assert_close(both.distance[column::2], alone.distance, rtol=1e-3, atol=0)


def test_labels_are_switched_for_each_image() -> None:
    vit = ZOO["vit"]
    model, images = vit.build(), vit.images().sigmoid()
    with torch.no_grad():
        labels = model(images).shape[1]
        on = model(images) > 0
    result = attngrad.rewrite(model, images, [0, 2], steps=1, mean=0.0, std=1.0, task="multilabel")
    expected = [[label + labels * int(on[row, label]) for label in (0, 2)] for row in range(2)]
    assert result.target.reshape(2, 2).tolist() == expected


@pytest.mark.parametrize(
    "target", [1.0, "cat", [True, False], torch.tensor([1, 2, 3]), torch.zeros(2, 0).long(), [], [["a"]], [0.5]]
)
def test_what_is_no_class(target: Any) -> None:
    with pytest.raises(ValueError, match=r"target: got .*a list of ints \(these classes for each image\)"):
        classes_of(target, 2, CPU, otherwise="None")


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_rows_of_zeros_and_ones_are_no_numbers_of_classes_and_what_is_said_to_write_works(kind: torch.dtype) -> None:
    vit = ZOO["vit"]
    model, images = vit.build(), vit.images()
    target = torch.eye(5, dtype=kind)[[3, 1]]
    for given in (target, target[:, None]):
        with pytest.raises(ValueError, match=r"write target.flatten\(1\).argmax\(dim=1\)"):
            attngrad.explain(model, images, given)
    said = target.float().argmax(dim=1) if kind == torch.bool else target.flatten(1).argmax(dim=1)
    assert attngrad.explain(model, images, said).target.tolist() == [3, 1]


def test_a_list_of_labels_is_asked_about() -> None:
    vit = ZOO["vit"]
    with pytest.raises(ValueError, match=r"write torch.tensor\(target\) for one class an image"):
        attngrad.explain(vit.build(), vit.images(4), [0, 1, 1, 0])
