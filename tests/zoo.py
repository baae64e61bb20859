"""Small Vision Transformers of every family that the package explains, with what is known about each.

All weights are drawn from a fixed seed and none is zero: a fresh torchvision or Hugging Face head is zero or
nearly so, and a test on it would compare one map of zeros with another.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from torch import Tensor, nn

CLASSES = 7
Pooling = Literal["cls", "mean", "mean_of_all", "distilled", "attention", "cls_and_mean"]


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo and the facts about it that the references need.

    Attributes:
        name: Key in `ZOO`.
        build_raw: Builds the module, with the weights that its library gives it.
        prefix: Tokens in front of the patches (class, distillation and register tokens).
        grid: Rows and columns of patches.
        pooling: How the tokens become the vector that the classifier reads.
        first_block: Path of the first transformer block, whose input is the embedding after position.
        last_norm: Path of the LayerNorm in front of the last self-attention.
        image_size: Height and width of its images in pixels.
        twin: Key of the model with the same mathematics on a fused kernel, if this one has explicit softmax.
    """

    name: str
    build_raw: Callable[[], nn.Module]
    prefix: int
    grid: tuple[int, int] = (4, 4)
    pooling: Pooling = "cls"
    first_block: str = "blocks.0"
    last_norm: str = "blocks.1.norm1"
    image_size: tuple[int, int] = (32, 32)
    twin: str | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens of the self-attention, prefix included."""
        return self.prefix + self.grid[0] * self.grid[1]

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model in evaluation mode, with the same seeded weights each time."""
        # A model and its fused twin draw the same weights.
        model = randomise(self.build_raw(), seed=zlib.crc32((self.twin or self.name).encode()))
        return model.eval().to(dtype)

    def images(self, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Seeded images, (B, 3, height, width)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, 3, *self.image_size, generator=generator).to(dtype)

    def pooling_weights(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The row r_L, (N,): what share each token has in the vector that the classifier reads.

        Zero for attention pooling, where the pooling call is itself the last attention call.
        """
        weights = torch.zeros(self.tokens, dtype=dtype)
        patches = self.tokens - self.prefix
        if self.pooling == "cls":
            weights[0] = 1
        elif self.pooling == "mean":
            weights[self.prefix :] = 1 / patches
        elif self.pooling == "mean_of_all":
            weights[:] = 1 / self.tokens
        elif self.pooling == "distilled":
            weights[:2] = 0.5
        elif self.pooling == "cls_and_mean":
            weights[0] = 0.5
            weights[self.prefix :] = 0.5 / patches
        return weights


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter anew, biases and heads included, so that no gradient is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("weight") and parameter.ndim >= 2:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "gamma" in name or "lambda" in name:
                parameter.copy_(0.7 + 0.1 * noise)
            else:
                parameter.copy_(0.5 * noise)
    return model


def zero_biases(model: nn.Module) -> nn.Module:
    """Set every additive constant behind the embedding to zero, so that relevance has nowhere to leak to."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def _timm(architecture: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        settings = {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "num_classes": CLASSES,
        }
        model: nn.Module = timm.create_model(architecture, pretrained=False, **{**settings, **options})
        return model

    return build


def _timm_unfused() -> nn.Module:
    model = _timm("vit_tiny_patch16_224", img_size=(32, 48))()
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def _gated() -> nn.Module:
    # timm has both, as options of its blocks that the model does not pass on.
    model = _timm("eva02_tiny_patch14_224")()
    for block in model.blocks:
        block.attn.gate = nn.Linear(32, 32)
        block.attn.q_norm, block.attn.k_norm = nn.LayerNorm(16), nn.LayerNorm(16)
    return model


def _torchvision() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=CLASSES,
    )


