"""The Hindered Transformer from its description (arXiv 2502.17196), token by token, in loops: no line of the model's.

    c ← c + Σ_i Σ_h W_o[:, h] a_{h,i} (W_v LN(p_i))_h + b_o,  a_h = softmax_i(q_h·k_{h,i} / √d)
    p_i ← p_i + MLP(LN(p_i))

so that with the final normalisation LN(c) = g (c − mean c)/std c + b the logit is a sum over blocks and patches; what
belongs to no patch goes to all of them alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_attngrad.models import HinderedTransformer


def _normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight + norm.bias


def terms_of(model: HinderedTransformer, image: Tensor) -> tuple[Tensor, list[dict[tuple[int, int], Tensor]]]:
    """Logits (C,) of one image, and for each block the term (C,) of each patch by its row and column."""
    embed = model.patch_embed.proj
    side = embed.kernel_size[0]
    rows, columns = image.shape[1] // side, image.shape[2] // side
    patches: dict[tuple[int, int], Tensor] = {}
    for row in range(rows):
        for column in range(columns):
            pixels = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            token = torch.stack([(weight * pixels).sum() for weight in embed.weight]) + embed.bias
            patches[row, column] = token + model.pos_embed[0, row, column]
    token = model.cls_token[0, 0]
    starts = [sum(model.depths[:stage]) for stage in range(1, len(model.depths))]
    added: list[dict[tuple[int, int], Tensor]] = []
    for number, block in enumerate(model.blocks):
        if number in starts:
            rows, columns = rows // 2, columns // 2
            patches = {
                (row, column): sum(patches[2 * row + i, 2 * column + j] for i in (0, 1) for j in (0, 1)) / 4
                for row in range(rows)
                for column in range(columns)
            }
        attention = block.attention
        heads, width = attention.heads, len(token) // attention.heads
        query = attention.query(_normalised(token, block.norm_token))
        keys, values = {}, {}
        for place, patch in patches.items():
            keys[place], values[place] = attention.key_value(_normalised(patch, block.norm_patches)).chunk(2)
        said = {place: torch.zeros_like(token) + attention.proj.bias / len(patches) for place in patches}
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = {place: float(query[part] @ keys[place][part]) / math.sqrt(width) for place in patches}
            whole = sum(math.exp(score) for score in scores.values())
            for place in patches:
                weight = math.exp(scores[place]) / whole
                said[place] = said[place] + weight * (attention.proj.weight[:, part] @ values[place][part])
        added.append(said)
        token = token + sum(said.values())
        if block.mlp is not None:
            patches = {place: patch + block.mlp(_normalised(patch, block.norm_mlp)) for place, patch in patches.items()}
    logits = model.head(_normalised(token, model.norm))
    spread = torch.sqrt(((token - token.mean()) ** 2).mean() + model.norm.eps)

    def in_logits(vector: Tensor) -> Tensor:
        return model.head.weight @ (model.norm.weight * (vector - vector.mean()) / spread)

    left = in_logits(model.cls_token[0, 0]) + model.head.weight @ model.norm.bias + model.head.bias
    terms = [
        {place: in_logits(vector) + left / (len(said) * len(added)) for place, vector in said.items()} for said in added
    ]
    return logits, terms
