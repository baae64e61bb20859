"""One small model, with random weights, of every family of image models that has attention, and some that have none.

The families are those of timm (a module of ``timm.models`` each, or several where one holds several kinds of
attention), torchvision and Hugging Face. Weights are drawn by `tests.zoo.randomise`: no head, no scale of a layer and
no position is zero, so that no map is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tests.zoo import randomise

CLASSES = 5

#: What a model's tokens read from each other by.
#: ``tokens``: a softmax over image tokens times their values, in every place where tokens mix by attention.
#: ``partly``: such calls, and other attention between tokens (linear, separable, over channels, of whole regions).
#: ``otherwise``: no softmax over image tokens × values at all, yet some attention.
#: ``none``: convolutions, pooling, MLPs over tokens, recurrence.
Mixing = Literal["tokens", "partly", "otherwise", "none"]


@dataclass(frozen=True)
class Family:
    """A model of a family.

    Attributes:
        name: ``library/model``.
        raw: builds the module, with the weights that its library gives it.
        image_size: height and width of its images in pixels.
        mixing: see `Mixing`.
        classes: of the classifier.
    """

    name: str
    raw: Callable[[], nn.Module]
    image_size: tuple[int, int]
    mixing: Mixing
    classes: int = CLASSES

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model in evaluation mode, with the same seeded weights each time."""
        torch.manual_seed(0)  # some constructors draw constants of their own
        model = randomise(self.raw(), seed=zlib.crc32(self.name.encode()))
        _without_frozen_scales(model)
        return model.eval().to(dtype)

    def images(self, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Seeded images, (B, 3, height, width)."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, 3, *self.image_size, generator=generator).to(dtype)


class ReadOut(nn.Module):
    """A backbone that has no classifier, and a linear one on what it reads out.

    Args:
        backbone: gives tokens (B, N, D), or a feature map (B, D, h, w), as ``last_hidden_state`` or first output.
        width: D.
        read: which tokens are averaged: all, or the first.
    """

    def __init__(self, backbone: nn.Module, width: int, read: Literal["mean", "first"] = "mean") -> None:
        super().__init__()
        self.backbone, self.read = backbone, read
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        output = self.backbone(images)
        tokens = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
        if tokens.dim() == 4:
            tokens = tokens.flatten(2).mT
        logits: Tensor = self.head(tokens[:, 0] if self.read == "first" else tokens.mean(1))
        return logits


def _without_frozen_scales(model: nn.Module) -> None:
    """Scales that a constructor left at nearly zero, as buffers or under names that `randomise` treats as positions."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if "layer_scale" in last or last in ("ls1", "ls2", "scale", "res_scale", "temperature"):
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                parameter.copy_(0.7 + 0.1 * torch.randn(parameter.shape, generator=generator))


# timm -----------------------------------------------------------------------------------------------------------


def _timm(
    architecture: str,
    size: tuple[int, int] = (64, 96),
    mixing: Mixing = "tokens",
    *,
    called: str | None = None,
    **options: Any,
) -> Family:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=CLASSES, **options)
        return model

    return Family(f"timm/{called or architecture}", build, size, mixing)


def _plain(architecture: str, mixing: Mixing = "tokens", **options: Any) -> Family:
    """A ViT of two blocks on images of 32×48 pixels, 4×6 patches of 8."""
    settings: dict[str, Any] = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return _timm(architecture, (32, 48), mixing, **{**settings, **options})


def _timm_class(module: str, kind: str, size: tuple[int, int], mixing: Mixing, called: str, **options: Any) -> Family:
    """A class of ``timm.models.<module>``, for architectures whose own function lets one change no size."""

    def build() -> nn.Module:
        import importlib

        model: nn.Module = getattr(importlib.import_module(f"timm.models.{module}"), kind)(
            num_classes=CLASSES, **options
        )
        return model

    return Family(f"timm/{called}", build, size, mixing)


def _timm_with_configuration(
    module: str, kind: str, configuration: str, architecture: str, size: tuple[int, int], **changed: Any
) -> Family:
    """A class of timm that takes a configuration: that of ``architecture`` with some fields changed."""

    def build() -> nn.Module:
        import dataclasses
        import importlib

        home = importlib.import_module(f"timm.models.{module}")
        cfg = dataclasses.replace(getattr(home, configuration)[architecture], **changed)
        model: nn.Module = getattr(home, kind)(cfg, img_size=size, num_classes=CLASSES)
        return model

    return Family(f"timm/{architecture}", build, size, "tokens")


def _small_byoanet(architecture: str, mixing: Mixing = "tokens", size: tuple[int, int] = (64, 96)) -> Family:
    """A ResNet with self-attention in its last stages, its widths an eighth and one block a stage where it has more."""

    def build() -> nn.Module:
        import dataclasses

        from timm.models import byoanet, byobnet

        registered = {**byobnet.model_cfgs, **byoanet.model_cfgs}[architecture]
        blocks = []
        for stage in registered.blocks:
            for block in stage if isinstance(stage, tuple | list) else (stage,):
                group_size = None if block.gs is None else max(block.gs // 8, 1)
                blocks.append(dataclasses.replace(block, c=max(block.c // 8, 16), gs=group_size))
        changed: dict[str, Any] = {"blocks": tuple(blocks), "stem_chs": 16}
        model: nn.Module = byobnet.ByobNet(
            dataclasses.replace(registered, **changed), num_classes=CLASSES, img_size=size
        )
        return model

    return Family(f"timm/{architecture}", build, size, mixing)


def _caformer_parts() -> tuple[list[Any], list[Any]]:
    """Token mixers and normalisations of its four stages."""
    from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, SepConv

    return [SepConv] * 2 + [Attention] * 2, [LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2


_WINDOWS: dict[str, Any] = {
    "img_size": (64, 96),
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
}
_CAFORMER = _caformer_parts()
_TIMM: list[Family] = [
    # Plain: one grid from the first call to the last.
    _plain("vit_tiny_patch16_224"),
    _plain("vit_base_patch16_siglip_224"),
    _plain("vit_base_patch16_clip_224"),
    _plain("vit_medium_patch16_reg4_gap_256"),
    _plain("vit_small_patch14_reg4_dinov2"),
    _plain("vit_giant_patch14_dinov2"),
    _plain("vit_large_patch14_xp_224"),
    _plain("vit_base_patch16_xp_224"),
    _plain("vit_so150m2_patch16_reg1_gap_256"),
    _plain("vit_7b_patch16_dinov3", num_heads=2),
    _plain("vit_small_patch16_dinov3"),
    _plain("vit_small_patch16_rope_224"),
    _plain("vit_small_patch16_rope_mixed_224"),
    _plain("vit_pe_core_tiny_patch16_384"),
    _plain("vit_small_patch16_18x2_224"),
    _plain("vit_relpos_small_patch16_224"),
    _plain("vit_relpos_medium_patch16_cls_224"),
    _plain("vit_srelpos_small_patch16_224"),
    _plain("deit_tiny_patch16_224"),
    _plain("deit_tiny_distilled_patch16_224"),
    _plain("deit3_small_patch16_224"),
    _plain("beit_base_patch16_224"),
    _plain("beitv2_base_patch16_224"),
    _plain("eva02_tiny_patch14_224"),
    _plain("eva_giant_patch14_224"),
    _plain("eva02_base_patch16_clip_224"),
    _plain("cait_xxs24_224"),
    _timm("convit_tiny", (32, 32), img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, local_up_to_layer=1),
    _timm("test_vit", (160, 160)),
    _timm("test_vit3", (160, 160)),
    _timm("test_vit4", (160, 160)),
    _timm("flexivit_small", (32, 48), img_size=(32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=2),
    _timm("aimv2_large_patch14_224", (32, 48), img_size=(32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=2),
    _timm(
        "samvit_base_patch16_224",
        (96, 128),
        img_size=(96, 128),
        patch_size=16,
        embed_dim=32,
        depth=2,
        num_heads=2,
        window_size=4,
        global_attn_indexes=(1,),
        neck_chans=16,
    ),
    _timm("naflexvit_base_patch16_gap", (32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=2),
    _timm("naflexvit_base_patch16_map", (32, 48), patch_size=8, embed_dim=32, depth=2, num_heads=2),
    _timm(
        "deepseek_vit_412m",
        (48, 96),
        img_size=(48, 96),
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
    ),
    _timm(
        "gemma4_vit_167m",
        (48, 96),
        img_size=(48, 96),
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        head_dim=16,
        num_kv_heads=2,
        intermediate_size=64,
        position_embedding_size=64,
    ),
    _timm(
        "qwen3_vit_88m",
        (64, 96),
        img_size=(64, 96),
        patch_size=16,
        embed_dim=32,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        out_features=32,
    ),
    _timm("vit_tiny_r_s16_p8_224", (64, 96), img_size=(64, 96), embed_dim=32, depth=2, num_heads=2),
    # Several grids, windows, pooled keys or queries.
    _timm("swin_tiny_patch4_window7_224", **_WINDOWS),
    _timm("swin_s3_tiny_224", **{**_WINDOWS, "window_size": (4, 4)}),
    _timm("swinv2_tiny_window16_256", **_WINDOWS),
    _timm("swinv2_cr_tiny_224", **_WINDOWS),
    _timm("swinv2_cr_tiny_ns_224", **_WINDOWS),
    _timm(
        "maxvit_tiny_tf_224",
        (64, 96),
        img_size=(64, 96),
        embed_dim=(8, 16, 32),
        depths=(1, 1, 1),
        block_type=("M", "M", "M"),
        stem_width=8,
        transformer_dim_head=4,
        transformer_window_size=(2, 3),
        transformer_grid_size=(2, 3),
    ),
    _timm(
        "coatnet_pico_rw_224",
        (64, 96),
        img_size=(64, 96),
        embed_dim=(8, 16, 32, 32),
        depths=(1, 1, 1, 1),
        stem_width=8,
        transformer_dim_head=8,
    ),
    _timm(
        "coatnext_nano_rw_224",
        (64, 96),
        img_size=(64, 96),
        embed_dim=(8, 16, 32, 32),
        depths=(1, 1, 1, 1),
        stem_width=8,
        transformer_dim_head=8,
    ),
    _timm("pvt_v2_b0", embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)),
    _timm("pvt_v2_b2_li", embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)),
    _timm(
        "twins_svt_small",
        (64, 96),
        img_size=(64, 96),
        embed_dims=(8, 16, 16),
        num_heads=(1, 2, 2),
        depths=(2, 2, 2),
        mlp_ratios=(2, 2, 2),
        sr_ratios=(4, 2, 1),
        wss=(4, 4, 4),
    ),
    _timm(
        "twins_pcpvt_small",
        (64, 96),
        img_size=(64, 96),
        embed_dims=(8, 16, 16),
        num_heads=(1, 2, 2),
        depths=(1, 1, 1),
        mlp_ratios=(2, 2, 2),
        sr_ratios=(4, 2, 1),
    ),
    _timm("hiera_tiny_224", (64, 64), img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 2, 2, 1)),
    _timm(
        "sam2_hiera_tiny",
        (64, 96),
        embed_dim=16,
        num_heads=1,
        stages=(1, 2, 2, 1),
        global_att_blocks=(4,),
        window_spec=(8, 4, 4, 2),
    ),
    _timm_with_configuration(
        "mvitv2",
        "MultiScaleVit",
        "model_cfgs",
        "mvitv2_tiny",
        (64, 64),
        embed_dim=16,
        depths=(1, 1, 1, 1),
        num_heads=1,
        stride_kv=None,
    ),
    _timm_with_configuration(
        "mvitv2",
        "MultiScaleVit",
        "model_cfgs",
        "mvitv2_base_cls",
        (64, 64),
        embed_dim=16,
        depths=(1, 1, 1, 1),
        num_heads=1,
        stride_kv=None,
    ),
    _timm(
        "davit_tiny", (64, 96), "partly", depths=(1, 1, 1), embed_dims=(16, 16, 32), num_heads=(2, 2, 2), window_size=4
    ),
    _timm_class(
        "gcvit",
        "GlobalContextVit",
        (64, 64),
        "tokens",
        "gcvit_xxtiny",
        img_size=(64, 64),
        window_ratio=None,
        window_size=(4, 4, 4, 2),
        embed_dim=16,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 2, 4),
    ),
    _timm(
        "levit_128s",
        (128, 128),
        img_size=(128, 128),
        embed_dim=(32, 32, 32),
        key_dim=8,
        depth=(1, 1, 1),
        num_heads=(2, 2, 2),
    ),
    _timm(
        "levit_conv_128s",
        (128, 128),
        img_size=(128, 128),
        embed_dim=(32, 32, 32),
        key_dim=8,
        depth=(1, 1, 1),
        num_heads=(2, 2, 2),
    ),
    _timm("mobilevit_xxs", (128, 128)),
    _timm("mobilevitv2_050", (64, 128), "otherwise"),
    _timm(
        "tiny_vit_5m_224",
        (64, 96),
        embed_dims=(16, 16, 32, 32),
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_sizes=(4, 4, 4, 2),
    ),
    _timm(
        "efficientvit_m0",
        (128, 128),
        img_size=(128, 128),
        embed_dim=(16, 32, 32),
        key_dim=(8, 8, 8),
        depth=(1, 1, 1),
        num_heads=(2, 2, 2),
        window_size=(4, 4, 2),
        kernels=(3, 3),
    ),
    _timm("nextvit_small", (64, 96), depths=(1, 1, 5, 1), stem_chs=(16, 8, 16)),
    _timm("fastvit_sa12", (128, 192), layers=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32)),
    _timm("edgenext_xx_small", (64, 96), "partly", dims=(8, 16, 24, 32), depths=(1, 2, 2, 2)),
    _timm_class(
        "metaformer",
        "MetaFormer",
        (64, 96),
        "tokens",
        "caformer_s18",
        token_mixers=_CAFORMER[0],
        norm_layers=_CAFORMER[1],
        depths=(1, 1, 1, 1),
        dims=(16, 16, 32, 32),
    ),
    _timm_class(
        "nest",
        "Nest",
        (64, 64),
        "tokens",
        "jx_nest_tiny",
        pad_type="same",
        img_size=(64, 64),
        embed_dims=(16, 16, 32),
        num_heads=(1, 2, 2),
        depths=(1, 1, 1),
    ),
    _timm_class(
        "nest",
        "Nest",
        (64, 64),
        "tokens",
        "nest_tiny",
        img_size=(64, 64),
        embed_dims=(16, 16, 32),
        num_heads=(1, 2, 2),
        depths=(1, 1, 1),
    ),
    _timm("pit_ti_224", (64, 96), img_size=(64, 96), base_dims=(8, 8, 8), depth=(1, 1, 1), heads=(1, 2, 2)),
    _timm("pit_ti_distilled_224", (64, 96), img_size=(64, 96), base_dims=(8, 8, 8), depth=(1, 1, 1), heads=(1, 2, 2)),
    _timm("visformer_tiny", (64, 96), img_size=(64, 96), init_channels=8, embed_dim=32, depth=(1, 1, 1), num_heads=2),
    _timm("efficientformer_l1", (224, 224), embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 2), num_vit=1),
    _timm(
        "efficientformerv2_s0", (64, 96), img_size=(64, 96), embed_dims=(8, 16, 16, 32), depths=(1, 1, 2, 2), num_vit=1
    ),
    _timm("iformer_t", (64, 96)),
    _timm("lowformer_b0", (64, 96), head_widths=(32, 32)),
    _timm("cpubone_nano", (64, 96)),
    _timm("shvit_s1", (128, 192), embed_dim=(16, 32, 32), partial_dim=(8, 8, 8), depth=(1, 1, 1)),
    _timm("csatv2", (128, 192), dims=(16, 16, 32, 32), depths=(1, 1, 2, 2), transformer_depths=(0, 0, 1, 1)),
    _timm("vitamin_small_224", (64, 96), img_size=(64, 96), depth=2),
    _timm("mobilenetv4_hybrid_medium", (64, 96)),
    _timm("mobilenetv5_base", (64, 96), channel_multiplier=0.125),
    _small_byoanet("botnet26t"),
    _small_byoanet("halonet26t", size=(256, 256)),
    _small_byoanet("lambda_resnet26t", "otherwise"),
    _small_byoanet("resnet50_clip"),
    _small_byoanet("gcresnext26ts", "otherwise"),
    _small_byoanet("bat_resnext26ts", "otherwise", (256, 256)),
    # Attention of another kind, or beside another kind.
    _timm("xcit_nano_12_p8_224", (32, 48), "partly", img_size=(32, 48), embed_dim=16, depth=2, num_heads=2),
    _timm(
        "coat_tiny",
        (64, 96),
        "otherwise",
        img_size=(64, 96),
        embed_dims=(64, 64, 64, 64),
        serial_depths=(1, 1, 1, 1),
        parallel_depth=1,
        num_heads=8,
    ),
    _timm(
        "crossvit_9_240",
        (48, 48),
        img_size=48,
        img_scale=(1.0, 14 / 15),
        embed_dim=(16, 32),
        depth=([1, 2, 0],),
        num_heads=(2, 2),
        patch_size=(12, 11),
        mlp_ratio=(2, 2, 1),
        crop_scale=False,
    ),
    _timm_class(
        "volo",
        "VOLO",
        (64, 96),
        "tokens",
        "volo_d1_224",
        img_size=(64, 96),
        layers=(1, 1, 1, 1),
        embed_dims=(16, 32, 32, 32),
        num_heads=(2, 2, 2, 2),
        stem_hidden_dim=16,
    ),
    _timm(
        "tnt_s_patch16_224",
        (32, 48),
        img_size=(32, 48),
        embed_dim=32,
        inner_dim=8,
        depth=2,
        num_heads_inner=2,
        num_heads_outer=2,
    ),
    _timm("efficientvim_m1", (64, 96), "otherwise"),
    _timm("efficientvit_b0", (64, 96), "otherwise"),
    _timm("swiftformer_xs", (64, 96), "otherwise"),
    _timm("resnest14d", (64, 64), "none"),
    _timm("skresnet18", (64, 64), "none"),
    # No attention.
    _timm("test_resnet", (64, 96), "none"),
    _timm("test_convnext", (64, 96), "none"),
    _timm("test_efficientnet", (64, 96), "none"),
    _timm_class(
        "metaformer", "MetaFormer", (64, 96), "none", "poolformer_s12", depths=(1, 1, 1, 1), dims=(8, 16, 16, 32)
    ),
    _timm_class(
        "mlp_mixer",
        "MlpMixer",
        (32, 48),
        "none",
        "mixer_s16_224",
        img_size=(32, 48),
        patch_size=8,
        embed_dim=32,
        num_blocks=2,
    ),
    _timm("gmlp_ti16_224", (224, 224), "none"),
    _timm_class("focalnet", "FocalNet", (64, 96), "none", "focalnet_tiny_srf", depths=(1, 1, 1, 1), embed_dim=16),
    _timm(
        "sequencer2d_s",
        (64, 64),
        "none",
        img_size=64,
        layers=(1, 1, 1, 1),
        embed_dims=(16, 16, 16, 16),
        hidden_sizes=(8, 8, 8, 8),
    ),
    _timm_class("convmixer", "ConvMixer", (64, 64), "none", "convmixer_768_32", dim=32, depth=2),
    _timm("test_mambaout", (64, 96), "none"),
]


# torchvision ----------------------------------------------------------------------------------------------------


def _torchvision(name: str, size: tuple[int, int], mixing: Mixing, build: Callable[[], nn.Module]) -> Family:
    return Family(f"torchvision/{name}", build, size, mixing)


def _torchvision_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )


def _torchvision_swin(version: Literal[1, 2]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models import swin_transformer as swin

        parts: dict[str, Any] = (
            {}
            if version == 1
            else {
                "block": swin.SwinTransformerBlockV2,
                "downsample_layer": swin.PatchMergingV2,
            }
        )
        return swin.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], mlp_ratio=2.0, num_classes=CLASSES, **parts)

    return build


def _torchvision_maxvit() -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    return MaxVit(
        input_size=(64, 64),
        stem_channels=16,
        partition_size=4,
        block_channels=[16, 32],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=CLASSES,
    )


def _torchvision_resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=CLASSES)


_TORCHVISION = [
    _torchvision("vit", (32, 32), "tokens", _torchvision_vit),
    _torchvision("swin", (64, 96), "tokens", _torchvision_swin(1)),
    _torchvision("swin_v2", (64, 96), "tokens", _torchvision_swin(2)),
    _torchvision("maxvit", (64, 64), "tokens", _torchvision_maxvit),
    _torchvision("resnet18", (64, 64), "none", _torchvision_resnet),
]

# Hugging Face ---------------------------------------------------------------------------------------------------

_HF_PLAIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def _hf(
    name: str,
    configuration: str,
    model: str,
    size: tuple[int, int] = (32, 32),
    mixing: Mixing = "tokens",
    read: Literal["mean", "first"] | None = None,
    attention: str | None = "sdpa",
    **options: Any,
) -> Family:
    """``model`` of a ``configuration`` of these options; with ``read`` a backbone that gets a linear classifier."""

    def build() -> nn.Module:
        import transformers

        chosen = {} if attention is None else {"attn_implementation": attention}
        settings = getattr(transformers, configuration)(num_labels=CLASSES, **options, **chosen)
        module: nn.Module = getattr(transformers, model)(settings)
        if read is None:
            return module
        width = next(
            getattr(settings, key) for key in ("hidden_size", "hidden_dim", "embed_dim") if hasattr(settings, key)
        )
        return ReadOut(module, width[-1] if isinstance(width, list | tuple) else width, read)

    return Family(f"transformers/{name}", build, size, mixing)


def _hf_vision(name: str, configuration: str, part: str) -> Family:
    """An image classifier of a text-and-image model, whose configuration holds one for the images."""

    def build() -> nn.Module:
        import transformers

        whole = getattr(transformers, configuration)(
            vision_config={**_HF_PLAIN, "projection_dim": 32}, num_labels=CLASSES, attn_implementation="sdpa"
        )
        module: nn.Module = getattr(transformers, part)(whole)
        return module

    return Family(f"transformers/{name}", build, (32, 32), "tokens")


_HF_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
_HF_SWIN: dict[str, Any] = {
    "image_size": (64, 96),
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_HF = [
    _hf("vit", "ViTConfig", "ViTForImageClassification", **_HF_PLAIN),
    _hf("vit eager", "ViTConfig", "ViTForImageClassification", attention="eager", **_HF_PLAIN),
    _hf("deit", "DeiTConfig", "DeiTForImageClassification", **_HF_PLAIN),
    _hf("deit distilled", "DeiTConfig", "DeiTForImageClassificationWithTeacher", **_HF_PLAIN),
    _hf("beit", "BeitConfig", "BeitForImageClassification", use_relative_position_bias=True, **_HF_PLAIN),
    _hf(
        "data2vec_vision",
        "Data2VecVisionConfig",
        "Data2VecVisionForImageClassification",
        use_relative_position_bias=True,
        **_HF_PLAIN,
    ),
    _hf("dinov2", "Dinov2Config", "Dinov2ForImageClassification", mlp_ratio=2, **_HF_PLAIN),
    _hf(
        "dinov2_with_registers",
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        mlp_ratio=2,
        num_register_tokens=2,
        **_HF_PLAIN,
    ),
    _hf("dinov3_vit", "DINOv3ViTConfig", "DINOv3ViTModel", read="first", num_register_tokens=2, **_HF_PLAIN),
    _hf("ijepa", "IJepaConfig", "IJepaForImageClassification", **_HF_PLAIN),
    _hf("vit_msn", "ViTMSNConfig", "ViTMSNForImageClassification", **_HF_PLAIN),
    # Its patches come in random order; with none left out, that changes nothing.
    _hf("vit_mae", "ViTMAEConfig", "ViTMAEModel", read="first", mask_ratio=0.0, **_HF_PLAIN),
    _hf(
        "yolos",
        "YolosConfig",
        "YolosModel",
        read="first",
        num_detection_tokens=3,
        **{**_HF_PLAIN, "image_size": [32, 32]},
    ),
    _hf("aimv2", "Aimv2VisionConfig", "Aimv2VisionModel", read="mean", **_HF_PLAIN),
    _hf("pixio", "PixioConfig", "PixioModel", read="first", **{**_HF_PLAIN, "mlp_ratio": 2}),
    _hf(
        "vitdet",
        "VitDetConfig",
        "VitDetModel",
        (64, 64),
        read="mean",
        attention=None,
        window_size=3,
        window_block_indices=[0],
        **{**_HF_PLAIN, "image_size": 64},
    ),
    _hf("dpt", "DPTConfig", "DPTModel", read="first", **_HF_PLAIN),
    _hf("clip_vision", "CLIPVisionConfig", "CLIPVisionModel", read="mean", **_HF_PLAIN),
    _hf("siglip_vision", "SiglipVisionConfig", "SiglipVisionModel", read="mean", **_HF_PLAIN),
    _hf_vision("clip", "CLIPConfig", "CLIPForImageClassification"),
    _hf_vision("metaclip_2", "MetaClip2Config", "MetaClip2ForImageClassification"),
    _hf_vision("siglip", "SiglipConfig", "SiglipForImageClassification"),
    _hf("swin", "SwinConfig", "SwinForImageClassification", (64, 96), **_HF_SWIN),
    _hf("swin eager", "SwinConfig", "SwinForImageClassification", (64, 96), attention="eager", **_HF_SWIN),
    _hf("swinv2", "Swinv2Config", "Swinv2ForImageClassification", (64, 96), attention=None, **_HF_SWIN),
    _hf("donut_swin", "DonutSwinConfig", "DonutSwinForImageClassification", (64, 96), attention=None, **_HF_SWIN),
    _hf(
        "hiera",
        "HieraConfig",
        "HieraForImageClassification",
        (64, 64),
        image_size=[64, 64],
        embed_dim=16,
        depths=[1, 2, 2, 1],
        num_heads=[1, 2, 4, 8],
        attention=None,
    ),
    _hf(
        "pvt",
        "PvtConfig",
        "PvtForImageClassification",
        (64, 64),
        attention=None,
        image_size=64,
        num_attention_heads=[1, 1, 2, 2],
        **_HF_STAGES,
    ),
    _hf(
        "pvt_v2",
        "PvtV2Config",
        "PvtV2ForImageClassification",
        (64, 64),
        attention=None,
        image_size=64,
        num_attention_heads=[1, 1, 2, 2],
        **_HF_STAGES,
    ),
    _hf(
        "segformer",
        "SegformerConfig",
        "SegformerForImageClassification",
        (64, 96),
        attention=None,
        num_attention_heads=[1, 1, 2, 2],
        **_HF_STAGES,
    ),
    _hf(
        "glpn",
        "GLPNConfig",
        "GLPNModel",
        (64, 96),
        read="mean",
        attention=None,
        num_attention_heads=[1, 1, 2, 2],
        hidden_size=32,
        **_HF_STAGES,
    ),
    _hf(
        "cvt",
        "CvtConfig",
        "CvtForImageClassification",
        (64, 96),
        attention=None,
        embed_dim=[8, 16, 32],
        num_heads=[1, 2, 2],
        depth=[1, 2, 3],
    ),
    _hf(
        "levit",
        "LevitConfig",
        "LevitForImageClassification",
        (128, 128),
        attention=None,
        image_size=128,
        hidden_sizes=[32, 32, 32],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    _hf(
        "mobilevit",
        "MobileViTConfig",
        "MobileViTForImageClassification",
        (128, 128),
        attention=None,
        image_size=128,
        hidden_sizes=[16, 16, 32],
        neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        num_attention_heads=2,
    ),
    _hf(
        "mobilevitv2",
        "MobileViTV2Config",
        "MobileViTV2ForImageClassification",
        (64, 128),
        "otherwise",
        attention=None,
        image_size=128,
        base_attn_unit_dims=[16, 16, 32],
        n_attn_blocks=[1, 1, 1],
    ),
    _hf(
        "swiftformer",
        "SwiftFormerConfig",
        "SwiftFormerForImageClassification",
        (64, 96),
        "otherwise",
        attention=None,
        embed_dims=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
    ),
    _hf(
        "poolformer",
        "PoolFormerConfig",
        "PoolFormerForImageClassification",
        (64, 64),
        "none",
        attention=None,
        **_HF_STAGES,
    ),
    _hf("convnext", "ConvNextConfig", "ConvNextForImageClassification", (64, 64), "none", attention=None, **_HF_STAGES),
    _hf(
        "focalnet",
        "FocalNetConfig",
        "FocalNetForImageClassification",
        (64, 64),
        "none",
        attention=None,
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
    ),
    _hf(
        "resnet",
        "ResNetConfig",
        "ResNetForImageClassification",
        (64, 64),
        "none",
        attention=None,
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
    ),
]

FAMILIES: dict[str, Family] = {family.name: family for family in [*_TIMM, *_TORCHVISION, *_HF]}
