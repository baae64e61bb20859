"""Figures are judged by the pixels that they draw."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_attngrad.reporting.captions import probability_text
from lightning_attngrad.reporting.figures import (
    Caption,
    ColourScale,
    FigureStyle,
    class_panels,
    figure_to_array,
    film_strip,
    layer_strip,
    map_grid,
    short_layer_name,
)
from lightning_attngrad.reporting.page import Page
from lightning_attngrad.reporting.text import fit_text, text_width

CAT = Caption("cat", 0.9, "cat", 0.9)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def tiles(figure: Page) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of every picture in pixels, in the order of drawing; not the colour bar."""
    return [tuple(tile) for tile in figure.tiles]


def centre_colour(picture: np.ndarray, tile: tuple[int, int, int, int]) -> tuple[int, ...]:
    left, top, right, bottom = tile
    return tuple(int(value) for value in picture[(top + bottom) // 2 + 2, (left + right) // 2 + 2])


def assert_words_lie_inside_and_apart(figure: Figure) -> None:
    figure_to_array(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.findobj(Text) if text.get_text()]
    width, height = figure.get_size_inches() * figure.dpi
    for words_, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, f"{words_!r} leaves the page"
    for index, (first, box) in enumerate(boxes):
        for second, other in boxes[index + 1 :]:
            apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 + 1 or other.y1 <= box.y0 + 1
            assert apart, f"{first!r} overlaps {second!r}"


def random_inputs(count: int, maps: int = 0, shape=(3, 32, 32), grid=(4, 4)):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, *shape, generator=generator)
    layers = (maps,) if maps else ()
    return pixels, 2 * torch.rand(count, *layers, *grid, generator=generator)


LONG = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"


def every_figure(count: int = 3, shape=(3, 32, 32), grid=(4, 4), name: str = "cat") -> dict[str, Figure]:
    pixels, heatmaps = random_inputs(count, shape=shape, grid=grid)
    _, layers = random_inputs(count, 6, grid=grid)
    caption = Caption(name, 0.9, name, 0.9)
    return {
        "grid": map_grid(pixels, heatmaps, [caption] * count, title=f"grid of {name}"),
        "layers": layer_strip(pixels, layers, [f"blocks.{i}.attn" for i in range(6)], title=f"layers of {name}"),
        "classes": class_panels(
            pixels, layers, [[name] * 6] * count, np.full((count, 6), 0.1), title=f"classes of {name}"
        ),
        "film": film_strip(
            pixels[0],
            layers[0],
            ["start", *(f"epoch {i}" for i in range(1, 6))],
            [caption] * 6,
            title=f"film of {name}",
        ),
    }


@pytest.mark.parametrize("name", ["cat", LONG, "$5_{bill", "two\nlines", "", "日本"])
@pytest.mark.parametrize("kind", ["grid", "layers", "classes", "film"])
def test_words_never_overlap_or_leave_the_page(kind, name):
    assert_words_lie_inside_and_apart(every_figure(name=name)[kind])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 96), (3, 96, 32), (3, 8, 8), (3, 30, 300)])
def test_any_image_keeps_its_aspect(shape):
    for figure in every_figure(shape=shape, grid=(2, 3)).values():
        assert_words_lie_inside_and_apart(figure)
        for left, top, right, bottom in tiles(figure):
            assert (right - left) / (bottom - top) == pytest.approx(shape[2] / shape[1], rel=0.06)


@pytest.mark.parametrize("count", [1, 3, 4, 12, 13, 30])
def test_any_number_of_images(count):
    for kind, figure in every_figure(count).items():
        assert_words_lie_inside_and_apart(figure)
        picture = figure_to_array(figure)
        assert picture.shape[1] <= 1.1 * 576, kind  # its words are read where it is shown 350 pixels wide
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3


