"""Panels of rewritten images, judged by the pixels and the words that they draw."""

from __future__ import annotations

import re
import warnings
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_attngrad.reporting.figures import Caption, ColourScale, figure_to_array, map_grid
from lightning_attngrad.reporting.rewriting import RewriteCaption, amplification, rewrite_panels
from lightning_attngrad.reporting.style import WRONG_INK, FigureStyle
from tests.reporting.test_figures import LONG, assert_words_lie_inside_and_apart, centre_colour, tiles, words

DONE = RewriteCaption("cat", 0.98, "dog", 0.52, "dog", success=True, distance="L∞ 2.3/255", psnr=41.23)
FAILED = RewriteCaption(
    "cat", 0.98, "owl", 0.4, "dog", success=False, distance="∞", psnr=28.0, note="gradient was zero in 40 % of steps"
)
LADDER = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
ORIGINAL, DIFFERENCE, REWRITTEN, BEFORE, AFTER, TILES = 0, 1, 2, 3, 4, 5  # of a pair, in the order of drawing


def panels(original, rewritten, captions=None, grid=(2, 2), **options) -> Figure:
    maps = np.ones((len(original), *grid))
    captions = [DONE] * len(original) if captions is None else captions
    return rewrite_panels(original, rewritten, maps, maps, captions, **{"title": "t", **options})


def flat(*values: float, channels: int = 3) -> np.ndarray:
    """One image of a single grey for each value."""
    return np.stack([np.full((channels, 8, 8), value, dtype=np.float32) for value in values])


def factors(figure: Figure) -> list[float]:
    return [float(found[1]) for word in words(figure) if (found := re.fullmatch(r"difference ×([\d.]+)", word))]


def colour_of(figure: Figure, text: str) -> str:
    (found,) = [item for item in figure.findobj(Text) if item.get_text() == text]
    return str(found.get_color())


@given(st.floats(0.0, 1.0))
@example(0.05)
@example(float(np.float32(0.05)))
@example(0.5)
@example(1.0)
def test_the_factor_is_the_largest_of_the_ladder_that_fits(largest):
    factor = amplification(largest)
    assert factor in LADDER
    assert factor * largest <= 0.5 + 0.1 / 255
    higher = [rung for rung in LADDER if rung > factor]
    assert all(rung * largest > 0.5 for rung in higher)


@pytest.mark.parametrize(
    ("change", "factor"), [(0.9, 0.5), (0.4, 1), (8 / 255, 10), (0.02, 20), (0.01, 50), (1 / 255, 100), (1e-6, 5000)]
)
def test_the_factor_that_is_written_is_the_one_that_multiplies(change, factor):
    original = np.full((1, 3, 8, 8), 0.05, dtype=np.float32)
    rewritten = original.copy()
    rewritten[:, 0, :, :4] += change  # red only, left only
    rewritten[:, 2, 4:] -= min(change, 0.05) / 2  # blue only, below only
    figure = panels(original, rewritten)
    assert factors(figure) == [factor]
    picture = figure_to_array(figure).astype(float)
    left, top, right, bottom = tiles(figure)[DIFFERENCE]
    inside = {
        "above left": (top + 9, left + 9),
        "below right": (bottom - 9, right - 9),
        "above right": (top + 9, right - 9),
    }
    raised, lowered = 255 * (0.5 + factor * change), 255 * (0.5 - factor * min(change, 0.05) / 2)
    np.testing.assert_allclose(picture[inside["above left"]], [raised, 127.5, 127.5], atol=1)
    np.testing.assert_allclose(picture[inside["below right"]], [127.5, 127.5, lowered], atol=1)
    np.testing.assert_allclose(picture[inside["above right"]], 127.5, atol=1)


def test_each_row_has_its_own_factor():
    figure = panels(flat(0.5, 0.5, 0.5), flat(0.52, 0.5, 0.1))
    assert factors(figure) == [20, 1]
    assert words(figure).count("no difference") == 1
    picture = figure_to_array(figure)
    greys = [centre_colour(picture, tiles(figure)[row * TILES + DIFFERENCE])[0] for row in range(3)]
    np.testing.assert_allclose(greys, [255 * 0.9, 127.5, 255 * 0.1], atol=1)


def test_no_difference_divides_by_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = panels(flat(0.0, 1.0), flat(0.0, 1.0))
        picture = figure_to_array(figure)
    assert words(figure).count("no difference") == 2
    assert centre_colour(picture, tiles(figure)[DIFFERENCE]) in ((127,) * 3, (128,) * 3)


def test_the_difference_is_that_of_the_pictures_beside_it():
    figure = panels(flat(1.0), flat(1.5))  # drawn white, both
    assert "no difference" in words(figure)


def test_images_that_are_not_finite_have_a_hatched_difference():
    rewritten = flat(0.5, 0.5)
    rewritten[1, 0, 0, 0] = np.nan
    figure = panels(flat(0.4, 0.4), rewritten)
    assert factors(figure) == [5]
    assert words(figure).count("not finite") == 1
    assert words(figure).count("difference") == 1
    assert_words_lie_inside_and_apart(figure)


