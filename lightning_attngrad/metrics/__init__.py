"""Numbers about maps, attention heads and rewrites: torchmetrics classes here, pure functions in `functional`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_attngrad.metrics.faithfulness import Deletion, Insertion, SymmetricRelevanceGain
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
    "Deletion",
    "EightBitSurvival",
    "Insertion",
    "MapShift",
    "PairedLogRatio",
    "RewriteDistance",
    "RewriteMatrix",
    "RewriteQuality",
    "RewriteSuccess",
    "RobustAccuracy",
    "SymmetricRelevanceGain",
]
#: Where the names are that are not in `rewrite`.
_MODULES = {
    "Deletion": "faithfulness",
    "Insertion": "faithfulness",
    "MapShift": "similarity",
    "SymmetricRelevanceGain": "faithfulness",
}


def __dir__() -> list[str]:
    """What there is to use."""
    return sorted(__all__)


def __getattr__(name: str) -> object:
    """Classes are loaded when they are asked for: the functions need torch alone, and torchmetrics takes seconds."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'rewrite')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
