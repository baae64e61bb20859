"""Figures of drift, judged by the colours, the lines and the words that they draw."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lightning_attngrad.reporting.drift import drift_curves, layer_drift
from lightning_attngrad.reporting.figures import figure_to_array
from tests.reporting.test_figures import assert_words_lie_inside_and_apart, tiles, words

NAN = math.nan
LABELS = {
    1: ["start"],
    2: ["start", "epoch 1"],
    9: ["start", *(f"epoch {index}" for index in range(1, 9))],
    40: ["start", *(f"step {1000 * index}" for index in range(1, 40))],
}


def layers(values, floor=None, names=None, labels=None) -> Figure:
    values = np.asarray(values)
    floor = np.full(len(values), 0.1) if floor is None else floor
    names = [f"net.blocks.{index}.attn" for index in range(len(values))] if names is None else names
    labels = [f"epoch {index}" for index in range(values.shape[1])] if labels is None else labels
    return layer_drift(values, floor, names, labels, title="Which layers moved")


def cell_colours(figure: Figure, tile: int, rows: int, columns: int) -> np.ndarray:
    """(rows, columns, 3), taken near the corner of each cell, where no number stands."""
    picture = figure_to_array(figure)
    left, top, right, bottom = tiles(figure)[tile]
    down = [round(top + row * (bottom - top) / rows) + 4 for row in range(rows)]
    across = [round(left + column * (right - left) / columns) + 4 for column in range(columns)]
    return np.array([[picture[y, x] for x in across] for y in down]).astype(int)


def test_the_colours_run_from_0_to_2_in_every_figure_and_noise_has_its_own_column():
    values = [[0.0, 0.25], [0.5, 1.0], [1.7, NAN]]
    figure = layers(values, floor=[0.1, 0.2, 0.9])
    colours = mpl.colormaps["viridis"]
    expected = 255 * colours(np.nan_to_num(values) / 2)[..., :3]
    expected[2, 1] = 255  # no order of patches: blank
    np.testing.assert_allclose(cell_colours(figure, 0, 3, 2), expected, atol=4)
    np.testing.assert_allclose(cell_colours(figure, 1, 3, 1)[:, 0], 255 * colours([0.05, 0.1, 0.45])[..., :3], atol=4)
    assert "blank: no order of patches" in " ".join(words(figure))
    assert [figure.bar.ticks[end] for end in (0, -1)] == [(0, "0"), (1, "2")]


def test_the_numbers_stand_in_the_cells_below_the_names_of_evaluations_and_beside_those_of_layers():
    figure = layers([[0.0, 0.421]], floor=[0.057], labels=["start", "epoch 1"])
    assert [word for word in words(figure) if word[:2] == "0." and len(word) == 4] == ["0.00", "0.42", "0.06"]
    assert {"block 0", "start", "epoch 1", "noise", "1 part · 2 evaluations"} <= set(words(figure))


def test_many_evaluations_are_thinned_evenly_with_the_first_and_the_last_and_hold_no_numbers():
    values = np.linspace(0, 1, 100)[None].repeat(3, axis=0)
    figure = layers(values)
    shown = [word for word in words(figure) if word.startswith("epoch ")]
    assert (len(shown), shown[0], shown[-1]) == (24, "epoch 0", "epoch 99")
    assert any("24 of 100 evaluations · evenly spaced" in word for word in words(figure))
    assert not any(word.startswith("0.") for word in words(figure) if word != "0.5")
    ends = cell_colours(figure, 0, 3, 24)[0, [0, -1]]
    np.testing.assert_allclose(ends, 255 * mpl.colormaps["viridis"]([0.0, 0.5])[..., :3], atol=4)


@pytest.mark.parametrize("looks", LABELS)
@pytest.mark.parametrize("count", [1, 4, 12, 30, 80])
def test_words_of_layers_never_overlap_or_leave_the_page(count, looks):
    figure = layers(np.full((count, looks), 0.5), labels=LABELS[looks])
    assert_words_lie_inside_and_apart(figure)
    assert any(f"{min(count, 64)} of {count} parts" in word for word in words(figure)) == (count > 64)


def test_long_names_of_layers_are_cut_and_equal_short_ones_stay_whole():
    figure = layers(np.zeros((2, 1)), names=["a.blocks.0.attn", "b.blocks.0.attn"])
    assert {"a.blocks.0.attn", "b.blocks.0.attn"} <= set(words(figure))
    assert_words_lie_inside_and_apart(layers(np.zeros((1, 2)), names=["a" * 80]))


@pytest.mark.parametrize(
    ("values", "floor", "names", "labels", "said"),
    [
        (np.zeros(3), np.zeros(3), ["a"] * 3, ["start"], "layers by evaluations"),
        (np.zeros((3, 0)), np.zeros(3), ["a"] * 3, [], "layers by evaluations"),
        (np.zeros((3, 1)), np.zeros(2), ["a"] * 3, ["start"], "layers by evaluations"),
        (np.zeros((3, 1)), np.zeros(3), ["a"] * 2, ["start"], "layer_names: got 2; expected 3"),
        (np.zeros((3, 1)), np.zeros(3), ["a"] * 3, [], "labels: got 0; expected 1"),
    ],
)
def test_layers_that_do_not_fit_are_named(values, floor, names, labels, said):
    with pytest.raises(ValueError, match=said):
        layer_drift(values, floor, names, labels, title="t")


def curves(looks: int = 3, height: float = 0.3, noise: float = 0.1, names=("1 − cosine", "1 − SSIM")) -> Figure:
    drift = {name: list(np.linspace(0, height, looks)) for name in names}
    return drift_curves(drift, {name: [noise] * looks for name in names}, LABELS[looks], title="Drift")


@pytest.mark.parametrize("looks", [2, 9])
def test_every_measure_has_its_line_its_floor_and_what_it_is_now(looks):
    figure = curves(looks, 0.3, 0.1)
    assert len(figure.plots) == 2
    for plot in figure.plots:
        floor, drift = plot.lines
        np.testing.assert_allclose(drift.get_ydata(), np.linspace(0, 0.3, looks))
        np.testing.assert_allclose(floor.get_ydata(), 0.1)
        assert plot.ylim == (0, 0.5)
        band = plot.bands[0].get_xy()[:, 1]
        assert (band.min(), band.max()) == pytest.approx((0, 0.1))
    assert words(figure).count("now 0.300, 3.0 × noise") == 2
    assert words(figure).count("start") == words(figure).count(LABELS[looks][-1]) == 2


@pytest.mark.parametrize(("height", "top"), [(0.0, 0.2), (0.19, 0.2), (0.2, 0.5), (1.5, 2.0), (2.0, 2.0)])
def test_the_axes_end_at_a_step_of_the_ladder(height, top):
    assert curves(2, height).plots[0].ylim == (0, top)


def test_a_single_evaluation_still_shows_its_floor_and_gaps_stay_gaps():
    figure = drift_curves({"a": [NAN]}, {"a": [0.1]}, ["validate"], title="t")
    assert "now: no number" in words(figure)
    np.testing.assert_allclose(figure.plots[0].lines[0].get_ydata(), [0.1, 0.1])
    figure = drift_curves({"a": [0.1, NAN, 0.2]}, {"a": [0.0, 0.0, 0.0]}, ["start", "b", "c"], title="t")
    assert "now 0.200" in words(figure)  # no ratio to a floor of 0
    assert np.isnan(figure.plots[0].lines[1].get_ydata()[1])


@pytest.mark.parametrize("looks", LABELS)
@pytest.mark.parametrize("count", [1, 2, 6, 7])
def test_words_of_curves_never_overlap_or_leave_the_page(count, looks):
    names = ("1 − rank correlation", "centroid shift, of the diagonal", "c", "d", "e", "f", "g")[:count]
    assert_words_lie_inside_and_apart(curves(looks, names=names))


def test_curves_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="the same names"):
        drift_curves({"a": [0.0]}, {"b": [0.0]}, ["start"], title="t")
    with pytest.raises(ValueError, match="the same names, one or more"):
        drift_curves({}, {}, ["start"], title="t")
    with pytest.raises(ValueError, match="labels: got 1 for 2 and 2 values of 'a'"):
        drift_curves({"a": [0.0, 1.0]}, {"a": [0.0, 1.0]}, ["start"], title="t")


def test_tensors_are_taken_as_arrays_are():
    figure = layer_drift(torch.tensor([[0.5]]), torch.tensor([0.1]), ["blocks.0"], ["start"], title="t")
    assert "0.50" in words(figure)
