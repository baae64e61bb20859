"""Pure functions from maps and attention to numbers. Need torch only."""

from lightning_attngrad.metrics.functional.heads import HeadStatistics, head_statistics
from lightning_attngrad.metrics.functional.maps import (
    border_mass,
    map_density,
    map_entropy,
    times_uniform_share,
    top_decile_mass,
)

__all__ = [
    "HeadStatistics",
    "border_mass",
    "head_statistics",
    "map_density",
    "map_entropy",
    "times_uniform_share",
    "top_decile_mass",
]
