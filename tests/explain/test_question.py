"""A question is checked when it is made, says what it is in plain values, and answers like ``explain``."""

from __future__ import annotations

import copy
import json
import pickle
import re
from dataclasses import dataclass

import pytest
import torch

from lightning_attngrad.explain import (
    DEFAULT_METHOD,
    METHODS,
    Contrast,
    Mixture,
    Question,
    Region,
    TokenScores,
    explain,
    register_method,
)
from tests.zoo import CLASSES, ZOO

VIT = ZOO["vit"]
TARGET = torch.tensor([2, 5])


def score(output: torch.Tensor) -> torch.Tensor:
    return output[:, 0] - output[:, 1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "grad"}, "method: got 'grad'; expected one of"),
        ({"method": 3}, "method: got 3; expected one of"),
        ({"objective": "logits"}, "objective: got 'logits'"),
        ({"objective": Region(torch.ones(4, 6))}, "use method='gradient_guided'"),
        ({"options": {"combine": "mean"}}, "combine: got 'mean'; expected one of sum, product, gated_sum"),
        (
            {"options": {"correction": "signed"}},
            "its options are combine. correction is an option of method='gradient_guided'",
        ),
        ({"method": "rollout", "options": {"speed": 3}}, "speed: got 3; neither explain nor method='rollout' takes it"),
        ({"method": "gradient_guided", "options": {"correction": ["signed", "best"]}}, "correction: got"),
    ],
)
def test_what_cannot_be_asked_is_refused_when_it_is_written_down(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Question(**arguments)


def test_an_objective_of_another_type_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="objective: got int"):
        Question(objective=3)


@pytest.mark.parametrize(
    ("method", "options", "signed"),
    [
        ("guided_relevance", {}, False),
        ("raw_attention", {}, False),
        ("rollout", {}, False),
        ("grad_cam", {}, False),
        ("conservative", {}, True),
        ("attn_lrp", {}, True),
        ("gradient_guided", {}, False),
        ("gradient_guided", {"correction": "absolute"}, False),
        ("gradient_guided", {"correction": "negative"}, False),
        ("gradient_guided", {"correction": "signed"}, True),
        ("gradient_guided", {"correction": "transfer"}, True),
        ("gradient_guided", {"correction": ["positive", "transfer"]}, True),
    ],
)
def test_a_question_knows_whether_its_maps_have_values_below_zero(
    method: str, options: dict[str, object], signed: bool
) -> None:
    question = Question(method, options=options)
    assert question.signed == signed
    heatmap = question.explain(VIT.build(), VIT.images(), TARGET).heatmap
    assert bool((heatmap < 0).any()) == signed


def test_so_does_one_about_a_method_of_one_s_own() -> None:
    @dataclass(frozen=True)
    class Sign:
        factor: float = 1.0

    @register_method("ones", source="none", options=Sign, signed=lambda options: options.factor < 0)
    def ones(forward, seeds, options):
        scores = torch.full((forward.batch, 1, forward.places.tokens), options.factor)
        return TokenScores(scores, torch.zeros(forward.batch, dtype=torch.bool))

    @register_method("minus_ones", source="none", signed=True)
    def minus_ones(forward, seeds):
        return ones(forward, seeds, Sign(-1.0))

    try:
        assert [Question("ones", options={"factor": factor}).signed for factor in (2.0, -2.0)] == [False, True]
        assert Question("minus_ones").signed
        assert float(explain(VIT.build(), VIT.images(), method="ones", factor=3.0).heatmap.max()) == 3
        assert float(explain(VIT.build(), VIT.images(), method="minus_ones").heatmap.max()) == -1
    finally:
        del METHODS["ones"], METHODS["minus_ones"]


def test_options_are_a_dataclass_with_defaults() -> None:
    @dataclass(frozen=True)
    class NoDefault:
        factor: float

    for options, says in ((dict, "expected a frozen dataclass"), (NoDefault, "factor")):
        with pytest.raises(TypeError, match=says):
            register_method("never", source="none", options=options)


def test_panels_are_the_corrections_where_several_are_asked_for() -> None:
    assert Question().panels is None
    assert Question("gradient_guided", options={"correction": "signed"}).panels is None
    question = Question("gradient_guided", options={"correction": ["signed", "positive"]})
    assert question.panels == ("signed", "positive")
    found = question.explain(VIT.build(), VIT.images(), TARGET)
    assert found.panels == question.panels
    assert found.heatmap.shape == (2, 2, *VIT.grid)


def test_a_target_is_needed_where_the_objective_is_about_a_class() -> None:
    assert Question().needs_target
    assert Question("gradient_guided", Region()).needs_target
    assert not Question(objective=Mixture([0.5] * CLASSES)).needs_target
    assert not Question(objective=score).needs_target


@pytest.mark.parametrize(
    "objective", ["logit", "margin", Contrast(3), score], ids=lambda value: getattr(value, "__name__", str(value))
)
def test_it_answers_as_explain_does(objective: object) -> None:
    model, images = VIT.build(), VIT.images()
    target = None if objective is score else TARGET
    asked = Question("gradient_guided", objective, {"correction": "absolute"}).explain(model, images, target)
    expected = explain(model, images, target, method="gradient_guided", objective=objective, correction="absolute")
    assert torch.equal(asked.heatmap, expected.heatmap)
    assert torch.equal(asked.value, expected.value)


