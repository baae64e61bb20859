"""anomalib: Dinomaly, whose frozen ViT gives features of eight of twelve layers to a decoder that is trained.

https://anomalib.readthedocs.io
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import timm
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Dinomaly
from torch import Tensor, nn

import lightning_attngrad as attngrad
from benchmarks.clients.client import Client
from benchmarks.clients.photographs import folder_of

_CREATE = timm.create_model


def _at_random(name: str, **options: Any) -> Any:
    """DINOv2's weights lie on a hub: here they are drawn at random."""
    return _CREATE(name, **{**options, "pretrained": False})


def dinomaly(folder: Path, callbacks: list[Any]) -> nn.Module:
    images = folder_of(folder / "images", 16, 64)
    data = Folder(
        name="photographs",
        root=images,
        normal_dir="cat",
        abnormal_dir="cup",
        train_batch_size=2,
        eval_batch_size=2,
        num_workers=0,
        seed=0,
    )
    with mock.patch.object(timm, "create_model", _at_random):
        model = Dinomaly(
            encoder_name="vit_small_patch14_reg4_dinov2",
            pre_processor=Dinomaly.configure_pre_processor(image_size=(64, 64), crop_size=56),
            visualizer=False,
        )
    engine = Engine(
        max_steps=2, callbacks=callbacks, default_root_dir=folder, accelerator="cpu", devices=1, logger=False
    )
    engine.fit(model=model, datamodule=data)
    return model


def anomaly_score(output: Any) -> Tensor:
    return output.pred_score


def encoder(module: Any, images: Tensor) -> Tensor:
    """The frozen ViT, behind the module's own resizing, cropping and normalising."""
    return module.model.encoder.feature_extractor(module.pre_processor(images))


def watch_score() -> list[Any]:
    return [attngrad.AttentionMapMonitor(num_images=2, objective=anomaly_score)]


def watch_encoder() -> list[Any]:
    images = attngrad.ProbeImages(num_images=2, forward=encoder)
    return [
        attngrad.AttentionMapMonitor(probe=images, objective="start"),
        attngrad.AttentionDriftMonitor(probe=images, objective="start"),
    ]


PACKAGES = ("anomalib",)
CLIENTS = (
    Client("anomalib: Dinomaly, its encoder", PACKAGES, dinomaly, watch_encoder),
    Client(
        "anomalib: Dinomaly, its score",
        PACKAGES,
        dinomaly,
        watch_score,
        figures=(),
        refused=r"switched off.*'model.decoder.0.attn' tokens mix by a product .* that is no softmax attention",
        says=(r"attngrad: what 1 monitor",),
    ),
)