def test_tiles_stand_in_the_order_of_their_heads():
    before, after = np.full((1, 2, 2), 0.0), np.full((1, 2, 2), 4.0)
    figure = rewrite_panels(flat(0.2), flat(0.6), before, after, [DONE], title="t")
    picture, row = figure_to_array(figure), tiles(figure)
    assert len(row) == TILES
    assert centre_colour(picture, row[ORIGINAL]) == (51, 51, 51)
    assert centre_colour(picture, row[REWRITTEN]) == (153, 153, 153)
    assert sum(centre_colour(picture, row[BEFORE])) < sum(centre_colour(picture, row[AFTER]))
    heads = {text.get_text(): text.get_position()[0] * 120 for text in figure.findobj(Text) if text.get_text()}
    for head, tile in (("original", ORIGINAL), ("difference ×1", DIFFERENCE), ("rewritten", REWRITTEN)):
        assert row[tile][0] < heads[head] < row[tile][2]
    for head, tile in (("map before", BEFORE), ("map after", AFTER)):
        assert row[tile][0] < heads[head] < row[tile][2]


WIDE = FigureStyle(width=11.4)


def test_heads_stand_once():
    found = words(panels(flat(0.1, 0.2, 0.3), flat(0.2, 0.3, 0.4), style=WIDE))
    for head in ("original", "rewritten", "map before", "map after"):
        assert found.count(head) == 1
    assert found.count("difference ×5") == 3


@pytest.mark.parametrize("scale", [ColourScale(), ColourScale("signed", limit=3.0)])
def test_maps_are_drawn_as_the_other_figures_draw_them(scale):
    pixels, maps = flat(0.3, 0.8), np.array([[[0.2, 1.0], [2.5, 3.9]], [[3.0, 0.1], [0.0, 1.5]]])
    grid = map_grid(pixels, maps, [Caption("cat", 0.9)] * 2, title="t", scale=scale)
    figure = rewrite_panels(pixels, pixels[::-1], maps, maps[::-1], [DONE] * 2, title="t", scale=scale)
    expected, picture = figure_to_array(grid), figure_to_array(figure)
    for row, (before, after) in enumerate(((0, 1), (1, 0))):
        for tile, image in ((BEFORE, before), (AFTER, after)):
            assert centre_colour(picture, tiles(figure)[row * TILES + tile]) == centre_colour(
                expected, tiles(grid)[image * 2 + 1]
            )


def test_a_pair_that_was_rewritten():
    figure = panels(flat(0.5), flat(0.52), [DONE])
    assert {
        "✓ rewritten",
        "before, p = 0.98",
        "cat",
        "→ after, p = 0.52",
        "dog",
        "L∞ 2.3/255",
        "PSNR 41.2 dB",
    } <= set(words(figure))
    assert words(figure).count("dog") == 1  # predicted, which is the target
    assert colour_of(figure, "✓ rewritten") != WRONG_INK
    assert not [word for word in words(figure) if "attempt" in word]


def test_a_row_that_failed_says_so_in_words_and_warns():
    figure = panels(flat(0.5, 0.5), flat(0.52, 0.6), [DONE, FAILED])
    found = words(figure)
    assert found.count("✗ not rewritten") == 1
    assert found.count("best attempt shown") == 1
    assert {"owl", "target", "→ after, p = 0.40"} <= set(found)
    assert colour_of(figure, "✗ not rewritten") == WRONG_INK
    warned = [text.get_text() for text in figure.findobj(Text) if text.get_color() == WRONG_INK]
    assert " ".join(warned) == f"✗ not rewritten {FAILED.note}"
    assert factors(figure) == [20, 5]  # its best attempt is drawn as any other


def test_a_note_warns_on_a_success_too():
    figure = panels(flat(0.5), flat(0.52), [replace(DONE, note="unconverged")])
    assert colour_of(figure, "unconverged") == WRONG_INK
    assert "✓ rewritten" in words(figure)


@pytest.mark.parametrize(
    ("psnr", "text"), [(41.26, "41.3 dB"), (float("inf"), "∞ dB"), (float("nan"), "not finite"), (None, None)]
)
def test_psnr(psnr, text):
    found = words(panels(flat(0.5), flat(0.52), [replace(DONE, psnr=psnr)]))
    assert [word for word in found if word.startswith("PSNR")] == ([] if text is None else [f"PSNR {text}"])


def test_a_long_name_is_cut_and_its_probability_is_not():
    found = words(panels(flat(0.5), flat(0.52), [replace(DONE, before=LONG, after=LONG, target=LONG)]))
    assert {"before, p = 0.98", "→ after, p = 0.52"} <= set(found)
    assert sum(word.startswith("great whi") and "…" in word and word.endswith("ias") for word in found) == 2


