"""Metrics of rewriting against their definitions, and where failures, ties and empty batches lead."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from lightning_attngrad.metrics.functional import (
    area_under_success,
    distance_quantiles,
    image_quality,
    median_matrix,
    paired_log_ratio,
    robust_accuracy,
    share_surviving,
    success_at,
)
from tests.references import rewrite_metrics as reference

INF = math.inf
RADII = [0.0, 1 / 256, 0.03125, 0.1, 2.0]

#: Distances that lie on radii, repeat, are zero or infinite; exact in float32.
DISTANCES = st.lists(
    st.one_of(st.sampled_from([0.0, 1 / 256, 0.03125, INF]), st.floats(0, 4, width=32)), min_size=1, max_size=30
)


def _tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(DISTANCES)
def test_success_and_its_area_equal_their_definitions(distance: list[float]) -> None:
    assert success_at(_tensor(distance), RADII).tolist() == pytest.approx(reference.success_at(distance, RADII))
    area = area_under_success(_tensor(distance), 1 / 256, 2.0)
    assert float(area) == pytest.approx(reference.area_under_success(distance, 1 / 256, 2.0), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(DISTANCES, st.lists(st.floats(0, 5, width=32), min_size=2, max_size=6))
def test_success_never_falls_as_the_radius_grows(distance: list[float], radii: list[float]) -> None:
    shares = success_at(_tensor(distance), sorted(radii))
    assert (shares.diff() >= 0).all()
    assert ((shares >= 0) & (shares <= 1)).all()


@settings(max_examples=50, deadline=None)
@given(DISTANCES, st.floats(1e-3, 0.9), st.floats(1.1, 100), st.floats(0, 1))
def test_the_area_is_a_share_and_shrinks_with_distance(
    distance: list[float], low: float, factor: float, further: float
) -> None:
    near, far = _tensor(distance), _tensor(distance) * (1 + further)
    area = float(area_under_success(near, low, low * factor))
    assert 0 <= area <= 1
    assert float(area_under_success(far, low, low * factor)) <= area + 1e-12


def test_the_area_counts_each_factor_of_the_radius_alike() -> None:
    pairs = torch.tensor([0.0, 0.001, 0.01, 0.1, 0.5, 1.0, INF])
    alone = [float(area_under_success(pair[None], 0.001, 1.0)) for pair in pairs]
    assert alone == pytest.approx([1, 1, 2 / 3, 1 / 3, math.log10(2) / 3, 0, 0], abs=1e-6)
    assert area_under_success(torch.tensor([0.001]), 0.001, 1.0) <= 1


@settings(max_examples=200, deadline=None)
@given(DISTANCES, st.sampled_from(["0", "0.1", "0.25", "0.3", "0.5", "0.55", "0.7", "0.75", "0.9", "1"]))
def test_quantiles_equal_their_definition_and_are_never_nan(distance: list[float], q: str) -> None:
    (quantile,) = distance_quantiles(_tensor(distance), [float(q)]).tolist()
    assert quantile == pytest.approx(reference.quantile(distance, q), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("pairs", range(2, 200))
def test_rounding_of_a_place_does_not_reach_for_a_failure(pairs: int) -> None:
    place = math.ceil(0.55 * (pairs - 1) - 1e-6)  # the last pair of any weight
    distance = [0.1] * (place + 1) + [INF] * (pairs - place - 1)
    assert distance_quantiles(_tensor(distance), [0.55]).tolist() == pytest.approx([0.1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=40))
def test_quantiles_of_finite_pairs_are_numpys(distance: list[float]) -> None:
    ours = distance_quantiles(_tensor(distance)).tolist()
    assert ours == pytest.approx(np.quantile(distance, [0.25, 0.5, 0.75]).tolist(), rel=1e-9)


def test_quantiles_between_failures() -> None:
    assert distance_quantiles(torch.tensor([0.1, INF])).tolist() == [INF, INF, INF]
    assert distance_quantiles(torch.tensor([0.1, 0.2, INF]), [0.5, 0.500001]).tolist() == pytest.approx([0.2, INF])
    assert distance_quantiles(torch.tensor([INF, INF])).tolist() == [INF, INF, INF]


@settings(max_examples=50, deadline=None)
@given(DISTANCES, st.integers(0, 1000))
def test_robust_accuracy_equals_its_definition(distance: list[float], seed: int) -> None:
    correct = torch.rand(len(distance), generator=torch.Generator().manual_seed(seed)) < 0.7
    ours = robust_accuracy(_tensor(distance), correct, RADII)
    assert ours.tolist() == pytest.approx(reference.robust_accuracy(distance, correct.tolist(), RADII))
    assert (ours <= correct.double().mean() + 1e-6).all()
    everything = torch.ones_like(correct)
    torch.testing.assert_close(
        robust_accuracy(_tensor(distance), everything, RADII), 1 - success_at(_tensor(distance), RADII)
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.7, INF]), st.integers(0, 2), st.integers(0, 2))))
def test_median_matrix_equals_its_definition(pairs: list[tuple[float, int, int]]) -> None:
    distance, source, target = ([pair[k] for pair in pairs] for k in range(3))
    ours = median_matrix(_tensor(distance), torch.tensor(source).int(), torch.tensor(target).long(), 3)
    np.testing.assert_allclose(ours.numpy(), reference.median_matrix(distance, source, target, 3))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_share_surviving_equals_its_definition(pairs: list[tuple[bool, bool]]) -> None:
    survived, success = ([pair[k] for pair in pairs] for k in range(2))
    ours = share_surviving(torch.tensor(survived, dtype=torch.bool), torch.tensor(success, dtype=torch.bool))
    assert float(ours) == pytest.approx(reference.share_surviving(survived, success), nan_ok=True)


@pytest.mark.parametrize(
    ("side", "window", "sigma"),
    [(28, 11, 1.5), (14, 11, 1.5), (11, 11, 1.5), (10, 9, 1.5 * 9 / 11), (8, 7, 1.5 * 7 / 11), (2, 1, 1.0)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_equal_their_formulas(side: int, window: int, sigma: float, channels: int) -> None:
    generator = torch.Generator().manual_seed(side)
    original = torch.rand(3, channels, side, side + 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(original.shape, generator=generator, dtype=torch.float64)
    rewritten = (original + torch.tensor([0.01, 0.1, 0.5]).view(3, 1, 1, 1) * noise).clamp(0, 1)
    quality = image_quality(original, rewritten)
    for index, (a, b) in enumerate(zip(original.numpy(), rewritten.numpy(), strict=True)):
        assert float(quality.psnr[index]) == pytest.approx(reference.psnr(a, b), rel=1e-6)
        assert float(quality.ssim[index]) == pytest.approx(reference.ssim(a, b, window, sigma), rel=1e-6)


def test_ssim_equals_scipys_gaussian_filter_on_a_large_image() -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(1, 1, 64, 48, generator=generator, dtype=torch.float64)
    rewritten = (original * 0.8 + 0.1).clamp(0, 1)
    a, b = original[0, 0].numpy(), rewritten[0, 0].numpy()

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, mode="mirror", radius=5)

    mean_a, mean_b = smooth(a), smooth(b)
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    covariance, variances = smooth(a * b) - mean_a * mean_b, smooth(a * a + b * b) - mean_a**2 - mean_b**2
    expected = (luminance * (2 * covariance + 9e-4) / (variances + 9e-4)).mean()
    assert float(image_quality(original, rewritten).ssim) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [(8, 8), (14, 14), (224, 5), (1, 1)])
def test_an_image_that_did_not_change_has_infinite_psnr_and_ssim_1(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)).half()
    quality = image_quality(images, images)
    assert quality.psnr.tolist() == [INF, INF]
    assert quality.ssim.tolist() == pytest.approx([1, 1], abs=1e-5)
    assert quality.psnr.dtype == torch.float32


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.1, 0.2, 0.25, 3.0, INF])] * 2), max_size=12))
def test_log_ratio_equals_its_definition_and_is_antisymmetric(pairs: list[tuple[float, float]]) -> None:
    distance, before = ([pair[k] for pair in pairs] for k in range(2))
    ratios = reference.log_ratios(distance, before)
    ours = paired_log_ratio(_tensor(distance), _tensor(before), resamples=50)
    exchanged = paired_log_ratio(_tensor(before), _tensor(distance), resamples=50)
    assert int(ours.pairs) == len(ratios)
    if ratios:
        assert float(ours.median) == pytest.approx(reference.middle(ratios))
        assert float(exchanged.median) == -float(ours.median)
        assert min(ratios) - 1e-9 <= float(ours.low) <= float(ours.high) <= max(ratios) + 1e-9
    else:
        assert all(math.isnan(float(value)) for value in (ours.median, ours.low, ours.high))


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("pairs", [9, 31])
def test_the_interval_has_the_exact_probability_of_the_bootstrap(pairs: int, confidence: float) -> None:
    """The bootstrap distribution of a median is known; 20,000 draws estimate each end's probability to about 0.004."""
    generator = torch.Generator().manual_seed(pairs)
    distance = torch.rand(pairs, generator=generator, dtype=torch.float64) + 0.1
    distance[0] = INF
    before = torch.rand(pairs, generator=generator, dtype=torch.float64) + 0.1
    ratios = sorted(reference.log_ratios(distance.tolist(), before.tolist()))
    ours = paired_log_ratio(distance, before, confidence=confidence, resamples=20_000)
    for end, wanted in ((ours.low, (1 - confidence) / 2), (ours.high, (1 + confidence) / 2)):
        place = min(range(pairs), key=lambda k: abs(ratios[k] - float(end)))
        assert float(end) == pytest.approx(ratios[place])
        assert reference.bootstrap_median_at_most(ratios, ratios[place]) > wanted - 0.015
        if place:
            assert reference.bootstrap_median_at_most(ratios, ratios[place - 1]) < wanted + 0.015


