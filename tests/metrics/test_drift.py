"""MapDrift: a model against itself, and what is drawn. Sums over batches and processes are in test_rewrite.py."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lightning_attngrad.metrics import MapDrift
from lightning_attngrad.metrics.functional import DRIFT_MEASURES


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    backend = mpl.get_backend()
    mpl.use("Agg")
    yield
    plt.close("all")
    mpl.use(backend)


def _maps(seed: int) -> Tensor:
    return torch.randn(6, 14, 14, generator=torch.Generator().manual_seed(seed))


def _measured(reference: Tensor, now: Tensor) -> MapDrift:
    metric = MapDrift()
    metric.update(reference, now, now + 0.1 * _maps(9))
    return metric


def test_drift_against_itself_is_exactly_zero_and_the_noise_floor_is_not() -> None:
    found = _measured(_maps(0), _maps(0).clone()).compute()
    for name in DRIFT_MEASURES:
        assert float(found[name]) == 0
        assert float(found[f"{name}_floor"]) > 0
        assert float(found[f"{name}_ratio"]) == 0
    moved = _measured(_maps(0), _maps(1)).compute()
    assert all(float(moved[f"{name}_ratio"]) > 3 for name in DRIFT_MEASURES)


def test_drift_and_floor_are_drawn_with_the_ratio_below() -> None:
    metric = _measured(_maps(0), _maps(1))
    figure, axis = metric.plot()
    figure.canvas.draw()
    found = metric.compute()
    for line, kind in zip(axis.get_lines(), ("", "_floor"), strict=True):
        assert list(line.get_ydata()) == pytest.approx([float(found[f"{name}{kind}"]) for name in DRIFT_MEASURES])
    assert axis.get_yscale() == "log"
    assert axis.get_xticklabels()[0].get_text() == f"spearman\n×{float(found['spearman_ratio']):.3g}"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["drift", "noise floor"]


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric .* was called before the ``update`` method")
def test_nothing_and_no_number_are_drawn() -> None:
    for metric in (_measured(_maps(0), _maps(0)), MapDrift()):
        figure, axis = metric.plot()
        figure.canvas.draw()
        assert [len(line.get_ydata()) for line in axis.get_lines()] == [len(DRIFT_MEASURES)] * 2


def test_steps_are_drawn_as_ratios_beside_the_line_of_noise_alone() -> None:
    steps = [_measured(_maps(0), _maps(0) + size * _maps(1)).compute() for size in (0.0, 0.1, 1.0)]
    _, axis = MapDrift().plot(steps)
    *drawn, noise = axis.get_lines()
    assert list(noise.get_ydata()) == [1, 1]
    assert len(drawn) == len(DRIFT_MEASURES)
    for name, line in zip(DRIFT_MEASURES, drawn, strict=True):
        assert list(line.get_ydata()) == pytest.approx([float(step[f"{name}_ratio"]) for step in steps])