def test_tiles_of_a_grid_do_not_overlap():
    figure = every_figure(13)["grid"]
    unique = sorted(set(tiles(figure)))
    assert len(unique) == 26  # a picture and a map an image
    for index, (left, top, right, bottom) in enumerate(unique):
        for other in unique[index + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_more_images_than_fit_are_counted():
    assert "64 of 70 images · patch grid 4 × 4" in words(every_figure(70)["grid"])
    assert "16 of 70 images · patch grid 4 × 4" in words(every_figure(70)["layers"])
    assert "3 images · patch grid 4 × 4" in words(every_figure(3)["grid"])


def test_colours_do_not_depend_on_the_other_maps():
    pixels = np.zeros((2, 3, 8, 8))
    maps = np.stack([np.full((2, 2), 1.5), np.full((2, 2), 0.1)])
    mild = map_grid(pixels, maps, [CAT] * 2, title="t")
    maps[1] = 1000.0
    extreme = map_grid(pixels, maps, [CAT] * 2, title="t")
    first, second = tiles(mild)[1], tiles(mild)[3]
    assert centre_colour(figure_to_array(mild), first) == centre_colour(figure_to_array(extreme), first)
    assert centre_colour(figure_to_array(mild), second) != centre_colour(figure_to_array(extreme), second)


def layer_colour(value: float, scale: ColourScale) -> tuple[int, ...]:
    figure = layer_strip(np.zeros((1, 3, 8, 8)), np.full((1, 1, 2, 2), value), ["a"], title="t", scale=scale)
    return centre_colour(figure_to_array(figure), tiles(figure)[1])


@pytest.mark.parametrize(("kind", "name"), [("share", "inferno"), ("signed", "PuOr_r")])
def test_a_map_alone_has_the_colours_of_its_scale(kind, name):
    scale, colours = ColourScale(kind, limit=4.0), mpl.colormaps[name]
    lowest = 0.0 if kind == "share" else -4.0
    for value, position in (
        (lowest, 0.0),
        (4.0, 1.0),
        (9.0, 1.0),
        ((lowest + 4) / 2, 0.5),
        (lowest - 1, 0.0),
    ):
        expected = np.round(np.array(colours(position)[:3]) * 255)
        np.testing.assert_allclose(layer_colour(value, scale), expected, atol=2)


@pytest.mark.parametrize("brightness", [0.0, 0.5, 1.0])
def test_overlays_grow_lighter_with_the_map_on_dark_and_on_light_images(brightness):
    pixels = np.full((1, 3, 8, 8), brightness)
    lightness = []
    for value in np.linspace(0, 4, 9):
        figure = map_grid(pixels, np.full((1, 2, 2), value), [CAT], title="t")
        lightness.append(np.dot(centre_colour(figure_to_array(figure), tiles(figure)[1]), (0.299, 0.587, 0.114)))
    assert (np.diff(lightness) > 5).all()


def test_overlays_show_patches_without_smoothing():
    heatmap = np.array([[[0.0, 4.0], [4.0, 0.0]]])
    figure = map_grid(np.zeros((1, 3, 8, 8)), heatmap, [CAT], title="t")
    left, top, right, bottom = tiles(figure)[1]
    inside = figure_to_array(figure)[top + 3 : bottom - 3, left + 3 : right - 3].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 2


def test_where_there_is_no_map_it_says_so():
    heatmaps = np.ones((2, 4, 4))
    heatmaps[1] = np.nan
    figure = map_grid(np.zeros((2, 3, 8, 8)), heatmaps, [CAT] * 2, title="t")
    assert words(figure).count("no map") == 1
    assert "not finite" not in words(figure)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_maps_that_are_not_finite_are_hatched(bad):
    heatmaps = np.ones((2, 4, 4))
    heatmaps[1, 0, 0] = bad
    figure = map_grid(np.zeros((2, 3, 8, 8)), heatmaps, [CAT] * 2, title="t")
    assert words(figure).count("not finite") == 1
    assert_words_lie_inside_and_apart(figure)
    tile = tiles(figure)[-1]
    inside = figure_to_array(figure)[tile[1] + 3 : tile[3] - 3, tile[0] + 3 : tile[2] - 3].astype(int)
    assert np.ptp(inside, axis=-1).max() == 0  # grey, no colour of the scale
    assert len(np.unique(inside)) > 2


def test_pixels_outside_the_unit_interval_and_nan_are_drawn():
    pixels = np.full((1, 3, 8, 8), np.nan)
    pixels[0, :, 4:] = 7.0
    figure = map_grid(pixels, np.ones((1, 2, 2)), [CAT], title="t")
    left, top, _, bottom = tiles(figure)[0]
    picture = figure_to_array(figure)
    assert picture[top + 5, left + 5].tolist() == [0, 0, 0]
    assert picture[bottom - 5, left + 5].tolist() == [255, 255, 255]


def test_right_and_wrong_differ_by_more_than_colour():
    captions = [CAT, Caption("dog", 0.4, "cat", 0.3), Caption("owl", 0.2)]
    found = words(map_grid(np.zeros((3, 3, 8, 8)), np.ones((3, 2, 2)), captions, title="t"))
    assert {"✓ cat", "✗ dog", "owl", "predicted, p = 0.40", "true, p = 0.30", "predicted, p = 0.20"} <= set(found)
    assert sum(word.startswith("true") for word in found) == 2


def test_a_true_class_without_probability():
    figure = map_grid(np.zeros((1, 3, 8, 8)), np.ones((1, 2, 2)), [Caption("dog", 0.4, "cat")], title="t")
    assert {"true", "cat"} <= set(words(figure))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "p = 0.00"),
        (0.004, "p < 0.01"),
        (0.5, "p = 0.50"),
        (0.9999, "p > 0.99"),
        (1.0, "p = 1.00"),
        (float("nan"), "p not finite"),
    ],
)
def test_probabilities(value, text):
    assert probability_text(value) == text


