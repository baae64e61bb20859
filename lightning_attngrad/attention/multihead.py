"""``F.multi_head_attention_forward`` written out, so that the attention inside it can be seen.

While a function mode handles that call it is switched off, and with it the view of the attention inside. So a
tap computes the layer from its own weights and hands the queries, keys and values to ``attend``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: (query, key, value, mask, is_causal, scale) → (output (B, H, N, d), function that gives the probabilities)
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], tuple[Tensor, Callable[[], Tensor]]]


def multi_head_attention(
    attend: Attend,
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,  # noqa: ARG001  (the signature is torch's: it is called in its place)
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,  # noqa: ARG001  (a tap only ever sees models in evaluation mode)
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,  # noqa: ARG001
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention with torch's own signature, tokens first: query (N, B, D), key and value (M, B, D).

    ``attend`` computes the attention, ``linear`` the maps in front of it and behind.

    Returns:
        Output (N, B, D), and the probabilities (B, N, M) or (B, H, N, M) where they are asked for.
    """
    unbatched = query.dim() == 2
    if unbatched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    queries, batch, width = query.shape

    weights: Sequence[Tensor | None] = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight and in_proj_weight is not None:
        weights = in_proj_weight.chunk(3)
    biases: Sequence[Tensor | None] = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    # Contiguous: for transposed tokens torch takes a slower, batched product where the weights are constant.
    query, key, value = (
        tokens if weight is None else linear(tokens.contiguous(), weight, bias)
        for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    if bias_k is not None and bias_v is not None:
        key = torch.cat([key, bias_k.expand(1, batch, -1)])
        value = torch.cat([value, bias_v.expand(1, batch, -1)])

    def split_heads(tokens: Tensor) -> Tensor:  # (N, B, D) → (B, H, N, d)
        heads: Tensor = tokens.unflatten(-1, (num_heads, -1))
        return heads.permute(1, 2, 0, 3)

    query = split_heads(query)
    key = split_heads(key) if static_k is None else static_k.unflatten(0, (batch, num_heads))
    value = split_heads(value) if static_v is None else static_v.unflatten(0, (batch, num_heads))
    if add_zero_attn:
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))

    if is_causal and key_padding_mask is None and not need_weights:
        attn_mask = None  # torch then reads the flag and not the mask, which differs where keys were appended
    mask = _joined_mask(attn_mask, key_padding_mask, (batch, num_heads, queries, key.shape[-2]), query)
    causal = is_causal and mask is None
    scale = 1 / math.sqrt(query.shape[-1])
    output, probabilities = attend(query, key, value, mask, causal, scale)  # (B, H, N, d)

    output = output.permute(2, 0, 1, 3).reshape(queries, batch, width)
    output = linear(output, out_proj_weight, out_proj_bias)
    weights_out = None
    if need_weights:
        weights_out = probabilities().to(output.dtype)
        weights_out = weights_out.mean(dim=1) if average_attn_weights else weights_out
    if unbatched:
        output = output.squeeze(1)
        weights_out = None if weights_out is None else weights_out.squeeze(0)
    return output, weights_out


def _joined_mask(
    attention_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    shape: tuple[int, int, int, int],
    like: Tensor,
) -> Tensor | None:
    """Both masks as one additive mask broadcastable to (B, H, N, M). Here True means: takes no part."""
    batch, heads, _, keys = shape
    joined: Tensor | None = None
    if attention_mask is not None:
        if attention_mask.dim() == 3:  # (B·H, N, M)
            attention_mask = attention_mask.unflatten(0, (batch, heads))
        joined = F.pad(_additive(attention_mask, like), (0, keys - attention_mask.shape[-1]))
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, like)[:, None, None, :]
        padding = F.pad(padding, (0, keys - padding.shape[-1]))
        joined = padding if joined is None else joined + padding
    return joined


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -torch.inf)
