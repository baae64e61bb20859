"""Pages hold what is painted on them, in whatever size and format they are saved."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lightning_attngrad.reporting.canvas import figure_to_array, tile_size
from lightning_attngrad.reporting.page import MARGIN, Page, house_style
from lightning_attngrad.reporting.pictures import Picture
from lightning_attngrad.reporting.plot import Place, Plot
from lightning_attngrad.reporting.style import DOTS_PER_INCH
from tests.reporting.test_class_matrix import draw as class_matrix
from tests.reporting.test_curves import SEVERAL
from tests.reporting.test_curves import draw as success_curves
from tests.reporting.test_drift import curves as drift_curves
from tests.reporting.test_drift import layers as layer_drift
from tests.reporting.test_figures import every_figure
from tests.reporting.test_moved import FLIPPED
from tests.reporting.test_moved import draw as moved_most
from tests.reporting.test_perturbation import draw as perturbation_curves
from tests.reporting.test_rewriting import flat, panels


def all_figures() -> dict[str, Figure]:
    return {
        **every_figure(),
        "matrix": class_matrix(np.full((3, 3), 0.01)),
        "success": success_curves(SEVERAL),
        "drift": drift_curves(9),
        "layers": layer_drift([[0.1, 0.2]]),
        "moved": moved_most([FLIPPED]),
        "faithfulness": perturbation_curves(),
        "rewrites": panels(flat(0.5), flat(0.52)),
    }


@pytest.mark.parametrize("name", all_figures())
def test_every_figure_is_a_page_without_axes(name: str) -> None:
    """An axes costs more than all that a page holds."""
    figure = all_figures()[name]
    assert isinstance(figure, Page)
    assert isinstance(figure, Figure)
    assert figure.axes == []


@pytest.mark.parametrize("name", all_figures())
def test_a_page_is_saved_by_matplotlib_as_any_figure(name: str) -> None:
    figure = all_figures()[name]
    picture = figure_to_array(figure)
    with house_style():
        saved, twice, drawing = io.BytesIO(), io.BytesIO(), io.BytesIO()
        figure.savefig(saved, dpi=DOTS_PER_INCH, format="png")
        figure.savefig(twice, dpi=2 * DOTS_PER_INCH, format="png")
        figure.savefig(drawing, format="svg")
    np.testing.assert_array_equal(np.asarray(Image.open(saved).convert("RGB")), picture)
    large = Image.open(twice).convert("RGB")
    assert large.size == (2 * picture.shape[1], 2 * picture.shape[0])
    again = np.asarray(large.resize((picture.shape[1], picture.shape[0]), Image.Resampling.BOX)).astype(int)
    assert np.abs(again - picture).mean() < 4  # the same, words and all, but for the finer edges
    assert b"</svg>" in drawing.getvalue()
    np.testing.assert_array_equal(figure_to_array(figure), picture)  # saving has changed nothing


@pytest.mark.parametrize("width", [7.6, 9.123, 10.4792, 11.999])
@pytest.mark.parametrize("height", [1.0, 3.3333, 8.0])
def test_a_page_has_whole_pixels(width: float, height: float) -> None:
    with house_style():
        page = Page(width, height, title="t", notes="n")
    down, across = (round(length * DOTS_PER_INCH) for length in (page.top + height, width))
    assert figure_to_array(page).shape == (down, across, 3) == (*page.sheet.shape[:2], 3)


def test_pixels_are_painted_where_they_are_said_to_be() -> None:
    with house_style():
        page = Page(7.6, 2.0, title="", notes="")
        page.fill(1.0, 1.5, 0.5, 0.25, (10, 200, 30))
    picture = figure_to_array(page)
    green = (picture == (10, 200, 30)).all(axis=-1)
    assert green.sum() == 60 * 30
    assert green[180:210, 120:180].all()


def test_words_stand_at_their_place_from_the_top_left_corner() -> None:
    with house_style():
        page = Page(7.6, 2.0, title="", notes="")
        page.write(MARGIN, 1.5, "H", width=1)
    rows, columns = np.nonzero((figure_to_array(page) < 100).any(axis=-1))
    assert (rows.min() + rows.max() + 1) / 2 / DOTS_PER_INCH == pytest.approx(1.5, abs=0.01)
    assert columns.min() / DOTS_PER_INCH == pytest.approx(MARGIN, abs=0.03)


def test_curves_bands_ticks_and_grid_meet_in_a_plot() -> None:
    with house_style():
        page = Page(7.6, 3.0, title="", notes="")
        plot = Plot(page, Place(1.0, 1.0, 4.0, 1.5), (1.0, 100.0), (0.0, 10.0), log=True)
        plot.tick_x([(10.0, "ten")])
        plot.tick_y([(5.0, "five")])
        plot.curve([1, 100], [5, 5], color="#ff0000", linewidth=2)
        plot.band([1, 10, 50, 100], [0, 0, np.nan, 0], [2, 2, 2, 2], facecolor="#0000ff")
    picture = figure_to_array(page).astype(int)
    x, y = (round(place * DOTS_PER_INCH) for place in plot.in_inches(10.0, 5.0))
    assert (x, y) == (360, 210)  # the middle, as 10 lies between 1 and 100 on a logarithmic scale
    assert picture[y, x + 40].tolist() == [255, 0, 0]
    below = picture.shape[0] - round(plot.numbers.transform((10.0, 0.0))[1])
    assert picture[below + 2, x].max() < 120  # the mark of the tick
    assert picture[below - 5, x - 20].tolist() == [0, 0, 255]
    assert picture[below - 5, x + 40].tolist() == [255, 255, 255]  # a gap where a number is missing
    assert len(plot.bands) == 2


@pytest.mark.parametrize("side", [1, 8, 28, 32, 48, 64, 96, 100, 128, 179, 180, 224, 1000])
def test_tiles_are_whole_multiples_of_small_images_where_that_costs_little_room(side: int) -> None:
    width, height = tile_size(np.zeros((1, 3, side, side)), 1.5, 1.5)
    assert width == height
    assert 0.85 * 1.5 <= width <= 1.07 * 1.5
    if side in (1, 8, 28, 32, 48, 64, 96):
        assert width * DOTS_PER_INCH / side == pytest.approx(round(width * DOTS_PER_INCH / side))


def test_a_picture_is_a_lossless_png() -> None:
    picture = Picture.of(all_figures()["grid"])
    decoded = Image.open(io.BytesIO(picture.png))
    assert decoded.size == (picture.width, picture.height)
    np.testing.assert_array_equal(np.asarray(decoded), picture.pixels)
    assert picture.png is picture.png  # encoded once


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("lightning_attngrad", {"lightning_attngrad.reporting", "matplotlib", "PIL", "tabulate"}),
        ("lightning_attngrad.reporting.loggers", {"matplotlib", "tensorboard"}),
        ("lightning_attngrad.reporting.summary", {"matplotlib"}),
    ],
)
def test_what_draws_is_loaded_only_where_something_is_drawn(module: str, absent: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