def test_more_pairs_than_fit_are_counted():
    values = np.linspace(0.1, 0.8, 20)
    found = words(panels(flat(*values), flat(*(values + 0.02))))
    assert "16 of 20 image–target pairs · patch grid 2 × 2" in found
    assert found.count("✓ rewritten") == 16
    assert "1 image–target pair · patch grid 2 × 2" in words(panels(flat(0.5), flat(0.52)))


@pytest.mark.parametrize("name", ["7", LONG, "$5_{bill", "two\nlines", "", "日本"])
@pytest.mark.parametrize("count", [1, 4, 6, 16])
def test_words_never_overlap_or_leave_the_page(name, count):
    caption = RewriteCaption(name, 0.999, name, 0.001, name, success=False, distance=name, psnr=40.0, note=name)
    figure = panels(flat(*[0.5] * count), flat(*[0.5 + 1e-4] * count), [caption] * count, title=f"title of {name}")
    assert_words_lie_inside_and_apart(figure)
    assert figure_to_array(figure).shape[1] <= 1.1 * 576


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 96), (3, 96, 32), (3, 8, 8), (3, 30, 300), (1, 300, 30)])
@pytest.mark.parametrize("count", [2, 7])
def test_any_image_keeps_its_aspect(shape, count):
    images = np.full((count, *shape), 0.5)
    figure = panels(images, images + 1e-4, [FAILED] * count)
    assert_words_lie_inside_and_apart(figure)
    for left, top, right, bottom in tiles(figure):
        assert (right - left) / (bottom - top) == pytest.approx(shape[2] / shape[1], rel=0.06)
    rows = [tiles(figure)[row * TILES] for row in range(count)]
    assert all(above[3] < below[1] for above, below in pairwise(rows))
    assert factors(figure) == [5000] * count  # a narrow tile does not cut it


def test_tensors_of_any_precision_draw_what_arrays_draw():
    original, maps = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 2, 2)
    original = original.round(decimals=1).bfloat16()
    rewritten = (original * 0.75).requires_grad_()
    arrays = [tensor.detach().float().numpy() for tensor in (original, rewritten, maps, maps)]
    from_tensors = rewrite_panels(original, rewritten, maps.bfloat16(), maps, [DONE, FAILED], title="t")
    from_arrays = rewrite_panels(*arrays, [DONE, FAILED], title="t")
    np.testing.assert_array_equal(figure_to_array(from_tensors), figure_to_array(from_arrays))


def test_captions_are_frozen():
    with pytest.raises(FrozenInstanceError):
        DONE.success = False  # type: ignore[misc]


IMAGES, MAPS = flat(0.5, 0.5), np.ones((2, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES[0], IMAGES[0], MAPS, MAPS, [DONE] * 2), r"pixels: got shape \(3, 8, 8\)"),
        ((IMAGES[:0], IMAGES[:0], MAPS[:0], MAPS[:0], []), "at least one image"),
        ((IMAGES, IMAGES[:1], MAPS, MAPS, [DONE] * 2), r"rewritten: got shape \(1, 3, 8, 8\); expected \(2, 3, 8, 8\)"),
        ((IMAGES, IMAGES[:, :1], MAPS, MAPS, [DONE] * 2), r"rewritten: got shape \(2, 1, 8, 8\)"),
        ((IMAGES, IMAGES, MAPS[:1], MAPS, [DONE] * 2), r"maps_before: got shape \(1, 2, 2\).* N = 2"),
        ((IMAGES, IMAGES, MAPS, MAPS[0], [DONE] * 2), r"maps_after: got shape \(2, 2\)"),
        (
            (IMAGES, IMAGES, MAPS, np.ones((2, 3, 3)), [DONE] * 2),
            r"maps_after: got shape \(2, 3, 3\); expected \(2, 2, 2\)",
        ),
        ((IMAGES, IMAGES, MAPS, MAPS, [DONE]), "captions: got 1; expected 2"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rewrite_panels(*arguments, title="t")


def test_images_are_seen_between_their_limits_and_differences_are_of_the_values():
    original, changed = flat(0.1, 0.2), flat(0.15, 0.2)
    figure = panels(original, changed, limits=[[0.05, 0.25], [0.1, 0.3]], shown_as="channel 4 of 0 to 12 in grey")
    shown, drawn = tiles(figure), figure_to_array(figure)
    for row, (before, after) in enumerate(((0.25, 0.5), (0.5, 0.5))):
        assert centre_colour(drawn, shown[TILES * row + ORIGINAL]) == pytest.approx([255 * before] * 3, abs=1)
        assert centre_colour(drawn, shown[TILES * row + REWRITTEN]) == pytest.approx([255 * after] * 3, abs=1)
    assert factors(figure) == [10]
    assert centre_colour(drawn, shown[DIFFERENCE]) == pytest.approx([255] * 3, abs=1)
    assert "channel 4 of 0 to 12 in grey" in words(figure)
    assert_words_lie_inside_and_apart(figure)
    with pytest.raises(ValueError, match=r"limits: got shape \(1, 2\); expected \(2, 2\)"):
        panels(original, changed, limits=[[0.0, 1.0]])
