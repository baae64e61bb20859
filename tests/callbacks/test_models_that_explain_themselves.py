"""A model that is a sum over patches is explained by that sum, by every monitor, without being asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lightning_attngrad as attngrad
from lightning_attngrad.models import HinderedTransformer
from tests.callbacks.small_runs import (
    Classifier,
    WatchedMonitor,
    events,
    fit,
    scalar_points,
    tensorboard,
    words,
)
from tests.probe_options import with_probe

GIVEN: dict[str, Any] = {"num_images": 3, "mean": 0.0, "std": 1.0, "on_error": "raise"}


def hindered() -> Classifier:
    return Classifier(
        HinderedTransformer(img_size=32, patch_size=8, num_classes=3, embed_dim=32, num_heads=2, depths=(2,))
    )


def everyone() -> list[Any]:
    return [
        WatchedMonitor(num_images=3),
        attngrad.AttentionDriftMonitor(**with_probe(GIVEN)),
        attngrad.FaithfulnessMonitor(**with_probe({**GIVEN, "steps": 2, "every_n_epochs": 1})),
        attngrad.RewriteRobustnessMonitor(**with_probe({**GIVEN, "steps": 2, "long_every": None})),
    ]


def test_every_monitor_asks_for_the_sum_and_the_run_is_untouched(tmp_path: Path) -> None:
    callbacks = everyone()
    run = fit(*callbacks, module=hindered, max_epochs=1, logger=tensorboard(tmp_path))
    assert run.complaints == []
    assert run.losses == fit(module=hindered, max_epochs=1).losses
    evaluation, findings = callbacks[0].evaluations[-1]
    expected = attngrad.explain(run.module, evaluation.images, evaluation.targets, method="patch_sum")
    assert expected.completeness_error is not None
    assert findings.scalars["completeness_error"] == pytest.approx(0, abs=1e-5)
    points = scalar_points(events(tmp_path), "attngrad/maps/completeness_error")
    assert points[-1][1] == pytest.approx(float(expected.completeness_error.mean()), abs=1e-6)


def test_figures_show_each_blocks_share_and_what_is_shared() -> None:
    monitor = WatchedMonitor(num_images=3)
    fit(monitor, module=hindered, max_epochs=1)
    figures = monitor.evaluations[-1][1].figures()
    said = words(figures["layers"])
    assert any("shared" in text for text in said), said