def test_the_interval_is_wider_with_more_confidence_and_narrower_with_more_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    distance, before = torch.rand(2, 801, generator=generator)

    def width(pairs: int, confidence: float) -> float:
        ratio = paired_log_ratio(distance[:pairs], before[:pairs], confidence=confidence)
        return float(ratio.high - ratio.low)

    assert width(801, 0.5) < width(801, 0.95) < width(25, 0.95)


def test_the_bootstrap_heeds_its_seed_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    distance, before = torch.rand(2, 40, generator=generator)
    state = torch.get_rng_state()
    first = paired_log_ratio(distance, before, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    order = torch.randperm(40, generator=generator)
    again = paired_log_ratio(distance[order], before[order], seed=3)
    other = paired_log_ratio(distance, before, seed=4)
    assert vars(first) == vars(again)
    assert (first.low, first.high) != (other.low, other.high)


def test_the_default_device_does_not_matter() -> None:
    distance, before = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):  # where anything that is made without a device has no values
        elsewhere = paired_log_ratio(distance, before)
    assert vars(elsewhere) == vars(paired_log_ratio(distance, before))


def test_a_large_bootstrap_is_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    distance, before = torch.rand(2, 30, generator=generator)
    whole = paired_log_ratio(distance, before)
    monkeypatch.setattr("lightning_attngrad.metrics.functional.rewrite._DRAWS_AT_ONCE", 100)
    assert vars(paired_log_ratio(distance, before)) == vars(whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_distance_on_the_radius_lies_within_it(dtype: torch.dtype) -> None:
    radii = [k / 255 for k in (1, 2, 4, 8, 16)]
    distance = torch.tensor(radii, dtype=dtype)
    within = success_at(distance, [float(value) for value in distance])
    assert within.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert distance_quantiles(distance).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype.itemsize >= 4:
        assert torch.equal(success_at(distance, radii), within)


def test_float32_distances_are_good_to_float32() -> None:
    distance = torch.rand(50, generator=torch.Generator().manual_seed(0))
    wide = distance.double()
    for function in (distance_quantiles, lambda d: success_at(d, RADII), lambda d: area_under_success(d, 0.01, 1)):
        torch.testing.assert_close(function(distance).double(), function(wide).double(), rtol=1e-5, atol=1e-6)


def test_without_pairs_every_number_is_nan() -> None:
    nothing, no_class, flags = torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)
    results = [
        success_at(nothing, RADII),
        distance_quantiles(nothing),
        area_under_success(nothing, 0.1, 1.0),
        robust_accuracy(nothing, flags, RADII),
        median_matrix(nothing, no_class, no_class, 2),
        share_surviving(flags, flags),
        paired_log_ratio(nothing, nothing).median,
    ]
    assert [tuple(result.shape) for result in results] == [(5,), (3,), (), (5,), (2, 2), (), ()]
    assert all(result.isnan().all() for result in results)
    assert image_quality(torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8)).ssim.shape == (0,)


