"""Guided training of a matcher of two views, watched: the maps of one view or the other, and the run as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_attngrad as attngrad
from lightning_attngrad.explain import explain
from lightning_attngrad.guidance import attention_guidance_loss, capture_attention, epipolar_mask
from lightning_attngrad.measure.maps import explain_images
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.small_runs import Classifier, fit, loader
from tests.two_views import PATCHES, SIDE, Matcher, views

CROSS = ["net.cross.0.attention", "net.cross.1.attention"]


class Matching(Classifier):
    """A user's module: batches are (view a, view b, fundamental matrix), and each patch is to find itself."""

    def __init__(self) -> None:
        super().__init__(Matcher())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        scores: Tensor = self.net(a, b)
        return scores

    def loss(self, batch: Any) -> Tensor:
        a, b, geometry = batch
        with capture_attention(self, layers=CROSS) as calls:
            scores = self(a, b)
        matches = torch.arange(PATCHES, device=scores.device).expand(len(a), -1)
        plausible = epipolar_mask(geometry, (SIDE, SIDE), (SIDE, SIDE), 0.8)
        return F.cross_entropy(scores.flatten(2), matches) + attention_guidance_loss(calls, plausible).loss


def data() -> TensorDataset:
    a, b = views(8, seed=3)
    sideways = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]).expand(8, -1, -1)
    return TensorDataset(a, b, sideways)


def best_match_of_patch_6(scores: Tensor) -> Tensor:
    """Of (B, 16, 4, 4): the score of the patch of b that is found for the patch in row 1, column 2 of a."""
    return scores[:, :, 1, 2].amax(dim=1)


def run(*monitors: Any, **of_trainer: Any) -> Any:
    return fit(*monitors, module=Matching, train=loader(data()), val=loader(data()), max_epochs=1, **of_trainer)


class Maps(attngrad.AttentionMapMonitor):
    """The monitor as it is, which keeps its last maps, and the weights and images that they are of."""

    seen: tuple[Any, dict[str, Tensor], Tensor]

    def evaluate(self, evaluation: Evaluation) -> Findings:
        weights = {name: value.clone() for name, value in evaluation.model.state_dict().items()}
        self.seen = explain_images(evaluation, self.question), weights, evaluation.images.clone()
        return super().evaluate(evaluation)


def options(view: int, method: str | None = "gradient_guided") -> dict[str, Any]:
    probe = attngrad.ProbeImages(num_images=4, image_key=view, mean=0.0, std=1.0)
    return {"probe": probe, "objective": best_match_of_patch_6, "method": method, "on_error": "raise"}


def test_view_b_is_watched_through_its_cross_attention(tmp_path: Path) -> None:
    monitor, drift = Maps(**options(1)), attngrad.AttentionDriftMonitor(**options(1))
    assert not run(monitor, drift, default_root_dir=tmp_path).complaints
    for name, figure in (("maps", "overlay"), ("maps", "layers"), ("drift", "layers")):
        assert list(tmp_path.rglob(f"attngrad/{name}/{figure}/*.png"))
    assert drift.scalars["spearman"] < 1

    # The map is that of the weights of that moment, of b's images beside a's of the same samples.
    found, weights, images = monitor.seen
    module = Matching()
    module.load_state_dict(weights)
    a, b, _ = data().tensors
    which = [int((b == image).flatten(1).all(dim=1).nonzero()) for image in images]
    expected = explain(
        module,
        b[which],
        objective=best_match_of_patch_6,
        method="gradient_guided",
        forward=lambda some: module(a[which], some),
    )
    assert found.layer_names == expected.layer_names == ("net.encoder.attention#2", *CROSS)
    assert torch.allclose(found.heatmap, expected.heatmap, atol=1e-6)


def test_view_a_is_watched_through_its_own_attention_alone() -> None:
    monitor = Maps(**options(0))
    assert not run(monitor).complaints
    assert monitor.seen[0].layer_names == ("net.encoder.attention",)  # across, nothing of view a is read


@pytest.mark.parametrize(("view", "method"), [(0, None), (1, None), (1, "attn_lrp")])
def test_other_methods_watch_it_too(view: int, method: str | None) -> None:
    monitor = attngrad.AttentionMapMonitor(**options(view, method))
    assert not run(monitor).complaints
    assert 0 < monitor.scalars["entropy"] <= 1


def test_a_guided_run_is_the_same_with_monitors() -> None:
    plain, watched = run(), run(Maps(**options(0)), attngrad.AttentionDriftMonitor(**options(1)))
    assert plain.losses == watched.losses
    for one, other in zip(plain.module.parameters(), watched.module.parameters(), strict=True):
        assert torch.equal(one, other)
