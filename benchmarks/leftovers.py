"""What a method leaves behind on the model that it explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from benchmarks.memory import memory_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def leftovers(function: Callable[[], object], model: nn.Module, images: Tensor) -> str:
    """Call ``function`` once and name, in words, everything about the model that it changed or still holds."""
    before = _state(model, images)
    held = memory_of(function).held
    after = _state(model, images)
    found = []
    if gradients := after["gradients"] - before["gradients"]:
        found.append(f".grad on {gradients} parameters")
    for what in ("train flags", "requires_grad flags"):
        changed = sum(one != other for one, other in zip(before[what], after[what], strict=True))
        if changed:
            found.append(f"{changed} {what} changed")
    if hooks := after["hooks"] - before["hooks"]:
        found.append(f"{hooks} hooks")
    if patched := [name for name in before["forward"] if before["forward"][name] is not after["forward"][name]]:
        found.append(f"patched for the whole process: {', '.join(sorted(patched))}")
    if after["image gradient"] and not before["image gradient"]:
        found.append("gradient flag or .grad on the images")
    if held > 2**16:  # below that: names, small caches of libraries
        found.append(f"{held / 2**20:.1f} MB")
    return ", ".join(found) or "nothing"


def _state(model: nn.Module, images: Tensor) -> dict[str, Any]:
    return {
        "gradients": sum(parameter.grad is not None for parameter in model.parameters()),
        "requires_grad flags": [parameter.requires_grad for parameter in model.parameters()],
        "train flags": [module.training for module in model.modules()],
        "hooks": sum(len(getattr(module, name)) for module in model.modules() for name in _HOOKS),
        "forward": {type(module).__name__: type(module).forward for module in model.modules()},
        "image gradient": images.requires_grad or images.grad is not None,
    }
