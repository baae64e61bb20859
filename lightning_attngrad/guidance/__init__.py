"""Losses on attention, for training. Needs torch only."""

from lightning_attngrad.guidance.capture import capture_attention, check_captured, check_eager, wanted
from lightning_attngrad.guidance.epipolar import epipolar_mask, fundamental_matrix
from lightning_attngrad.guidance.loss import AttentionGuidanceLoss, attention_guidance_loss
from lightning_attngrad.guidance.objects import image_places, object_pairs
from lightning_attngrad.guidance.pairs import PlausiblePairs
from lightning_attngrad.guidance.schedules import LinearWarmup, Weight, weight_at

__all__ = [
    "AttentionGuidanceLoss",
    "LinearWarmup",
    "PlausiblePairs",
    "Weight",
    "attention_guidance_loss",
    "capture_attention",
    "check_captured",
    "check_eager",
    "epipolar_mask",
    "fundamental_matrix",
    "image_places",
    "object_pairs",
    "wanted",
    "weight_at",
]
