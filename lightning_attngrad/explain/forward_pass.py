"""One forward pass of a model under a tap: what every method starts from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import (
    PLAIN,
    AttentionTap,
    BackwardRules,
    TokenLayout,
    check_structure,
    infer_layout,
)
from lightning_attngrad.state import differentiable, held_still


class NonFiniteOutputError(ValueError):
    """The model's output is NaN or infinite: nothing about it can be explained."""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A forward pass whose graph is still there.

    Attributes:
        tap: the attention calls, and where the graph begins.
        output: what the model returned.
        layout: which tokens lie where.
        batch: number of images B.
    """

    tap: AttentionTap
    output: Any
    layout: TokenLayout
    batch: int

    @property
    def logits(self) -> Tensor:
        """Class scores in the graph, (B, C), float32 or wider.

        Raises:
            ValueError: if the output holds no such tensor.
        """
        scores = find_logits(self.output)
        if scores is None or scores.dim() not in (1, 2) or scores.shape[0] != self.batch:
            got = f"shape {tuple(scores.shape)}" if scores is not None else type(self.output).__name__
            raise ValueError(
                f"model: its output ({got}) is not one row of logits an image, ({self.batch}, classes). Explain a "
                "part that ends in a classifier, or give objective= a function from the output to one number an image."
            )
        scores = scores.unsqueeze(1) if scores.dim() == 1 else scores
        return scores if scores.dtype == torch.float64 else scores.float()


def find_logits(output: Any) -> Tensor | None:
    """The tensor of class scores in a model's output: itself, its ``logits``, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, list | tuple) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


@contextlib.contextmanager
def forward_pass(
    model: nn.Module,
    images: Tensor,
    *,
    forward: Callable[[Tensor], Any] | None = None,
    start: Literal["attention", "embedding"] | None = "attention",
    rules: BackwardRules = PLAIN,
    score_offsets: Sequence[Tensor | None] = (),
) -> Iterator[ForwardPass]:
    """Run ``model`` on ``images`` (B, C, H, W) under a tap, and let go of everything when the block ends.

    Args:
        model: any module with attention; its flags are restored.
        images: as the model takes them.
        forward: run instead of ``model(images)``.
        start: where the graph begins, see :class:`AttentionTap`.
        rules: what replaces the plain gradient.
        score_offsets: additions to the scores of the calls, see :class:`AttentionTap`.

    Raises:
        TypeError: for a model or images of another type.
        ValueError: for images of another shape.
        UnsupportedModelError: if the attention cannot be read as one map over the image.
        NonFiniteOutputError: if the logits are not finite.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() != 4 or not len(images):
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images: got {got}; expected a floating-point tensor (B, C, H, W), normalised for the model")
    with differentiable(), held_still(model):
        tap = AttentionTap(model, start=start, rules=rules, score_offsets=score_offsets)
        try:
            # A copy, made here: a batch that was loaded under inference mode can enter no graph, and a model that
            # normalises in place must not write into the caller's images.
            images = images.detach().clone()
            with tap:
                output = (forward or model)(images)
            layout = infer_layout(tap, type(model).__name__, images)
            if start is not None and rules.attention != "constant":  # there the chain is cut on purpose
                check_structure(tap, layout, type(model).__name__)
            scores = find_logits(output)
            if scores is not None and not torch.isfinite(scores).all():
                bad = (~torch.isfinite(scores)).flatten(1).any(1) if scores.dim() > 1 else ~torch.isfinite(scores)
                raise NonFiniteOutputError(
                    f"model: {type(model).__name__} gives NaN or infinite outputs for {int(bad.sum())} of "
                    f"{len(images)} images; there is nothing to explain until it gives finite ones"
                )
            yield ForwardPass(tap=tap, output=output, layout=layout, batch=len(images))
        finally:
            tap.release()