def _hugging_face(family: Literal["vit", "dinov2"], attention: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        prefix = {"vit": "ViT", "dinov2": "Dinov2"}[family]
        settings = {
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_labels": CLASSES,
            **({"intermediate_size": 64} if family == "vit" else {"mlp_ratio": 2}),
            **options,
        }
        configuration = getattr(transformers, f"{prefix}Config")(**settings, attn_implementation=attention)
        model: nn.Module = getattr(transformers, f"{prefix}ForImageClassification")(configuration)
        return model

    return build


_VIT = {"first_block": "vit.layers.0", "last_norm": "vit.layers.1.layernorm_before"}
_DINOV2 = {"first_block": "dinov2.encoder.layer.0", "last_norm": "dinov2.encoder.layer.1.norm1"}
_WIDE = {"grid": (4, 6), "image_size": (32, 48)}  # not square: a transposed grid would show

ZOO: dict[str, ZooModel] = {
    model.name: model
    for model in [
        ZooModel("vit", _timm("vit_tiny_patch16_224", img_size=(32, 48)), 1, **_WIDE),
        ZooModel("vit_unfused", _timm_unfused, 1, **_WIDE, twin="vit"),
        ZooModel(
            "vit_deep",
            _timm("vit_tiny_patch16_224", depth=3, num_heads=4, embed_dim=48),
            1,
            last_norm="blocks.2.norm1",
        ),
        ZooModel("vit_mean", _timm("vit_tiny_patch16_224", global_pool="avg", fc_norm=True), 1, pooling="mean"),
        ZooModel(
            "vit_mean_of_all",
            _timm("vit_tiny_patch16_224", global_pool="avg", pool_include_prefix=True, fc_norm=True),
            1,
            pooling="mean_of_all",
        ),
        ZooModel("dinov2_registers", _timm("vit_small_patch14_reg4_dinov2"), 5),
        ZooModel("vit_registers_mean", _timm("vit_medium_patch16_reg4_gap_256"), 4, pooling="mean"),
        ZooModel("dinov2_swiglu", _timm("vit_giant_patch14_dinov2"), 1),
        ZooModel("deit3", _timm("deit3_small_patch16_224"), 1),
        ZooModel("deit_distilled", _timm("deit_tiny_distilled_patch16_224"), 2, pooling="distilled"),
        ZooModel("beit", _timm("beit_base_patch16_224"), 1, pooling="mean"),
        ZooModel("eva02", _timm("eva02_tiny_patch14_224"), 1, pooling="mean"),
        ZooModel("eva02_clip", _timm("eva02_base_patch16_clip_224"), 1),
        ZooModel("eva_gated", _gated, 1, pooling="mean"),
        ZooModel("siglip", _timm("vit_base_patch16_siglip_224"), 0, pooling="attention"),
        ZooModel("dinov3", _timm("vit_small_patch16_dinov3"), 5, pooling="mean"),
        ZooModel("clip", _timm("vit_base_patch16_clip_224"), 1),
        ZooModel("clip_quickgelu", _timm("vit_base_patch16_clip_quickgelu_224"), 1),
        ZooModel(
            "torchvision",
            _torchvision,
            1,
            first_block="encoder.layers.encoder_layer_0",
            last_norm="encoder.layers.encoder_layer_1.ln_1",
        ),
        ZooModel("hf_vit", _hugging_face("vit", "sdpa"), 1, **_VIT),
        ZooModel("hf_vit_eager", _hugging_face("vit", "eager"), 1, **_VIT, twin="hf_vit"),
        ZooModel("hf_dinov2", _hugging_face("dinov2", "sdpa"), 1, **_DINOV2, pooling="cls_and_mean"),
        ZooModel(
            "hf_dinov2_eager",
            _hugging_face("dinov2", "eager"),
            1,
            **_DINOV2,
            pooling="cls_and_mean",
            twin="hf_dinov2",
        ),
    ]
}


def logits_of(output: object) -> Tensor:
    """Logits (B, C) of what a model returned: the tensor itself, or its field `logits`."""
    return output if isinstance(output, Tensor) else output.logits  # type: ignore[attr-defined]
