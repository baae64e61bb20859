"""The figure of how many rows class rewriting succeeds on within each radius."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from lightning_attngrad.reporting.arrays import Array, ArrayLike, as_array
from lightning_attngrad.reporting.canvas import (
    HEADER_HEIGHT,
    MARGIN,
    NOTE_SIZE,
    SOFT_INK,
    TEXT_SIZE,
    fit_text,
    house_style,
    text_width,
)
from lightning_attngrad.reporting.captions import counted
from lightning_attngrad.reporting.distances import DistanceUnit, Norm, distance_unit
from lightning_attngrad.reporting.page import inset, new_page, write

Corners: TypeAlias = npt.NDArray[np.float64]

_MOST_CURVES = 7
_LEFT_OF_RADII, _RIGHT_OF_RADII = 0.5, 1.15  # ends of the axis, times the smallest and the largest radius
_WIDTH, _PLOT_LEFT, _PLOT_HEIGHT, _BELOW = 7.6, 0.78, 3.2, 0.6  # in inches
_LEGEND_ROOM, _LEGEND_GAP, _SAMPLE, _LEGEND_LINE = 2.0, 0.2, 0.36, 0.23
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
    """Share of rows that are rewritten within a radius, over all radii from one to another.

    The share jumps at each distance and is constant between two of them: its corners say all of it. It is to
    be drawn as steps that hold until the next corner.

    Args:
        distances: (M,) smallest distances found, ∞ where a row was not rewritten.
        left: First radius; all distances up to it, 0 among them, count there.
        right: Last radius.

    Returns:
        Radii (K,), the first and the last given, and percentages (K,) of rows with at most such a distance.

    Example:
        >>> radii, percent = success_curve(np.array([0.0, 2.0, 2.0, np.inf]), left=1.0, right=4.0)
        >>> radii.tolist(), percent.tolist()
        ([1.0, 2.0, 4.0], [25.0, 75.0, 75.0])
    """
    rows = np.sort(as_array(distances))
    left, right = as_array([left, right])  # rounded as distances are, or 8/255 might not lie within 8/255
    jumps = np.unique(rows[(rows > left) & (rows < right)])
    radii = np.array([left, *jumps, right], dtype=np.float64)
    return radii, 100.0 * np.searchsorted(rows, radii, side="right") / len(rows)


def success_curves(
    distances: Mapping[str, ArrayLike],
    *,
    radii: Sequence[float],
    norm: Norm,
    title: str,
) -> Figure:
    """How many rows are rewritten within each radius: one curve a label, the last one emphasised.

    The radii alone fix the axis, so that figures of different epochs compare: it runs from half the smallest
    to a little beyond the largest. Distances left of it, 0 among them, count from its left edge on. Of more
    than 7 curves an even selection is shown, the first and the last always among them, and the figure says so.

    Args:
        distances: From a label, such as "start" or "epoch 4 (now)", to the distances (M,) of its rows in
            pixel units; ∞ where a row was not rewritten.
        radii: Radii in the same unit, which become the ticks.
        norm: ``"linf"``, ``"l2"`` or ``"l0_patches"``: how radii are written.
        title: Head of the figure.

    Returns:
        The figure; its second axes holds the curves, in the order of the labels.

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
        >>> [tick.get_text() for tick in figure.axes[1].get_xticklabels()]
        ['1/255', '4/255', '16/255']
    """
    unit = distance_unit(norm)
    ticks = _checked_radii(radii)
    rows = {label: _checked_distances(label, values) for label, values in distances.items()}
    if not rows:
        raise ValueError("distances: got no curve; expected one label or more")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST_CURVES)).round().astype(int))
    labels = [list(rows)[index] for index in chosen]
    left, right = ticks[0] * _LEFT_OF_RADII, ticks[-1] * _RIGHT_OF_RADII

    shown = [fit_text(label, _LEGEND_ROOM, TEXT_SIZE, bold=True) for label in labels]
    legend = _LEGEND_GAP + _SAMPLE + 0.08 + max(text_width(label, TEXT_SIZE, bold=True) for label in shown)
    plot_width = _WIDTH - MARGIN - _PLOT_LEFT - legend
    with house_style():
        figure, page = new_page(
            _WIDTH,
            HEADER_HEIGHT + _PLOT_HEIGHT + _BELOW,
            title=title,
            notes=" · ".join(_notes(rows, len(labels))),
            room=_WIDTH - 2 * MARGIN,
        )
        axes = inset(figure, _PLOT_LEFT, HEADER_HEIGHT, plot_width, _PLOT_HEIGHT)
        _prepare_axes(axes, unit, ticks, (left, right), plot_width)
        for order, label in enumerate(labels):
            is_last = order == len(labels) - 1
            style = _line_style(order, is_last=is_last)
            axes.plot(*success_curve(rows[label], left, right), drawstyle="steps-post", label=label, **style)
            # The legend stands outside, where no curve can run.
            x = _PLOT_LEFT + plot_width + _LEGEND_GAP
            y = HEADER_HEIGHT + _LEGEND_LINE * (order + 0.5)
            page.plot([x, x + _SAMPLE], [y, y], **style)
            write(page, x + _SAMPLE + 0.08, y, shown[order], width=_LEGEND_ROOM, bold=is_last)
    return figure


def _checked_radii(radii: Sequence[float]) -> list[float]:
    """Radii in order, each once, or a ValueError."""
    ticks = sorted({float(radius) for radius in radii})
    if not ticks or not all(math.isfinite(tick) and tick > 0 for tick in ticks):
        raise ValueError(f"radii: got {list(radii)!r}; expected one positive finite number or more")
    return ticks


def _checked_distances(label: str, distances: ArrayLike) -> Array:
    values = as_array(distances)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"distances[{label!r}]: got shape {values.shape}; expected (M,) with at least one row")
    wrong = values[~(values >= 0)]  # NaN among them
    if len(wrong):
        raise ValueError(f"distances[{label!r}]: got {wrong[0]}; expected 0 or more, and inf where a row failed")
    return values


def _notes(rows: Mapping[str, Array], curves: int) -> list[str]:
    fewest, most = (count(len(values) for values in rows.values()) for count in (min, max))
    notes = [counted(most, most, "row") if fewest == most else f"{fewest} to {most} rows"]
    if curves < len(rows):
        notes.append(counted(curves, len(rows), "curve") + ", evenly spaced")
    return notes


def _line_style(order: int, *, is_last: bool) -> dict[str, Any]:
    """The last curve is a broad band below the others, which stay visible on it where they coincide."""
    if is_last:
        return {"color": _NOW, "linestyle": "solid", "linewidth": 3.4, "zorder": 2, "solid_capstyle": "butt"}
    colour, dashes = _EARLIER[order]
    halo = [withStroke(linewidth=2.2, foreground="white")]
    return {"color": colour, "linestyle": dashes, "linewidth": 1.4, "zorder": 3, "path_effects": halo}


def _prepare_axes(
    axes: Axes, unit: DistanceUnit, ticks: Sequence[float], limits: tuple[float, float], width: float
) -> None:
    left, right = limits
    axes.set_xscale("log")
    axes.set(xlim=limits, ylim=(-2, 102))
    axes.xaxis.set_minor_locator(NullLocator())
    middles = [math.log(tick / left) / math.log(right / left) * width for tick in ticks]
    axes.set_xticks(ticks, labels=_labels_apart([unit.text(tick) for tick in ticks], middles))
    shares = (0, 25, 50, 75, 100)
    axes.set_yticks(shares, labels=[f"{share} %" for share in shares])
    axes.set_xlabel(f"radius: {unit.name} (left edge: {unit.text(left)} or less)", fontsize=NOTE_SIZE, color=SOFT_INK)
    axes.set_ylabel("rows rewritten", fontsize=NOTE_SIZE, color=SOFT_INK)
    axes.tick_params(labelsize=NOTE_SIZE, length=2.5, width=0.5, colors=SOFT_INK)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set(visible=name in ("left", "bottom"), color="#8c8c8c", linewidth=0.6)


def _labels_apart(labels: Sequence[str], middles: Sequence[float]) -> list[str]:
    """From the left, the labels that have room around their middles, in inches; the others empty."""
    kept, end = [], -math.inf
    for label, middle in zip(labels, middles, strict=True):
        half = text_width(label, NOTE_SIZE) / 2
        fits = middle - half >= end + 0.06
        kept.append(label if fits else "")
        end = middle + half if fits else end
    return kept
