"""Images and a target class to images that the model takes for that class: how little has to change."""

from __future__ import annotations

from lightning_attngrad.rewrite.pixels import (
    Normalisation,
    UnknownNormalisationError,
    check_normalisation,
    require_normalisation,
)
from lightning_attngrad.rewrite.quality import rounded_to_8_bits, survives_8_bits
from lightning_attngrad.rewrite.result import Health, Rewrite
from lightning_attngrad.rewrite.rewriting import NORM_NAMES, check_options, rewrite, rewrite_to
from lightning_attngrad.rewrite.targets import TARGET_KINDS, TargetKind, choose_targets

__all__ = [
    "NORM_NAMES",
    "TARGET_KINDS",
    "Health",
    "Normalisation",
    "Rewrite",
    "TargetKind",
    "UnknownNormalisationError",
    "check_normalisation",
    "check_options",
    "choose_targets",
    "require_normalisation",
    "rewrite",
    "rewrite_to",
    "rounded_to_8_bits",
    "survives_8_bits",
]
