"""Lightning callbacks: hooks, and nothing that could live below."""

from lightning_attngrad.callbacks.attention_drift_monitor import AttentionDriftMonitor
from lightning_attngrad.callbacks.attention_map_monitor import AttentionMapMonitor
from lightning_attngrad.callbacks.checkpoint_audit import CheckpointAudit
from lightning_attngrad.callbacks.faithfulness_monitor import FaithfulnessMonitor
from lightning_attngrad.callbacks.rewrite_robustness_monitor import RewriteRobustnessMonitor

__all__ = [
    "AttentionDriftMonitor",
    "AttentionMapMonitor",
    "CheckpointAudit",
    "FaithfulnessMonitor",
    "RewriteRobustnessMonitor",
]
