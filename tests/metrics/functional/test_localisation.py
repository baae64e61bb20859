"""Localisation against loops, scikit-learn and Quantus."""

from __future__ import annotations

import math
import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from lightning_attngrad.metrics.functional import (
    energy_in_mask,
    mask_average_precision,
    mask_on_grid,
    pointing_game,
)
from tests.references import map_metrics

FUNCTIONS = [energy_in_mask, pointing_game, mask_average_precision]


def _maps(seed: int, rows: int, columns: int, levels: int | None = None, batch: int = 6) -> Tensor:
    maps = torch.randn(batch, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return maps if levels is None else (maps * levels / 2).round()


def _masks(seed: int, height: int, width: int, batch: int = 6) -> Tensor:
    return torch.rand(batch, height, width, generator=torch.Generator().manual_seed(seed)) < 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.integers(1, 7), st.integers(1, 7), st.booleans()
)
def test_coverage_is_that_of_the_area(seed: int, height: int, width: int, rows: int, columns: int, soft: bool) -> None:
    mask = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = mask if soft else mask < 0.5
    found = mask_on_grid(mask, (rows, columns))
    for index in range(2):
        expected = map_metrics.coverage(mask[index].double().numpy(), (rows, columns))
        np.testing.assert_allclose(found[index].numpy(), expected, atol=1e-6)
    assert found.dtype == (torch.float64 if soft else torch.float32)
    torch.testing.assert_close(found.double().mean(dim=(1, 2)), mask.double().mean(dim=(1, 2)), atol=1e-6, rtol=0)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 6), st.sampled_from([None, 1, 2, 5]), st.booleans())
def test_equal_loops_and_scikit_learn(seed: int, rows: int, columns: int, levels: int | None, pixels: bool) -> None:
    maps = _maps(seed, rows, columns, levels)
    masks = _masks(seed + 1, 3 * rows + 1, 2 * columns + 1) if pixels else _masks(seed + 1, rows, columns)
    found = {function: function(maps, masks) for function in FUNCTIONS}
    for index, (heatmap, mask) in enumerate(zip(maps.numpy(), masks.double().numpy(), strict=True)):
        covered = map_metrics.coverage(mask, (rows, columns))
        on_object = covered >= 0.5
        if (np.abs(covered - 0.5) < 1e-6).any() and pixels:
            continue  # half of a patch to the last digit: decided by rounding
        ranks = 0 < on_object.sum() < on_object.size and len(set(heatmap.ravel())) > 1
        expected = {
            energy_in_mask: map_metrics.energy_in_mask(heatmap, covered)
            if 0 < mask.mean() < 1 and heatmap.max() > 0
            else math.nan,
            pointing_game: map_metrics.pointing_game(heatmap, covered) if ranks else math.nan,
            mask_average_precision: average_precision_score(on_object.ravel(), heatmap.ravel()) if ranks else math.nan,
        }
        for function, value in expected.items():
            assert float(found[function][index]) == pytest.approx(value, abs=1e-6, nan_ok=True), function.__name__


@pytest.mark.parametrize("scale", [1, 4])
def test_equal_quantus(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """RelevanceMassAccuracy is the energy in a mask; its maps are as large as the mask."""
    monkeypatch.setenv("LD_LIBRARY_PATH", os.environ.get("LD_LIBRARY_PATH", ""))  # its OpenCV writes there
    quantus = pytest.importorskip("quantus")
    maps = _maps(0, 8, 8, batch=20).abs()
    masks = _masks(1, 8, 8, batch=20).repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    large = maps.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    images = np.zeros((20, 1, *masks.shape[1:]), dtype=np.float32)

    def of_quantus(metric) -> list[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return metric(
                model=torch.nn.Flatten(), x_batch=images, y_batch=np.zeros(20, dtype=int),
                a_batch=large[:, None].numpy(), s_batch=masks[:, None].numpy(),
            )  # fmt: skip

    options = {"disable_warnings": True, "normalise": False}
    assert energy_in_mask(maps, masks).tolist() == pytest.approx(of_quantus(quantus.RelevanceMassAccuracy(**options)))
    assert pointing_game(maps, masks).tolist() == [float(hit) for hit in of_quantus(quantus.PointingGame(**options))]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_properties(seed: int, factor: float) -> None:
    maps, masks = _maps(seed, 5, 6), _masks(seed + 1, 5, 6)
    for function in FUNCTIONS:
        value = function(maps, masks)
        assert ((value >= 0) & (value <= 1)).all()
        torch.testing.assert_close(function(maps * factor, masks), value)
        torch.testing.assert_close(function(maps.flip(2), masks.flip(2)), value)
        torch.testing.assert_close(function(masks.double(), masks), torch.ones(6), check_dtype=False)  # the perfect map
    inside, outside = energy_in_mask(maps, masks), energy_in_mask(maps, ~masks)
    torch.testing.assert_close(inside + outside, torch.ones_like(inside))
    torch.testing.assert_close(pointing_game(maps, masks) + pointing_game(maps, ~masks), torch.ones(6))
    only_order = (pointing_game, mask_average_precision)
    assert all(torch.equal(function(maps.exp(), masks), function(maps, masks)) for function in only_order)


def test_a_map_that_knows_nothing_has_the_share_of_the_mask() -> None:
    flat, mask = torch.ones(1, 8, 8), torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, :16, :8] = True
    assert float(energy_in_mask(flat, mask)) == pytest.approx(1 / 8)
    random = torch.rand(4000, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = mask.expand(4000, -1, -1)
    assert float(pointing_game(random, masks).mean()) == pytest.approx(1 / 8, abs=0.02)
    assert float(mask_average_precision(random, masks).mean()) == pytest.approx(1 / 8, abs=0.06)


def test_ties_are_drawn_by_lot() -> None:
    maps, mask = torch.tensor([[[2.0, 2.0, 2.0, 1.0]]]), torch.tensor([[[True, False, True, False]]])
    assert float(pointing_game(maps, mask)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (37, 50)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_where_there_is_no_number(function, size: tuple[int, int]) -> None:
    good, masks = _maps(0, 4, 5, batch=1).float(), torch.ones(1, *size)
    masks[:, : size[0] // 2] = 0
    broken, infinite = good.clone(), good.clone()
    broken[0, 1, 1], infinite[0, 1, 1] = math.nan, math.inf
    assert function(good, masks).isfinite().all()
    for bad in (broken, infinite, torch.zeros(1, 4, 5)):
        assert function(bad, masks).isnan().all()
    for mask in (torch.zeros(1, *size), torch.ones(1, *size)):
        assert function(good, mask).isnan().all()
    assert energy_in_mask(-good.abs(), masks).isnan().all()
    assert function(good[:0], masks[:0]).shape == (0,)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_does_not_fit_is_refused(function) -> None:
    maps = torch.rand(2, 4, 4)
    for mask in (torch.ones(1, 4, 4), torch.ones(2, 1, 4, 4), torch.ones(4, 4)):
        with pytest.raises(ValueError, match="heatmap, mask: got shapes"):
            function(maps, mask)
    for values in (-0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match="mask: got values of"):
            function(maps, torch.full((2, 4, 4), values))
    with pytest.raises(ValueError, match="mask: got shape"):
        mask_on_grid(torch.ones(4, 4), (2, 2))
