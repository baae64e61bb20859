"""Faithfulness curves, judged by the numbers and the pixels that they draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lightning_attngrad.reporting.canvas import figure_to_array
from lightning_attngrad.reporting.perturbation import PerturbationCurves, perturbation_curves
from tests.reporting.test_figures import LONG, assert_words_lie_inside_and_apart, words

SHARES = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
RANDOM = np.random.default_rng(0)
ENDS = RANDOM.uniform(size=(5, 2))
MORF, LERF = (
    np.concatenate([ENDS[:, :1], RANDOM.uniform(low, low + 0.3, size=(5, 3)), ENDS[:, 1:]], axis=1)
    for low in (0.05, 0.6)
)
NOW = PerturbationCurves(SHARES, MORF, LERF)
EARLIER = PerturbationCurves(SHARES, MORF[:3] * 0.5, LERF[:3] * 0.5)
NOTHING = PerturbationCurves(SHARES, MORF * np.nan, LERF * np.nan)


def draw(looks: dict[str, PerturbationCurves] | None = None, **options: str) -> Figure:
    looks = {"start": EARLIER, "epoch 3 (now)": NOW} if looks is None else looks
    return perturbation_curves(looks, **{"replaced_by": "the mean colour", "title": "t", **options})


def lines(figure: Figure) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata()) for line in figure.plots[0].lines}


def test_means_are_drawn_and_the_gain_is_written() -> None:
    figure = draw()
    drawn = lines(figure)
    np.testing.assert_allclose(drawn["epoch 3 (now): most relevant first"], MORF.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(drawn["epoch 3 (now): least relevant first"], LERF.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(drawn["start: least relevant first"], LERF[:3].mean(axis=0) / 2, rtol=1e-5)
    gain = np.trapezoid((LERF - MORF).mean(axis=0), SHARES)
    assert f"gain (SRG) {gain:+.3f}" in words(figure)
    assert any(text.startswith("5 images") and "the mean colour" in text for text in words(figure))


def test_a_misleading_map_has_a_gain_below_zero_with_a_true_minus() -> None:
    (gain,) = (text for text in words(draw({"now": PerturbationCurves(SHARES, LERF, MORF)})) if text.startswith("gain"))
    assert gain.startswith("gain (SRG) −0.")


def test_the_area_between_is_shaded_and_the_quartiles_are_bands() -> None:
    figure = draw({"now": NOW})
    between, *bands = figure.plots[0].bands
    assert len(bands) == 2
    corners = between.get_xy()
    middle = corners[np.isclose(corners[:, 0], 0.5), 1]
    np.testing.assert_allclose(sorted(set(middle.round(5))), sorted([MORF[:, 2].mean(), LERF[:, 2].mean()]), atol=1e-5)
    for band, values in zip(bands, (LERF, MORF), strict=True):
        corners = band.get_xy()
        middle = corners[np.isclose(corners[:, 0], 0.5), 1]
        low, high = np.quantile(values[:, 2], (0.25, 0.75))
        assert (middle.min(), middle.max()) == pytest.approx((low, high), abs=1e-5)


def test_the_earlier_look_is_seen_on_the_band_of_this_one() -> None:
    figure = draw({"start": NOW, "now": NOW})
    picture = figure_to_array(figure).astype(int)
    alone = figure_to_array(draw({"now": NOW})).astype(int)
    x, y = (round(value) for value in figure.plots[0].numbers.transform((0.25, LERF[:, 1].mean())))
    around = (slice(picture.shape[0] - 12 - y, picture.shape[0] + 12 - y), slice(x - 12, x + 12))
    assert np.abs(picture[around] - alone[around]).max() > 60


def test_images_without_a_number_are_left_out_and_not_counted() -> None:
    morf = MORF.copy()
    morf[1, 2] = np.nan
    drawn = draw({"now": PerturbationCurves(SHARES, morf, LERF)})
    kept = [0, 2, 3, 4]
    np.testing.assert_allclose(lines(drawn)["now: least relevant first"], LERF[kept].mean(axis=0), rtol=1e-5)
    assert any(text.startswith("4 images") for text in words(drawn))


@pytest.mark.parametrize("looks", [{"now": NOTHING}, {"start": NOTHING, "now": NOW}, {"start": NOW, "now": NOTHING}])
def test_a_look_without_a_map_says_so(looks: dict[str, PerturbationCurves]) -> None:
    figure = draw(looks)
    assert_words_lie_inside_and_apart(figure)
    assert "no map" in words(figure)


def test_the_axes_are_the_same_for_all_figures() -> None:
    one, other = draw({"now": NOTHING}), draw()
    assert one.plots[0].xlim == other.plots[0].xlim == (0, 1)
    assert one.plots[0].ylim == other.plots[0].ylim
    assert one.plots[0].place[2:] == other.plots[0].place[2:]


@pytest.mark.parametrize("name", ["now", LONG, "$5_{bill", "two\nlines", "日本"])
def test_words_never_overlap_or_leave_the_page(name: str) -> None:
    figure = draw({f"{name} ": EARLIER, name: NOW}, title=f"title of {name}", replaced_by=name)
    assert_words_lie_inside_and_apart(figure)


def test_tensors_draw_what_arrays_draw() -> None:
    tensors = PerturbationCurves(*(torch.tensor(values) for values in NOW))
    np.testing.assert_array_equal(figure_to_array(draw({"now": tensors})), figure_to_array(draw({"now": NOW})))


@pytest.mark.parametrize(
    ("looks", "message"),
    [
        ({}, "evaluations: got 0; expected"),
        ({"a": NOW, "b": NOW, "c": NOW}, "evaluations: got 3; expected"),
        ({"now": PerturbationCurves(SHARES[:3], MORF, LERF)}, r"evaluations\['now'\]: got shapes \(3,\), \(5, 5\)"),
        ({"now": PerturbationCurves(SHARES, MORF, LERF[:2])}, r"evaluations\['now'\]: got shapes"),
        ({"now": PerturbationCurves(SHARES, MORF[0], LERF[0])}, r"evaluations\['now'\]: got shapes"),
        ({"now": PerturbationCurves(SHARES, MORF - 1, LERF)}, r"evaluations\['now'\]: got -"),
        ({"now": PerturbationCurves(SHARES * 100, MORF, LERF)}, r"evaluations\['now'\]: got 0.0 to 100.0"),
    ],
)
def test_bad_input_is_named(looks: dict[str, PerturbationCurves], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(looks)
