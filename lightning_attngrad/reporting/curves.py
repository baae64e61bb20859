"""The figure of how many image–target pairs class rewriting succeeds on within each radius."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lightning_attngrad.reporting.arrays import Array, ArrayLike, as_array
from lightning_attngrad.reporting.captions import counted
from lightning_attngrad.reporting.distances import DistanceUnit, Norm, distance_unit
from lightning_attngrad.reporting.legend import Legend, Sample
from lightning_attngrad.reporting.page import NOTE_SIZE, Page, house_style, least_width
from lightning_attngrad.reporting.plot import Place, Plot
from lightning_attngrad.reporting.style import PLAIN, FigureStyle
from lightning_attngrad.reporting.text import text_width

Corners: TypeAlias = npt.NDArray[np.float64]

_MOST_CURVES = 7
_LEFT_OF_RADII, _RIGHT_OF_RADII = 0.5, 1.15  # ends of the axis, times the smallest and the largest radius
_MOST_DOUBLINGS = 6  # of the radii at either end, so that the axis holds distances that lie beyond them
_PLOT_LEFT, _PLOT_RIGHT, _PLOT_HEIGHT, _BELOW = 0.78, 0.3, 3.2, 0.6  # in inches; a tick at the end has its words
_LEGEND_ROOM = 2.0
# Of Okabe and Ito, for every kind of sight; and each with dashes of its own.
_NOW = "#0072b2"
_EARLIER: tuple[tuple[str, Any], ...] = (
    ("#5f5f5f", (0, (1.4, 1.4))),
    ("#d55e00", (0, (5, 1.5))),
    ("#009e73", (0, (5, 1.5, 1, 1.5))),
    ("#cc79a7", (0, (2.5, 1.2))),
    ("#8a6d00", (0, (5, 1.5, 1, 1.5, 1, 1.5))),
    ("#1a1a1a", (0, (9, 2))),
)


def success_curve(distances: ArrayLike, left: float, right: float) -> tuple[Corners, Corners]:
    """Share of pairs that are rewritten within a radius, over all radii from one to another.

    The share jumps at each distance and is constant between two of them: its corners say all of it. It is to
    be drawn as steps that hold until the next corner.

    Args:
        distances: (M,) smallest distances found, ∞ where a pair was not rewritten.
        left: First radius; all distances up to it, 0 among them, count there.
        right: Last radius.

    Returns:
        Radii (K,), the first and the last given, and percentages (K,) of pairs with at most such a distance.

    Example:
        >>> radii, percent = success_curve(np.array([0.0, 2.0, 2.0, np.inf]), left=1.0, right=4.0)
        >>> radii.tolist(), percent.tolist()
        ([1.0, 2.0, 4.0], [25.0, 75.0, 75.0])
    """
    pairs = np.sort(as_array(distances))
    left, right = as_array([left, right])  # rounded as distances are, or 8/255 might not lie within 8/255
    jumps = np.unique(pairs[(pairs > left) & (pairs < right)])
    radii = np.array([left, *jumps, right], dtype=np.float64)
    return radii, 100.0 * np.searchsorted(pairs, radii, side="right") / len(pairs)


def success_curves(
    distances: Mapping[str, ArrayLike],
    *,
    radii: Sequence[float],
    norm: Norm,
    title: str,
    style: FigureStyle = PLAIN,
) -> Figure:
    """How many image–target pairs are rewritten within each radius: one curve a label, the last one emphasised.

    The axis runs from half the smallest radius to a little beyond the largest, and on by doublings until it holds the
    distances, so that curves are seen where they rise and figures of most epochs still compare. What has no place on
    it, 0 among it, counts from its left edge on, and the figure says how much of the last curve lies outside the radii:
    shares at radii, and the area between them, do not tell of that. Of more than 7 curves an even selection is shown,
    the first and the last always among them, and the figure says so.

    Args:
        distances: From a label, such as "start" or "epoch 4 (now)", to the distances (M,) of its pairs in
            pixel units; ∞ where one was not rewritten.
        radii: Radii in the same unit, which become ticks.
        norm: ``"linf"``, ``"l2"``, ``"l0"`` or ``"l0_patches"``: how radii are written.
        title: Head of the figure.
        style: How it looks.

    Returns:
        The figure, a `reporting.page.Page`; its one plot holds the curves, in the order of the labels.

    Raises:
        ValueError: For an unknown norm, radii that are not positive and finite, and distances that are
            missing, negative or NaN.

    Example:
        >>> figure = success_curves(
        ...     {"start": np.array([0.01, 0.02]), "epoch 1 (now)": np.array([0.03, np.inf])},
        ...     radii=[1 / 255, 4 / 255, 16 / 255],
        ...     norm="linf",
        ...     title="Rewritten within a radius",
        ... )
        >>> [words for _, words in figure.plots[0].xticks]
        ['1/255', '4/255', '16/255']
    """
    unit = distance_unit(norm)
    ticks = _checked_radii(radii)
    pairs = {label: _checked_distances(label, values) for label, values in distances.items()}
    if not pairs:
        raise ValueError("distances: got no curve; expected one label or more")
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), _MOST_CURVES)).round().astype(int))
    labels = [list(pairs)[index] for index in chosen]
    notes = [*_notes(pairs, len(labels)), *_outside(pairs[labels[-1]], ticks, unit)]
    ticks = _until_seen(ticks, [pairs[label] for label in labels])
    left, right = ticks[0] * _LEFT_OF_RADII, ticks[-1] * _RIGHT_OF_RADII

    samples = [
        Sample(label, _line_style(order, is_last=order == len(labels) - 1), bold=order == len(labels) - 1)
        for order, label in enumerate(labels)
    ]
    width = least_width(style)
    legend = Legend(samples, width - _PLOT_LEFT - _PLOT_RIGHT, _LEGEND_ROOM, style)
    with house_style():
        page = Page(
            width,
            _PLOT_HEIGHT + _BELOW + legend.below,
            title=title,
            notes=" · ".join(notes),
            style=style,
        )
        place = Place(_PLOT_LEFT, page.top, width - _PLOT_RIGHT - _PLOT_LEFT - legend.beside, _PLOT_HEIGHT)
        plot = Plot(page, place, (left, right), (-2, 102), log=True)
        middles = [plot.in_inches(tick, 0)[0] for tick in ticks]
        words = _labels_apart([unit.text(tick) for tick in ticks], middles)
        plot.tick_x(list(zip(ticks, words, strict=True)))
        plot.tick_y([(share, f"{share} %") for share in (0, 25, 50, 75, 100)])
        plot.name_axes(f"radius: {unit.name} (left edge: {unit.text(left)} or less)", "image–target pairs rewritten")
        for sample, label in zip(samples, labels, strict=True):
            corners = success_curve(pairs[label], left, right)
            plot.curve(*corners, drawstyle="steps-post", label=label, **_with_halo(sample.line, page))
        legend.draw(page, place, _BELOW)
    return page


def _checked_radii(radii: Sequence[float]) -> list[float]:
    """Radii in order, each once, or a ValueError."""
    ticks = sorted({float(radius) for radius in radii})
    if not ticks or not all(math.isfinite(tick) and tick > 0 for tick in ticks):
        raise ValueError(f"radii: got {list(radii)!r}; expected one positive finite number or more")
    return ticks


def _checked_distances(label: str, distances: ArrayLike) -> Array:
    values = as_array(distances)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"distances[{label!r}]: got shape {values.shape}; expected (M,) with at least one pair")
    wrong = values[~(values >= 0)]  # NaN among them
    if len(wrong):
        raise ValueError(f"distances[{label!r}]: got {wrong[0]}; expected 0 or more, and inf where a pair failed")
    return values


def _notes(pairs: Mapping[str, Array], curves: int) -> list[str]:
    fewest, most = (count(len(values) for values in pairs.values()) for count in (min, max))
    notes = [counted(most, most, "image–target pair") if fewest == most else f"{fewest} to {most} image–target pairs"]
    if curves < len(pairs):
        notes.append(counted(curves, len(pairs), "curve") + ", evenly spaced")
    return notes


def _until_seen(radii: list[float], curves: Sequence[Array]) -> list[float]:
    """The radii, doubled at the upper end and halved at the lower one until the axis holds the distances."""
    found = np.concatenate(curves)
    found = found[np.isfinite(found) & (found > 0)]
    if not len(found):
        return radii
    ticks, smallest, largest = list(radii), float(found.min()), float(found.max())
    for _ in range(_MOST_DOUBLINGS):
        if largest > ticks[-1] * _RIGHT_OF_RADII:
            ticks.append(2 * ticks[-1])
        if smallest < ticks[0] * _LEFT_OF_RADII:
            ticks.insert(0, ticks[0] / 2)
    return ticks


def _outside(distances: Array, radii: Sequence[float], unit: DistanceUnit) -> list[str]:
    """How much of a curve lies where no radius tells of it."""
    within, beyond, never = (
        float(there.mean())
        for there in (
            distances < np.float32(radii[0]),
            (distances > np.float32(radii[-1])) & np.isfinite(distances),
            np.isinf(distances),
        )
    )
    said = [
        f"{100 * share:.0f} % {words}" if share >= 0.005 else f"<1 % {words}"
        for share, words in (
            (within, f"below {unit.text(radii[0])}"),
            (beyond, f"beyond {unit.text(radii[-1])}"),
            (never, "not rewritten"),
        )
        if share > 0
    ]
    return [f"now {', '.join(said)}"] if said else []


def _line_style(order: int, *, is_last: bool) -> dict[str, Any]:
    """The last curve is a broad band below the others, which stay visible on it where they coincide."""
    if is_last:
        return {"color": _NOW, "linestyle": "solid", "linewidth": 3.4, "zorder": 2, "solid_capstyle": "butt"}
    colour, dashes = _EARLIER[order]
    return {"color": colour, "linestyle": dashes, "linewidth": 1.4, "zorder": 3}


def _with_halo(line: Mapping[str, Any], page: Page) -> dict[str, Any]:
    """A thin line keeps away from what lies below it."""
    if line["zorder"] < 3:
        return dict(line)
    return {**line, "path_effects": [withStroke(linewidth=2.2, foreground=page.style.colour("white"))]}


def _labels_apart(labels: Sequence[str], middles: Sequence[float]) -> list[str]:
    """From the left, the labels that have room around their middles, in inches; the others empty."""
    kept, end = [], -math.inf
    for label, middle in zip(labels, middles, strict=True):
        half = text_width(label, NOTE_SIZE) / 2
        fits = middle - half >= end + 0.06
        kept.append(label if fits else "")
        end = middle + half if fits else end
    return kept
