"""The demo: a small Vision Transformer is fine-tuned on real images, and the monitor watches."""

from lightning_attngrad.demo.options import DemoError, DemoOptions
from lightning_attngrad.demo.run import DemoResult, run_demo

__all__ = ["DemoError", "DemoOptions", "DemoResult", "run_demo"]
