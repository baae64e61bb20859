"""Objectives about places of an output: the same maps as the plain formula, whatever form the output has."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad import PixelClass, PixelValue, QueryClass, explain
from lightning_attngrad.explain import NonFiniteOutputError, Objective, Question
from tests.beyond import CLASSES, dpt, images, segformer

METHODS = (None, "gradient_guided")
MASK = torch.zeros(64, 96)
MASK[10:30, 20:50] = 1


def assert_same_map(
    model: nn.Module,
    batch: Tensor,
    objective: Objective,
    formula: Callable[[Any], Tensor],
    method: str | None,
    **options: Any,
) -> None:
    found = explain(model, batch, objective=objective, method=method, **options)
    expected = explain(model, batch, objective=formula, method=method, **options)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.heatmap, expected.heatmap, rtol=1e-4, atol=1e-5 * float(found.heatmap.abs().max()))
    assert found.heatmap.abs().max() > 0
    assert found.method == expected.method
    assert found.target is None


@pytest.mark.parametrize("method", METHODS)
def test_a_pixel_is_the_place_of_the_smaller_output_in_which_it_lies(method: str | None) -> None:
    assert segformer()(images()).logits.shape == (2, CLASSES, 16, 24)
    formula = lambda output: output.logits[:, 2, 17 // 4, 95 // 4]  # noqa: E731
    assert_same_map(segformer(), images(), PixelClass(2, (17, 95)), formula, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_region_is_the_mean_weighted_by_the_share_of_each_place(method: str | None) -> None:
    weights = MASK.view(16, 4, 24, 4).mean(dim=(1, 3))
    formula = lambda output: (output.logits[:, 2] * weights).sum(dim=(1, 2)) / weights.sum()  # noqa: E731
    assert_same_map(segformer(), images(), PixelClass(2, MASK), formula, method)
    assert_same_map(segformer(), images(), PixelClass(2, MASK.bool()), formula, method)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_place_it_is_where_the_class_is_predicted(method: str | None) -> None:
    classes = segformer()(images()).logits.argmax(dim=1)
    index = next(one for one in range(CLASSES) if (classes == one).flatten(1).any(dim=1).all())

    def formula(output: Any) -> Tensor:
        predicted = (output.logits.argmax(dim=1) == index).float()
        return (output.logits[:, index] * predicted).sum(dim=(1, 2)) / predicted.sum(dim=(1, 2))

    assert_same_map(segformer(), images(), PixelClass(index), formula, method)


def test_each_image_has_its_own_mask() -> None:
    masks = torch.stack([MASK, MASK.flip(1)])
    both = explain(segformer(), images(), objective=PixelClass(1, masks))
    for index in range(2):
        alone = explain(segformer(), images(), objective=PixelClass(1, masks[index]))
        torch.testing.assert_close(both.heatmap[index], alone.heatmap[index])
    question = Question(objective=PixelClass(1, masks))
    second = question.of_images(torch.tensor([1])).explain(segformer(), images()[1:])
    torch.testing.assert_close(second.heatmap[0], both.heatmap[1], rtol=1e-4, atol=1e-6)


class Shaped(nn.Module):
    """A small ViT without attention's weights in doubt, whose map of scores comes in some form."""

    def __init__(self, form: Callable[[Tensor], Any], channels: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True, norm_first=True)
        self.head = nn.Conv2d(16, channels, 1)
        self.form = form

    def forward(self, batch: Tensor) -> Any:
        tokens = self.embed(batch)
        seen = self.layer(tokens.flatten(2).mT).mT.unflatten(2, tokens.shape[2:])
        return self.form(nn.functional.interpolate(self.head(seen), size=batch.shape[2:], mode="bilinear"))


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": lambda scores: scores,
    "torchvision": lambda scores: OrderedDict(out=scores, aux=scores[:, :2]),
    "Hugging Face": lambda scores: SimpleNamespace(logits=scores, hidden_states=None),
    "terratorch": lambda scores: SimpleNamespace(output=scores, auxiliary_heads=None),
    "a list": lambda scores: [scores],
    "a tuple with features": lambda scores: (scores, scores.mean(dim=(2, 3))),
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_every_form_are_read_alike(form: str) -> None:
    batch = images()
    expected = explain(Shaped(FORMS["a tensor"]).eval(), batch, objective=lambda scores: scores[:, 3, 40, 60])
    found = explain(Shaped(FORMS[form]).eval(), batch, objective=PixelClass(3, (40, 60)))
    torch.testing.assert_close(found.heatmap, expected.heatmap)
    torch.testing.assert_close(found.value, expected.value)


