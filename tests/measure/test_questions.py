"""By which method a run asks, found out once; what of a model cannot be had is left out, and said once."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import NonFiniteOutputError, Question, UnsupportedModelError, explain
from lightning_attngrad.measure.map_scalars import completeness_scalars, head_scalars
from lightning_attngrad.measure.maps import explain_classes, explain_images
from lightning_attngrad.measure.questions import question_of_maps, settled
from lightning_attngrad.metrics.functional import HeadStatistics
from lightning_attngrad.probe import Evaluation
from tests.callbacks.small_runs import tiny_vit
from tests.measure.test_rewriting import counting, evaluation_of
from tests.other_models import post_norm_vit, tiny_resnet, vit_beside_colours

IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TARGETS = [0, 1, 2, 0, 1]


@contextmanager
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lines
    lines += [str(one.message) for one in caught]


def test_the_method_is_found_out_once_a_run_on_one_image() -> None:
    evaluation, batches = counting(evaluation_of(vit_beside_colours(), IMAGES, TARGETS))
    evaluation.classes()
    batches.clear()
    with said() as lines:
        found = settled(evaluation, Question())
    assert found == Question("gradient_guided")
    assert set(batches) == {1}
    (line,) = lines
    assert line.startswith("attngrad: ViTBesideColours: maps are by 'gradient_guided', which stands in for the default")
    batches.clear()
    later = dataclasses.replace(evaluation, label="epoch 1")
    with said() as lines:
        assert settled(later, Question()) == found
    assert batches == lines == []


def test_another_objective_and_another_model_are_asked_anew() -> None:
    evaluation = evaluation_of(vit_beside_colours(), IMAGES, TARGETS)
    with said() as lines:
        assert settled(evaluation, Question(objective="margin")) == Question("gradient_guided", "margin")
        assert settled(evaluation, Question()) == Question("gradient_guided")
    assert len(lines) == 1, "it is the same news"
    other = tiny_vit().eval()
    assert settled(dataclasses.replace(evaluation, model=other, forward=other), Question()).method == "guided_relevance"


def test_a_named_method_costs_no_pass() -> None:
    evaluation, batches = counting(evaluation_of(vit_beside_colours(), IMAGES, TARGETS))
    question = Question("guided_relevance")
    assert settled(evaluation, question) is question
    assert batches == []


def test_maps_without_a_method_are_those_of_the_one_that_stands_in() -> None:
    model = vit_beside_colours()
    evaluation = evaluation_of(model, IMAGES, TARGETS)
    with said() as lines:
        maps = explain_images(evaluation, Question())
        of_classes = explain_classes(evaluation, Question(), torch.tensor([[0, 2]]))
    assert len(lines) == 1
    expected = explain(model, IMAGES, torch.tensor(TARGETS), method="gradient_guided")
    torch.testing.assert_close(maps.heatmap, expected.heatmap)
    assert maps.completeness_error is None
    assert completeness_scalars(maps) == {}
    torch.testing.assert_close(of_classes[0, 1], explain(model, IMAGES[:1], 2, method="gradient_guided").heatmap[0])
    assert explain_images(evaluation, Question("gradient_guided")) is maps, "the same question"


def test_the_completeness_error_is_the_mean_of_the_images() -> None:
    model = post_norm_vit()
    maps = explain_images(evaluation_of(model, IMAGES, TARGETS), Question("attn_lrp"))
    found = explain(model, IMAGES, torch.tensor(TARGETS), method="attn_lrp").completeness_error
    assert found is not None
    assert completeness_scalars(maps) == {"completeness_error": pytest.approx(float(found.mean()), rel=1e-5)}


class Blind(nn.Module):
    """Every pixel goes to the logits by a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))  # type: ignore[no-any-return]


def test_without_any_map_the_reason_is_kept_and_nothing_is_said_by_itself() -> None:
    evaluation, batches = counting(evaluation_of(Blind(), IMAGES, TARGETS))
    with said() as lines:
        question, why = question_of_maps(evaluation)
        with pytest.raises(UnsupportedModelError) as error:
            explain_images(evaluation, Question())
    assert question is None
    assert str(error.value) in why
    assert "numbers and figures of maps are left out" in why
    assert lines == []
    batches.clear()
    assert question_of_maps(evaluation) == (None, why)
    assert batches == []


def test_outputs_that_are_no_numbers_are_no_property_of_the_model() -> None:
    model = vit_beside_colours()
    finite = evaluation_of(model, IMAGES, TARGETS)
    evaluation = dataclasses.replace(finite, forward=lambda images: model(images) * float("nan"))
    assert settled(evaluation, Question()) == Question("guided_relevance")
    with pytest.raises(NonFiniteOutputError, match="for 3 of 3 images"):  # of the part, not of the one that was asked
        explain_images(evaluation, Question("gradient_guided"))
    with said() as lines:  # of the same run, at an evaluation at which it gives numbers
        assert settled(finite, Question()) == Question("gradient_guided")
    assert len(lines) == 1


# Heads ----------------------------------------------------------------------------------------------------------


def test_heads_of_a_model_without_attention_are_left_out_with_one_line() -> None:
    evaluation = evaluation_of(tiny_resnet(), IMAGES, TARGETS)
    with said() as lines:
        assert head_scalars(evaluation) == {}
        assert head_scalars(dataclasses.replace(evaluation, at_this_moment=type(evaluation.at_this_moment)())) == {}
    (line,) = lines
    assert line.startswith("attngrad: head_entropy and head_distance are left out. ResNet")


def statistics(entropy: list[list[float]]) -> HeadStatistics:
    """Two layers; the second has one head fewer."""
    values = torch.tensor(entropy)[None]  # (1, L, H)
    return HeadStatistics(("first", "second"), values, 2 * values, values, values.mean(dim=2))


def test_a_layer_with_fewer_heads_is_the_mean_of_those_that_it_has() -> None:
    evaluation: Evaluation = evaluation_of(tiny_vit(), IMAGES, TARGETS)
    nan = float("nan")
    parts: list[Any] = [statistics([[1.0, 3.0], [5.0, nan]]), statistics([[2.0, 2.0], [7.0, nan]])]
    evaluation.at_this_moment.keep("heads", parts)
    assert head_scalars(evaluation) == {
        "head_entropy/first": 2.0,
        "head_entropy/second": 6.0,
        "head_distance/first": 4.0,
        "head_distance/second": 12.0,
    }
