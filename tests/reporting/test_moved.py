"""The figure of what moved most, judged by the pixels and the words that it draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.text import Text

from lightning_attngrad.reporting.figures import Caption, figure_to_array, map_grid
from lightning_attngrad.reporting.moved import MovedCaption, moved_most
from lightning_attngrad.reporting.style import WRONG_INK
from tests.reporting.test_figures import LONG, assert_words_lie_inside_and_apart, centre_colour, tiles, words

FLIPPED = MovedCaption(0.42, 0.05, "cat", 0.93, "dog", 0.51, "cat")
KEPT = MovedCaption(0.2, 0.1, "cat", 0.93, "cat", 0.81, "cat")
PLAIN = MovedCaption(0.2, 0.1)


def draw(captions, before=None, after=None, shape=(3, 28, 28), **options):
    count = len(captions)
    pixels = np.random.default_rng(0).random((count, *shape))
    before = np.ones((count, 2, 2)) if before is None else before
    after = np.ones((count, 2, 2)) if after is None else after
    return moved_most(pixels, before, after, captions, **{"title": "What moved most", **options})


def test_the_maps_stand_in_the_colours_of_every_other_figure():
    before, after = np.full((1, 2, 2), 0.5), np.full((1, 2, 2), 3.0)
    grey = np.full((1, 3, 8, 8), 0.5)
    figure = moved_most(grey, before, after, [FLIPPED], title="t")
    picture, places = figure_to_array(figure), tiles(figure)
    assert len(places) == 3  # the image, and each map
    assert centre_colour(picture, places[0]) == (128, 128, 128)
    for maps, tile in ((before, places[1]), (after, places[2])):
        known = map_grid(grey, maps, [Caption("cat", 0.9)], title="t")
        expected = centre_colour(figure_to_array(known), tiles(known)[1])
        np.testing.assert_allclose(centre_colour(picture, tile), expected, atol=2)


def test_words_say_how_far_and_what_was_predicted_then_and_now():
    figure = draw([FLIPPED, KEPT], images=16)
    said = words(figure)
    assert {"drift 0.42", "8.4 × noise (0.05)", "drift 0.20", "2.0 × noise (0.1)", "reference", "now"} <= set(said)
    assert {"then, p = 0.93", "⇄ now, p = 0.51", "now, p = 0.81", "dog"} <= set(said)
    assert any(word.startswith("2 of 16 images") for word in said)
    # a flip is told by a sign of its own, and not by the colour alone
    assert sum(word.startswith("⇄ now") for word in said) == 1
    (dog,) = (text for text in figure.findobj(Text) if text.get_text() == "dog")
    assert dog.get_color() == WRONG_INK


def test_without_classes_only_the_distance_is_told():
    said = words(draw([PLAIN]))
    assert "drift 0.20" in said
    assert not [word for word in said if word.startswith(("then", "true", "⇄ now", "now,"))]


@pytest.mark.parametrize(
    ("drift", "floor", "verdict", "in_noise"),
    [
        (0.3, 0.1, "drift 0.30", "3.0 × noise (0.1)"),
        (0.48, 0.0047, "drift 0.48", "102.1 × noise (0.0047)"),
        (0.3, 0.0, "drift 0.30", "noise: 0"),
        (math.nan, 0.1, "no map to compare", ""),
        (0.3, math.nan, "drift 0.30", ""),
    ],
)
def test_numbers_that_say_nothing_are_left_out(drift, floor, verdict, in_noise):
    caption = MovedCaption(drift, floor)
    assert (caption.verdict, caption.in_noise) == (verdict, in_noise)
    assert_words_lie_inside_and_apart(draw([caption], before=np.full((1, 2, 2), math.nan)))


@pytest.mark.parametrize("name", ["cat", LONG, "$5_{bill", "two\nlines", "", "日本"])
@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 30, 90), (3, 90, 30)])
def test_words_never_overlap_or_leave_the_page(name, shape):
    caption = MovedCaption(1.42, 0.05, name, 0.93, "dog", 0.001, name)
    figure = draw([caption] * 3, shape=shape)
    assert_words_lie_inside_and_apart(figure)
    for left, top, right, bottom in tiles(figure):
        assert (right - left) / (bottom - top) == pytest.approx(shape[2] / shape[1], rel=0.06)


@pytest.mark.parametrize("count", [1, 2, 6, 16, 20])
def test_any_number_of_images(count):
    figure = draw([FLIPPED] * count)
    assert_words_lie_inside_and_apart(figure)
    assert len(tiles(figure)) == 3 * min(count, 16)
    assert any("16 of 20 images" in word for word in words(figure)) == (count == 20)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="captions: got 1; expected 2"):
        moved_most(np.zeros((2, 3, 8, 8)), np.ones((2, 2, 2)), np.ones((2, 2, 2)), [KEPT], title="t")
    with pytest.raises(ValueError, match=r"after: got shape \(1, 3, 3\); expected \(1, 2, 2\)"):
        moved_most(np.zeros((1, 3, 8, 8)), np.ones((1, 2, 2)), np.ones((1, 3, 3)), [KEPT], title="t")
    with pytest.raises(ValueError, match="before: got shape"):
        moved_most(np.zeros((1, 3, 8, 8)), np.ones((2, 2, 2)), np.ones((2, 2, 2)), [KEPT], title="t")
