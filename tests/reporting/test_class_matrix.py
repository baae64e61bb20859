"""Matrices of classes, judged by the colours and the words of their cells."""

from __future__ import annotations

import math
import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_attngrad.reporting.canvas import figure_to_array
from lightning_attngrad.reporting.rewriting import class_matrix
from lightning_attngrad.reporting.style import DOTS_PER_INCH
from tests.reporting.test_figures import LONG, assert_words_lie_inside_and_apart, tiles, words

RANGES = {"linf": (0.25 / 255, 32 / 255), "l2": (0.05, 10.0), "l0": (1.0, 1000.0), "l0_patches": (0.01, 1.0)}
NAN, INF = math.nan, math.inf


def draw(matrix, names=None, **options) -> Figure:
    names = [f"class {index}" for index in range(len(matrix))] if names is None else names
    return class_matrix(matrix, names, **{"norm": "linf", "title": "t", **options})


def cell_corner(figure: Figure, count: int, row: int, column: int) -> tuple[float, float]:
    """Row and column of the top left pixel of a cell."""
    ((left, top, right, bottom),) = tiles(figure)
    return top + row * (bottom - top) / count, left + column * (right - left) / count


def cell_colours(figure: Figure, count: int) -> np.ndarray:
    """(C, C, 3), taken near the corner of each cell, where no number stands."""
    picture = figure_to_array(figure)
    corners = [[cell_corner(figure, count, row, column) for column in range(count)] for row in range(count)]
    return np.array([[picture[round(y) + 5, round(x) + 5] for y, x in row] for row in corners]).astype(int)


def texts(figure: Figure, text: str) -> list[tuple[float, float]]:
    """Positions of a text on the page, in pixels."""
    found = [item.get_position() for item in figure.findobj(Text) if item.get_text() == text]
    return [(x * DOTS_PER_INCH, y * DOTS_PER_INCH) for x, y in found]


@pytest.mark.parametrize("norm", RANGES)
def test_colours_are_those_of_the_norms_logarithmic_scale(norm):
    low, high = RANGES[norm]
    positions = np.array([[0.0, 0.25, 0.5], [0.75, 1.0, 0.1], [-0.5, 1.5, 0.9]])
    figure = draw(low * (high / low) ** positions, norm=norm)
    expected = 255 * mpl.colormaps["viridis"](np.clip(positions, 0, 1))[..., :3]
    np.testing.assert_allclose(cell_colours(figure, 3), expected, atol=4)
    ends = [float(figure.bar.ticks[end][1]) for end in (0, -1)]
    assert ends == pytest.approx([low * unit(norm), high * unit(norm)])


def unit(norm: str) -> float:
    return {"linf": 255.0, "l2": 1.0, "l0": 1.0, "l0_patches": 100.0}[norm]


@pytest.mark.parametrize("norm", RANGES)
def test_the_bar_has_the_colours_of_the_cells_at_its_ticks(norm):
    low, high = RANGES[norm]
    figure = draw(np.array([[math.sqrt(low * high)]]), norm=norm)
    picture = figure_to_array(figure).astype(int)
    left, top, right, bottom = figure.bar.tile
    inner = [(place, float(said)) for place, said in figure.bar.ticks][1:-1]
    assert len(inner) >= 5
    for place, number in inner:
        x, y = left + place * (right - left), (top + bottom) / 2
        position = math.log(number / unit(norm) / low) / math.log(high / low)
        expected = 255 * np.array(mpl.colormaps["viridis"](position)[:3])
        np.testing.assert_allclose(picture[round(y), round(x)], expected, atol=6)


def test_a_colour_does_not_depend_on_the_other_cells():
    mild = cell_colours(draw(np.array([[0.01, 0.011], [0.012, 0.013]])), 2)
    extreme = cell_colours(draw(np.array([[0.01, 1e-9], [INF, 1e6]])), 2)
    np.testing.assert_array_equal(mild[0, 0], extreme[0, 0])
    assert (mild[0, 1] != extreme[0, 1]).any()


def test_zero_has_the_first_colour():
    colours = cell_colours(draw(np.array([[0.0, 0.1 / 255], [1e-3, 1.0]])), 2)
    np.testing.assert_array_equal(colours[0, 0], colours[0, 1])
    np.testing.assert_allclose(colours[0, 0], 255 * np.array(mpl.colormaps["viridis"](0.0)[:3]), atol=1)


def test_sources_are_rows_and_targets_columns():
    matrix = np.full((3, 3), NAN)
    matrix[0, 2] = 7 / 255
    figure = draw(matrix, ["cat", "dog", "owl"])
    ((x, y),) = texts(figure, "7.0")
    top, left = cell_corner(figure, 3, 0, 2)
    bottom, _ = cell_corner(figure, 3, 1, 2)
    assert top < y < bottom
    assert left < x < left + (bottom - top)
    beside, above = sorted(texts(figure, "cat"))  # the row's name lies further left
    assert top < beside[1] < bottom
    assert beside[0] < cell_corner(figure, 3, 0, 0)[1]
    assert above[1] < top
    _, last = sorted(texts(figure, "owl"))
    assert last[0] == pytest.approx(x)
    assert texts(figure, "source")[0][0] < beside[0]
    assert texts(figure, "target")[0][1] < above[1]


