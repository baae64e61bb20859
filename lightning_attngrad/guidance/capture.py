"""The attention calls of a training step, for a loss on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from lightning_attngrad.attention import AttentionCall, TrainingTap


@contextmanager
def capture_attention(model: nn.Module, layers: Sequence[str] | None = None) -> Iterator[list[AttentionCall]]:
    """Captures the attention calls of what runs inside the block, in its graph, and changes nothing of it.

    The model is not patched, its fused kernels stay fused, and its numbers are the same bit by bit.

    Args:
        model: the module that attends, whose names its layers go by.
        layers: names of the modules whose attention is captured, such as ``blocks.3.attn``; of one that attends several
            times the second call is ``name#2``. None is all.

    Yields:
        A list that fills while the model runs.

    Raises:
        ValueError: for a compiled model, whose attention cannot be seen; and when the block ends, for layers that did
            not attend, or whose attention is no plain softmax when it multiplies its values.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("test_vit", num_classes=3)
        >>> with capture_attention(model, layers=["blocks.1.attn"]) as calls:
        ...     logits = model(torch.rand(2, 3, 160, 160))
        >>> [(call.name, call.shape) for call in calls]
        [('blocks.1.attn', (2, 2, 101, 101))]
    """
    check_eager(model)
    tap = TrainingTap(model, wanted(layers))
    with tap:
        yield tap.calls
    check_captured(tap, layers)


def wanted(layers: Sequence[str] | None) -> Callable[[str], bool]:
    """Which calls are asked for.

    Raises:
        ValueError: for something else than names.
    """
    if layers is None:
        return lambda _: True
    if isinstance(layers, str) or not layers or not all(isinstance(layer, str) for layer in layers):
        raise ValueError(f"layers: got {layers!r}; expected names of modules that attend, such as ['blocks.3.attn']")
    return frozenset(layers).__contains__


def check_captured(tap: TrainingTap, layers: Sequence[str] | None) -> None:
    """Refuse layers that did not attend, or whose attention cannot be guided."""
    if tap.unread:
        raise ValueError(f"layers: {'; '.join(tap.unread.values())} (layers=)")
    missing = sorted(set(layers or ()) - {call.name for call in tap.calls})
    if missing:
        raise ValueError(f"layers: got {missing}, which did not attend; those that did are {list(tap.seen)}")


def check_eager(model: nn.Module) -> None:
    """Refuse a compiled model."""
    for name, part in model.named_modules():
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            where = f"its part {name!r}" if name else "it"
            raise ValueError(
                f"model: {where} is compiled, and attention inside a compiled graph cannot be seen; train with "
                "guidance uncompiled, or compile only parts that do not attend"
            )
