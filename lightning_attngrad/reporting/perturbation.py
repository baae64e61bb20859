"""The figure of how the prediction falls while patches are replaced, most relevant first and least relevant first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lightning_attngrad.reporting.arrays import Array, ArrayLike, as_array
from lightning_attngrad.reporting.captions import counted
from lightning_attngrad.reporting.legend import Legend, Sample
from lightning_attngrad.reporting.page import Page, house_style, least_width
from lightning_attngrad.reporting.plot import Place, Plot
from lightning_attngrad.reporting.style import PLAIN, SOFT_INK, FigureStyle
from lightning_attngrad.reporting.text import with_minus

_PLOT_LEFT, _PLOT_RIGHT, _PLOT_HEIGHT, _BELOW = 0.78, 0.3, 3.2, 0.6  # in inches; a tick at the end has its words
_LEGEND = 2.05
# Of Okabe and Ito, for every kind of sight; in black and white the marks tell the orders of removal apart, and the line
# the evaluations.
_ORDERS = (("lerf", "least relevant first", "#0072b2"), ("morf", "most relevant first", "#d55e00"))
_MARKS = {"#0072b2": "", "#d55e00": "v"}


class PerturbationCurves(NamedTuple):
    """Probability of the target of N images while patches are replaced.

    Attributes:
        shares: (S + 1,) of the patches that are replaced, rising from 0 to 1.
        morf: (N, S + 1) most relevant first; an image with a NaN is left out.
        lerf: (N, S + 1) least relevant first; likewise.
    """

    shares: ArrayLike
    morf: ArrayLike
    lerf: ArrayLike


class _Drawn(NamedTuple):
    shares: Array
    mean: dict[str, Array]
    quartiles: dict[str, Array]
    gain: float
    images: int


def perturbation_curves(
    evaluations: Mapping[str, PerturbationCurves], *, replaced_by: str, title: str, style: FigureStyle = PLAIN
) -> Figure:
    """Mean curves of one evaluation, or of an earlier one and this one.

    The last evaluation has broad lines, the quartiles of its images as bands, and its symmetric relevance gain, the
    area between the two means, shaded; an earlier one is thin and dashed. The axes are the same for all figures.

    Args:
        evaluations: By label, such as "start" and "epoch 4 (now)": the last one is this evaluation.
        replaced_by: What patches are replaced by, for the note, such as "mean colour".
        title: Head of the figure.
        style: How it looks.

    Returns:
        The figure, a `reporting.page.Page`; its one plot holds the curves.

    Raises:
        ValueError: For more than two evaluations or none, shapes that do not fit, and shares or probabilities outside
            [0, 1].

    Example:
        >>> curves = PerturbationCurves(np.array([0, 0.5, 1]), np.array([[0.9, 0.2, 0.1]]), np.array([[0.9, 0.8, 0.1]]))
        >>> figure = perturbation_curves({"epoch 1 (now)": curves}, replaced_by="mean colour", title="Faithfulness")
        >>> [line.get_label() for line in figure.plots[0].lines]
        ['epoch 1 (now): least relevant first', 'epoch 1 (now): most relevant first']
    """
    if not 1 <= len(evaluations) <= 2:
        raise ValueError(f"evaluations: got {len(evaluations)}; expected this one, or an earlier one and this one")
    drawn = {label: _checked(label, curves) for label, curves in evaluations.items()}
    *_, (now, last) = drawn.items()
    # This evaluation first in the legend, and last on the plot, so that the earlier one stays visible on top of it.
    samples = [
        sample for label, curves in reversed(drawn.items()) for sample in _samples(label, curves, is_now=label == now)
    ]
    width = least_width(style)
    legend = Legend(samples, width - _PLOT_LEFT - _PLOT_RIGHT, _LEGEND, style)
    # Room for two evaluations from the first on: a board that leafs through figures of one size does not jump.
    of_two = Legend(
        [*samples, *samples][: 2 * len(samples) // len(drawn)], width - _PLOT_LEFT - _PLOT_RIGHT, _LEGEND, style
    )
    with house_style():
        page = Page(
            width,
            _PLOT_HEIGHT + _BELOW + max(legend.below, of_two.below),
            title=title,
            notes=f"{counted(last.images, last.images, 'image')} · means, and quartiles as bands · patches replaced by "
            f"{replaced_by} · a random map gains about 0",
            style=style,
        )
        place = Place(_PLOT_LEFT, page.top, width - _PLOT_RIGHT - _PLOT_LEFT - legend.beside, _PLOT_HEIGHT)
        plot = Plot(page, place, (0, 1), (-0.02, 1.02))
        ticks = [(percent / 100, f"{percent} %") for percent in (0, 25, 50, 75, 100)]
        plot.tick_x(ticks)
        plot.tick_y(ticks)
        plot.name_axes("patches replaced", "probability of the class")
        for label, curves in reversed(drawn.items()):
            if label == now:
                _shade(plot, curves)
            for order, name, colour in _ORDERS:
                line = _line_style(colour, is_now=label == now)
                if label != now:
                    line["path_effects"] = [withStroke(linewidth=2.2, foreground=style.colour("white"))]
                plot.curve(curves.shares, curves.mean[order], label=f"{label}: {name}", **line)
        legend.draw(page, place, _BELOW)
    return page


def _samples(label: str, curves: _Drawn, *, is_now: bool) -> list[Sample]:
    """The legend of an evaluation: its name, what its maps gain, and its two curves."""
    gain = f"gain (SRG) {with_minus(f'{curves.gain:+.3f}')}" if curves.images else "no map"
    heads = [Sample(label, {}, bold=is_now), Sample(gain, {}, bold=is_now)]
    return [*heads, *(Sample(name, _line_style(colour, is_now=is_now), colour=SOFT_INK) for _, name, colour in _ORDERS)]


def _checked(label: str, curves: PerturbationCurves) -> _Drawn:
    """Means and quartiles of the images that have a number, or a ValueError."""
    shares, morf, lerf = (as_array(values) for values in curves)
    if shares.ndim != 1 or morf.ndim != 2 or morf.shape != lerf.shape or morf.shape[1] != len(shares):
        raise ValueError(
            f"evaluations[{label!r}]: got shapes {shares.shape}, {morf.shape} and {lerf.shape}; expected "
            "(S + 1,), and twice (N, S + 1)"
        )
    for values in (shares, morf, lerf):
        if (values < -1e-3).any() or (values > 1 + 1e-3).any():
            raise ValueError(
                f"evaluations[{label!r}]: got {values.min()} to {values.max()}; expected shares and probabilities"
            )
    known = ~np.isnan(morf + lerf).any(axis=1)
    rows = {"morf": morf[known], "lerf": lerf[known]}
    if not known.any():  # nothing is drawn of it
        rows = {name: np.full((1, len(shares)), np.nan, dtype=np.float32) for name in rows}
    mean = {name: values.mean(axis=0) for name, values in rows.items()}
    return _Drawn(
        shares,
        mean,
        {name: np.quantile(values, (0.25, 0.75), axis=0) for name, values in rows.items()},
        float(np.trapezoid(mean["lerf"] - mean["morf"], shares)),
        int(known.sum()),
    )


def _shade(plot: Plot, curves: _Drawn) -> None:
    plot.band(curves.shares, curves.mean["morf"], curves.mean["lerf"], facecolor="#ececec", zorder=1)
    for order, _, colour in _ORDERS:
        plot.band(curves.shares, *curves.quartiles[order], facecolor=colour, alpha=0.16, zorder=1.5)


def _line_style(colour: str, *, is_now: bool) -> dict[str, Any]:
    mark = {"marker": _MARKS[colour], "markersize": 6 if is_now else 4}
    if is_now:
        return {"color": colour, "linestyle": "solid", "linewidth": 2.6, "zorder": 2, "solid_capstyle": "butt", **mark}
    return {"color": colour, "linestyle": (0, (4, 1.6)), "linewidth": 1.3, "zorder": 3, **mark}
