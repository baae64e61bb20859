"""By which names of a model its attention calls are known."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType

from torch import nn

#: Modules that do the arithmetic of an attention layer but are not the layer.
_ANONYMOUS = (nn.Softmax, nn.Dropout, nn.Identity)


class ModuleNames:
    """Names of the modules of a model, and which of them is running.

    Args:
        model: whose names they are; without those that ``torch.compile`` puts around it.

    Attributes:
        names: of all of them; "" is the model itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, str] = {
            id(module): name.replace("_orig_mod.", "").removesuffix("_orig_mod")
            for name, module in model.named_modules()
            if not isinstance(module, _ANONYMOUS)
        }
        self.names = frozenset(self._names.values())

    def running(self) -> str | None:
        """Name of the innermost module whose forward is running, from the stack of Python calls; None if none is."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = self._names.get(id(frame.f_locals.get("self")))
            if name is not None:
                return name
            frame = frame.f_back
        return None


def unlike(name: str, known: Sequence[str]) -> str:
    """A name that no call has yet: of a module that attends several times, the second call is ``name#2``.

    Example:
        >>> unlike("attn", ["attn", "attn#2", "mlp"])
        'attn#3'
    """
    number = sum(other.split("#")[0] == name for other in known)
    return f"{name}#{number + 1}" if number else name
