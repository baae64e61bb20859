"""lightly-train: one function call trains, and takes no callback objects: watched through the environment.

https://github.com/lightly-ai/lightly-train, issue 333 asks for attention maps of a pretraining.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.clients.client import Client
from benchmarks.clients.photographs import folder_of
from benchmarks.clients.reproducible import seeded_albumentations


def dino(folder: Path, callbacks: list[Any]) -> nn.Module:
    """A ViT of timm, pretrained as lightly-train's documentation does it."""
    import lightly_train
    import timm

    assert not callbacks
    images = folder_of(folder / "images", 16, 96)
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=0)
    with seeded_albumentations():
        lightly_train.pretrain(
            out=str(folder / "out"),
            data=str(images),
            model=network,
            method="dino",
            epochs=2,
            batch_size=8,
            num_workers=0,
            accelerator="cpu",
            devices=1,
            transform_args={"image_size": (64, 64), "local_view": None},
            method_args={"hidden_dim": 64, "bottleneck_dim": 32, "output_dim": 128},
            callbacks={"model_export": None},
            overwrite=True,
        )
    return network


CLIENTS = (
    Client(
        name="lightly-train: DINO",
        packages=("lightly-train",),
        train=dino,
        watched_by=[
            {
                "class_path": f"lightning_attngrad.{kind}",
                "init_args": {
                    "objective": "start",
                    "probe": {"num_images": 4, "model": "student_embedding_model"},
                },
            }
            for kind in ("AttentionMapMonitor", "AttentionDriftMonitor")
        ],
    ),
    Client(
        name="lightly-train: DINO, without a word of it",
        packages=("lightly-train",),
        train=dino,
        watched_by="light",
        figures=(),
        refused="=light: AttentionMapMonitor, AttentionDriftMonitor are left out.*model='student_embedding_model'",
    ),
)
