"""Losses on attention, for training. Needs torch only."""

from lightning_attngrad.guidance.capture import capture_attention
from lightning_attngrad.guidance.loss import AttentionGuidanceLoss, attention_guidance_loss
from lightning_attngrad.guidance.pairs import PlausiblePairs

__all__ = [
    "AttentionGuidanceLoss",
    "PlausiblePairs",
    "attention_guidance_loss",
    "capture_attention",
]