D, NAN, WRONG = torch.tensor([0.1, 0.2]), torch.tensor([0.1, math.nan]), torch.tensor([-0.1, 0.2])
YES, CLASSES = torch.tensor([True, False]), torch.tensor([0, 1])
REFUSED: list[tuple[Callable[[], object], str]] = [
    *[(lambda d=d: success_at(d, [0.1]), "distance: got 1 of 2 pairs that are NaN or negative") for d in (NAN, WRONG)],
    (lambda: distance_quantiles(NAN), "distance: got 1 of 2 pairs"),
    (lambda: area_under_success(NAN, 0.1, 1.0), "distance: got 1 of 2 pairs"),
    (lambda: robust_accuracy(NAN, YES, [0.1]), "distance: got 1 of 2 pairs"),
    (lambda: median_matrix(NAN, CLASSES, CLASSES, 2), "distance: got 1 of 2 pairs"),
    (lambda: paired_log_ratio(NAN, D), "distance: got 1 of 2 pairs"),
    (lambda: paired_log_ratio(D, NAN), "reference: got 1 of 2 pairs"),
    (lambda: success_at(D[None], [0.1]), r"distance: got shape \(1, 2\)"),
    (lambda: success_at(CLASSES, [0.1]), "of torch.int64; expected .* floats"),
    *[(lambda r=r: success_at(D, r), "radii: got") for r in ([], [-0.1], [math.nan], [INF], [[0.1]])],
    *[(lambda q=q: distance_quantiles(D, q), "q: got") for q in ([], [1.1], [-0.1], [math.nan])],
    *[
        (lambda low=low, high=high: area_under_success(D, low, high), "low, high: got")
        for low, high in ((0, 1), (-1, 1), (1, 1), (2, 1), (0.1, INF), (math.nan, 1), (0.1, math.nan))
    ],
    (lambda: robust_accuracy(D, CLASSES, [0.1]), "correct: got .* expected .2,. bool"),
    (lambda: robust_accuracy(D, YES[:1], [0.1]), r"correct: got shape \(1,\)"),
    (lambda: median_matrix(D, CLASSES, CLASSES, 1), "source: got classes from 0 to 1; expected them in .0, 1."),
    (lambda: median_matrix(D, CLASSES, CLASSES - 1, 2), "target: got classes from -1 to 0"),
    (lambda: median_matrix(D, CLASSES[:1], CLASSES, 2), r"source: got shape \(1,\)"),
    (lambda: median_matrix(D, CLASSES, CLASSES.float(), 2), "target: got .*float32; expected .* ints"),
    (lambda: median_matrix(D, CLASSES, CLASSES, 0), "num_classes: got 0; expected a positive int"),
    (lambda: share_surviving(YES, CLASSES), "success: got"),
    (lambda: share_surviving(YES[:1], YES), "survived: got"),
    (lambda: paired_log_ratio(D, D[:1]), "got 2 and 1 pairs; expected"),
    *[(lambda c=c: paired_log_ratio(D, D, confidence=c), "confidence: got") for c in (0, 1, 95, math.nan)],
    *[(lambda n=n: paired_log_ratio(D, D, resamples=n), "resamples: got") for n in (0, 1.5, True)],
    (lambda: image_quality(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 9)), "expected two batches"),
    (lambda: image_quality(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)), "expected two batches"),
    (lambda: image_quality(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 1.1)), "rewritten: .* outside .0, 1."),
    (lambda: image_quality(torch.full((1, 3, 8, 8), -2.0), torch.zeros(1, 3, 8, 8)), "original: .* outside .0, 1."),
    (lambda: image_quality(torch.full((1, 3, 8, 8), math.nan), torch.zeros(1, 3, 8, 8)), "original: .* outside"),
    (lambda: image_quality(torch.ones(1, 3, 8, 8).byte(), torch.ones(1, 3, 8, 8)), "uint8 .*expected floats"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=itertools.count())
def test_what_is_no_pair_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_functions_need_torch_alone() -> None:
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torchmetrics", "lightning_utilities", "matplotlib", "scipy"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
import torch
from lightning_attngrad.metrics import functional
print(float(functional.paired_log_ratio(torch.ones(3), torch.ones(3)).median))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "0.0", done.stderr