def film(frames: int, columns: int = 8) -> Figure:
    labels = ["start", *(f"epoch {epoch}" for epoch in range(1, frames))]
    return film_strip(np.zeros((3, 8, 8)), np.ones((frames, 2, 2)), labels, [CAT] * frames, title="t", columns=columns)


def test_a_long_film_shows_an_even_selection_with_both_ends():
    found = words(film(101))
    shown = [word for word in found if word == "start" or word.startswith("epoch")]
    epochs = [0 if word == "start" else int(word.split()[1]) for word in shown]
    assert (epochs[0], epochs[-1], len(epochs)) == (0, 100, 16)
    assert set(np.diff(epochs)) <= {6, 7}
    assert "16 of 101 frames, evenly spaced · patch grid 2 × 2 · true class: cat" in found


def test_a_film_cuts_no_name_because_of_its_number():
    seen = [
        Caption("vehicle", 0.36, "cat", 0.1),
        Caption("cat", 0.45, "cat", 0.45),
        Caption("cat", 0.999, "cat", 0.999),
    ]
    figure = film_strip(np.zeros((3, 8, 8)), np.ones((4, 2, 2)), list("abcd"), [*seen, seen[0]], title="t")
    found = words(figure)
    assert {"✗ vehicle", "(0.36)", "✓ cat (0.45)", "✓ cat", "(p > 0.99)"} <= set(found)
    assert not any("…" in word for word in found)
    assert_words_lie_inside_and_apart(figure)


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 18])
def test_a_short_film_shows_all(frames):
    shown = [word for word in words(film(frames)) if word == "start" or word.startswith("epoch")]
    assert len(shown) == min(frames, 16)
    assert shown[0] == "start"
    assert shown[-1] == ("start" if frames == 1 else f"epoch {frames - 1}")


def test_columns_of_a_film():
    tops = {top for _, top, _, _ in tiles(film(9, columns=3))}
    assert len(tops) == 3


def test_layers_break_into_lines_and_keep_names_apart():
    names = [f"blocks.{index}.attn" for index in range(24)]
    figure = layer_strip(np.zeros((2, 3, 8, 8)), np.ones((2, 24, 2, 2)), names, title="t")
    assert words(figure).count("block 23") == 2  # a name above each tile of each image
    assert_words_lie_inside_and_apart(figure)
    wide = FigureStyle(width=9)
    once = layer_strip(np.zeros((2, 3, 8, 8)), np.ones((2, 6, 2, 2)), names[:6], title="t", style=wide)
    assert words(once).count("block 5") == 1
    same = ["blocks.3.attn", "blocks.3.cross"]
    both = words(layer_strip(np.zeros((1, 3, 8, 8)), np.ones((1, 2, 2, 2)), same, title="t"))
    assert set(same) <= set(both)  # shortened, the two would be one


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("blocks.3.attn", "block 3"),
        ("vit.encoder.layer.3.attention.attention", "block 3"),
        ("encoder.layers.encoder_layer_3.self_attention", "block 3"),
        ("vit_b_16.encoder.layers.encoder_layer_11.self_attention", "block 11"),
        ("stages.2.blocks.5.attn", "stage 2.5"),
        ("layers.0.blocks.1.attn", "stage 0.1"),
        ("attn_pool", "attn_pool"),
        ("attn", "attn"),
        ("", ""),
    ],
)
def test_short_layer_names(name, short):
    assert short_layer_name(name) == short


