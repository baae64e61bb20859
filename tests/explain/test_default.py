"""Where no method is asked for, one answers that the model permits, and a warning says which; a named one stays."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from lightning_attngrad.explain import (
    DEFAULT_METHOD,
    Explanation,
    NoAttentionError,
    NoEmbeddingError,
    Question,
    UnsupportedModelError,
    explain,
)
from lightning_attngrad.explain.default import ask_by_default
from lightning_attngrad.metrics.functional import sanity_check
from tests.other_models import post_norm_vit, vit_beside_colours
from tests.zoo import ZOO

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
VIT = ZOO["vit"]


@contextmanager
def warned() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def test_a_model_that_permits_the_default_gets_it_without_a_word() -> None:
    with warned() as caught:
        found = explain(VIT.build(), VIT.images(), 1)
    assert not caught
    assert found.method == DEFAULT_METHOD
    named = explain(VIT.build(), VIT.images(), 1, method=DEFAULT_METHOD)
    assert torch.equal(found.heatmap, named.heatmap)


def test_a_model_without_an_embedding_is_explained_by_its_attention_with_one_warning() -> None:
    model = vit_beside_colours()
    with warned() as caught:
        found = explain(model, IMAGES, 1)
    (warning,) = caught
    assert warning.category is UserWarning
    assert warning.filename == __file__
    said = str(warning.message)
    for part in ("ViTBesideColours", "'guided_relevance'", "method='gradient_guided'", "embedding"):
        assert part in said
    with warned() as caught:
        named = explain(model, IMAGES, 1, method="gradient_guided")
    assert not caught
    assert found.method == named.method == "gradient_guided"
    assert torch.equal(found.heatmap, named.heatmap)


def test_a_post_norm_model_has_an_embedding() -> None:
    with warned() as caught:
        found = explain(post_norm_vit(), IMAGES, 1)
    assert not caught
    assert found.method == DEFAULT_METHOD


def test_several_classes_and_other_objectives_take_the_same_way() -> None:
    model = vit_beside_colours()
    with pytest.warns(UserWarning, match="stands in"):
        panels = explain(model, IMAGES, [0, 2])
    assert panels.heatmap.shape == (2, 2, 4, 4)
    with pytest.warns(UserWarning, match="stands in"):
        margin = explain(model, IMAGES, 1, objective="margin")
    expected = explain(model, IMAGES, 1, objective="margin", method="gradient_guided")
    assert torch.equal(margin.heatmap, expected.heatmap)


@pytest.mark.parametrize("asked", [{"method": DEFAULT_METHOD}, {"combine": "sum"}, {"method": "attn_lrp"}])
def test_a_method_that_is_named_is_that_one_or_an_error(asked: dict[str, str]) -> None:
    with warned() as caught, pytest.raises(NoEmbeddingError):
        explain(vit_beside_colours(), IMAGES, 1, **asked)
    assert not caught


def test_the_sanity_check_redraws_under_one_method() -> None:
    with pytest.warns(UserWarning, match="stands in"):
        found = sanity_check(vit_beside_colours(), IMAGES, 1)
    assert torch.equal(found, sanity_check(vit_beside_colours(), IMAGES, 1, method="gradient_guided"))


def test_a_question_without_a_method_says_so_in_plain_values() -> None:
    question = Question(objective="margin")
    assert question.plain() == {"method": None, "objective": "margin", "options": {}}
    assert question.by("gradient_guided") == Question("gradient_guided", "margin")
    assert not question.signed
    assert question.of_first_panel() == question


class Net(torch.nn.Module):
    """What is asked about."""


def asked_of(errors: dict[str, ValueError]) -> tuple[list[str], object]:
    asked: list[str] = []

    def ask(method: str) -> str:
        asked.append(method)
        if method in errors:
            raise errors[method]
        return method

    try:
        return asked, ask_by_default(ask, Net())
    except ValueError as error:
        return asked, error


def test_each_reason_has_a_stand_in_of_its_own() -> None:
    asked, found = asked_of({DEFAULT_METHOD: NoAttentionError("no attention.")})
    assert asked == [DEFAULT_METHOD, "attn_lrp"]
    assert found == (
        "attn_lrp",
        "Net: maps are by 'attn_lrp', which stands in for the default 'guided_relevance' (method='attn_lrp' asks for "
        "it, and silences this). Why: no attention.",
    )
    asked, found = asked_of({DEFAULT_METHOD: NoEmbeddingError("Net")})
    assert asked == [DEFAULT_METHOD, "gradient_guided"]


@pytest.mark.parametrize("error", [UnsupportedModelError("shuffled patches"), ValueError("target")])
def test_other_errors_are_raised_as_they_are(error: ValueError) -> None:
    asked, found = asked_of({DEFAULT_METHOD: error})
    assert asked == [DEFAULT_METHOD]
    assert found is error


def test_where_the_other_method_gives_no_map_either_both_reasons_are_told_once() -> None:
    errors = {DEFAULT_METHOD: NoAttentionError("No attention."), "attn_lrp": NoEmbeddingError("No grid.")}
    _, found = asked_of(errors)
    assert type(found) is UnsupportedModelError
    assert str(found) == "No attention. Nor is there a map by 'attn_lrp': No grid."
    same = NoAttentionError("No attention.")
    _, found = asked_of({DEFAULT_METHOD: NoAttentionError("No attention."), "attn_lrp": same})
    assert found is same


def test_the_first_attempt_is_let_go_of_before_the_second() -> None:
    """Its graph would fill the memory beside that of the other."""
    model = vit_beside_colours()
    returned: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def forward(images: Tensor) -> Tensor:
        alive.append(sum(logits() is not None for logits in returned))
        logits: Tensor = model(images)
        returned.append(weakref.ref(logits))
        return logits

    with pytest.warns(UserWarning, match="stands in"):
        explain(model, IMAGES, 1, forward=forward)
    assert len(alive) >= 2
    assert not any(alive)


def test_an_explanation_names_the_method_that_answered() -> None:
    with pytest.warns(UserWarning, match="stands in"):
        found: Explanation = Question().explain(vit_beside_colours(), IMAGES, 1)
    assert found.method == "gradient_guided"