QUESTIONS = [
    Question(),
    Question("rollout"),
    Question(DEFAULT_METHOD),
    Question(options={"combine": "sum"}),
    Question("gradient_guided"),
    Question("gradient_guided", options={"correction": "signed"}),
    Question("gradient_guided", options={"correction": ["signed"]}),
    Question(objective="margin"),
    Question(objective=Contrast(3)),
    Question(objective=Contrast([3, 4])),
    Question(objective=Contrast(torch.tensor([3, 5]))),
    Question(objective=Mixture([1.0, 2.0])),
    Question(objective=Mixture({0: 1.0})),
    Question(objective=Mixture(torch.tensor([1.0, 2.0]))),
    Question("gradient_guided", Region()),
    Question("gradient_guided", Region(torch.ones(2, 2))),
    Question("gradient_guided", Region(torch.zeros(2, 2))),
    Question(objective=score),
]


def test_questions_differ_in_all_that_they_ask() -> None:
    assert len(set(QUESTIONS)) == len(QUESTIONS)
    described = [json.dumps(question.plain(), sort_keys=True) for question in QUESTIONS]
    assert len(set(described)) == len(QUESTIONS)
    assert not any("0x" in text for text in described)


@pytest.mark.parametrize("question", QUESTIONS, ids=range(len(QUESTIONS)))
def test_a_copy_asks_the_same(question: Question) -> None:
    for other in (copy.deepcopy(question), pickle.loads(pickle.dumps(question))):
        assert other.plain() == question.plain()
        assert other == question
        assert hash(other) == hash(question)


def test_defaults_that_are_said_are_the_same_question() -> None:
    assert Question(DEFAULT_METHOD, "logit", {"combine": "gated_sum"}) == Question(DEFAULT_METHOD)
    assert Question(None, "logit", {"combine": "gated_sum"}) == Question(DEFAULT_METHOD)  # whose option it is
    assert Question(objective=Contrast(torch.tensor([3, 5]))) == Question(objective=Contrast(torch.tensor([3, 5])))


def test_equal_code_of_two_functions_is_one_description_and_two_questions() -> None:
    def of_class(index: int) -> object:
        return lambda output: output[:, index]

    first, again, other = (Question(objective=of_class(index)) for index in (1, 1, 2))
    assert first.plain() == again.plain() != other.plain()
    assert first != again  # what they can reach is more than the description says
    assert first == Question(objective=first.objective)


def test_a_question_in_plain_values_is_what_a_checkpoint_may_hold(tmp_path) -> None:
    for question in QUESTIONS:
        torch.save(question.plain(), tmp_path / "plain.pt")
        assert torch.load(tmp_path / "plain.pt", weights_only=True) == question.plain()


@pytest.mark.parametrize(
    "objective",
    [
        Contrast(torch.tensor([3, 0, 6, 1])),
        Contrast([3, 0, 6, 1]),
        Contrast(4),
        Contrast(torch.tensor([4])),
        Mixture(torch.rand(4, CLASSES, generator=torch.Generator().manual_seed(0))),
        Mixture(torch.rand(CLASSES, generator=torch.Generator().manual_seed(0))),
        Mixture({2: 1.0, 5: -0.5}),
        Region(torch.rand(4, 4, 6, generator=torch.Generator().manual_seed(0))),
        Region(torch.rand(4, 6, generator=torch.Generator().manual_seed(0))),
        "margin",
    ],
    ids=lambda objective: str(objective)[:20],
)
def test_a_question_about_some_of_its_images(objective: object) -> None:
    model, images = VIT.build(), VIT.images(batch=4)
    question = Question("gradient_guided", objective)
    target = torch.tensor([1, 2, 3, 4]) if question.needs_target else None
    some = torch.tensor([3, 1])
    whole = question.explain(model, images, target)
    part = question.of_images(some).explain(model, images[some], None if target is None else target[some])
    largest = float(whole.heatmap.abs().max())
    torch.testing.assert_close(part.heatmap, whole.heatmap[some], rtol=1e-4, atol=1e-5 * largest)
    torch.testing.assert_close(part.value, whole.value[some], rtol=1e-4, atol=1e-5)


def test_a_region_without_a_mask_is_made_and_not_asked() -> None:
    question = Question("gradient_guided", Region())
    assert question.plain()["objective"] == {"region": None}
    assert question.of_images(torch.tensor([0])).objective.mask is None
    with pytest.raises(ValueError, match=r"objective: Region\(\) has no mask; expected Region\(mask\)"):
        question.explain(VIT.build(), VIT.images(), 1)


@pytest.mark.parametrize("weights", [{0: 0.5, 3: -1.0}, {"0": 0.5, "3": -1.0}])
def test_a_mixture_of_some_classes_is_that_of_all_with_the_others_at_zero(weights: dict) -> None:
    model, images = VIT.build(), VIT.images()
    full = [0.5, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0]
    expected = explain(model, images, objective=Mixture(full))
    found = explain(model, images, objective=Mixture(weights))
    torch.testing.assert_close(found.heatmap, expected.heatmap)
    torch.testing.assert_close(found.value, expected.value)


@pytest.mark.parametrize("weights", [{}, {CLASSES: 1.0}, {-1: 1.0}])
def test_a_mixture_of_classes_that_are_not_there(weights: dict[int, float]) -> None:
    with pytest.raises(ValueError, match=r"weights: got .* expected classes from 0 to 6"):
        explain(VIT.build(), VIT.images(), objective=Mixture(weights))


@pytest.mark.parametrize(
    "against",
    [-1, CLASSES, True, [0, 9], [0, 1, 2], torch.tensor([0.0, 1.0])],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_contrast_with_classes_that_are_not_there(against: object) -> None:
    with pytest.raises(ValueError, match=r"against: got .* expected classes from 0 to 6"):
        explain(VIT.build(), VIT.images(), 1, objective=Contrast(against))