@pytest.mark.parametrize("width", [0.3, 0.8, 2.0])
def test_text_is_cut_to_its_room_and_no_shorter(width):
    cut = fit_text(LONG, width, 8.0)
    assert text_width(cut, 8.0) <= width
    first, last = cut.split("…")
    assert LONG.startswith(first)
    assert LONG.endswith(last)
    assert len(last) <= len(first) <= 2 * len(last) + 2
    longer = LONG[: len(first) + 1] + "…" + LONG[-len(last) - 2 :]
    assert text_width(longer, 8.0) > width


def test_tensors_of_any_precision_draw_what_arrays_draw():
    pixels, heatmaps = random_inputs(2)
    pixels, heatmaps = pixels.round(decimals=1).bfloat16(), heatmaps.bfloat16().requires_grad_()
    arrays = pixels.float().numpy(), heatmaps.detach().float().numpy()
    from_tensors = figure_to_array(map_grid(pixels, heatmaps, [CAT] * 2, title="t"))
    np.testing.assert_array_equal(from_tensors, figure_to_array(map_grid(*arrays, [CAT] * 2, title="t")))


def session_style() -> dict[str, object]:
    return {key: mpl.rcParams[key] for key in mpl.rcParams if key != "backend"}  # reading that one would set it


def test_the_style_of_the_session_neither_enters_nor_changes():
    expected = figure_to_array(every_figure()["grid"])
    with mpl.rc_context({"axes.facecolor": "black", "font.size": 30, "text.color": "red", "savefig.bbox": "tight"}):
        before = session_style()
        styled = figure_to_array(every_figure()["grid"])
        assert session_style() == before
    np.testing.assert_array_equal(styled, expected)


PIXELS, MAPS = np.zeros((2, 3, 8, 8)), np.ones((2, 2, 2))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: map_grid(PIXELS[0], MAPS, [CAT] * 2, title="t"),
            r"pixels: got shape \(3, 8, 8\); expected \(N, 3",
        ),
        (lambda: map_grid(PIXELS[:, :2], MAPS, [CAT] * 2, title="t"), r"pixels: got shape \(2, 2, 8, 8\)"),
        (lambda: map_grid(PIXELS[:0], MAPS[:0], [], title="t"), "at least one image"),
        (
            lambda: map_grid(PIXELS, MAPS[:1], [CAT] * 2, title="t"),
            r"heatmaps: got shape \(1, 2, 2\).* N = 2",
        ),
        (lambda: map_grid(PIXELS, MAPS, [CAT], title="t"), "captions: got 1; expected 2"),
        (lambda: layer_strip(PIXELS, MAPS, ["a"], title="t"), "layers: got shape"),
        (lambda: layer_strip(PIXELS, MAPS[:, None], ["a", "b"], title="t"), "layer_names: got 2; expected 1"),
        (
            lambda: class_panels(PIXELS, MAPS[:, None], [["a"]] * 2, np.ones((2, 2)), title="t"),
            r"probabilities: got shape \(2, 2\); expected \(N, K\) = \(2, 1\)",
        ),
        (lambda: class_panels(PIXELS, MAPS[:, None], [["a"]], np.ones((2, 1)), title="t"), "names: got 1"),
        (lambda: film_strip(PIXELS, MAPS, ["a", "b"], [CAT] * 2, title="t"), "expected one image"),
        (lambda: film_strip(PIXELS[0], MAPS, ["a"], [CAT] * 2, title="t"), "labels: got 1; expected 2"),
        (lambda: film_strip(PIXELS[0], MAPS, ["a", "b"], [CAT] * 2, title="t", columns=0), "columns: got 0"),
        (lambda: ColourScale("rainbow"), "kind: got 'rainbow'; expected 'share' or 'signed'"),
        (lambda: ColourScale(limit=0.0), "limit: got 0.0; expected a positive finite number"),
        (lambda: ColourScale(limit=float("nan")), "limit: got nan"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize("kind", ["share", "signed"])
@pytest.mark.parametrize("limit", [0.05, 0.5, 1.0, 3.0, 4.0, 16.0, 100.0, 1000.0])
def test_ticks_are_few_ordered_and_inside(kind, limit):
    ticks = ColourScale(kind, limit).ticks
    assert list(ticks) == sorted(set(ticks))
    assert 2 <= len(ticks) <= 7
    assert 0.0 in ticks
    assert abs(max(ticks, key=abs)) <= limit * (1 + 1e-9)
    assert_words_lie_inside_and_apart(map_grid(PIXELS, MAPS, [CAT] * 2, title="t", scale=ColourScale(kind, limit)))


def test_usual_scales_have_whole_ticks():
    assert ColourScale().ticks == (0, 1, 2, 3, 4)
    assert ColourScale("signed", limit=3.0).ticks == (-3, -2, -1, 0, 1, 2, 3)


@pytest.mark.parametrize("lightness", [0.0, 1.0])
def test_the_outline_of_a_mask_runs_along_its_pixels(lightness: float) -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:6, 4:8] = 1
    pixels, heatmaps = torch.full((1, 3, 8, 8), lightness), torch.full((1, 4, 4), 4 * lightness)
    plain, lined = (
        figure_to_array(figure)
        for figure in (
            map_grid(pixels, heatmaps, [CAT], title="a"),
            map_grid(pixels, heatmaps, [CAT], title="a", masks=mask),
        )
    )
    left, top, right, bottom = tiles(map_grid(pixels, heatmaps, [CAT], title="a"))[1]
    scale = (right - left) / 8
    changed = (plain.astype(int) - lined).astype(bool).any(-1)[top:bottom, left:right]
    rows, columns = np.nonzero(changed)
    for found, expected in (
        (rows.min(), 2 * scale),
        (rows.max(), 6 * scale),
        (columns.min(), 4 * scale),
        (columns.max(), 8 * scale),
    ):
        assert abs(found - expected) <= 2
    inside = changed[round(2.5 * scale) : round(5.5 * scale), round(4.5 * scale) : round(7.5 * scale)]
    assert not inside.any()  # an outline, and no more
    line = lined[top:bottom, left:right][changed].sum(-1)
    assert line.min() < 150  # dark and light in one, to be seen on any map
    assert line.max() > 600


