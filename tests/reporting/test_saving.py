"""Figures are saved as what their names end with, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lightning_attngrad.reporting.canvas import figure_to_array
from lightning_attngrad.reporting.saving import as_html, save_figure
from lightning_attngrad.reporting.style import FigureStyle
from tests.reporting.test_figures import CAT, every_figure
from tests.reporting.test_style import drawn


def test_a_png_holds_the_figure_as_it_is_drawn(tmp_path: Path) -> None:
    figure = every_figure()["grid"]
    path = save_figure(figure, tmp_path / "new folder" / "maps.PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), figure_to_array(figure))


@pytest.mark.parametrize("dark", [False, True])
def test_a_pdf_and_an_svg_hold_letters_and_curves_as_shapes(tmp_path: Path, dark: bool) -> None:
    figure = drawn("success", FigureStyle(dark=dark))
    svg = save_figure(figure, str(tmp_path / "a.svg")).read_text()
    assert svg.rstrip().endswith("</svg>")
    assert svg.count("<path") > 50
    assert ("#0072b2" in svg.lower(), "#56b4e9" in svg.lower()) == (not dark, dark)
    assert save_figure(figure, tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_figure_gives_the_same_file(tmp_path: Path) -> None:
    for kind in ("pdf", "png"):
        first, second = (save_figure(every_figure()["film"], tmp_path / f"{n}.{kind}").read_bytes() for n in "ab")
        assert first == second


@pytest.mark.parametrize("name", ["maps", "maps.jpg", "maps.png.txt"])
def test_other_names_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"path: got .*; expected a name that ends with \.png, \.pdf or \.svg"):
        save_figure(Figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_words_in_a_page_are_escaped() -> None:
    page = as_html(every_figure()["grid"], '<script>"&')
    assert "<script>" not in page
    assert page.count("&lt;script&gt;&quot;&amp;") == 2  # seen, and read aloud
    assert re.search(r'src="data:image/png;base64,[A-Za-z0-9+/=]+"', page)
    assert CAT.verdict == "✓ cat (0.90)"