def test_one_channel_is_binary_where_that_is_said() -> None:
    model, batch = Shaped(FORMS["a tensor"], channels=1).eval(), images()
    with pytest.raises(ValueError, match=r"target: got \[1\], and the model has one output: say what it means"):
        explain(model, batch, objective=PixelClass(1, (3, 4)))
    there = explain(model, batch, objective=PixelClass(1, (3, 4)), task="binary")
    torch.testing.assert_close(there.value, model(batch)[:, 0, 3, 4].detach() / 2)
    not_there = explain(model, batch, objective=PixelClass(0, (3, 4)), task="binary")
    torch.testing.assert_close(not_there.value, -there.value)
    predicted = explain(model, batch, objective=PixelClass(1), task="binary").value
    scores = model(batch)[:, 0].detach()
    by_hand = torch.stack([one[one > 0].mean() / 2 for one in scores])
    torch.testing.assert_close(predicted, by_hand)


def test_where_the_class_is_predicted_nowhere_there_is_no_number_and_no_map() -> None:
    model = Shaped(lambda scores: torch.cat([scores[:, :1] - 100, scores[:, 1:]], dim=1)).eval()
    with pytest.warns(UserWarning, match="the class is predicted nowhere in some images"):
        found = explain(model, images(), objective=PixelClass(0))
    assert found.value.isnan().all()
    assert found.zero_gradient.all()
    assert not found.heatmap.any()
    with pytest.warns(UserWarning, match="the mask is empty in some images"):
        found = explain(model, images(), objective=PixelClass(1, torch.stack([MASK, 0 * MASK])))
    assert found.value.isnan().tolist() == [False, True]
    assert found.heatmap.flatten(1).any(dim=1).tolist() == [True, False]


@pytest.mark.parametrize("method", METHODS)
def test_depth_at_a_point_in_a_region_and_everywhere(method: str | None) -> None:
    batch, mask = images(height=64, width=64), MASK[:, :64]
    assert dpt()(batch).predicted_depth.shape == (2, 64, 64)
    cases: dict[Any, Callable[[Any], Tensor]] = {
        PixelValue((10, 12)): lambda output: output.predicted_depth[:, 10, 12],
        PixelValue(mask): lambda output: output.predicted_depth[:, mask.bool()].mean(dim=1),
        PixelValue(): lambda output: output.predicted_depth.mean(dim=(1, 2)),
    }
    for objective, formula in cases.items():
        assert_same_map(dpt(), batch, objective, formula, method)


def test_one_channel_is_a_value_too() -> None:
    batch = images()
    flat = explain(Shaped(lambda scores: scores[:, 0]).eval(), batch, objective=PixelValue((3, 4)))
    for form in (lambda scores: scores[:, :1], lambda scores: {"depth": scores[:, 0]}):
        found = explain(Shaped(form).eval(), batch, objective=PixelValue((3, 4)))
        torch.testing.assert_close(found.heatmap, flat.heatmap)


