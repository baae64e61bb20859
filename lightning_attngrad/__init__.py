"""See where a Vision Transformer looks while Lightning fine-tunes it, without touching the run."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lightning_attngrad.version import VERSION

if TYPE_CHECKING:
    from lightning_attngrad.attention import backward_rule
    from lightning_attngrad.callbacks import (
        AttentionDriftMonitor,
        AttentionGuidance,
        AttentionMapMonitor,
        CheckpointAudit,
        Evaluation,
        FaithfulnessMonitor,
        Findings,
        Monitor,
        RewriteRobustnessMonitor,
        monitors,
    )
    from lightning_attngrad.explain import (
        AttentionStep,
        ClipStrip,
        Contrast,
        Explanation,
        Mixture,
        PixelClass,
        PixelValue,
        QueryBox,
        QueryClass,
        Region,
        Similarity,
        attention_step,
        explain,
        register_method,
    )
    from lightning_attngrad.guidance import attention_guidance_loss, capture_attention
    from lightning_attngrad.probe import ProbeImages
    from lightning_attngrad.reporting.style import FigureStyle
    from lightning_attngrad.rewrite import Rewrite, rewrite

__all__ = [
    "AttentionDriftMonitor",
    "AttentionGuidance",
    "AttentionMapMonitor",
    "AttentionStep",
    "CheckpointAudit",
    "ClipStrip",
    "Contrast",
    "Evaluation",
    "Explanation",
    "FaithfulnessMonitor",
    "FigureStyle",
    "Findings",
    "Mixture",
    "Monitor",
    "PixelClass",
    "PixelValue",
    "ProbeImages",
    "QueryBox",
    "QueryClass",
    "Region",
    "Rewrite",
    "RewriteRobustnessMonitor",
    "Similarity",
    "attention_guidance_loss",
    "attention_step",
    "backward_rule",
    "capture_attention",
    "explain",
    "monitors",
    "register_method",
    "rewrite",
]
__version__ = VERSION

#: Where public names live that are not in `callbacks`. A room is loaded when one of its names is asked for: explaining
#: needs no Lightning, the command's `--help` needs no torch, and importing either takes seconds.
_ROOMS = {
    "AttentionStep": "explain",
    "ClipStrip": "explain",
    "Contrast": "explain",
    "Explanation": "explain",
    "Mixture": "explain",
    "PixelClass": "explain",
    "PixelValue": "explain",
    "QueryBox": "explain",
    "QueryClass": "explain",
    "Region": "explain",
    "Similarity": "explain",
    "attention_guidance_loss": "guidance",
    "attention_step": "explain",
    "backward_rule": "attention",
    "capture_attention": "guidance",
    "explain": "explain",
    "register_method": "explain",
    "FigureStyle": "reporting.style",
    "ProbeImages": "probe",
    "Rewrite": "rewrite",
    "rewrite": "rewrite",
}


def __dir__() -> list[str]:
    """What there is to use."""
    return sorted(__all__)


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS.get(name, 'callbacks')}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `explain` and `rewrite` the functions, where importing the rooms of these names would put the rooms.

    The import system sets a room as an attribute of its package, whoever imports it, and whenever: without this
    `attngrad.explain(...)` would work or not, depending on what was imported before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        is_room = isinstance(value, ModuleType) and name in __all__
        super().__setattr__(name, getattr(value, name) if is_room else value)


sys.modules[__name__].__class__ = _Package
