"""Objectives with arguments can be written in a configuration file, and come back from it the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_attngrad import explain
from lightning_attngrad.explain import Contrast, Mixture, Objective, Question, Region
from lightning_attngrad.explain.conservative import GuidedRelevanceOptions
from lightning_attngrad.explain.guided import GradientGuidedOptions
from tests.zoo import CLASSES, ZOO


class Monitor:
    """What takes an objective, as the callbacks do."""

    def __init__(
        self,
        method: str = "gradient_guided",
        objective: Literal["logit", "margin"] | Objective | Callable[[Any], Any] = "logit",
        options: dict[str, Any] | None = None,
    ) -> None:
        self.question = Question(method, objective, options or {})


def parsed(text: str, tmp_path) -> Question:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Monitor, "monitor")
    parser.add_argument("--config", action="config")
    (tmp_path / "config.yaml").write_text(text)
    config = parser.parse_args(["--config", str(tmp_path / "config.yaml")])
    # Written out and read again, as a Trainer's configuration is kept beside its checkpoints.
    (tmp_path / "again.yaml").write_text(parser.dump(config))
    again = parser.parse_args(["--config", str(tmp_path / "again.yaml")])
    first, second = (parser.instantiate(read).monitor.question for read in (config, again))
    assert first == second
    return first


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("logit", "logit"),
        ("{class_path: lightning_attngrad.Contrast, init_args: {against: 3}}", Contrast(3)),
        ("{class_path: lightning_attngrad.Contrast, init_args: {against: [3, 1]}}", Contrast([3, 1])),
        (
            "{class_path: lightning_attngrad.Mixture, init_args: {weights: [0.5, 1, 0, 0, 0, 0, 2.0]}}",
            Mixture([0.5, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0]),
        ),
        (
            "{class_path: lightning_attngrad.Mixture, init_args: {weights: {0: 0.5, 6: 2}}}",
            Mixture({0: 0.5, 6: 2.0}),
        ),
        ("{class_path: lightning_attngrad.Region}", Region()),
        ("tests.explain.test_question.score", None),
    ],
)
def test_objectives_from_yaml(yaml: str, expected: object, tmp_path) -> None:
    found = parsed(f"monitor:\n  objective: {yaml}\n", tmp_path)
    if expected is not None:
        assert type(found.objective) is type(expected)
        assert found == Question("gradient_guided", expected)
    if not isinstance(expected, Region):
        target = 1 if found.needs_target else None
        assert found.explain(ZOO["vit"].build(), ZOO["vit"].images(), target).heatmap.shape == (2, 4, 6)
    assert CLASSES == 7  # as many as the weights above


def test_options_from_yaml(tmp_path) -> None:
    found = parsed("monitor:\n  options: {correction: [signed, positive]}\n", tmp_path)
    assert found.panels == ("signed", "positive")
    expected = explain(
        ZOO["vit"].build(), ZOO["vit"].images(), 1, method="gradient_guided", correction=("signed", "positive")
    )
    assert torch.equal(found.explain(ZOO["vit"].build(), ZOO["vit"].images(), 1).heatmap, expected.heatmap)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (GradientGuidedOptions, {"correction": "transfer"}),
        (GradientGuidedOptions, {"correction": ["transfer", "signed"]}),
        (GuidedRelevanceOptions, {"combine": "product"}),
    ],
)
def test_a_method_s_options_are_typed(options: type, given: dict[str, Any]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(options, "options")
    config = parser.parse_object({"options": given})
    assert parser.instantiate(config).options == options(**given)
    with pytest.raises(Exception, match="nothing"):
        parser.parse_object({"options": dict.fromkeys(given, "nothing")})