def test_cells_without_rows_are_blank_and_failures_marked():
    figure = draw(np.array([[NAN, INF], [0.02, NAN]]))
    colours = cell_colours(figure, 2)
    assert colours[0, 0].tolist() == colours[1, 1].tolist() == [255, 255, 255]
    assert len(set(colours[0, 1].tolist())) == 1  # a grey, no colour of the scale
    assert 200 < colours[0, 1, 0] < 245
    ((x, y),) = texts(figure, "∞")
    top, left = cell_corner(figure, 2, 0, 1)
    assert 0 < x - left < 120
    assert 0 < y - top < 120
    assert "2 classes · blank: no image–target pair · ∞: not rewritten" in words(figure)
    assert "2 classes" in words(draw(np.full((2, 2), 0.02)))
    assert "1 class" in words(draw(np.full((1, 1), 0.02)))


@pytest.mark.parametrize(
    ("norm", "value", "text", "bar"),
    [
        ("linf", 2.34 / 255, "2.3", "L∞ distance, n/255"),
        ("linf", 31.6 / 255, "32", "L∞ distance, n/255"),
        ("l2", 0.314, "0.31", "L2 distance"),
        ("l0", 7.5, "7.5", "pixels changed"),
        ("l0", 12.0, "12", "pixels changed"),
        ("l0_patches", 0.125, "12", "patches changed, %"),
    ],
)
def test_numbers_are_in_the_unit_of_the_colour_bar(norm, value, text, bar):
    found = words(draw(np.full((2, 2), value), norm=norm))
    assert found.count(text) >= 4
    assert bar in found


@pytest.mark.parametrize(("count", "written"), [(2, True), (12, True), (13, False), (30, False)])
def test_numbers_stand_in_few_and_large_cells(count, written):
    matrix = np.full((count, count), 3 / 255)
    matrix[0, 1] = INF
    found = words(draw(matrix))
    assert found.count("3.0") == (count**2 - 1 if written else 0)
    assert found.count("∞") == 1  # the mark stands in any


def test_numbers_stand_out_from_their_cells():
    figure = draw(np.geomspace(0.1, 60, 144).reshape(12, 12) / 255)
    colours = cell_colours(figure, 12).reshape(-1, 3) / 255

    def luminance(colour) -> float:  # sRGB, WCAG 2.1
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    numbers = [text for text in figure.texts if re.fullmatch(r"[\d.]+", text.get_text())]
    numbers = [text for text in numbers if text.get_position()[1] > figure.top]  # not those of the bar
    assert len(numbers) == 144
    for text, colour in zip(numbers, colours, strict=True):
        darker, lighter = sorted((luminance(to_rgb(text.get_color())), luminance(colour)))
        assert (lighter + 0.05) / (darker + 0.05) > 3


def test_of_many_classes_the_first_forty_are_shown_and_said():
    matrix = np.full((41, 41), 3 / 255)
    matrix[40, 40], matrix[39, 39] = INF, NAN
    figure = draw(matrix, [str(index) for index in range(41)])
    assert "the first 40 of 41 classes · blank: no image–target pair" in words(figure)
    assert words(figure).count("39") == 2
    assert "40" not in words(figure)
    assert cell_colours(figure, 40)[39, 39].tolist() == [255, 255, 255]
    whole = draw(matrix[1:, 1:], [str(index) for index in range(40)])
    assert "40 classes · blank: no image–target pair · ∞: not rewritten" in words(whole)


@pytest.mark.parametrize(("name", "upwards"), [("cat", False), ("black-and-tan coonhound", True)])
def test_names_of_columns_are_turned_rather_than_cut(name, upwards):
    figure = draw(np.full((10, 10), 0.02), [name] * 10)
    turned = [text.get_rotation() == 90 for text in figure.texts if text.get_text() == name]
    assert len(turned) == 20
    assert sum(turned) == (10 if upwards else 0)


@pytest.mark.parametrize("name", ["7", "horse", LONG, "$5_{bill", "two\nlines", "", "日本"])
@pytest.mark.parametrize("count", [1, 2, 10, 12, 13, 30, 41])
def test_words_never_overlap_or_leave_the_page(name, count):
    matrix = np.geomspace(1e-9, 100, count**2).reshape(count, count)
    matrix[0, 0] = INF
    figure = draw(matrix, [name] * count, title=f"title of {name}", norm="l2")
    assert_words_lie_inside_and_apart(figure)
    assert 570 <= figure_to_array(figure).shape[1] <= 1400


def test_tensors_draw_what_arrays_draw():
    matrix = torch.tensor([[NAN, 0.25], [INF, 0.125]])
    from_tensor = figure_to_array(draw(matrix.bfloat16().requires_grad_()))
    np.testing.assert_array_equal(from_tensor, figure_to_array(draw(matrix.numpy())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l1"}, "norm: got 'l1'; expected one of 'linf', 'l2', 'l0', 'l0_patches'"),
        ({"matrix": np.ones((2, 3))}, r"matrix: got shape \(2, 3\); expected \(C, C\), sources by targets"),
        ({"matrix": np.ones(2)}, r"matrix: got shape \(2,\)"),
        ({"matrix": np.ones((0, 0)), "names": []}, r"matrix: got shape \(0, 0\)"),
        ({"matrix": np.array([[1.0, -0.5], [NAN, 1.0]])}, "matrix: got -0.5; expected 0 or more, inf, or NaN"),
        ({"matrix": np.array([[1.0, -INF], [NAN, 1.0]])}, "matrix: got -inf"),
        ({"names": ["a", "b", "c"]}, "class_names: got 3; expected 2, one for each row"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        draw(**{"matrix": np.ones((2, 2)), **change})