def test_the_outline_encloses_what_is_covered_by_half() -> None:
    mask = torch.zeros(2, 8, 8)
    mask[0, 0, 0], mask[1, 0, 0] = 0.4, 0.6
    pixels, heatmaps = random_inputs(2, shape=(3, 8, 8))
    plain, lined = (
        figure_to_array(map_grid(pixels, heatmaps, [CAT] * 2, title="a", **given)) for given in ({}, {"masks": mask})
    )
    boxes = tiles(map_grid(pixels, heatmaps, [CAT] * 2, title="a"))
    tiles_of_maps = [box for box in boxes if box[0] > boxes[0][0]]
    changed = [bool((plain != lined)[top:bottom, left:right].any()) for left, top, right, bottom in tiles_of_maps]
    assert changed == [False, True]


def test_masks_of_another_size_are_refused() -> None:
    pixels, heatmaps = random_inputs(2)
    with pytest.raises(ValueError, match=r"masks: got shape \(2, 8, 8\); expected \(N, H, W\) = \(2, 32, 32\)"):
        map_grid(pixels, heatmaps, [CAT] * 2, title="a", masks=torch.zeros(2, 8, 8))


@pytest.mark.parametrize("count", [1, 3, 12])
def test_what_was_done_to_the_images_has_a_line_of_its_own(count):
    said = "channels 3, 2, 1 of 0 to 12 as red, green, blue; normalisation unknown; each image stretched, 2–98 %"
    pixels, maps = random_inputs(count)
    captions = [Caption("cat", 0.9, "cat", 0.9)] * count
    layers = torch.ones(count, 3, 4, 4)
    figures = [
        map_grid(pixels, maps, captions, title=LONG, shown_as=said),
        layer_strip(pixels, layers, ["a", "b", "c"], title=LONG, shown_as=said),
        class_panels(pixels, layers, [["a", "b", "c"]] * count, torch.ones(count, 3), title=LONG, shown_as=said),
        film_strip(pixels[0], maps, ["start"] * count, captions, title=LONG, shown_as=said),
    ]
    for figure in figures:
        assert said in " ".join(words(figure))  # it may take two lines
        assert_words_lie_inside_and_apart(figure)
