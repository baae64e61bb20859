"""The figure of how the prediction falls while patches are replaced, most relevant first and least relevant first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lightning_attngrad.reporting.arrays import Array, ArrayLike, as_array
from lightning_attngrad.reporting.canvas import (
    HEADER_HEIGHT,
    MARGIN,
    NOTE_SIZE,
    SOFT_INK,
    house_style,
)
from lightning_attngrad.reporting.captions import counted
from lightning_attngrad.reporting.page import inset, new_page, write

_WIDTH, _PLOT_LEFT, _PLOT_HEIGHT, _BELOW = 7.6, 0.78, 3.2, 0.6  # in inches
_LEGEND, _LEGEND_GAP, _SAMPLE, _LINE, _BETWEEN_LOOKS = 2.05, 0.2, 0.36, 0.23, 0.16
# Of Okabe and Ito, for every kind of sight. The order of removal has the colour, the look the line.
_ORDERS = (("lerf", "least relevant first", "#0072b2"), ("morf", "most relevant first", "#d55e00"))


class PerturbationCurves(NamedTuple):
    """Probability of the target of N images while patches are replaced.

    Attributes:
        shares: (S + 1,) of the patches that are replaced, rising from 0 to 1.
        morf: (N, S + 1) most relevant first; a row with a NaN is left out.
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


def perturbation_curves(looks: Mapping[str, PerturbationCurves], *, replaced_by: str, title: str) -> Figure:
    """Mean curves of one look, or of an earlier one and this one.

    The last look has broad lines, the quartiles of its images as bands, and its symmetric relevance gain, the area
    between the two means, shaded; earlier ones are thin and dashed. The axes are the same for all figures.

    Args:
        looks: By label, such as "start" and "epoch 4 (now)": the last one is this look.
        replaced_by: What patches are replaced by, for the note, such as "mean colour".
        title: Head of the figure.

    Returns:
        The figure; its second axes holds the curves.

    Raises:
        ValueError: For more than two looks or none, shapes that do not fit, and shares or probabilities outside [0, 1].

    Example:
        >>> curves = PerturbationCurves(np.array([0, 0.5, 1]), np.array([[0.9, 0.2, 0.1]]), np.array([[0.9, 0.8, 0.1]]))
        >>> figure = perturbation_curves({"epoch 1 (now)": curves}, replaced_by="mean colour", title="Faithfulness")
        >>> [line.get_label() for line in figure.axes[1].get_lines()]
        ['epoch 1 (now): least relevant first', 'epoch 1 (now): most relevant first']
    """
    if not 1 <= len(looks) <= 2:
        raise ValueError(f"looks: got {len(looks)}; expected this look, or an earlier one and this one")
    drawn = {label: _checked(label, curves) for label, curves in looks.items()}
    *_, (now, last) = drawn.items()
    plot_width = _WIDTH - MARGIN - _PLOT_LEFT - _LEGEND_GAP - _LEGEND
    with house_style():
        figure, page = new_page(
            _WIDTH,
            HEADER_HEIGHT + _PLOT_HEIGHT + _BELOW,
            title=title,
            notes=f"{counted(last.images, last.images, 'image')} · means, and quartiles as bands · patches replaced by "
            f"{replaced_by} · a random map gains about 0",
            room=_WIDTH - 2 * MARGIN,
        )
        axes = inset(figure, _PLOT_LEFT, HEADER_HEIGHT, plot_width, _PLOT_HEIGHT)
        _prepare_axes(axes)
        x, y = _PLOT_LEFT + plot_width + _LEGEND_GAP, HEADER_HEIGHT + _LINE / 2
        # This look first in the legend, and last on the plot, so that the earlier one stays visible on top of it.
        for label, look in reversed(drawn.items()):
            is_now = label == now
            if is_now:
                _shade(axes, look)
            write(page, x, y, label, width=_LEGEND, bold=is_now)
            gain = "no map" if not look.images else f"gain (SRG) {look.gain:+.3f}".replace("-", "−")
            write(page, x, y + _LINE, gain, width=_LEGEND, bold=is_now)
            y += 2 * _LINE
            for order, name, colour in _ORDERS:
                style = _line_style(colour, is_now=is_now)
                axes.plot(look.shares, look.mean[order], label=f"{label}: {name}", **style)
                page.plot([x, x + _SAMPLE], [y, y], **style)
                write(page, x + _SAMPLE + 0.08, y, name, width=_LEGEND - _SAMPLE - 0.08, colour=SOFT_INK)
                y += _LINE
            y += _BETWEEN_LOOKS
    return figure


def _checked(label: str, curves: PerturbationCurves) -> _Drawn:
    """Means and quartiles of the images that have a number, or a ValueError."""
    shares, morf, lerf = (as_array(values) for values in curves)
    if shares.ndim != 1 or morf.ndim != 2 or morf.shape != lerf.shape or morf.shape[1] != len(shares):
        raise ValueError(
            f"looks[{label!r}]: got shapes {shares.shape}, {morf.shape} and {lerf.shape}; expected (S + 1,), and twice "
            "(N, S + 1)"
        )
    for values in (shares, morf, lerf):
        if (values < -1e-3).any() or (values > 1 + 1e-3).any():
            raise ValueError(
                f"looks[{label!r}]: got {values.min()} to {values.max()}; expected shares and probabilities"
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


def _shade(axes: Axes, look: _Drawn) -> None:
    axes.fill_between(look.shares, look.mean["morf"], look.mean["lerf"], color="#ececec", linewidth=0, zorder=1)
    for order, _, colour in _ORDERS:
        axes.fill_between(look.shares, *look.quartiles[order], color=colour, alpha=0.16, linewidth=0, zorder=1.5)


def _line_style(colour: str, *, is_now: bool) -> dict[str, Any]:
    if is_now:
        return {"color": colour, "linestyle": "solid", "linewidth": 2.6, "zorder": 2, "solid_capstyle": "butt"}
    halo = [withStroke(linewidth=2.2, foreground="white")]
    return {"color": colour, "linestyle": (0, (4, 1.6)), "linewidth": 1.3, "zorder": 3, "path_effects": halo}


def _prepare_axes(axes: Axes) -> None:
    ticks, labels = np.linspace(0, 1, 5), [f"{percent} %" for percent in (0, 25, 50, 75, 100)]
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.set_xticks(ticks, labels=labels)
    axes.set_yticks(ticks, labels=labels)
    axes.set_xlabel("patches replaced", fontsize=NOTE_SIZE, color=SOFT_INK)
    axes.set_ylabel("probability of the class", fontsize=NOTE_SIZE, color=SOFT_INK)
    axes.tick_params(labelsize=NOTE_SIZE, length=2.5, width=0.5, colors=SOFT_INK)
    axes.grid(visible=True, color="#d8d8d8", linewidth=0.6)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set(visible=name in ("left", "bottom"), color="#8c8c8c", linewidth=0.6)
