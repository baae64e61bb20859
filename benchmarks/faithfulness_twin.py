"""A timm ViT as a torchvision one with the same function, for libraries that know only torchvision's."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import nn
from torchvision.models import VisionTransformer


def torchvision_twin(network: TimmTransformer) -> VisionTransformer:
    """The same logits from torchvision's modules; the scale of each branch goes into the product in front of it.

    Args:
        network: a ViT with a class token and one linear head, of square images.
    """
    side, width = network.patch_embed.img_size[0], network.embed_dim
    twin = VisionTransformer(
        image_size=side,
        patch_size=side // network.patch_embed.grid_size[0],
        num_layers=len(network.blocks),
        num_heads=network.blocks[0].attn.num_heads,
        hidden_dim=width,
        mlp_dim=network.blocks[0].mlp.fc1.out_features,
        num_classes=network.num_classes,
    )
    embedding = network.patch_embed
    stem = getattr(embedding, "backbone", None)
    twin.conv_proj = embedding.proj if stem is None else nn.Sequential(stem, embedding.proj)  # type: ignore[assignment]
    twin.class_token = network.cls_token
    twin.encoder.pos_embedding = network.pos_embed
    for block, layer in zip(network.blocks, twin.encoder.layers, strict=True):
        layer.ln_1, layer.ln_2 = block.norm1, block.norm2
        layer.mlp[0] = block.mlp.fc1
        layer.mlp[3] = _scaled(block.mlp.fc2, block.ls2)
        layer.self_attention.in_proj_weight = block.attn.qkv.weight
        layer.self_attention.in_proj_bias = block.attn.qkv.bias
        scaled = _scaled(block.attn.proj, block.ls1)
        with torch.no_grad():
            layer.self_attention.out_proj.weight.copy_(scaled.weight)
            layer.self_attention.out_proj.bias.copy_(scaled.bias)
    twin.encoder.ln, twin.heads = network.norm, nn.Sequential()
    twin.heads.add_module("head", network.head)
    return twin.eval()


def _scaled(product: nn.Linear, scale: nn.Module) -> nn.Linear:
    gamma = getattr(scale, "gamma", None)
    if gamma is None:
        return product
    scaled = nn.Linear(product.in_features, product.out_features)
    with torch.no_grad():
        scaled.weight.copy_(product.weight * gamma[:, None])
        scaled.bias.copy_(product.bias * gamma)
    return scaled
