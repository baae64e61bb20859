"""A model that ends in a sigmoid or a softmax: asked for its scores, and right once they are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import explain
from lightning_attngrad.rewrite import rewrite
from tests.callbacks.small_runs import tiny_vit

METHODS = ("guided_relevance", "gradient_guided", "rollout", "grad_cam", "conservative")


class Squashed(nn.Module):
    """A classifier with its scores, and with what a user's forward() makes of them."""

    def __init__(self, classes: int, ends: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.ends = tiny_vit(num_classes=classes), ends
        nn.init.normal_(self.net.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.ends(self.net(images))


ENDS: dict[str, tuple[int, str, Callable[[Tensor], Tensor], str]] = {
    "binary": (1, "binary", torch.sigmoid, "sigmoid"),
    "binary, one axis": (1, "binary", lambda z: torch.sigmoid(z)[:, 0], "sigmoid"),
    "binary, clamped": (1, "binary", lambda z: z.sigmoid().squeeze(1).clamp(1e-6, 1 - 1e-6), "sigmoid"),
    "multilabel": (3, "multilabel", nn.Sigmoid(), "sigmoid"),
    "multiclass": (3, "multiclass", nn.Softmax(dim=1), "softmax"),
    "half": (3, "multiclass", lambda z: z.softmax(1).to(torch.float64), "softmax"),
}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ENDS)
def test_probabilities_are_not_taken_for_scores(name: str, method: str) -> None:
    classes, task, ends, says = ENDS[name]
    with pytest.raises(ValueError, match=rf"comes out of a {says}.*lambda images: model\(images\)\."):
        explain(Squashed(classes, ends), IMAGES, method=method, task=task)


@pytest.mark.parametrize("name", ENDS)
def test_nor_are_they_rewritten(name: str) -> None:
    classes, task, ends, says = ENDS[name]
    with pytest.raises(ValueError, match=f"comes out of a {says}"):
        rewrite(Squashed(classes, ends), IMAGES, 0, task=task, mean=0.0, std=1.0, steps=2)


def test_without_a_task_several_probabilities_are_refused_and_one_is_a_number() -> None:
    with pytest.raises(ValueError, match="comes out of a softmax"):
        explain(Squashed(3, nn.Softmax(dim=1)), IMAGES)
    assert explain(Squashed(1, torch.sigmoid), IMAGES).heatmap.isfinite().all()


@pytest.mark.parametrize("ends", [nn.Identity(), nn.LogSoftmax(dim=1), nn.Tanh(), lambda z: z.sigmoid() * z])
def test_other_ends_are_scores(ends: Callable[[Tensor], Tensor]) -> None:
    assert explain(Squashed(3, ends), IMAGES).heatmap.isfinite().all()


def test_the_line_that_the_message_proposes_gives_the_classifier_without_its_sigmoid() -> None:
    model = Squashed(1, torch.sigmoid).eval()
    found = explain(model, IMAGES, task="binary", forward=lambda images: model(images).logit(), method="rollout")
    expected = explain(model.net, IMAGES, task="binary", method="rollout")
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.heatmap, expected.heatmap)
