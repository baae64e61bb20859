"""Charts of a report: where lines, bands, ticks and words lie; the template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.ticker import MaxNLocator

from lightning_attngrad.reporting.distances import distance_unit
from lightning_attngrad.reporting.report.reading import StoredMonitor, StoredRun
from lightning_attngrad.reporting.report.timeline import Timeline

WIDTH, HEIGHT = 440, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 34
#: Lines of a chart; of more, the first.
MOST_LINES = 12
#: Names of numbers that are distances, by how they end.
_NORMS = ("linf", "l2", "l0", "l0_patches")

Points = list[tuple[int, float]]  # number of a moment, and value


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: in the legend.
        points: values by the number of their moment; infinite ones and NaN are not drawn.
        band: lower and upper end around them, likewise; empty without one.
        style: number of its colour and marker.
        dash: number of its dashes.
    """

    label: str
    points: Points
    band: list[tuple[int, float, float]] = field(default_factory=list)
    style: int = 0
    dash: int = 0


@dataclass(frozen=True)
class DrawnLine:
    """A curve in the coordinates of the chart."""

    label: str
    path: str
    marks: list[tuple[float, float]]
    band: str
    style: int
    dash: int
    course: str


@dataclass(frozen=True)
class Chart:
    """A chart in its coordinates, ready for the template."""

    title: str
    unit: str
    lines: list[DrawnLine]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_unit: str
    note: str
    alt: str
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def charts_of(
    monitor: str, runs: Sequence[StoredRun], names: Sequence[str], timeline: Timeline
) -> tuple[list[Chart], list[Chart]]:
    """The charts of a monitor that hold one of its main numbers, and the others.

    Args:
        monitor: its name.
        runs: one, or two whose curves share charts.
        names: of the runs, for the legend; empty of one.
        timeline: of all runs of the page.
    """
    found = [(run, one) for run in runs for one in run.monitors if one.name == monitor]
    main: list[Chart] = []
    others: list[Chart] = []
    for title, chart in found[0][1].charts.items():
        lines = _lines(chart, [one for _, one in found], names, timeline)
        drawn = None if not lines else draw(title, lines, timeline)
        if drawn is not None:
            wanted = chart["band"][:1] if isinstance(chart, Mapping) else chart
            is_main = any(_stands_for(one, name) for one in wanted for name in found[0][1].meanings)
            (main if is_main else others).append(drawn)
    return main, others


def charts_of_metrics(
    runs: Sequence[StoredRun], names: Sequence[str], timeline: Timeline
) -> tuple[list[Chart], list[Chart]]:
    """The run's own numbers: accuracies and losses, and the others."""
    groups: dict[str, list[str]] = {"accuracy": [], "loss": [], "further metrics of the run": []}
    for name in dict.fromkeys(name for run in runs for _, row in run.metrics for name in row):
        kind = (
            "accuracy" if "acc" in name.lower() else "loss" if "loss" in name.lower() else "further metrics of the run"
        )
        groups[kind].append(name)
    found: dict[str, Chart] = {}
    for title, group in groups.items():
        lines = []
        for number, name in enumerate(group[:MOST_LINES]):
            for of_run, run in enumerate(runs):
                points = [(timeline.place(moment), row[name]) for moment, row in run.metrics if name in row]
                lines.append(
                    Line(
                        _named(name, names, of_run),
                        points,
                        style=_style(number, of_run, names),
                        dash=of_run if names else number,
                    )
                )
        if (drawn := draw(title, lines, timeline) if lines else None) is not None:
            found[title] = drawn
    return [found[title] for title in ("accuracy", "loss") if title in found], [
        chart for title, chart in found.items() if title not in ("accuracy", "loss")
    ]


