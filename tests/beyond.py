"""Small models of other things than one label an image: segmentation, depth, detection, clips, images and texts.

Built from configurations, with weights from a fixed seed; nothing is downloaded.
"""

from __future__ import annotations

from functools import cache

import torch
import transformers
from torch import Tensor, nn

from tests.zoo import randomise

CLASSES = 5
QUERIES = 6
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def images(batch: int = 2, height: int = 64, width: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def clips(batch: int = 2, frames: int = 4, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


@cache
def segformer() -> nn.Module:
    """Scores at a quarter of the images' size."""
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 16, 32, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=32,
        num_labels=CLASSES,
    )
    return randomise(transformers.SegformerForSemanticSegmentation(config), 1).eval()


@cache
def dpt() -> nn.Module:
    """Depth, of images of 64 × 64."""
    config = transformers.DPTConfig(
        **{**TINY, "num_hidden_layers": 4},
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
    )
    model = randomise(transformers.DPTForDepthEstimation(config), 2).eval()
    nn.init.constant_(model.head.head[4].bias, 3.0)  # its last activation is a ReLU: depths above 0 have a gradient
    return model


@cache
def yolos() -> nn.Module:
    """Detection by query tokens among the patches, of images of 64 × 96."""
    config = transformers.YolosConfig(
        **TINY, image_size=[64, 96], patch_size=16, num_detection_tokens=QUERIES, num_labels=CLASSES - 1
    )
    return randomise(transformers.YolosForObjectDetection(config), 3).eval()


@cache
def detr() -> nn.Module:
    """Detection by a decoder whose queries lie nowhere."""
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=QUERIES,
        num_labels=CLASSES - 1,
    )
    return randomise(transformers.DetrForObjectDetection(config), 4).eval()


@cache
def clip() -> nn.Module:
    """Images of 32 × 32 and texts of up to ten words of fifty."""
    words = {"vocab_size": 50, "max_position_embeddings": 10, "bos_token_id": 48, "eos_token_id": 49}
    config = transformers.CLIPConfig(
        text_config={**TINY, **words}, vision_config={**TINY, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    return randomise(transformers.CLIPModel(config), 5).eval()


def texts(count: int = 3) -> Tensor:
    ids = torch.randint(0, 47, (count, 6), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 49
    return ids


@cache
def videomae() -> nn.Module:
    """Four frames of 32 × 32, two in each token; no positions, so that tokens are told apart by what they show."""
    config = transformers.VideoMAEConfig(
        **TINY, image_size=32, patch_size=8, num_frames=4, tubelet_size=2, num_labels=CLASSES
    )
    model = randomise(transformers.VideoMAEForVideoClassification(config), 6).eval()
    model.videomae.embeddings.position_embeddings.zero_()
    return model


@cache
def timesformer(attention: str = "divided_space_time") -> nn.Module:
    """Four frames of 32 × 32; no positions."""
    config = transformers.TimesformerConfig(
        **TINY, image_size=32, patch_size=8, num_frames=4, attention_type=attention, num_labels=CLASSES
    )
    model = randomise(transformers.TimesformerForVideoClassification(config), 7).eval()
    with torch.no_grad():
        model.timesformer.embeddings.position_embeddings.zero_()
        model.timesformer.embeddings.time_embeddings.zero_()
    return model
