"""Drift against scipy, scikit-image and loops; exactly zero for identical maps."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import cosine, jensenshannon
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor

from lightning_attngrad.metrics.functional import (
    DRIFT_MEASURES,
    centroid_shift,
    drift_ratio,
    jensen_shannon,
    map_drift,
    map_ssim,
    spearman_drift,
    times_uniform_share,
    top_share_iou,
)
from tests.references import map_metrics

DISTANCES = [jensen_shannon, centroid_shift]
FUNCTIONS = [*DISTANCES, map_ssim, top_share_iou]
LARGEST = {"spearman": 2, "cosine": 2, "ssim": 2, "top_iou": 1, "jensen_shannon": 1, "centroid": 1}


def _maps(seed: int, rows: int, columns: int, levels: int | None = None, batch: int = 3) -> Tensor:
    """Random maps with both signs; with levels, of so many values that many patches are equal."""
    maps = torch.randn(batch, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return maps if levels is None else (maps * levels / 2).round()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 9))
def test_equal_scipy_and_loops(seed: int, rows: int, columns: int) -> None:
    a, b = _maps(seed, rows, columns), _maps(seed + 1, rows, columns)
    drift = map_drift(a, b)
    for index, (x, y) in enumerate(zip(a.numpy(), b.numpy(), strict=True)):
        p, q = map_metrics.shares(x).ravel(), map_metrics.shares(y).ravel()
        expected = {
            "spearman": 1 - spearmanr(x.ravel(), y.ravel()).statistic,
            "cosine": cosine(x.ravel(), y.ravel()),
            "top_iou": 1 - map_metrics.top_share_iou(x, y, Fraction(1, 10)),
            "jensen_shannon": jensenshannon(p, q, base=2) ** 2,
            "centroid": map_metrics.centroid_shift(x, y),
        }
        for name, value in expected.items():
            assert float(drift[name][index]) == pytest.approx(value, abs=1e-12), name
    assert torch.equal(drift["ssim"], 1 - map_ssim(a, b))
    assert torch.equal(drift["jensen_shannon"], jensen_shannon(a, b))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 5]), st.sampled_from(["1/10", "1/4", "1/2", "1"]))
def test_top_share_of_tied_patches_equals_exact_fractions(seed: int, levels: int, share: str) -> None:
    a, b = _maps(seed, 4, 5, levels), _maps(seed + 1, 4, 5, levels)
    part = Fraction(share)
    expected = [map_metrics.top_share_iou(x, y, part) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert top_share_iou(a, b, float(part)).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [(14, 14), (11, 16), (12, 7), (7, 7), (5, 9), (4, 4), (3, 3)])
def test_ssim_equals_scikit_image(size: tuple[int, int]) -> None:
    """Mirrored at the edges beforehand, since scikit-image repeats the edge; a window of 11, or as wide as fits."""
    a, b = _maps(0, *size), _maps(1, *size)
    b[0] = a[0] + 0.1 * b[0]
    window = min(11, *(side - 1 + side % 2 for side in size))
    found = map_ssim(a, b)
    for index, pair in enumerate(zip(a, b, strict=True)):
        x, y = (times_uniform_share(one).numpy() for one in pair)
        span = max(x.max(), y.max()) - min(x.min(), y.min())
        sigma = 1.5 * window / 11
        half = window // 2
        _, by_patch = structural_similarity(
            *(np.pad(one, half, mode="reflect") for one in (x, y)), gaussian_weights=True, sigma=sigma,
            use_sample_covariance=False, data_range=span, full=True,
        )  # fmt: skip
        expected = by_patch[half : half + size[0], half : half + size[1]].mean()
        assert float(found[index]) == pytest.approx(expected, abs=1e-6)


FINITE = arrays.arrays(
    np.float32,
    st.tuples(st.just(2), st.integers(1, 6), st.integers(2, 6)),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)


@settings(max_examples=200, deadline=None)
@given(FINITE)
def test_identical_maps_have_drifted_by_exactly_nothing(values: np.ndarray) -> None:
    """Any finite float32: subnormal, near the largest, of both signs; also where it lies otherwise in memory."""
    maps = torch.from_numpy(values)
    elsewhere = maps.mT.contiguous().mT
    constant = [bool((one == one.flatten()[0]).all()) for one in maps]
    for name, distance in map_drift(maps, elsewhere).items():
        expected = [math.nan if flat else 0.0 for flat in constant]
        assert distance.tolist() == pytest.approx(expected, abs=0, nan_ok=True), name


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (37, 37), (7, 7), (1, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_so_they_have_on_the_grids_of_models(grid: tuple[int, int], dtype: torch.dtype) -> None:
    maps = (_maps(5, *grid, batch=64) * 1e-3).to(dtype)
    for name, distance in map_drift(maps, maps.clone()).items():
        assert distance.tolist() == [0.0] * 64, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_so_they_have_where_one_patch_differs_in_the_last_digit(dtype: torch.dtype) -> None:
    """There the variances of SSIM are all rounding."""
    maps = torch.ones(196, 14, 14, dtype=dtype)
    maps.view(196, 196).diagonal().add_(torch.finfo(dtype).eps)
    for name, distance in map_drift(maps, maps.clone()).items():
        assert distance.tolist() == [0.0] * 196, name


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 2]), st.floats(0.01, 100))
def test_symmetric_within_range_and_heedless_of_size(seed: int, levels: int | None, factor: float) -> None:
    a, b = _maps(seed, 5, 6, levels).float(), _maps(seed + 1, 5, 6, levels).float()
    there, back, larger = map_drift(a, b), map_drift(b, a), map_drift(a * factor, b)
    assert tuple(there) == DRIFT_MEASURES == tuple(LARGEST)
    for name, distance in there.items():
        assert ((distance >= 0) & (distance <= LARGEST[name])).all()
        torch.testing.assert_close(back[name], distance)
        torch.testing.assert_close(larger[name], distance, rtol=1e-3, atol=1e-5)


def test_one_distance_alone_is_that_of_all_six() -> None:
    """Of any shape in front of the patches, as layers have; also where a map has no order."""
    a, b = _maps(0, 5, 6, batch=8), _maps(1, 5, 6, batch=8)
    a[3] = 1.0
    alone = spearman_drift(a.view(2, 4, 5, 6), b.view(2, 4, 5, 6))
    torch.testing.assert_close(alone.flatten(), map_drift(a, b)["spearman"], rtol=0, atol=0, equal_nan=True)
    assert alone.isnan().flatten().tolist() == [index == 3 for index in range(8)]


def test_extremes() -> None:
    a, b = torch.zeros(2, 1, 14, 14)
    a[0, 0, 0], b[0, 13, 13] = 1, 1
    drift = map_drift(a, b)
    assert float(drift["cosine"]) == pytest.approx(1)
    assert float(drift["jensen_shannon"]) == 1
    assert float(drift["centroid"]) == pytest.approx(13 / 14)
    assert float(top_share_iou(a, b, 1 / 196)) == 0
    assert float(map_drift(a, -a)["spearman"]) == pytest.approx(2)
    assert float(map_drift(a, -a)["cosine"]) == pytest.approx(2)


def test_small_moves_are_not_lost_in_rounding() -> None:
    """1 − correlation in float32 would know nothing below 1e-7."""
    a = _maps(0, 14, 14)
    b = a + 1e-5 * _maps(1, 14, 14)
    exact, found = map_drift(a, b), map_drift(a.float(), b.float())
    assert float(exact["cosine"].max()) < 1e-9
    torch.testing.assert_close(found["cosine"].double(), exact["cosine"], rtol=0.05, atol=0)


def test_where_one_map_says_nothing_no_measure_has_a_number() -> None:
    good = _maps(0, 4, 5, batch=1)
    broken, infinite = good.clone(), good.clone()
    broken[0, 1, 1], infinite[0, 1, 1] = math.nan, math.inf
    for bad in (torch.zeros(1, 4, 5), torch.ones(1, 4, 5), broken, infinite, torch.full((1, 4, 5), math.nan)):
        for pair in ((good, bad), (bad, good), (bad, bad)):
            for name, distance in map_drift(*pair).items():
                assert distance.isnan().all(), name
    mixed = torch.cat([good, broken, good])
    assert all(distance.isnan().tolist() == [False, True, False] for distance in map_drift(mixed, mixed).values())


def test_ratio_is_that_of_means_and_says_so_where_there_is_no_floor() -> None:
    drift = {"cosine": torch.tensor([0.2, 0.4, math.nan]), "ssim": torch.tensor([0.0, 0.1])}
    floor = {"cosine": torch.tensor([0.1, math.nan]), "ssim": torch.tensor([0.0])}
    ratio = drift_ratio(drift, floor)
    assert float(ratio["cosine"]) == pytest.approx(3)
    assert float(ratio["ssim"]) == math.inf
    nothing = {"cosine": torch.zeros(2)}
    assert math.isnan(float(drift_ratio(nothing, nothing)["cosine"]))
    assert math.isnan(float(drift_ratio({"cosine": torch.zeros(0)}, {"cosine": torch.ones(1)})["cosine"]))
    with pytest.raises(ValueError, match=r"drift, floor: got \['cosine'\] and \['ssim'\]"):
        drift_ratio({"cosine": torch.ones(1)}, {"ssim": torch.ones(1)})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_shapes_types_and_refusals(function) -> None:
    a, b = _maps(0, 3, 4, batch=4), _maps(1, 3, 4, batch=4)
    assert function(a[0], b[0]).shape == ()
    assert function(a.view(2, 2, 3, 4), b.view(2, 2, 3, 4)).shape == (2, 2)
    assert function(a[:0], b[:0]).shape == (0,)
    assert function(a.half(), b.bfloat16()).dtype == torch.float32
    assert function(a, b).dtype == torch.float64
    with pytest.raises(ValueError, match=r"a, b: got shapes"):
        function(a, b[:2])


@pytest.mark.parametrize("share", [0, -0.1, 1.5, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share: got"):
        top_share_iou(torch.ones(2, 2), torch.ones(2, 2), share)
