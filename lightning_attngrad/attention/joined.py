"""The backward pass of a fused attention, taken over so that whoever reads blocks of ``A`` and ``G`` shares them.

A fused kernel's backward pass rebuilds ``A`` and ``G`` block by block and throws them away; a map of the attention
then rebuilds both once more: nine matrix products where seven would do. Here the blocks are made once, in plain
products, and given to the reader before they go: the forward pass stays the fused kernel, its output and its
log-sum-exp are as ever, and where nobody reads, the backward pass is the kernel's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend

from lightning_attngrad.attention.call import AttentionCall, Cut, outside_autocast

#: Fewer query–key pairs an image and head, and what a block costs beside its products outweighs what is saved.
FEWEST_PAIRS = 96 * 96


class BlockReader(Protocol):
    """Takes the blocks of one attention call; all of its rows go by, once."""

    memory_budget: int

    def read(self, cut: Cut, attention: Tensor, product: Tensor, spare: Tensor) -> None:
        """Take a block.

        Args:
            cut: which block of the call it is.
            attention: ``A`` (r, h, n, M); not to be changed.
            product: ``A ⊙ G`` likewise.
            spare: of the same form, for whatever the reader computes.
        """

    def finish(self) -> None:
        """All blocks have gone by."""


#: From the gradient at an attention's output to the call and whoever reads its blocks; None where nobody does.
Readers = Callable[[Tensor], tuple[AttentionCall, BlockReader] | None]


def is_joinable(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float) -> bool:
    """Whether sharing the blocks pays, and the kernel that torch would choose here is the one that is taken over."""
    return (
        query.device.type == "cpu"  # on a GPU, blocks in plain products are slower than two fused kernels
        and query.dtype in (torch.float32, torch.float64)
        and mask is None
        and not is_causal
        and type(query) is type(key) is type(value) is Tensor  # no shard of one, nor any other kind
        and query.dim() == 4
        and query.shape[:2] == key.shape[:2] == value.shape[:2]
        and query.shape[-2] * key.shape[-2] >= FEWEST_PAIRS
        and torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in (query, key))
        and torch._fused_sdp_choice(query, key, value, None, 0.0, False, scale=scale)
        == SDPBackend.FLASH_ATTENTION.value
    )


def joined_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, readers: Readers) -> Tensor:
    """What ``scaled_dot_product_attention`` gives for :func:`is_joinable` tensors, (B, H, N, d), bit for bit."""
    output: Tensor = _JoinedAttention.apply(query, key, value, scale, readers)
    return output


class _JoinedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, readers: Readers) -> Tensor:
        found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=None, scale=scale
        )
        ctx.save_for_backward(query, key, value, *found)
        ctx.scale, ctx.readers = scale, readers
        return found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        asked = ctx.readers(gradient)
        if asked is None:
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient, *ctx.saved_tensors, 0.0, False, attn_mask=None, scale=ctx.scale
            )
        else:
            with outside_autocast(gradient.device):
                gradients = _shared(asked, gradient, ctx.saved_tensors, ctx.scale)
        return *gradients, None, None


def _shared(
    asked: tuple[AttentionCall, BlockReader], gradient: Tensor, saved: tuple[Tensor, ...], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients at queries, keys and values, while the reader is given each block on its way."""
    (call, reader), (query, key, value, output, log_sum) = asked, saved
    of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
    row_sums = (gradient * output).sum(dim=-1)  # (B, H, N): of A ⊙ G over the keys
    scaled, lowering = query * scale, -log_sum
    room = query.new_empty(0)
    for images, heads in call.parts(reader.memory_budget):
        # (r·h, ·, d), one matrix a head: contiguous, for they are read again and again
        queries, keys, values, arrived = (
            tensor[images, heads].flatten(0, 1) for tensor in (scaled, key, value, gradient)
        )
        lowered, sums = (tensor[images, heads].flatten(0, 1).unsqueeze(-1) for tensor in (lowering, row_sums))
        to_query, to_key, to_value = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        form = (images.stop - images.start, heads.stop - heads.start)
        for block in call.part(images, heads).blocks(reader.memory_budget):
            shape = (3, len(queries), block.stop - block.start, keys.shape[1])
            if room.numel() < math.prod(shape):  # taken once: fresh pages cost as much as a product
                room = query.new_empty(math.prod(shape))
            attention, product, spare = room[: math.prod(shape)].view(shape)
            some, came = queries[:, block], arrived[:, block]
            torch.baddbmm(lowered[:, block], some, keys.mT, out=attention)
            attention.exp_()
            torch.bmm(came, values.mT, out=product)
            product.mul_(attention)
            reader.read(
                Cut(images, heads, block),
                *(tensor.unflatten(0, form) for tensor in (attention, product, spare)),
            )
            to_value.baddbmm_(attention.mT, came)
            at_scores = product.addcmul_(attention, sums[:, block], value=-1)
            to_key.baddbmm_(at_scores.mT, some)
            torch.bmm(at_scores, keys, out=to_query[:, block])
        of_query[images, heads] = to_query.mul_(scale).unflatten(0, form)
        of_key[images, heads] = to_key.unflatten(0, form)
        of_value[images, heads] = to_value.unflatten(0, form)
    reader.finish()
    return of_query, of_key, of_value
