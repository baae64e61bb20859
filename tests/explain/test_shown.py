"""Results are drawn, saved and shown: what their figures say is what they hold."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.explain.shown import shares
from lightning_attngrad.metrics.functional import faithfulness_curves, times_uniform_share
from lightning_attngrad.reporting.canvas import figure_to_array

NAMES = ["cat", "dog", "owl", "hen", "fox"]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=5, img_size=32).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def results(model: nn.Module, images: Tensor) -> dict[str, Any]:
    explanation = attngrad.explain(model, images)
    assert explanation.target is not None
    return {
        "explanation": explanation,
        "panels": attngrad.explain(model, images, target=[3, 1]),
        "corrections": attngrad.explain(model, images, method="gradient_guided", correction=["positive", "signed"]),
        "objective": attngrad.explain(model, images, objective=lambda output: output[:, 0] - output[:, 1]),
        "labels": attngrad.explain(model, images, target=7, task="multilabel"),
        "number": attngrad.explain(model, images, target=2, task="regression"),
        "rewrite": attngrad.rewrite(model, images, 2, steps=4, mean=0.0, std=1.0),
        "pixels": attngrad.rewrite(model, images, 2, steps=4, mean=0.0, std=1.0, norm="l0"),
        "patches": attngrad.rewrite(model, images, 2, steps=4, mean=0.0, std=1.0, norm="l0_patches"),
        "step": attngrad.attention_step(model, images, target=1, step_sizes=(0.5, 1.0)),
        "faithfulness": faithfulness_curves(model, images, explanation.heatmap, explanation.target, steps=4),
    }


@pytest.fixture(scope="module")
def found(model: nn.Module, images: Tensor) -> dict[str, Any]:
    return results(model, images)


KINDS = (
    *("explanation", "panels", "corrections", "objective", "labels", "number"),
    *("rewrite", "pixels", "patches", "step", "faithfulness"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_result_is_drawn_saved_said_and_shown(kind: str, found: dict[str, Any], tmp_path: Path) -> None:
    result = found[kind]
    assert figure_to_array(result.plot()).std() > 10
    dark = result.plot(style=attngrad.FigureStyle(dark=True))
    assert figure_to_array(dark)[2, 2].max() < 40
    assert result.save(tmp_path / "a.svg").read_text().rstrip().endswith("</svg>")
    said = repr(result)
    assert "\n" not in said
    assert "tensor" not in said
    assert len(said) < 130
    shown = np.asarray(Image.open(io.BytesIO(result.plot()._repr_png_())).convert("RGB"))  # the figure in a notebook
    assert np.array_equal(shown, figure_to_array(result.plot())[..., :3])
    page = result._repr_html_()
    assert page.count("data:image/png") == 1
    assert "http" not in page


def test_shares_are_those_of_the_figures_of_a_run() -> None:
    maps = torch.randn(3, 2, 4, 5)
    maps[0, 0] = 0
    torch.testing.assert_close(shares(maps), times_uniform_share(maps), equal_nan=True)
    assert torch.isfinite(shares(torch.full((2, 2), 3e38))).all()


def test_captions_name_the_prediction_and_a_map_of_another_class(found: dict[str, Any]) -> None:
    explanation = found["explanation"]
    probability, predicted = explanation.logits.softmax(1).max(1)
    said = words(explanation.plot(class_names=NAMES))
    for row in range(2):
        assert NAMES[int(predicted[row])] in said
        assert f"predicted, p = {float(probability[row]):.2f}" in said
    assert "the map is of" not in said
    other = replace(explanation, target=(predicted + 1) % 5)
    said = words(other.plot(class_names=dict(enumerate(NAMES))))
    assert said.count("the map is of") == 2
    assert NAMES[(int(predicted[0]) + 1) % 5] in said
    assert str(int(predicted[0])) in words(explanation.plot())  # without names the number


def test_panels_stand_side_by_side_with_their_probabilities(found: dict[str, Any]) -> None:
    panels = found["panels"]
    said = words(panels.plot(class_names=NAMES))
    assert {"hen", "dog"} <= set(said)
    assert f"p = {float(panels.logits.softmax(1)[0, 3]):.2f}" in said
    assert {"positive", "signed", "signed, times an equal share"} <= set(words(found["corrections"].plot()))


def test_layers_are_asked_for_by_name(found: dict[str, Any], model: nn.Module, images: Tensor) -> None:
    assert "relevance" in words(found["explanation"].plot("layers"))
    with pytest.raises(ValueError, match="what: got 'layers', and maps of 'rollout' are no sum of parts"):
        attngrad.explain(model, images, method="rollout").plot("layers")
    with pytest.raises(ValueError, match="what: got 'film'; expected 'maps' or 'layers'"):
        found["explanation"].plot("film")


def test_labels_and_numbers_are_said_as_what_they_are(found: dict[str, Any]) -> None:
    labels = found["labels"]
    there = [NAMES[label] for label in torch.nonzero(labels.logits[0] > 0).flatten().tolist()]
    said = " ".join(words(labels.plot(class_names=NAMES)))
    assert all(name in said for name in there)
    assert "the map is of" in said  # label 2 switched off
    assert "what is explained" in words(found["number"].plot())
    assert f"{float(found['objective'].value[0]):.3g}".replace("-", "−") in words(found["objective"].plot())


def test_images_are_shown_in_the_colours_that_are_known(model: nn.Module, images: Tensor) -> None:
    explanation = attngrad.explain(model, (images - 0.5) / 0.2)
    unknown = "normalisation unknown; each image stretched, 2–98 %"
    assert unknown in words(explanation.plot())
    known, itself = explanation.plot(mean=0.5, std=0.2), explanation.plot(images=images)
    assert unknown not in words(known) + words(itself)
    tile = known.tiles[0]
    region = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
    assert abs(figure_to_array(known)[region].astype(int) - figure_to_array(itself)[region]).max() <= 1
    with pytest.raises(ValueError, match="expected those with which they were normalised"):
        explanation.plot(mean=0.5, std=3.0)


def test_images_of_another_number_are_refused(found: dict[str, Any], images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images: got shape \(1, 3, 32, 32\); .* B = 2, one a map"):
        found["explanation"].plot(images=images[:1])
    with pytest.raises(ValueError, match="images: this result keeps none"):
        replace(found["explanation"], images=None).plot()


def test_the_images_that_are_kept_are_the_callers(found: dict[str, Any], images: Tensor) -> None:
    kept = found["explanation"].images
    assert kept.data_ptr() == images.data_ptr()  # no copy is made of them
    assert not kept.requires_grad


def test_what_repr_says_is_what_is_there(found: dict[str, Any]) -> None:
    assert repr(found["explanation"]).startswith("Explanation(2 images, guided_relevance, 2 × 2 maps, ")
    assert "of 2 panels" in repr(found["panels"])
    blind = replace(found["explanation"], zero_gradient=torch.tensor([True, False]))
    assert repr(blind).endswith("no gradient in 1)")
    rewritten = found["rewrite"]
    assert f"({int(rewritten.success.sum())} of 2 rewritten, median L∞ " in repr(rewritten)
    failed = replace(rewritten, success=torch.zeros(2, dtype=torch.bool), distance=torch.full((2,), torch.inf))
    assert repr(failed).startswith("Rewrite(0 of 2 rewritten, median ∞ (linf), ")
    assert "✗ not rewritten" in words(failed.plot())


def test_a_rewrite_says_what_speaks_against_it(found: dict[str, Any]) -> None:
    rewritten = found["rewrite"]
    ill = replace(rewritten.health, unconverged=torch.tensor([True, False]), zero_gradient=torch.tensor([0.5, 0.0]))
    assert replace(rewritten, health=ill).health.complaints(0)[:2] == ["unconverged", "no gradient"]
    assert "unconverged" in " ".join(words(replace(rewritten, health=ill).plot(class_names=NAMES)))
    assert repr(ill).startswith("Health(")
