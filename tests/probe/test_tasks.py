"""What the output means is read off labels, names and outputs where that is certain, and asked for where it is not."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from lightning_attngrad.explain import ONE_NUMBER, TASKS, UNSAID, Similarity, Undecided
from lightning_attngrad.probe.tasks import (
    Seen,
    find_task,
    labels_for,
    sign_of_embedding,
    task_in_a_word,
    task_of_a_word,
)

MODEL = nn.Linear(1, 1)
GENERATOR = torch.Generator().manual_seed(0)
ROWS = {width: torch.randn(6, width, generator=GENERATOR) for width in (1, 2, 3, 4, 32)}
SEVERAL = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]]).bool()
ONE_HOT = torch.eye(3).bool()[[0, 1, 2, 2, 1, 0]]
SOFT = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1]]).repeat(3, 1)
CLASSES = torch.tensor([0, 1, 2, 2, 1, 0])
BINARY = torch.tensor([0, 1, 1, 0, 0, 1])
NUMBERS = torch.tensor([0.5, -1.25, 3.0, 2.5, 0.0, 7.0])
ALL_ONES = torch.ones(6).long()


@pytest.mark.parametrize(
    ("labels", "outputs", "names", "expected"),
    [
        (CLASSES, 3, None, "multiclass"),
        (CLASSES, 3, 3, "multiclass"),
        (CLASSES.float(), 3, None, "multiclass"),
        (CLASSES, 4, None, "multiclass"),  # a class that none of the images has
        (BINARY, 2, None, "multiclass"),
        (ONE_HOT, 3, None, "multiclass"),
        (ONE_HOT.float() * 0.9 + 0.1 / 3, 3, None, "multiclass"),  # smoothed
        (SOFT, 3, None, "multiclass"),
        (torch.tensor([0, 1, 255, -100, 1, 2]), 3, None, "multiclass"),  # ignored values
        (BINARY, 1, None, "binary"),
        (BINARY.float(), 1, None, "binary"),
        (torch.tensor([0, 1, -100, 0, 0, 1]), 1, None, "binary"),
        (ALL_ONES, 1, 2, "binary"),
        (None, 1, 2, "binary"),
        (SEVERAL, 3, None, "multilabel"),
        (SEVERAL, 3, 3, "multilabel"),
        (NUMBERS, 1, None, "regression"),
        (NUMBERS, 2, None, "regression"),  # a mean and its variance: no classes
        (torch.stack([NUMBERS, NUMBERS], dim=1), 2, None, "regression"),
        (CLASSES.float() * 20, 1, None, "regression"),  # whole years, and one output
        (None, 3, 3, "unsaid"),
        (None, 3, None, "unsaid"),
        (CLASSES, 1, None, "one number"),  # which of them is class 1?
        (ALL_ONES, 1, None, "one number"),
        (None, 1, None, "one number"),
        (torch.tensor([0.05, 0.95]).repeat(3), 1, None, "one number"),  # smoothed labels, or numbers
        (CLASSES, 2, None, "undecided"),  # a label that has no output
        (CLASSES, 4, 3, "undecided"),
        (CLASSES, 32, 10, "undecided"),
        (None, 32, 10, "undecided"),
        (SEVERAL, 4, None, "undecided"),
        (SEVERAL, 1, None, "undecided"),
        (ONE_HOT, 4, None, "undecided"),
        (SEVERAL * 0.9 + 0.05, 3, None, "undecided"),  # numbers between 0 and 1, or smoothed
    ],
)
def test_tasks_of_labels_outputs_and_names(labels: Any, outputs: int, names: int | None, expected: str) -> None:
    task, _ = find_task(ROWS[outputs], labels, None, names, MODEL)
    assert task.name == expected


@pytest.mark.parametrize("unknown", [-1.0, float("nan")])
def test_labels_of_which_some_are_not_known_are_not_taken_for_numbers(unknown: float) -> None:
    """As those of CheXpert: there, not there, or not known."""
    labels = torch.tensor([[1.0, 0.0, unknown], [0.0, 1.0, 1.0], [unknown, 0.0, 0.0]])
    task, _ = find_task(ROWS[3], labels, None, None, MODEL)
    assert isinstance(task, Undecided)
    assert "labels of which some are not known: make those 0 in a batch_adapter, and say 'multilabel'" in task.why
    assert find_task(ROWS[3], labels * 2, None, None, MODEL)[0].name == "regression"


def test_what_cannot_be_told_says_why_and_what_to_write() -> None:
    task, said = find_task(ROWS[32], CLASSES, None, 10, MODEL)
    assert said == ""
    with pytest.raises(ValueError, match="gives 32 numbers an image, and 10 classes have names") as error:
        task.scores(ROWS[32], 6)
    for what in ("objective='start'", "Similarity(vectors, names)", "objective=function", "ProbeImages(task=…)"):
        assert what in str(error.value)
    task, said = find_task(ROWS[1], CLASSES, None, None, MODEL)
    assert task is ONE_NUMBER
    assert "labels go beyond 0 and 1" in said
    assert "task='binary'" in said
    task, said = find_task(ROWS[3], None, None, None, MODEL)
    assert task is UNSAID
    assert "no labels, no names of classes" in said


def test_the_data_set_knows_more_than_the_images() -> None:
    """One-hot rows of a data set in which others have several; class 1 where all images have class 0."""
    whole = Seen.of(SEVERAL, whole=True)
    assert find_task(ROWS[3], ONE_HOT, whole, None, MODEL) == (TASKS["multilabel"], "")
    certain = Seen.of(torch.eye(3).bool().repeat(40, 1), whole=True)
    assert find_task(ROWS[3], ONE_HOT, certain, None, MODEL) == (TASKS["multiclass"], "")
    task, said = find_task(ROWS[3], ONE_HOT, None, None, MODEL)
    assert task.name == "multiclass"
    assert "'multilabel' if several may be" in said
    assert find_task(ROWS[1], ALL_ONES, Seen.of(BINARY, whole=True), None, MODEL)[0].name == "binary"
    assert find_task(ROWS[1], BINARY, Seen.of(CLASSES, whole=True), None, MODEL)[0] is ONE_NUMBER
    # images of the user's own, without labels
    assert find_task(ROWS[3], None, Seen.of(SEVERAL, whole=True), None, MODEL)[0].name == "multilabel"
    assert find_task(ROWS[3], None, Seen.of(CLASSES, whole=True), None, MODEL)[0].name == "multiclass"
    assert find_task(ROWS[1], None, Seen.of(BINARY, whole=True), None, MODEL)[0].name == "binary"


def test_far_more_outputs_than_classes_are_no_classes_where_that_is_no_accident() -> None:
    drawn = Seen.of(CLASSES.repeat(10), whole=False)
    task, _ = find_task(ROWS[32], CLASSES, drawn, None, MODEL)
    assert isinstance(task, Undecided)
    assert "32 numbers an image, and the labels are 0 to 2" in task.why
    few = Seen.of(CLASSES[:3], whole=False)  # (3 / 32)³ is no proof
    assert find_task(ROWS[32], CLASSES, few, None, MODEL)[0].name == "multiclass"
    assert find_task(ROWS[32], CLASSES, drawn, 32, MODEL)[0].name == "multiclass"  # they have names


@pytest.mark.parametrize("labels", [None, CLASSES])
def test_outputs_that_look_like_an_embedding_are_asked_about(labels: Tensor | None) -> None:
    normalised = nn.functional.normalize(ROWS[32], dim=1)
    normed = nn.functional.layer_norm(ROWS[32], (32,))
    for output, sign in ((normalised, "squares sum to 1"), (normed, "layer norm")):
        task, _ = find_task(output, labels, None, None, MODEL)
        assert isinstance(task, Undecided)
        assert sign in task.why
        assert find_task(output, labels, None, 32, MODEL)[0].name in ("multiclass", "unsaid")  # 32 names


def test_a_backbone_without_a_classifier_is_known_by_its_width() -> None:
    vit = timm.create_model("test_vit", num_classes=0)
    width = int(vit.num_features)
    rows = torch.randn(4, width, generator=GENERATOR)
    assert "VisionTransformer, which ends without a classifier" in sign_of_embedding(vit, rows)
    assert sign_of_embedding(nn.Sequential(vit, nn.Linear(width, 5)), rows[:, :5]) == ""
    assert sign_of_embedding(timm.create_model("test_vit", num_classes=width), rows) == ""
    other = resnet18()
    other.fc = nn.Identity()
    other.num_features = 512
    assert "ResNet" in sign_of_embedding(other, torch.randn(4, 512))


@pytest.mark.parametrize(
    ("task", "labels", "count", "expected"),
    [
        ("multiclass", CLASSES, 3, CLASSES),
        ("multiclass", ONE_HOT, 3, CLASSES),
        ("multiclass", torch.tensor([0, -100, 255]), 3, torch.tensor([0, -1, -1])),
        ("multiclass", SEVERAL, 3, None),
        ("binary", BINARY.float(), 2, BINARY),
        ("binary", BINARY * 0.9 + 0.05, 2, BINARY),
        ("binary", torch.eye(2).bool()[BINARY], 2, BINARY),
        ("multilabel", SEVERAL, 6, SEVERAL),
        ("multilabel", SEVERAL * 0.9 + 0.05, 6, SEVERAL),
        ("multilabel", CLASSES, 6, ONE_HOT),
        ("multilabel", BINARY, 2, BINARY.bool()[:, None]),
        ("multilabel", SEVERAL, 8, None),
        ("multilabel", NUMBERS, 6, None),
        ("regression", NUMBERS, 1, NUMBERS[:, None]),
        ("regression", CLASSES, 1, CLASSES.float()[:, None]),
        ("embedding", CLASSES, None, CLASSES),
        ("embedding", NUMBERS, None, None),
    ],
)
def test_labels_as_a_task_has_them(task: str, labels: Tensor, count: int | None, expected: Tensor | None) -> None:
    found, said = labels_for(TASKS[task], labels, count)
    if expected is None:
        assert found is None
        assert ("not understood: maps are of predicted classes" in said) == (task != "embedding")
    else:
        assert said == ""
        assert found is not None
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_task_in_a_word_comes_back() -> None:
    for task in (*TASKS.values(), UNSAID, ONE_NUMBER):
        assert task_of_a_word(task_in_a_word(task)) is task
    for task in (Undecided("why"), Similarity(torch.eye(2))):
        assert task_in_a_word(task) is None
    assert task_of_a_word(None) is None
