"""Every figure in every style: its words are read, its colours are those that are asked for, and it says the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from lightning_attngrad.reporting.canvas import figure_to_array
from lightning_attngrad.reporting.class_matrix import class_matrix
from lightning_attngrad.reporting.colour_scale import ColourScale, palette
from lightning_attngrad.reporting.curves import success_curves
from lightning_attngrad.reporting.drift import drift_curves, layer_drift
from lightning_attngrad.reporting.figures import Caption, class_panels, film_strip, layer_strip, map_grid
from lightning_attngrad.reporting.moved import MovedCaption, moved_most
from lightning_attngrad.reporting.page import Page
from lightning_attngrad.reporting.perturbation import PerturbationCurves, perturbation_curves
from lightning_attngrad.reporting.rewriting import RewriteCaption, rewrite_panels
from lightning_attngrad.reporting.style import FigureStyle
from tests.reporting.test_figures import LONG, assert_words_lie_inside_and_apart, centre_colour, random_inputs, words

MEASURES = ("1 − rank correlation", "1 − cosine", "1 − SSIM", "1 − IoU of the top tenth", "Jensen–Shannon, bits")
CURVE = np.linspace(1, 0, 9)[None] ** np.array([[0.5], [1.0], [2.0]])
KINDS = (
    *("grid", "many", "layers", "classes", "film", "moved", "rewrites", "rewrites without maps"),
    *("success", "matrix", "drift", "parts", "faithfulness"),
)


def drawn(kind: str, style: FigureStyle, shape: tuple[int, int, int] = (3, 32, 32)) -> Any:
    """One of all figures, with long names, long titles and everything that a head can say."""
    pixels, maps = random_inputs(3, shape=shape)
    _, layers = random_inputs(3, 24)
    title, said = f"What it shows · epoch 12 · {LONG}", "normalisation unknown; each image stretched, 2–98 %"
    caption = Caption(LONG, 0.9, "cat", 0.9)
    head: dict[str, Any] = {"title": title, "style": style}
    shown: dict[str, Any] = {**head, "shown_as": said}
    epochs = ["start", *(f"epoch {index}" for index in range(1, 9))]
    rewritten = RewriteCaption(LONG, 0.62, LONG, 0.4, "dog", success=False, distance="", psnr=40.0, note="unconverged")
    moved = MovedCaption(0.42, 0.05, "tabby cat", 0.9, LONG, 0.6, "cat")
    many = np.repeat(pixels.numpy(), 10, axis=0), np.repeat(maps.numpy(), 10, axis=0)
    return {
        "grid": lambda: map_grid(pixels, maps, [caption] * 3, **shown),
        "many": lambda: map_grid(*many, [caption] * 30, **shown),
        "layers": lambda: layer_strip(pixels, layers, [f"blocks.{index}.attn" for index in range(24)], **shown),
        "classes": lambda: class_panels(pixels, layers[:, :3], [[LONG] * 3] * 3, np.full((3, 3), 0.1), **shown),
        "film": lambda: film_strip(pixels[0], layers[0, :9], epochs, [caption] * 9, **shown),
        "moved": lambda: moved_most(pixels, maps, maps, [moved] * 3, **shown),
        "rewrites": lambda: rewrite_panels(pixels, pixels, maps, maps, [rewritten] * 3, **shown),
        "rewrites without maps": lambda: rewrite_panels(pixels, pixels, None, None, [rewritten] * 3, **shown),
        "success": lambda: success_curves(
            {epoch: np.array([0.001, 0.02, np.inf]) for epoch in epochs[:5]}, radii=[0.004, 0.03], norm="linf", **head
        ),
        "matrix": lambda: class_matrix(np.full((10, 10), 0.01), [LONG] * 10, norm="linf", **head),
        "drift": lambda: drift_curves(
            {m: [0.3] * 9 for m in MEASURES}, {m: [0.1] * 9 for m in MEASURES}, epochs, **head
        ),
        "parts": lambda: layer_drift(
            np.full((12, 9), 0.7), np.full(12, 0.1), [f"blocks.{i}" for i in range(12)], epochs, **head
        ),
        "faithfulness": lambda: perturbation_curves(
            {name: PerturbationCurves(np.linspace(0, 1, 9), CURVE, CURVE) for name in ("start", "epoch 4 (now)")},
            replaced_by="mean colour",
            **head,
        ),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "style",
    [
        FigureStyle(),
        FigureStyle(width=3.5),
        FigureStyle(width=7.2),
        FigureStyle(width=11.4),
        FigureStyle(dpi=200),
        FigureStyle(image_size=2.5),
    ],
    ids=["card", "narrow", "page", "wide", "fine", "large"],
)
def test_words_never_overlap_or_leave_the_page_in_any_style(kind: str, style: FigureStyle) -> None:
    assert_words_lie_inside_and_apart(drawn(kind, style))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"matrix"}))
def test_text_is_read_where_a_figure_is_shown_350_pixels_wide(kind: str) -> None:
    """The letters of a card of TensorBoard, as high as those of small print: 7 pixels an em at least."""
    figure = drawn(kind, FigureStyle())
    points = min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text())
    assert points / 72 * 350 / figure.get_figwidth() > 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_dark_figure_says_the_same_and_every_word_stands_out(kind: str) -> None:
    light, dark = drawn(kind, FigureStyle()), drawn(kind, FigureStyle(dark=True))
    assert words(light) == words(dark)
    picture = figure_to_array(dark)
    assert picture[2, 2].max() < 40
    paper, on_cells = luminance(picture[2, 2] / 255), {"#ffffff", "#000000"}
    for text in dark.findobj(Text):
        if text.get_text() and text.get_color() not in on_cells and text.get_text() not in ("no map", "not finite"):
            assert (luminance(to_rgb(text.get_color())) + 0.05) / (paper + 0.05) > 4.5, text.get_text()
    for plot in dark.plots:
        for line in plot.lines:
            assert (luminance(to_rgb(line.get_color())) + 0.05) / (paper + 0.05) > 3


def luminance(colour: Any) -> float:  # sRGB, WCAG 2.1
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("kind", KINDS)
def test_more_pixels_an_inch_change_nothing_but_the_pixels(kind: str) -> None:
    few, many = drawn(kind, FigureStyle()), drawn(kind, FigureStyle(dpi=240))
    assert len(words(few)) == len(words(many))  # names are cut as the tiles of whole pixels leave room
    np.testing.assert_allclose(many.get_size_inches(), few.get_size_inches(), rtol=0.08)  # tiles of whole pixels
    assert figure_to_array(many).shape[:2] == many.sheet.shape[:2]


PIXELS, MAPS = np.full((1, 3, 8, 8), 0.5), np.array([[[0.5, 4.0], [1.0, 2.0]]])


def corner(style: FigureStyle, heatmaps: Any = MAPS, kind: str = "share") -> tuple[int, ...]:
    """Colour of the map of one patch that is shown alone."""
    figure = layer_strip(PIXELS, heatmaps[:, None], ["a"], title="t", scale=ColourScale(kind), style=style)
    tile = figure.tiles[1]
    left, top = tile.left + (tile.right - tile.left) // 4, tile.top + (tile.bottom - tile.top) // 4
    return tuple(int(value) for value in figure_to_array(figure)[top, left])


def test_the_colour_map_is_the_one_that_is_asked_for() -> None:
    for kind, style, name in (
        ("share", FigureStyle(cmap="cividis"), "cividis"),
        ("signed", FigureStyle(signed_cmap="RdBu_r", cmap="cividis"), "RdBu_r"),
    ):
        place = 0.5 / 4 if kind == "share" else 4.5 / 8
        expected = palette(name)[int(place * 256)]
        np.testing.assert_allclose(corner(style, kind=kind), expected, atol=2)


def test_the_limit_is_the_end_of_the_scale() -> None:
    assert corner(FigureStyle(limit=0.5)) == tuple(palette("inferno")[255])
    assert corner(FigureStyle(limit=1.0)) == tuple(palette("inferno")[128])


def test_a_scale_of_its_own_shows_a_faint_map_of_an_image_and_compares_within_it() -> None:
    style = FigureStyle(limit="image")
    faint = 0.01 * MAPS
    assert corner(style, faint) == corner(style, MAPS)
    assert corner(FigureStyle(), faint) != corner(FigureStyle(), MAPS)
    both = np.stack([MAPS[0], 0.5 * MAPS[0]])[None]  # of one image
    figure = layer_strip(PIXELS, both, ["whole", "half"], title="t", style=style)
    assert [said for _, said in figure.bar.ticks][-1] == "1"
    assert "of the image's largest" in words(figure)
    picture = figure_to_array(figure)
    assert centre_colour(picture, figure.tiles[1]) != centre_colour(picture, figure.tiles[2])
    blank = layer_strip(PIXELS, np.zeros((1, 1, 2, 2)), ["zero"], title="t", style=style)
    assert centre_colour(figure_to_array(blank), blank.tiles[1]) == tuple(palette("inferno")[0])


def test_opacity_goes_from_the_image_to_the_map_alone() -> None:
    def colour(alpha: float) -> np.ndarray:
        figure = map_grid(
            PIXELS, np.full((1, 2, 2), 4.0), [Caption("cat", 0.9)], title="t", style=FigureStyle(alpha=alpha)
        )
        return np.array(centre_colour(figure_to_array(figure), figure.tiles[1]))

    np.testing.assert_allclose(colour(1.0), palette("inferno")[255], atol=1)
    assert np.ptp(colour(0.01)) < 10  # grey
    np.testing.assert_allclose(colour(0.5), (colour(1.0).astype(float) + colour(0.001)) / 2, atol=3)


@pytest.mark.parametrize("way", ["bilinear", "bicubic"])
def test_smoothing_is_said(way: str) -> None:
    def grid(interpolation: Any) -> Page:
        style = FigureStyle(interpolation=interpolation)
        return map_grid(PIXELS, MAPS, [Caption("cat", 0.9)], title="t", style=style)

    smooth, sharp = grid(way), grid("nearest")
    assert any(f"smoothed between patches ({way})" in word for word in words(smooth))
    assert not any("smoothed" in word for word in words(sharp))
    colours = [
        len(
            np.unique(
                figure_to_array(figure)[tile.top + 3 : tile.bottom - 3, tile.left + 3 : tile.right - 3].reshape(-1, 3),
                axis=0,
            )
        )
        for figure in (smooth, sharp)
        for tile in figure.tiles[1:2]
    ]
    assert colours[0] > 50
    assert colours[1] == 4


@pytest.mark.parametrize("way", ["nearest", "bicubic"])
def test_a_map_that_is_not_finite_is_hatched_also_where_maps_are_smoothed(way: Any) -> None:
    figure = map_grid(
        PIXELS, np.full((1, 2, 2), np.nan), [Caption("cat", 0.9)], title="t", style=FigureStyle(interpolation=way)
    )
    assert "no map" in words(figure)


def test_an_image_is_as_large_as_it_is_asked_to_be() -> None:
    pixels, maps = random_inputs(2, shape=(3, 384, 384))
    figure = map_grid(pixels, maps, [Caption("cat", 0.9)] * 2, title="t", style=FigureStyle(image_size=3.2))
    tile = figure.tiles[0]
    assert (tile.right - tile.left, tile.bottom - tile.top) == (384, 384)  # each of its pixels


def test_the_map_of_a_wide_image_lies_below_it() -> None:
    pixels, maps = random_inputs(1, shape=(3, 32, 96), grid=(2, 6))
    image, heatmap = map_grid(pixels, maps, [Caption("cat", 0.9)], title="t").tiles
    assert (image.left, image.right) == (heatmap.left, heatmap.right)
    assert heatmap.top > image.bottom
    assert image.right - image.left > 200


def test_of_many_images_each_has_its_verdict_below_it() -> None:
    pixels, maps = random_inputs(64)
    captions = [Caption("dog", 0.4, "cat", 0.3), *[Caption("cat", 0.9, "cat", 0.9)] * 63]
    figure = map_grid(pixels, maps, captions, title="t")
    assert words(figure).count("✓ cat (0.90)") == 63
    assert {"✗ dog (0.40)", "true: cat"} <= set(words(figure))
    assert len(figure.tiles) == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 2}, "width: got 2; expected 3.5 to 40 inches"),
        ({"width": "wide"}, "width: got 'wide'"),
        ({"image_size": 0.1}, "image_size: got 0.1; expected 0.4 to 40 inches, or None"),
        ({"dpi": 5}, "dpi: got 5; expected 60 to 600 pixels an inch"),
        ({"dpi": True}, "dpi: got True"),
        ({"cmap": "virids"}, "cmap: got 'virids'; .* such as 'viridis'"),
        ({"signed_cmap": "nothing at all"}, "signed_cmap: got 'nothing at all'"),
        ({"alpha": 0.0}, "alpha: got 0.0; expected a number above 0, and at most 1"),
        ({"alpha": 1.5}, "alpha: got 1.5"),
        ({"interpolation": "cubic"}, "interpolation: got 'cubic'; expected 'nearest', 'bilinear' or 'bicubic'"),
        ({"limit": 0}, "limit: got 0; expected a positive number, 'image' or None"),
        ({"limit": "map"}, "limit: got 'map'"),
    ],
)
def test_bad_styles_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FigureStyle(**options)
