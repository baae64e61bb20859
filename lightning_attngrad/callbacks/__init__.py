"""Lightning callbacks: hooks, and nothing that could live below."""

from lightning_attngrad.callbacks.attention_map_monitor import AttentionMapMonitor

__all__ = ["AttentionMapMonitor"]
