"""The parts of a module that contain attention: what a user may have wanted to be explained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

#: Parts in parts that are looked at; deeper ones are blocks.
_DEEPEST = 3
#: Parts that are run, at most.
_TRIES = 24
_NAMES = ("attention", "attn")


@dataclass(frozen=True)
class AttentionPart:
    """A part of a module that contains attention.

    Attributes:
        path: in the module, as ``ProbeImages(model=…)`` takes it.
        kind: name of its class.
        runs: whether it was run on images alone.
    """

    path: str
    kind: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.path!r} ({self.kind}{', which takes the images' if self.runs else ''})"


def attention_parts(module: nn.Module, runs: Callable[[nn.Module], bool] | None = None) -> list[AttentionPart]:
    """The outermost parts of a module that contain attention, and take images if any do.

    Attention is known by ``nn.MultiheadAttention`` and by names: of a class, or of a part such as ``attn``.

    Args:
        module: in which to look, itself left out.
        runs: whether a part can be run on images alone; None says nothing.

    Example:
        >>> both = nn.ModuleDict({"encoder": nn.TransformerEncoderLayer(8, 2), "head": nn.Linear(8, 2)})
        >>> [str(part) for part in attention_parts(both)]
        ["'encoder' (TransformerEncoderLayer)"]
    """
    tries = 0

    def takes_images(part: nn.Module) -> bool:
        nonlocal tries
        tries += 1
        is_list = isinstance(part, nn.ModuleList | nn.ModuleDict)
        return runs is not None and tries <= _TRIES and not is_list and runs(part)

    def below(parent: nn.Module, prefix: str, depth: int) -> list[AttentionPart]:
        found = []
        for name, part in parent.named_children():
            if not _contains_attention(part) or _is_attention(name, part):
                continue
            here = AttentionPart(prefix + name, type(part).__name__, takes_images(part))
            inside = [] if here.runs or depth == 1 or runs is None else below(part, f"{prefix}{name}.", depth - 1)
            running = [one for one in inside if one.runs]
            found += running or [here]
        return found

    return below(module, "", _DEEPEST)


def _is_attention(name: str, module: nn.Module) -> bool:
    last, kind = name.rpartition(".")[2].lower(), type(module).__name__.lower()
    return isinstance(module, nn.MultiheadAttention) or last.endswith(_NAMES) or kind.endswith(_NAMES)


def _contains_attention(module: nn.Module) -> bool:
    return any(_is_attention(name, part) for name, part in module.named_modules())
