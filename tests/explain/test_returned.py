"""Scores are found in what a model returns, or it is said where they may be, in words that work."""

from __future__ import annotations

import dataclasses
import re
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_attngrad as attngrad
from tests.zoo import ZOO

VIT = ZOO["vit"]
Heads = namedtuple("Heads", ["cls", "box"])


@dataclasses.dataclass
class Answer:
    scores: Tensor


class Wrapped(nn.Module):
    def __init__(self, vit: nn.Module, returned: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.vit, self.returned = vit, returned

    def forward(self, images: Tensor) -> Any:
        return self.returned(self.vit(images))


@pytest.mark.parametrize(
    ("returned", "where"),
    [
        (lambda scores: {"pred": scores}, "output['pred']"),
        (lambda scores: {"scores": scores, "features": scores[:, :2]}, "output['scores']"),
        (lambda scores: {"head": {"logits": scores}}, "output['head']['logits']"),
        (lambda scores: Heads(scores, scores[:, :4]), "output.cls"),
        (lambda scores: (scores[:, :4], {"aux": scores}, scores), "output[1]['aux']"),
        (Answer, "output.scores"),
        (lambda scores: scores[:, None], "output[:, 0, :]"),
        (lambda scores: scores[:, :, None, None], "output[:, :, 0, 0]"),
        (lambda scores: {"maps": scores[:, None, :, None]}, "output['maps'][:, 0, :, 0]"),
    ],
)
def test_where_scores_may_be_is_said_and_works(returned: Callable[[Tensor], Any], where: str) -> None:
    model, images = VIT.build(), VIT.images()
    plain = attngrad.explain(model, images)
    wrapped = Wrapped(model, returned).eval()
    with pytest.raises(ValueError, match=r"[gG]ive forward= a function") as caught:
        attngrad.explain(wrapped, images)
    assert re.search(rf"{re.escape(where)} \(2, {plain.logits.shape[1]}\)", str(caught.value)), caught.value

    def forward(images: Tensor) -> Tensor:
        scores: Tensor = eval(where, {"output": wrapped(images)})  # as it stands in the message
        return scores

    torch.testing.assert_close(attngrad.explain(wrapped, images, forward=forward).heatmap, plain.heatmap)


def test_what_holds_no_rows_is_not_listed() -> None:
    wrapped = Wrapped(VIT.build(), lambda scores: {"loss": scores.sum(), "count": len(scores)}).eval()
    with pytest.raises(
        ValueError, match=r"its output \(dict\) is not one row of logits an image, \(2, classes\)\. Explain"
    ):
        attngrad.explain(wrapped, VIT.images())
