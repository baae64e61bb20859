"""See where a Vision Transformer looks while Lightning fine-tunes it, without touching the run."""

from lightning_attngrad.callbacks import AttentionMapMonitor
from lightning_attngrad.explain import (
    AttentionStep,
    Contrast,
    Explanation,
    Mixture,
    Region,
    attention_step,
    explain,
    register_method,
)

__all__ = [
    "AttentionMapMonitor",
    "AttentionStep",
    "Contrast",
    "Explanation",
    "Mixture",
    "Region",
    "attention_step",
    "explain",
    "register_method",
]
__version__ = "0.1.0"
