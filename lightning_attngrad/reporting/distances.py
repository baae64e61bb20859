"""How distances of class rewriting are written in figures, and which range their colours span."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Norm: TypeAlias = Literal["linf", "l2", "l0", "l0_patches"]


@dataclass(frozen=True)
class DistanceUnit:
    """How the distances of a norm are written; made by `distance_unit`.

    Attributes:
        name: Of the distance.
        factor: From a distance in pixel units to the number that is written.
        suffix: Behind that number.
        symbol: In front of it, where it stands alone.
        of_what: Behind the suffix, likewise.
        ticks: Of a colour bar, as numbers that are written; the first and the last are the ends of the scale.
        counted: What is counted, one of it; empty where a distance is no number of things.
    """

    name: str
    factor: float
    suffix: str
    symbol: str
    of_what: str
    ticks: tuple[float, ...]
    counted: str = ""

    def text(self, distance: float) -> str:
        """Three digits of the number, or all before the point, and its unit.

        Example:
            >>> distance_unit("linf").text(8 / 255), distance_unit("l0_patches").text(0.05)
            ('8/255', '5 %')
        """
        value = distance * self.factor
        return f"{value:.0f}{self.suffix}" if 999.5 <= value < math.inf else f"{value:.3g}{self.suffix}"

    def in_words(self, distance: float) -> str:
        """The number, its unit, and what it measures.

        Example:
            >>> distance_unit("linf").in_words(8 / 255), distance_unit("l0_patches").in_words(0.05)
            ('L∞ 8/255', '5 % of the patches')
            >>> [distance_unit("l0").in_words(number) for number in (1, 3, 7.5)]
            ['1 pixel', '3 pixels', '7.5 pixels']
        """
        if self.counted and distance == 1:
            return f"{self.symbol}{self.text(distance)} {self.counted}"
        return f"{self.symbol}{self.text(distance)}{self.of_what}"

    def number(self, distance: float) -> str:
        """The number alone, two digits of it; of what is counted, all of it.

        Example:
            >>> [distance_unit("l2").number(value) for value in (0.0, 0.001, 0.314, 2.345, 12.3, 120.0)]
            ['0', '<.01', '0.31', '2.3', '12', '120']
        """
        value = distance * self.factor
        if self.counted:
            return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
        if 0 < value < 0.005:
            return "<.01"
        if value == 0 or value >= 9.95:
            return f"{value:.0f}"
        return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


_UNITS = {
    "linf": DistanceUnit("L∞ distance", 255.0, "/255", "L∞ ", "", (0.25, 0.5, 1, 2, 4, 8, 16, 32)),
    "l2": DistanceUnit("L2 distance", 1.0, "", "L2 ", "", (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)),
    "l0": DistanceUnit("pixels changed", 1.0, "", "", " pixels", (1, 3, 10, 30, 100, 300, 1000), "pixel"),
    "l0_patches": DistanceUnit("patches changed", 100.0, " %", "", " of the patches", (1, 2, 5, 10, 20, 50, 100)),
}


def distance_unit(norm: Norm) -> DistanceUnit:
    """The unit of a norm.

    Args:
        norm: ``"linf"``, in steps of an 8-bit image; ``"l2"``, as it is; ``"l0"``, pixels;
            ``"l0_patches"``, in per cent.

    Returns:
        The unit.

    Raises:
        ValueError: For an unknown norm.
    """
    if norm not in _UNITS:
        raise ValueError(f"norm: got {norm!r}; expected one of {', '.join(map(repr, _UNITS))}")
    return _UNITS[norm]
