"""Numbers about maps, attention heads and rewrites: torchmetrics classes here, pure functions in `functional`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_attngrad.metrics.drift import MapDrift
    from lightning_attngrad.metrics.faithfulness import Deletion, Insertion, SaCo, SymmetricRelevanceGain
    from lightning_attngrad.metrics.heads import AttentionHeadStatistics
    from lightning_attngrad.metrics.localisation import EnergyInMask, MaskAveragePrecision, PointingGame
    from lightning_attngrad.metrics.maps import MapStatistics
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
    from lightning_attngrad.metrics.sensitivity import ClassSensitivity, SanityCheck, TwoObjectShare
    from lightning_attngrad.metrics.similarity import MapShift

__all__ = [
    "AreaUnderSuccess",
    "AttentionHeadStatistics",
    "ClassSensitivity",
    "Deletion",
    "EightBitSurvival",
    "EnergyInMask",
    "Insertion",
    "MapDrift",
    "MapShift",
    "MapStatistics",
    "MaskAveragePrecision",
    "PairedLogRatio",
    "PointingGame",
    "RewriteDistance",
    "RewriteMatrix",
    "RewriteQuality",
    "RewriteSuccess",
    "RobustAccuracy",
    "SaCo",
    "SanityCheck",
    "SymmetricRelevanceGain",
    "TwoObjectShare",
]
#: Where the names are that are not in `rewrite`.
_MODULES = {
    "AttentionHeadStatistics": "heads",
    "ClassSensitivity": "sensitivity",
    "Deletion": "faithfulness",
    "EnergyInMask": "localisation",
    "Insertion": "faithfulness",
    "MapDrift": "drift",
    "MapShift": "similarity",
    "MapStatistics": "maps",
    "MaskAveragePrecision": "localisation",
    "PointingGame": "localisation",
    "SaCo": "faithfulness",
    "SanityCheck": "sensitivity",
    "SymmetricRelevanceGain": "faithfulness",
    "TwoObjectShare": "sensitivity",
}


def __dir__() -> list[str]:
    """What there is to use."""
    return sorted(__all__)


def __getattr__(name: str) -> object:
    """Classes are loaded when they are asked for: the functions need torch alone, and torchmetrics takes seconds."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'rewrite')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
