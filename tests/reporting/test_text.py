"""Words are drawn as matplotlib draws them, wherever Pillow draws them instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_attngrad.reporting.page import house_style
from lightning_attngrad.reporting.text import Line, is_plain, text_width

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
