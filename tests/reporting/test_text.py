"""Words are drawn as matplotlib draws them, wherever Pillow draws them instead."""

from __future__ import annotations

import warnings
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_attngrad.reporting import text
from lightning_attngrad.reporting.page import house_style
from lightning_attngrad.reporting.text import Line, _say_script_is_missing, fit_text, is_plain, text_width, wrapped

WORDS = "Where the model looks · epoch 3, p = 0.42 ✓ ✗ ∞ → ⇄ − × L∞ Ωµé"


def drawn(kind: type[Text], text: str, dpi: float = 120, **options: Any) -> np.ndarray:
    """Darkness of each pixel of one line in the middle of a page."""
    with house_style():
        figure = Figure(figsize=(6, 6), dpi=dpi, facecolor="white")
        settings = {"fontsize": 8.5, "ha": "center", "va": "center_baseline", "rotation_mode": "anchor", **options}
        line = kind(0.5, 0.5, text, transform=figure.transFigure, parse_math=False, **settings)
        figure.add_artist(line, clip=False)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
    return 255 - np.asarray(canvas.buffer_rgba())[..., 1].astype(int)


@pytest.mark.skipif(
    tuple(map(int, matplotlib.__version__.split(".")[:2])) < (3, 11),
    reason="matplotlib before 3.11 rounds the size of a face: its lines are up to a tenth shorter or longer",
)
@pytest.mark.parametrize("dpi", [72, 120, 200])
@pytest.mark.parametrize("align", ["left", "center", "right"])
@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_a_line_lies_where_matplotlib_puts_it(dpi: float, align: str, rotation: int, weight: str) -> None:
    options = {"ha": align, "rotation": rotation, "fontweight": weight}
    ours, theirs = drawn(Line, WORDS, dpi, **options), drawn(Text, WORDS, dpi, **options)
    for axis in (0, 1):
        ends = [np.flatnonzero((ink > 60).any(axis=axis))[[0, -1]] for ink in (ours, theirs)]
        assert np.abs(ends[0] - ends[1]).max() <= 2, (ends, axis)
    assert ours.sum() == pytest.approx(theirs.sum(), rel=0.1)


def test_the_width_is_that_of_what_is_drawn() -> None:
    columns = np.flatnonzero((drawn(Line, "Where the model looks", ha="left") > 60).any(axis=0))
    assert (columns[-1] - columns[0]) / 120 == pytest.approx(text_width("Where the model looks", 8.5), abs=0.03)


@pytest.mark.parametrize("colour", ["#b23a00", "white", (0.1, 0.2, 0.3)])
def test_a_line_has_its_colour_and_opacity(colour: Any) -> None:
    assert np.array_equal(drawn(Line, "a", color=colour, alpha=0.0), drawn(Line, ""))
    whole, half = (drawn(Line, "MMM", color=colour, alpha=alpha) for alpha in (None, 0.5))
    assert half.max() == pytest.approx(whole.max() / 2, abs=3)


@pytest.mark.parametrize(
    "text", ["日本", "שלום", "e\u0301", "हिन्दी", "a\u202eb", "tab\tbed", "\N{GRINNING FACE}", "a\u200bb"]
)
def test_what_has_to_be_shaped_or_is_not_in_the_face_is_left_to_matplotlib(text: str) -> None:
    assert not is_plain(text)
    np.testing.assert_array_equal(drawn(Line, text), drawn(Text, text))


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": 30},
        {"va": "top"},
        {"bbox": {"facecolor": "red"}},
    ],
)
def test_what_a_user_makes_of_a_line_is_left_to_matplotlib(options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(drawn(Line, WORDS, **options), drawn(Text, WORDS, **options))


def test_a_line_that_is_hidden_is_not_drawn() -> None:
    assert drawn(Line, "a", visible=False).max() == 0
    assert drawn(Line, "a").max() > 60


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one · two", ["one · two"]),
        (
            "a title that is long · a second part of it · a third",
            ["a title that is long", "a second part of it · a third"],
        ),
        ("no separator in a text that is too long for it", ["no separator in a text that is", "too long for it"]),
        ("", [""]),
    ],
)
def test_text_is_broken_between_its_parts_before_it_is_broken_at_blanks(text: str, lines: list[str]) -> None:
    assert wrapped(text, 1.75, 8.5) == lines
    assert all(text_width(line, 8.5) <= 1.75 for line in lines)


def test_of_more_than_the_lines_that_there_are_the_last_is_cut() -> None:
    lines = wrapped(20 * "many words ", 1.0, 8.5, most=2)
    assert len(lines) == 2
    assert "…" in lines[1]
    assert wrapped(60 * "x", 1.0, 8.5) == [fit_text(60 * "x", 1.0, 8.5)]  # one word


def test_a_script_that_no_font_has_is_said_once() -> None:
    _say_script_is_missing.cache_clear()
    text._width.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for letters in ("\U00010400", "\U00010401\U00010402", "\U00010400 x", "cat"):  # Deseret
            text_width(letters, 8.5)
    messages = [str(warning.message) for warning in said if "no font that they use" in str(warning.message)]
    assert len(messages) == 1
    assert "has Deseret letters, which are drawn as boxes" in messages[0]


def test_names_keep_both_ends() -> None:
    assert fit_text("Carcharodon carcharias the first", 1.2, 8.5).startswith("Carch")
    assert fit_text("Carcharodon carcharias the first", 1.2, 8.5).endswith("first")
