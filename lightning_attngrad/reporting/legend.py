"""What each curve of a figure is: beside the plot where the page is wide, else below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_attngrad.reporting.page import MARGIN, TEXT_SIZE, Page
from lightning_attngrad.reporting.plot import Place
from lightning_attngrad.reporting.style import INK, FigureStyle
from lightning_attngrad.reporting.text import fit_text, text_width

_WIDE = 7.0  # page, in inches, from which on the legend stands beside the plot
_GAP, _SAMPLE, _BEHIND, _LINE = 0.2, 0.36, 0.08, 0.23


@dataclass(frozen=True)
class Sample:
    """One line of a legend.

    Attributes:
        label: The words.
        line: How the curve is drawn; empty for words alone.
        bold: Whether the words are.
        colour: Of the words.
    """

    label: str
    line: Mapping[str, Any]
    bold: bool = False
    colour: str = INK


class Legend:
    """The legend of a plot.

    Args:
        samples: Its lines.
        width: Of plot and legend together, in inches.
        most: Room for the words of a line, in inches.
        style: Of the page.

    Attributes:
        beside: What it takes of the width of the plot, in inches; 0 where it stands below.
        below: What it adds to the height; 0 where it stands beside.
    """

    def __init__(self, samples: Sequence[Sample], width: float, most: float, style: FigureStyle) -> None:
        self._samples = [
            Sample(fit_text(one.label, most, TEXT_SIZE, bold=one.bold), one.line, one.bold, one.colour)
            for one in samples
        ]
        self._wide = [
            (_SAMPLE + _BEHIND) * bool(one.line) + text_width(one.label, TEXT_SIZE, bold=one.bold)
            for one in self._samples
        ]
        is_beside = style.width >= _WIDE
        self._pitch = max(self._wide) + _GAP
        self._columns = 1 if is_beside else max(1, int((width + _GAP) / self._pitch))
        self._lines = -(-len(samples) // self._columns)
        self.beside = self._pitch if is_beside else 0.0
        self.below = 0.0 if is_beside else self._lines * _LINE + MARGIN / 2

    def draw(self, page: Page, plot: Place, below: float) -> None:
        """Draw it beside the plot, or so far below it."""
        for order, sample in enumerate(self._samples):
            column, line = divmod(order, self._lines)
            if self.beside:
                x, y = plot.left + plot.width + _GAP, plot.top + _LINE * (line + 0.5)
            else:
                x, y = plot.left + column * self._pitch, plot.top + plot.height + below + _LINE * (line + 0.5)
            if sample.line:
                page.curve([x, x + _SAMPLE], [y, y], **sample.line)
                x += _SAMPLE + _BEHIND
            page.write(x, y, sample.label, width=page.get_figwidth(), bold=sample.bold, colour=sample.colour)
