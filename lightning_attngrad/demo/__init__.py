"""The demo: a small Vision Transformer is fine-tuned on real images, and the monitors watch."""

from typing import TYPE_CHECKING

from lightning_attngrad.demo.options import DemoError, DemoOptions

if TYPE_CHECKING:
    from lightning_attngrad.demo.run import DemoResult, run_demo

__all__ = ["DemoError", "DemoOptions", "DemoResult", "run_demo"]


def __getattr__(name: str) -> object:
    """The run itself is loaded when it is asked for: with it come torch, Lightning and timm, which take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_attngrad.demo import run  # noqa: PLC0415

    return getattr(run, name)
