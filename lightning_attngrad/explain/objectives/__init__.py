"""Objectives: the scalar Φ an image whose gradient guides a map; one subject a file."""

from lightning_attngrad.explain.objectives.base import Objective, Seeds, ValueObjective
from lightning_attngrad.explain.objectives.chosen import OBJECTIVES, OfOutput, check_objective
from lightning_attngrad.explain.objectives.classes import Contrast, Logit, Margin, Mixture
from lightning_attngrad.explain.objectives.pixels import PixelClass, PixelValue
from lightning_attngrad.explain.objectives.queries import QueryBox, QueryClass
from lightning_attngrad.explain.objectives.region import Region
from lightning_attngrad.explain.objectives.start import Start

__all__ = [
    "OBJECTIVES",
    "Contrast",
    "Logit",
    "Margin",
    "Mixture",
    "Objective",
    "OfOutput",
    "PixelClass",
    "PixelValue",
    "QueryBox",
    "QueryClass",
    "Region",
    "Seeds",
    "Start",
    "ValueObjective",
    "check_objective",
]
