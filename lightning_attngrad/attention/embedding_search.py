"""One forward pass in which the embedding is looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attngrad.attention.embedding import find_embedding
from lightning_attngrad.attention.tap import AttentionTap


def embedding_number(model: nn.Module, images: Tensor, run: Callable[[Tensor], Any] | None = None) -> int | None:
    """By which number a tap knows the embedding of ``model``, see :mod:`embedding`; None where it has none.

    The same for all images of one size, whatever rules follow. The model must be held still, and gradients be on; the
    graph that is made keeps no activations.

    Args:
        model: of the images.
        images: (B, C, H, W), as the model takes them.
        run: instead of ``model(images)``.
    """
    tap = AttentionTap(model, start="images")
    begin = tap.begin_at(images.detach().clone())
    try:
        with tap, torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda kept: kept):
            output = (run or model)(begin)
        ends = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        return find_embedding(tap.numbered.nodes, ends, tap.first_reads) if ends else None
    finally:
        tap.release()


def _tensors(output: Any) -> Iterable[Tensor]:
    """The tensors of an output: where it has logits, those."""
    if isinstance(output, Tensor):
        yield output
        return
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        yield logits
        return
    parts = output.values() if isinstance(output, Mapping) else output
    if isinstance(parts, str | bytes) or not isinstance(parts, Iterable):
        return
    for part in parts:
        yield from _tensors(part)