def draw(title: str, lines: Sequence[Line], timeline: Timeline) -> Chart | None:
    """Lay a chart out; None where there is no number to draw."""
    unit = _unit_of(lines)
    scaled = [_scaled(line, unit.factor) for line in lines]
    values = [value for line in scaled for _, value in line.points if math.isfinite(value)]
    values += [value for line in scaled for _, low, high in line.band for value in (low, high) if math.isfinite(value)]
    if not values:
        return None
    ticks = _ticks(values)
    low, high = ticks[0], ticks[-1]

    def x(moment: int) -> float:
        return round(_LEFT + timeline.positions[moment] * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    drawn = [_drawn(line, x, y, timeline) for line in scaled]
    missing = sorted({moment for line in scaled for moment, value in line.points if math.isinf(value)})
    return Chart(
        title=title,
        unit=unit.text,
        lines=drawn,
        x_ticks=[(round(_LEFT + place * (WIDTH - _LEFT - _RIGHT), 1), text) for place, text in timeline.ticks],
        y_ticks=[(y(tick), f"{tick:.4g}") for tick in ticks],
        x_unit=timeline.unit,
        note=f"∞, not drawn: {', '.join(timeline.labels[moment] for moment in missing)}" if missing else "",
        alt=f"Line chart, {title}. " + "; ".join(f"{line.label}: {line.course}" for line in drawn),
    )


def number_text(name: str, value: float) -> str:
    """A number as it is written, with its unit where its name tells one.

    Example:
        >>> number_text("median_linf", 2 / 255), number_text("entropy", 0.12345), number_text("area", math.inf)
        ('2/255', '0.123', '∞')
    """
    norm = _norm_of(name)
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "-∞"}.get(value, "–")
    return f"{value:.3g}" if norm is None else distance_unit(norm).text(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Unit:
    factor: float
    text: str


def _lines(chart: Any, found: Sequence[StoredMonitor], names: Sequence[str], timeline: Timeline) -> list[Line]:
    """The curves of a chart, of each run."""
    lines: list[Line] = []
    if isinstance(chart, Mapping):
        value, low, high = chart["band"]
        for of_run, monitor in enumerate(found):
            rows = [(timeline.place(one.moment), one.numbers) for one in monitor.evaluations]
            points = [(moment, row[value]) for moment, row in rows if value in row]
            band = [(moment, row[low], row[high]) for moment, row in rows if low in row and high in row]
            lines.append(Line(_named(value, names, of_run), points, band, style=of_run, dash=of_run))
        return [line for line in lines if line.points]
    known = list(dict.fromkeys(name for one in found for evaluation in one.evaluations for name in evaluation.numbers))
    wanted = [name for one in chart for name in known if _stands_for(one, name)]
    for number, name in enumerate(wanted[:MOST_LINES]):
        for of_run, monitor in enumerate(found):
            points = [
                (timeline.place(one.moment), one.numbers[name]) for one in monitor.evaluations if name in one.numbers
            ]
            if points:
                dash = of_run if names else number
                lines.append(Line(_named(name, names, of_run), points, style=_style(number, of_run, names), dash=dash))
    return lines


def _stands_for(asked: str, name: str) -> bool:
    return name.startswith(asked) if asked.endswith("/") else name == asked


def _named(name: str, names: Sequence[str], of_run: int) -> str:
    return f"{name}, {names[of_run]}" if names else name


def _style(number: int, of_run: int, names: Sequence[str]) -> int:
    """Of the curves of two runs each has its own."""
    return number * max(len(names), 1) + of_run


def _norm_of(name: str) -> str | None:
    return next((norm for norm in _NORMS if name.endswith(f"_{norm}")), None)


def _unit_of(lines: Sequence[Line]) -> _Unit:
    norms = {_norm_of(line.label.split(",")[0]) for line in lines}
    norm = norms.pop() if len(norms) == 1 else None
    if norm is None:
        return _Unit(1.0, "")
    unit = distance_unit(norm)  # type: ignore[arg-type]
    return _Unit(unit.factor, f"{unit.name}, n{unit.suffix}" if unit.suffix else unit.name)


def _scaled(line: Line, factor: float) -> Line:
    return Line(
        line.label,
        [(moment, value * factor) for moment, value in line.points],
        [(moment, low * factor, high * factor) for moment, low, high in line.band],
        line.style,
        line.dash,
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers around all values; from 0 where that is not far from them."""
    low, high = min(values), max(values)
    if 0 < low < 0.5 * high:
        low = 0.0
    if low == high:
        low, high = low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1
    ticks = [float(tick) for tick in MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    first = max((n for n, tick in enumerate(ticks) if tick <= low), default=0)
    last = min((n for n, tick in enumerate(ticks) if tick >= high), default=len(ticks) - 1)
    return ticks[first : last + 1]


def _drawn(line: Line, x: Callable[[int], float], y: Callable[[float], float], timeline: Timeline) -> DrawnLine:
    """Curves have gaps where a value is infinite or NaN."""
    runs: list[list[tuple[float, float]]] = [[]]
    for moment, value in sorted(line.points):
        if math.isfinite(value):
            runs[-1].append((x(moment), y(value)))
        elif runs[-1]:
            runs.append([])
    path = " ".join("M" + " L".join(f"{a} {b}" for a, b in part) for part in runs if part)
    ends = [(x(m), y(low), y(high)) for m, low, high in sorted(line.band) if math.isfinite(low) and math.isfinite(high)]
    around = [(a, b) for a, b, _ in ends] + [(a, c) for a, _, c in reversed(ends)]
    band = "M" + " L".join(f"{a} {b}" for a, b in around) + " Z" if len(ends) > 1 else ""
    known = [(moment, value) for moment, value in sorted(line.points) if not math.isnan(value)]
    course = "no number"
    if known:
        (first, start), (last, end) = known[0], known[-1]
        course = f"{number_text('', start)} at {timeline.labels[first]}"
        if last != first:
            course += f", {number_text('', end)} at {timeline.labels[last]}"
    return DrawnLine(line.label, path, [mark for part in runs for mark in part], band, line.style, line.dash, course)