def test_a_place_is_counted_in_the_part_that_the_model_sees() -> None:
    class Cropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Shaped(FORMS["a tensor"])

        def forward(self, batch: Tensor) -> Tensor:
            scores: Tensor = self.inner(batch[:, :, 8:-8, 16:-16])
            return scores

    model, batch = Cropped().eval(), images()
    found = explain(model, batch, objective=PixelClass(1, (20, 40)))
    assert found.area == (8, 16, 56, 80)
    torch.testing.assert_close(found.value, model(batch)[:, 1, 12, 24].detach())
    masked = explain(model, batch, objective=PixelClass(1, MASK))
    torch.testing.assert_close(masked.value, model(batch)[:, 1, 2:22, 4:34].mean(dim=(1, 2)).detach())
    with pytest.raises(ValueError, match="the model sees rows 8 to 55 and columns 16 to 79"):
        explain(model, batch, objective=PixelClass(1, (2, 40)))


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (lambda: PixelClass(-1), "target: got -1; expected the number of a class"),
        (lambda: PixelClass("cat"), "target: got 'cat'"),
        (lambda: PixelClass(1, (3,)), "where: got (3,); expected a pixel (row, column)"),
        (lambda: PixelClass(1, (3.5, 2)), "where: got (3.5, 2)"),
        (lambda: PixelClass(1, "masks"), "where: got 'masks'"),
        (lambda: PixelClass(1, torch.ones(4)), "where: got float32[4]; expected a mask (H, W) or (B, H, W)"),
        (lambda: PixelClass(1, torch.full((4, 4), 3)), "compare labels with the one that is meant, as in labels == 3"),
        (lambda: PixelValue((-1, 0)), "where: got (-1, 0)"),
    ],
)
def test_what_is_no_class_or_no_place_is_refused_when_it_is_said(objective: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        objective()


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (PixelClass(CLASSES), f"target: got [{CLASSES}]; the model's classes are 0 to {CLASSES - 1}"),
        (PixelClass(1, (64, 0)), "where: got the pixel (64, 0); the model sees rows 0 to 63 and columns 0 to 95"),
        (PixelClass(1, torch.ones(3, 64, 96)), "where: got masks of shape (3, 64, 96); expected (H, W) or (2, H, W)"),
        (PixelClass(1, "mask"), "where='mask' of PixelClass are the masks of a monitor's images"),
        (PixelValue((1, 1)), "its output has 5 numbers at each place, (2, 5, 16, 24)"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(objective: Objective, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        explain(segformer(), images(), objective=objective)


def test_the_class_is_the_objectives_own() -> None:
    with pytest.raises(ValueError, match=r"target: got 0, and the objective PixelClass.* takes none"):
        explain(segformer(), images(), 0, objective=PixelClass(1))


def test_the_message_says_what_the_output_holds() -> None:
    batch = images()
    with pytest.raises(ValueError, match=re.escape("it holds [0] float32[2, 5, 64, 96], [1] float32[2, 5, 64, 96]")):
        explain(Shaped(lambda scores: [scores, scores]).eval(), batch, objective=PixelClass(1))
    with pytest.raises(ValueError, match=re.escape("it holds masks float32[2, 5, 64, 96]. Give forward=")):
        explain(Shaped(lambda scores: {"masks": scores}).eval(), batch, objective=PixelClass(1))
    with pytest.raises(
        ValueError, match=re.escape("(B, classes, h, w) for 2 images; it holds one tensor float32[2, 5]")
    ):
        explain(Shaped(lambda scores: scores.mean((2, 3))).eval(), batch, objective=PixelClass(1))
    with pytest.raises(NonFiniteOutputError, match="number 1, counted from 0"):
        explain(
            Shaped(lambda scores: {"out": scores * torch.tensor([1.0, torch.nan])[:, None, None, None]}).eval(),
            batch,
            objective=PixelClass(1),
        )


def test_questions_about_the_same_place_are_equal() -> None:
    assert Question(objective=PixelClass(1, [3, 4])) == Question(objective=PixelClass(1, (3, 4)))
    assert Question(objective=PixelClass(1, (3, 4))) != Question(objective=PixelClass(1, (4, 3)))
    assert Question(objective=PixelClass(1, MASK)) == Question(objective=PixelClass(1, MASK.clone()))
    assert Question(objective=PixelClass(1)) != Question(objective=PixelValue())
    assert Question(objective=PixelClass(1, (3, 4))).objective_in_words() == "class 1 at (3, 4)"
    assert Question(objective=PixelClass(1)).objective_in_words() == "class 1 where it is predicted"
    assert Question(objective=PixelClass(1)).objective_in_words(["sky", "road"].__getitem__) == (
        "road where it is predicted"
    )
    assert Question(objective=QueryClass(1, 5)).objective_in_words(["sky", "road"].__getitem__).startswith("road of ")
