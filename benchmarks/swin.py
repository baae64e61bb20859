"""A small Swin that learns the composites from a fine-tuned ViT: no pretrained Swin is in any package registry.

Its features are fitted to those of the ViT of :mod:`benchmarks.backbone` at two stages, and its classes to the labels
and to the ViT's own probabilities. One thread needs more than an hour; the weights are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.stamps import MEAN, STD, Scene

COMPOSITES, BATCH, STEPS, WARM_UP = 4096, 16, 4000, 300
LEARNING_RATE = 5e-4


def network(size: int, class_count: int) -> nn.Module:
    """Windows of 7×7, shifted, and patches of 4 pixels in four stages; 11 M parameters, at random."""
    return timm.models.swin_transformer.SwinTransformer(
        img_size=size,
        num_classes=class_count,
        window_size=7,
        embed_dim=64,
        depths=(2, 2, 4, 2),
        num_heads=(2, 4, 8, 16),
        drop_path_rate=0.0,
    )


def learn(model: nn.Module, teacher: nn.Module, scene: Scene, seed: int = 0) -> None:
    """Fit a network of :func:`network` to composites and to what the teacher makes of them."""
    torch.manual_seed(seed)
    pixels, labels, tokens, logits = _composites(teacher, scene)
    mean = tokens.float().mean((0, 1, 2))
    spread = (tokens.float() - mean).var()
    stages: list[Tensor] = []
    handle = model.get_submodule("layers.2").register_forward_hook(lambda *given: stages.append(given[2]))
    at_third, at_last = nn.Linear(256, tokens.shape[-1]), nn.Linear(512, tokens.shape[-1])
    parameters = [*model.parameters(), *at_third.parameters(), *at_last.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / STEPS)) / 2
    )
    normalise = _normalisation()
    model.train()
    for step in range(STEPS):
        place = step * BATCH % len(pixels)
        if place == 0:
            order = torch.randperm(len(pixels))
        chosen = order[place : place + BATCH]
        images, target = normalise(pixels[chosen].float() / 255), tokens[chosen].float() - mean
        if torch.rand(()) < 0.5:
            images, target = images.flip(-1), target.flip(2)
        images = images + 0.2 * torch.randn(len(images), 1, 1, 1)
        stages.clear()
        features = model.forward_features(images)  # type: ignore[operator]
        found = model.forward_head(features)  # type: ignore[operator]
        loss = _feature_loss(at_third(stages[0]), target, spread) + _feature_loss(at_last(features), target, spread)
        loss = 2 * loss + F.cross_entropy(found, labels[chosen]) / 2
        loss = loss + F.kl_div(found.log_softmax(1), logits[chosen].softmax(1), reduction="batchmean") / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    handle.remove()
    model.zero_grad()


def _composites(teacher: nn.Module, scene: Scene) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in 0 … 255 (N, 3, H, W), labels (N,), and the teacher's tokens (N, h, w, D) and logits (N, C)."""
    pixels, labels, tokens, logits = [], [], [], []
    normalise = _normalisation()
    with torch.inference_mode():
        for _ in range(COMPOSITES // 32):
            images, label = scene.batch(32)
            features = teacher.forward_features(normalise(images))  # type: ignore[operator]
            side = math.isqrt(features.shape[1] - 1)
            of_patches = F.layer_norm(features[:, 1:], features.shape[-1:]).unflatten(1, (side, side))
            pixels.append((images * 255).byte())
            labels.append(label)
            tokens.append(of_patches.half())
            logits.append(teacher.forward_head(features))  # type: ignore[operator]
    return torch.cat(pixels).clone(), torch.cat(labels), torch.cat(tokens).clone(), torch.cat(logits).clone()


def _feature_loss(found: Tensor, target: Tensor, spread: Tensor) -> Tensor:
    """Squared distance of features (B, h, w, D), in parts of the target's variance; on the coarser grid if it fits."""
    found, target = found.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2)
    if target.shape[-1] % found.shape[-1] == 0:
        target = F.adaptive_avg_pool2d(target, found.shape[-2:])
    else:
        found = F.interpolate(found, target.shape[-2:], mode="bilinear")
    return F.mse_loss(found, target) / spread


def _normalisation() -> Callable[[Tensor], Tensor]:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return lambda pixels: (pixels - mean) / std
