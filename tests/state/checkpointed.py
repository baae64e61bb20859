"""One small Vision Transformer, whose blocks are checkpointed in every way that torch has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.distributed._composable import checkpoint as composable
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import (
    CheckpointFunction,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

CLASSES = 5


class Vit(VisionTransformer):
    """Three blocks on a 4 × 4 grid; ``runs`` counts the passes through the first of them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=CLASSES)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)
        self.runs = 0
        self.blocks[0].norm1.register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.runs += 1

    def forward_features(self, images: Tensor, **_: Any) -> Tensor:
        tokens = self._pos_embed(self.patch_embed(images))
        return self.norm(self.run_blocks(tokens))

    def run_blocks(self, tokens: Tensor) -> Tensor:
        return self.blocks(tokens)  # type: ignore[no-any-return]


def by_hand(call: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], Vit]:
    class ByHand(Vit):
        def run_blocks(self, tokens: Tensor) -> Tensor:
            for block in self.blocks:
                tokens = call(block, tokens)
            return tokens

    return ByHand


def in_sequence(use_reentrant: bool) -> Callable[[], Vit]:
    class InSequence(Vit):
        def run_blocks(self, tokens: Tensor) -> Tensor:
            return checkpoint_sequential(self.blocks, 3, tokens, use_reentrant=use_reentrant)  # type: ignore[no-any-return]

    return InSequence


def wrapped(**options: Any) -> Callable[[], Vit]:
    def build() -> Vit:
        model = Vit()
        apply_activation_checkpointing(
            model,
            checkpoint_wrapper_fn=functools.partial(checkpoint_wrapper, **options),
            check_fn=lambda module: module in set(model.blocks),
        )
        return model

    return build


def composed() -> Vit:
    model = Vit()
    for block in model.blocks:
        composable(block)
    return model


class OwnFunction(torch.autograd.Function):
    """A checkpointing that is not torch's: runs without a graph, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], tokens: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(tokens)
        with torch.no_grad():
            return function(tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (tokens,) = ctx.saved_tensors
        with torch.enable_grad():
            tokens = tokens.detach().requires_grad_()
            torch.autograd.backward(ctx.function(tokens), gradient)
        return None, tokens.grad


def _selectively(block: nn.Module, tokens: Tensor) -> Tensor:
    saved = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
    contexts = functools.partial(create_selective_checkpoint_contexts, saved)
    return checkpoint(block, tokens, use_reentrant=False, context_fn=contexts)  # type: ignore[no-any-return]


#: Every way by name, and what builds the model.
WAYS: dict[str, Callable[[], Vit]] = {
    "by hand": by_hand(lambda block, tokens: checkpoint(block, tokens, use_reentrant=False)),
    "by hand, reentrant": by_hand(lambda block, tokens: checkpoint(block, tokens, use_reentrant=True)),
    "by hand, selectively": by_hand(_selectively),
    "by hand, keywords": by_hand(lambda block, tokens: checkpoint(block, x=tokens, use_reentrant=False)),
    "by hand, by its function": by_hand(lambda block, tokens: CheckpointFunction.apply(block, True, tokens)),
    "in sequence": in_sequence(use_reentrant=False),
    "in sequence, reentrant": in_sequence(use_reentrant=True),
    "wrapped": wrapped(),
    "wrapped, reentrant": wrapped(checkpoint_impl=CheckpointImpl.REENTRANT),
    "wrapped, with a function of its own": wrapped(checkpoint_fn=OwnFunction.apply),
    "composed": composed,
}
