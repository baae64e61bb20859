"""Success curves, judged by their corners and by the pixels that they draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from lightning_attngrad.reporting.canvas import figure_to_array
from lightning_attngrad.reporting.curves import success_curve, success_curves
from lightning_attngrad.reporting.style import FigureStyle
from tests.reporting.test_figures import LONG, assert_words_lie_inside_and_apart, words

RADII = [1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255]
SEVERAL = {
    "start": np.array([0.0, 0.5, 1.0, 3.0]) / 255,
    "epoch 3": np.array([1.5, 3.0, 30.0, np.inf]) / 255,
    "epoch 4 (now)": np.array([3.0, 3.0, 6.0, np.inf]) / 255,
}


def draw(distances, **options) -> Figure:
    return success_curves(distances, **{"radii": RADII, "norm": "linf", "title": "t", **options})


def lines(figure: Figure) -> list[Line2D]:
    return list(figure.plots[0].lines)


def height(line: Line2D, radius: float) -> float:
    """Of a curve that is drawn as steps which hold until the next corner."""
    assert line.get_drawstyle() == "steps-post"
    radii, percent = line.get_data()
    return float(np.asarray(percent)[np.flatnonzero(np.asarray(radii) <= radius)[-1]])


def looks(line: Line2D) -> tuple[object, ...]:
    return (line.get_color(), line.get_linewidth(), line._dash_pattern)


DISTANCES = st.lists(st.one_of(st.floats(0, 40, width=32), st.sampled_from([0.0, 1.0, 2.0, math.inf])), min_size=1)


@given(DISTANCES, st.lists(st.floats(0.5, 20), max_size=8))
def test_a_curve_is_the_share_of_pairs_within_a_radius(distances, between):
    values = np.array(distances)
    radii, percent = success_curve(values, 0.5, 20.0)
    assert radii[0] == 0.5
    assert radii[-1] == 20.0
    assert (np.diff(radii) > 0).all()
    assert (np.diff(percent) >= 0).all()
    at_and_around = [near for value in values for near in (value, np.nextafter(value, 0), np.nextafter(value, np.inf))]
    for radius in (*radii, *between, *at_and_around):
        if 0.5 <= radius <= 20.0:
            drawn = percent[np.flatnonzero(radii <= radius)[-1]]
            assert drawn == pytest.approx(100 * sum(value <= radius for value in distances) / len(distances))


def test_the_figure_holds_these_curves_in_order():
    drawn = lines(draw(SEVERAL))
    assert [line.get_label() for line in drawn] == list(SEVERAL)
    for line, values in zip(drawn, SEVERAL.values(), strict=True):
        for radius in np.geomspace(0.51, 18, 200) / 255:
            assert height(line, radius) == 100 * np.mean(values <= radius)


def test_distances_of_zero_sit_at_the_left_edge():
    figure = draw(SEVERAL)
    first = lines(figure)[0]
    assert first.get_data()[0][0] == pytest.approx(figure.plots[0].xlim[0]) == pytest.approx(0.5 / 255)
    assert first.get_data()[1][0] == 50.0  # 0 and 0.5/255
    assert all(height(line, 1) == 100 for line in lines(draw({"now": np.zeros(3)})))


def test_a_failure_is_never_reached():
    (line,) = lines(draw({"now": np.full(3, np.inf)}))
    assert set(line.get_data()[1]) == {0.0}
    assert np.isfinite(line.get_data()[0]).all()


def test_the_step_is_drawn_where_the_distance_is():
    figure = draw({"now": np.full(2, 4 / 255)})
    picture = figure_to_array(figure).astype(int)

    def is_blue(radius: float, percent: float) -> bool:
        x, y = figure.plots[0].numbers.transform((radius, percent))
        red, _, blue = picture[picture.shape[0] - 1 - round(y), round(x)]
        return bool(blue - red > 60)

    assert is_blue(3.5 / 255, 0)
    assert not is_blue(3.5 / 255, 100)
    assert is_blue(4 / 255, 50)
    assert is_blue(4.6 / 255, 100)
    assert not is_blue(4.6 / 255, 0)


def test_the_axis_is_the_same_wherever_it_holds_the_distances():
    near, far = draw({"now": np.array([0.003])}), draw({"now": np.array([0.06, np.inf])})
    assert near.plots[0].xlim == far.plots[0].xlim
    assert near.plots[0].ylim == far.plots[0].ylim
    places = near.plots[0].numbers.transform([(1e-3, 0), (1e-2, 0), (1e-1, 0)])[:, 0]
    assert np.ptp(np.diff(places)) == pytest.approx(0, abs=1e-9)  # equal ratios are equally far apart
    left, right = near.plots[0].xlim
    assert left < min(RADII)
    assert max(RADII) < right


@pytest.mark.parametrize(
    ("found", "ticks"),
    [
        ([0.3, 2.0], ["0.5/255", "1/255"]),
        ([2.0, 100.0], ["1/255", "32/255", "64/255", "128/255"]),
        ([0.0, 4.0, math.inf], ["1/255", "16/255"]),
    ],
)
def test_the_axis_goes_on_by_doublings_until_it_holds_the_distances(found, ticks):
    figure = draw({"now": np.array(found) / 255}, style=FigureStyle(width=11))
    plot = figure.plots[0]
    assert set(ticks) <= {said for _, said in plot.xticks}
    finite = [value / 255 for value in found if 0 < value < math.inf]
    assert plot.xlim[0] <= min(finite)
    assert max(finite) <= plot.xlim[1]
    (line,) = lines(figure)
    assert line.get_data()[1][-1] == pytest.approx(100 * np.isfinite(found).mean())  # the curve is seen to its end


def test_an_outlier_does_not_press_the_curves_together():
    left, right = draw({"now": np.array([1e-12, 0.01, 1e12])}).plots[0].xlim
    assert right / left == pytest.approx(2.3 * 16 * 2**12)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([0.2, 2.0, 3.0, 40.0], "now 25 % below 1/255, 25 % beyond 16/255"),
        ([2.0, math.inf], "now 50 % not rewritten"),
        ([1.0, 16.0], None),  # radii themselves
    ],
)
def test_what_no_radius_tells_of_is_said(found, said):
    written = " ".join(words(draw({"now": np.array(found) / 255}, style=FigureStyle(width=11))))
    assert said in written if said else "now " not in written


@pytest.mark.parametrize(
    ("norm", "radii", "labels"),
    [
        ("linf", RADII, ["1/255", "2/255", "4/255", "8/255", "16/255"]),
        ("linf", [8 / 255, 0.5 / 255], ["0.5/255", "8/255"]),
        ("l2", [0.1, 0.5, 2.0], ["0.1", "0.5", "2"]),
        ("l0", [1, 16, 2048], ["1", "16", "2048"]),
        ("l0_patches", [0.01, 0.05, 0.125, 1.0], ["1 %", "5 %", "12.5 %", "100 %"]),
    ],
)
def test_radii_are_the_ticks(norm, radii, labels):
    figure = draw({"now": np.array(radii)}, norm=norm, radii=radii)
    plot, picture = figure.plots[0], figure_to_array(figure).astype(int)
    np.testing.assert_allclose([number for number, _ in plot.xticks], sorted(radii))
    assert [said for _, said in plot.xticks] == labels
    assert [said for _, said in plot.yticks] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    for radius, label in zip(sorted(radii), labels, strict=True):  # a mark on the paper, and its words below
        x, y = plot.numbers.transform((radius, plot.ylim[0]))
        below = picture[picture.shape[0] - round(y) + 2, round(x) - 1 : round(x) + 2]
        assert below.min() < 120, label
        places = [item.get_position()[0] * figure.dpi for item in figure.texts if item.get_text() == label]
        assert pytest.approx(x) in places


def test_tick_labels_without_room_are_left_out_and_their_ticks_stay():
    radii = np.geomspace(1, 16, 30) / 255
    figure = draw({"now": np.array([2.0, 8.0]) / 255}, radii=list(radii))
    assert len(figure.plots[0].xticks) == 30
    written = [said for _, said in figure.plots[0].xticks if said]
    assert 4 <= len(written) < 15
    assert_words_lie_inside_and_apart(figure)


def test_curves_differ_by_more_than_colour_and_the_last_is_emphasised():
    drawn = lines(draw({str(index): np.array([0.01]) for index in range(7)}))
    assert len({str(line._dash_pattern) for line in drawn}) == 7
    assert len({line.get_color() for line in drawn}) == 7
    assert all(drawn[-1].get_linewidth() > 2 * line.get_linewidth() for line in drawn[:-1])


def test_coinciding_curves_are_both_seen():
    same = np.array([2.0, 5.0]) / 255
    alone = figure_to_array(draw({"start": np.array([np.inf]), "now": same})).astype(int)
    both = figure_to_array(draw({"start": same, "now": same})).astype(int)
    plot = draw({"start": same, "now": same}).plots[0]
    x, y = (round(value) for value in plot.numbers.transform((3.2 / 255, 50)))
    band = (slice(both.shape[0] - 3 - y, both.shape[0] + 2 - y), slice(x - 15, x + 15))
    assert np.abs(both[band] - alone[band]).max() > 100
    assert (both[band][..., 2] - both[band][..., 0] > 100).any()  # and the band of the last one too


def test_the_legend_stands_outside_and_looks_like_the_curves():
    figure = draw(SEVERAL, style=FigureStyle(width=8))
    figure_to_array(figure)
    plot = figure.plots[0].place
    samples = [line for line in figure.findobj(Line2D) if line not in lines(figure)]
    right = (plot.left + plot.width) * figure.dpi
    assert [looks(sample) for sample in samples] == [looks(line) for line in lines(figure)]
    for label, sample in zip(SEVERAL, samples, strict=True):
        (text,) = [item for item in figure.findobj(Text) if item.get_text() == label]
        assert text.get_window_extent().x0 > sample.get_window_extent().x1 > sample.get_window_extent().x0 > right
        assert text.get_position()[1] == sample.get_ydata()[0]
        assert (text.get_fontweight() == "bold") == (label == "epoch 4 (now)")


def test_pairs_are_counted():
    for pairs, said in (
        (SEVERAL, "4 image–target pairs"),
        ({"now": np.array([0.01])}, "1 image–target pair"),
        ({**SEVERAL, "later": np.array([0.1, 0.2])}, "2 to 4 image–target pairs"),
    ):
        assert any(word.split(" · ")[0] == said for word in words(draw(pairs)))


def test_of_many_curves_an_even_selection_is_shown_and_said():
    figure = draw({f"epoch {index}": np.array([0.01]) for index in range(25)})
    assert [line.get_label() for line in lines(figure)] == [f"epoch {index}" for index in range(0, 25, 4)]
    assert "1 image–target pair · 7 of 25 curves, evenly spaced" in words(figure)


@pytest.mark.parametrize("name", ["now", LONG, "$5_{bill", "two\nlines", "", "日本"])
@pytest.mark.parametrize("curves", [1, 3, 7, 9])
def test_words_never_overlap_or_leave_the_page(name, curves):
    figure = draw({name + "\n" * index: np.array([0.01]) for index in range(curves)}, title=f"title of {name}")
    assert_words_lie_inside_and_apart(figure)


def test_tensors_draw_what_arrays_draw():
    values = torch.tensor([0.25, 0.125, math.inf]).bfloat16().requires_grad_()
    from_tensor = draw({"now": values})
    np.testing.assert_array_equal(
        figure_to_array(from_tensor), figure_to_array(draw({"now": np.array([0.25, 0.125, np.inf])}))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l1"}, "norm: got 'l1'; expected one of 'linf', 'l2', 'l0', 'l0_patches'"),
        ({"radii": []}, r"radii: got \[\]; expected one positive finite number or more"),
        ({"radii": [0.0, 1.0]}, r"radii: got \[0.0, 1.0\]"),
        ({"radii": [math.inf]}, "radii: got"),
        ({"radii": [math.nan]}, "radii: got"),
        ({"distances": {}}, "distances: got no curve"),
        ({"distances": {"now": np.array([])}}, r"distances\['now'\]: got shape \(0,\); expected \(M,\)"),
        ({"distances": {"now": np.ones((2, 2))}}, r"distances\['now'\]: got shape \(2, 2\)"),
        ({"distances": {"now": np.array([1.0, np.nan])}}, r"distances\['now'\]: got nan; expected 0 or more"),
        ({"distances": {"a": np.ones(2), "b": np.array([-1.0])}}, r"distances\['b'\]: got -1.0"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        draw(**{"distances": SEVERAL, **change})
