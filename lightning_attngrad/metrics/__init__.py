"""Numbers about maps, attention heads and rewrites: torchmetrics classes here, pure functions in `functional`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_attngrad.metrics.rewrite import (
        AreaUnderSuccess,
        EightBitSurvival,
        PairedLogRatio,
        RewriteDistance,
        RewriteMatrix,
        RewriteQuality,
        RewriteSuccess,
        RobustAccuracy,
    )
    from lightning_attngrad.metrics.similarity import MapShift

__all__ = [
    "AreaUnderSuccess",
    "EightBitSurvival",
    "MapShift",
    "PairedLogRatio",
    "RewriteDistance",
    "RewriteMatrix",
    "RewriteQuality",
    "RewriteSuccess",
    "RobustAccuracy",
]


def __dir__() -> list[str]:
    """What there is to use."""
    return sorted(__all__)


def __getattr__(name: str) -> object:
    """Classes are loaded when they are asked for: the functions need torch alone, and torchmetrics takes seconds."""
    if name in __all__:
        module = "similarity" if name == "MapShift" else "rewrite"
        return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
