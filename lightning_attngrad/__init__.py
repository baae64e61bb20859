"""See where a Vision Transformer looks while Lightning fine-tunes it, without touching the run."""

from importlib import import_module
from typing import TYPE_CHECKING

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
from lightning_attngrad.rewrite import Rewrite, rewrite

if TYPE_CHECKING:
    from lightning_attngrad.callbacks import (
        AttentionDriftMonitor,
        AttentionMapMonitor,
        CheckpointAudit,
        Evaluation,
        FaithfulnessMonitor,
        Findings,
        Monitor,
        RewriteRobustnessMonitor,
    )
    from lightning_attngrad.probe import ProbeImages

__all__ = [
    "AttentionDriftMonitor",
    "AttentionMapMonitor",
    "AttentionStep",
    "CheckpointAudit",
    "Contrast",
    "Evaluation",
    "Explanation",
    "FaithfulnessMonitor",
    "Findings",
    "Mixture",
    "Monitor",
    "ProbeImages",
    "Region",
    "Rewrite",
    "RewriteRobustnessMonitor",
    "attention_step",
    "explain",
    "register_method",
    "rewrite",
]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    """What there is to use, callbacks included."""
    return sorted(__all__)


def __getattr__(name: str) -> object:
    """What needs Lightning is loaded when it is asked for: explaining does without, and importing it takes seconds."""
    if name in __all__:
        room = "probe" if name == "ProbeImages" else "callbacks"
        return getattr(import_module(f"{__name__}.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
