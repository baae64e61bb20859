"""Objectives about the queries of a detector: the same maps as the plain formula."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad import QueryBox, QueryClass, explain
from lightning_attngrad.explain import Objective, Question
from tests.beyond import CLASSES, QUERIES, detr, images, segformer, yolos
from tests.explain.test_pixels import assert_same_map

DETECTORS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "yolos": (yolos, images()),
    "detr": (detr, images(height=128, width=160)),
}
BOTH = torch.arange(2)
CASES: dict[str, tuple[Objective, Callable[[Any], Tensor]]] = {
    "a query": (QueryClass(2, query=1), lambda output: output.logits[:, 1, 2]),
    "the best query": (QueryClass(2), lambda output: output.logits[:, :, 2].amax(dim=1)),
    "a query of each image": (QueryClass(2, query=[0, 3]), lambda output: output.logits[BOTH, [0, 3], 2]),
    "a box": (QueryBox(1, query=3), lambda output: output.pred_boxes[:, 3, 1]),
    "the box of the best query": (
        QueryBox(2, target=1),
        lambda output: output.pred_boxes[BOTH, output.logits[:, :, 1].argmax(dim=1), 2],
    ),
}


@pytest.mark.parametrize("method", [None, "gradient_guided"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_the_maps_are_those_of_the_plain_formula(detector: str, case: str, method: str | None) -> None:
    build, batch = DETECTORS[detector]
    assert build()(batch).logits.shape == (2, QUERIES, CLASSES)
    objective, formula = CASES[case]
    assert_same_map(build(), batch, objective, formula, method)


class AsRFDETR(nn.Module):
    """The same detector, whose outputs have other names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = yolos()

    def forward(self, batch: Tensor) -> dict[str, Any]:
        output = self.inner(batch)
        return {"pred_logits": output.logits, "pred_boxes": output.pred_boxes, "aux_outputs": [{}]}


def test_outputs_by_the_names_of_rf_detr() -> None:
    for objective, _ in CASES.values():
        expected = explain(yolos(), images(), objective=objective)
        found = explain(AsRFDETR().eval(), images(), objective=objective)
        torch.testing.assert_close(found.heatmap, expected.heatmap)


def test_labels_of_a_sigmoid_detector_can_be_switched_off() -> None:
    on = explain(yolos(), images(), objective=QueryClass(1, query=0), task="multilabel")
    off = explain(yolos(), images(), objective=QueryClass(CLASSES + 1, query=0), task="multilabel")
    torch.testing.assert_close(on.value, -off.value)
    torch.testing.assert_close(on.value, yolos()(images()).logits[:, 0, 1].detach() / 2)


def test_some_images_keep_their_queries() -> None:
    question = Question(objective=QueryClass(2, query=torch.tensor([0, 3])))
    both = question.explain(yolos(), images())
    second = question.of_images(torch.tensor([1])).explain(yolos(), images()[1:])
    torch.testing.assert_close(second.heatmap[0], both.heatmap[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (lambda: QueryClass(True), "target: got True; expected the number of a class"),
        (lambda: QueryClass(1, query=-2), "query: got -2; expected the number of a query"),
        (lambda: QueryClass(1, query=[0.5]), "query: got [0.5]"),
        (lambda: QueryClass(1, query="first"), "query: got 'first'"),
        (lambda: QueryBox(4, query=1), "coordinate: got 4; expected 0 to 3"),
        (lambda: QueryBox(1), "query: got None with target=None; expected one of them"),
        (lambda: QueryBox(1, query=1, target=1), "query: got 1 with target=1; expected one of them"),
    ],
)
def test_what_is_no_query_is_refused_when_it_is_said(objective: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        objective()


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (QueryClass(CLASSES), f"target: got [{CLASSES}]; the model's classes are 0 to {CLASSES - 1}"),
        (QueryClass(1, query=QUERIES), f"query: got {QUERIES}; expected numbers from 0 to {QUERIES - 1}"),
        (QueryBox(1, query=[1, 2, 3]), "query: got [1, 2, 3]; expected numbers from 0 to"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(objective: Objective, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        explain(yolos(), images(), objective=objective)


def test_a_model_without_queries_says_what_it_holds() -> None:
    for objective, what in ((QueryClass(1), "scores of each query"), (QueryBox(1, query=1), "boxes of each query")):
        with pytest.raises(ValueError, match=f"its output holds no {what}.*it holds logits float32"):
            explain(segformer(), images(), objective=objective)
