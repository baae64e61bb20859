"""rfdetr: one call trains the detector, and takes no callback objects: watched through the environment.

https://github.com/roboflow/rf-detr
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image
from torch import nn

from benchmarks.clients.client import Client
from benchmarks.clients.photographs import CLASS_NAMES, crops
from benchmarks.clients.reproducible import seeded_albumentations

SIDE = 128


def _dataset(folder: Path) -> Path:
    """Photographs in COCO's format, a box around the middle of each."""
    for split, seed in (("train", 0), ("valid", 1), ("test", 2)):
        path = folder / split
        path.mkdir(parents=True, exist_ok=True)
        pixels, labels = crops(4, SIDE, seed)
        for index, picture in enumerate((255 * pixels).round().byte().permute(0, 2, 3, 1).numpy()):
            Image.fromarray(picture).save(path / f"{index}.jpg")
        box = [SIDE // 4, SIDE // 4, SIDE // 2, SIDE // 2]
        content = {
            "images": [
                {"id": index, "file_name": f"{index}.jpg", "width": SIDE, "height": SIDE}
                for index in range(len(pixels))
            ],
            "annotations": [
                {"id": i, "image_id": i, "category_id": label, "bbox": box, "area": SIDE**2 // 4, "iscrowd": 0}
                for i, label in enumerate(labels.tolist())
            ],
            "categories": [{"id": i, "name": name, "supercategory": "x"} for i, name in enumerate(CLASS_NAMES)],
        }
        (path / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def train(folder: Path, callbacks: list[Any]) -> nn.Module:
    from rfdetr import RFDETRNano
    from rfdetr.models.backbone.dinov2 import WindowedDinov2WithRegistersBackbone as Backbone

    assert not callbacks
    # DINOv2's weights lie on a hub: here they are drawn at random.
    at_random = classmethod(lambda cls, *_, config, **__: cls(config))
    with mock.patch.object(Backbone, "from_pretrained", at_random), seeded_albumentations():
        detector = RFDETRNano(
            pretrain_weights=None,
            resolution=SIDE,
            positional_encoding_size=SIDE // 16,
            num_queries=10,
            num_select=10,
            device="cpu",
        )
        detector.train(
            dataset_dir=str(_dataset(folder / "data")),
            output_dir=str(folder / "out"),
            epochs=1,
            batch_size=2,
            grad_accum_steps=1,
            num_workers=0,
            device="cpu",
            multi_scale=False,
            use_ema=False,
            run_test=False,
            tensorboard=True,
            seed=0,
        )
    return detector.model.model  # type: ignore[no-any-return]


CLIENTS = (
    Client(
        "rfdetr",
        ("rfdetr",),
        train,
        figures=("maps/overlay", "maps/film", "drift/curves"),
        says=("head_entropy and head_distance are left out.*grid_sampler_2d",),
        watched_by=[
            {
                "class_path": f"lightning_attngrad.{kind}",
                "init_args": {
                    "method": "attn_lrp",
                    "objective": {"class_path": "lightning_attngrad.QueryClass", "init_args": {"target": 1}},
                    "probe": {"num_images": 4, "model": "model", "image_key": [0, "tensors"]},
                },
            }
            for kind in ("AttentionMapMonitor", "AttentionDriftMonitor")
        ],
    ),
)
