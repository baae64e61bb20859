"""The LightningModule of the demo: an ordinary classifier, and nothing in it knows about maps."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_attngrad.demo.models import build_model
from lightning_attngrad.demo.options import DEMO_MODEL


class FineTuner(L.LightningModule):
    """Fine-tunes a classifier with AdamW and a one-cycle learning rate.

    Args:
        model: From images (B, C, H, W) to logits (B, class_count).
        class_count: Number of classes.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Of matrices; vectors (biases, norms) have none.
    """

    def __init__(
        self, model: nn.Module, class_count: int, learning_rate: float = 1e-3, weight_decay: float = 0.05
    ) -> None:
        super().__init__()
        self.model = model
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.accuracy = MulticlassAccuracy(class_count, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, C, H, W)."""
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Cross-entropy of one batch."""
        images, targets = batch
        loss = F.cross_entropy(self(images), targets)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Loss and accuracy over the whole validation set."""
        images, targets = batch
        logits = self(images)
        self.accuracy(logits, targets)
        self.log("val_loss", F.cross_entropy(logits, targets), sync_dist=True)
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a short warm-up and a cosine down to nothing."""
        matrices = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=self.learning_rate,
            betas=(0.9, 0.95),  # a few hundred steps: the usual 0.999 would remember all of them
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.learning_rate,
            total_steps=max(2, int(self.trainer.estimated_stepping_batches)),
            pct_start=0.15,
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fine_tuner(model_name: str = DEMO_MODEL, class_count: int = 10, image_size: int | None = None) -> FineTuner:
    """Make the module of a demo run anew, for `lightning-attngrad audit` to fill with the weights of a checkpoint.

    Args:
        model_name: "demo" or a timm name.
        class_count: Number of classes.
        image_size: Height and width of the input, pixels; None is what the model was made for.

    Returns:
        The module, with random weights.

    Raises:
        DemoError: No such model, or no such size.
    """
    return FineTuner(build_model(model_name, class_count, image_size, pretrained=False), class_count)
