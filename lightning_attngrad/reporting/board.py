"""What numbers and figures are called in TensorBoard, which makes a group of all whose names begin alike.

It takes the part before the first slash for the name of the group, and sorts groups and cards by name. Under the names
by which numbers are monitored, ``attngrad/<monitor>/<metric>``, all cards would be in one group. So there the main
numbers and the figures of each monitor have a group of their own; those of the secondary numbers come behind all of
these, and what the monitors cost comes last.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["COSTS", "Names", "Rank", "board_tag", "figure_tag"]

#: What a monitor logs of its own cost: see ``Monitor``.
COSTS = ("seconds", "overhead", "stretch")
#: How much a number says of a run.
Rank: TypeAlias = Literal["main", "secondary", "cost"]


def board_tag(monitor: str, name: str, rank: Rank = "main") -> str:
    """What the scalar ``attngrad/<monitor>/<name>`` is called in TensorBoard.

    Args:
        monitor: name of the monitor.
        name: of the scalar, without what stands in front.
        rank: its group.

    Example:
        >>> board_tag("maps", "entropy")
        'attngrad_maps/entropy'
        >>> board_tag("maps", "head_entropy/blocks.0", "secondary")
        'attngrad_secondary_maps/head_entropy/blocks.0'
        >>> board_tag("maps", "seconds", "cost")
        'attngrad_time/seconds/maps'
    """
    if rank == "cost":
        return f"attngrad_time/{name}/{monitor}"
    return f"attngrad_{'secondary_' if rank == 'secondary' else ''}{monitor}/{name}"


def figure_tag(tag: str) -> str:
    """What the figure ``attngrad/<monitor>/<what>`` is called there: it stands among the main numbers.

    Example:
        >>> figure_tag("attngrad/maps/overlay")
        'attngrad_maps/overlay'
    """
    return tag.replace("attngrad/", "attngrad_", 1) if tag.startswith("attngrad/") else tag


@dataclass(frozen=True)
class Names:
    """Which numbers of a monitor are main ones.

    Attributes:
        monitor: its name.
        main: names of its main numbers; empty where all are. Those of a further correction, as in
            ``entropy/negative``, are main as well.
        edges: names of the edges of bands: they are drawn around a main number, and say little by themselves.

    Example:
        >>> names = Names("maps", {"entropy"})
        >>> [names.rank(name) for name in ("entropy", "entropy/negative", "head_entropy/blocks.0", "seconds")]
        ['main', 'main', 'secondary', 'cost']
    """

    monitor: str
    main: Collection[str] = ()
    edges: Collection[str] = ()

    def rank(self, name: str) -> Rank:
        """How much a number says of a run."""
        if name in COSTS:
            return "cost"
        is_main = not self.main or name in self.main or name.rpartition("/")[0] in self.main
        return "main" if is_main and name not in self.edges else "secondary"

    def is_logged(self, name: str) -> bool:
        """Whether it is one of those that are logged where only the main ones are."""
        return self.rank(name) != "secondary" or name in self.edges

    def tag(self, name: str) -> str:
        """What it is called in TensorBoard."""
        return board_tag(self.monitor, name, self.rank(name))
