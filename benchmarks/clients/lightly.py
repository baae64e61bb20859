"""lightly: DINO, MAE and SimCLR on ViTs, the modules as its documentation writes them.

https://docs.lightly.ai/self-supervised-learning/examples/models.html
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_attngrad as attngrad
from benchmarks.clients.client import Client
from benchmarks.clients.photographs import folder_of

SIDE = 64


def _vit() -> Any:
    return timm.create_model("vit_tiny_patch16_224", img_size=SIDE, depth=2, num_classes=0)


class DINO(pl.LightningModule):
    """Student and teacher."""

    def __init__(self) -> None:
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        backbone = _vit()
        self.student_backbone = backbone
        self.student_head = DINOProjectionHead(192, 64, 32, 128, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = DINOProjectionHead(192, 64, 32, 128)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=128, warmup_teacher_temp_epochs=5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.student_backbone(x).flatten(start_dim=1)
        return self.student_head(y)

    def forward_teacher(self, x: Tensor) -> Tensor:
        y = self.teacher_backbone(x).flatten(start_dim=1)
        return self.teacher_head(y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        momentum = cosine_schedule(self.current_epoch, 10, 0.996, 1)
        update_momentum(self.student_backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.student_head, self.teacher_head, m=momentum)
        views = batch[0]
        views = [view.to(self.device) for view in views]
        global_views = views[:2]
        teacher_out = [self.forward_teacher(view) for view in global_views]
        student_out = [self.forward(view) for view in views]
        return self.criterion(teacher_out, student_out, epoch=self.current_epoch)

    def on_after_backward(self) -> None:
        self.student_head.cancel_last_layer_gradients(current_epoch=self.current_epoch)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.001)


class MAE(pl.LightningModule):
    """Without a `forward` of its own."""

    def __init__(self) -> None:
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

        super().__init__()
        self.mask_ratio = 0.75
        self.patch_size = 16
        self.backbone = MaskedVisionTransformerTIMM(vit=_vit())
        self.sequence_length = self.backbone.sequence_length
        self.decoder = MAEDecoderTIMM(
            num_patches=(SIDE // 16) ** 2,
            patch_size=self.patch_size,
            embed_dim=192,
            decoder_embed_dim=64,
            decoder_depth=1,
            decoder_num_heads=4,
            mlp_ratio=4.0,
            proj_drop_rate=0.0,
            attn_drop_rate=0.0,
        )
        self.criterion = nn.MSELoss()

    def forward_encoder(self, images: Tensor, idx_keep: Any = None) -> Tensor:
        return self.backbone.encode(images=images, idx_keep=idx_keep)

    def forward_decoder(self, x_encoded: Tensor, idx_keep: Tensor, idx_mask: Tensor) -> Tensor:
        from lightly.models import utils

        batch_size = x_encoded.shape[0]
        x_decode = self.decoder.embed(x_encoded)
        x_masked = utils.repeat_token(self.decoder.mask_token, (batch_size, self.sequence_length))
        x_masked = utils.set_at_index(x_masked, idx_keep, x_decode.type_as(x_masked))
        x_decoded = self.decoder.decode(x_masked)
        return self.decoder.predict(utils.get_at_index(x_decoded, idx_mask))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        from lightly.models import utils

        views = batch[0]
        images = views[0]
        idx_keep, idx_mask = utils.random_token_mask(
            size=(images.shape[0], self.sequence_length), mask_ratio=self.mask_ratio, device=images.device
        )
        x_encoded = self.forward_encoder(images=images, idx_keep=idx_keep)
        x_pred = self.forward_decoder(x_encoded=x_encoded, idx_keep=idx_keep, idx_mask=idx_mask)
        patches = utils.patchify(images, self.patch_size)
        target = utils.get_at_index(patches, idx_mask - 1)
        return self.criterion(x_pred, target)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1.5e-4)


class SimCLR(pl.LightningModule):
    """A backbone and a projection."""

    def __init__(self) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        super().__init__()
        self.backbone = _vit()
        self.projection_head = SimCLRProjectionHead(192, 192, 64)
        self.criterion = NTXentLoss()

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x).flatten(start_dim=1)
        return self.projection_head(x)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        (x0, x1), _, _ = batch
        return self.criterion(self.forward(x0), self.forward(x1))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.06)


def _fit(module: pl.LightningModule, transform: Any, folder: Path, callbacks: list[Any]) -> nn.Module:
    from lightly.data import LightlyDataset

    dataset = LightlyDataset(str(folder_of(folder / "images", 12, 96)), transform=transform)
    loader = DataLoader(dataset, batch_size=6, shuffle=True, drop_last=True, num_workers=0)
    trainer = pl.Trainer(
        max_epochs=2,
        devices=1,
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(model=module, train_dataloaders=loader)
    return module


def dino(folder: Path, callbacks: list[Any]) -> nn.Module:
    from lightly.transforms.dino_transform import DINOTransform

    return _fit(DINO(), DINOTransform(global_crop_size=SIDE, local_crop_size=SIDE, n_local_views=1), folder, callbacks)


def mae(folder: Path, callbacks: list[Any]) -> nn.Module:
    from lightly.transforms import MAETransform

    return _fit(MAE(), MAETransform(input_size=SIDE), folder, callbacks)


def simclr(folder: Path, callbacks: list[Any]) -> nn.Module:
    from lightly.transforms import SimCLRTransform

    return _fit(SimCLR(), SimCLRTransform(input_size=SIDE), folder, callbacks)


def watch(part: str) -> list[Any]:
    images = attngrad.ProbeImages(num_images=4, model=part)
    return [
        attngrad.AttentionMapMonitor(probe=images, objective="start"),
        attngrad.AttentionDriftMonitor(probe=images, objective="start"),
    ]


PACKAGES = ("lightly",)
CLIENTS = (
    Client("lightly: DINO", PACKAGES, dino, lambda: watch("student_backbone")),
    Client("lightly: MAE", PACKAGES, mae, lambda: watch("backbone")),
    Client("lightly: SimCLR", PACKAGES, simclr, lambda: watch("backbone")),
)
