"""Lightning callbacks: hooks, and nothing that could live below."""

from lightning_attngrad.callbacks.attention_drift_monitor import AttentionDriftMonitor
from lightning_attngrad.callbacks.attention_guidance import AttentionGuidance
from lightning_attngrad.callbacks.attention_map_monitor import AttentionMapMonitor
from lightning_attngrad.callbacks.checkpoint_audit import CheckpointAudit
from lightning_attngrad.callbacks.faithfulness_monitor import FaithfulnessMonitor
from lightning_attngrad.callbacks.monitor import Monitor
from lightning_attngrad.callbacks.presets import monitors
from lightning_attngrad.callbacks.rewrite_robustness_monitor import RewriteRobustnessMonitor
from lightning_attngrad.probe import Evaluation, Findings

__all__ = [
    "AttentionDriftMonitor",
    "AttentionGuidance",
    "AttentionMapMonitor",
    "CheckpointAudit",
    "Evaluation",
    "FaithfulnessMonitor",
    "Findings",
    "Monitor",
    "RewriteRobustnessMonitor",
    "monitors",
]
