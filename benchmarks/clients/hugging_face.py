"""transformers: image classifiers in a LightningModule, on batches of their image processors; and LoRA by peft.

https://huggingface.co/docs/transformers/tasks/image_classification, https://huggingface.co/docs/peft
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_attngrad as attngrad
from benchmarks.clients.client import DRIFT, MAPS, Client
from benchmarks.clients.photographs import CLASS_NAMES, crops

SIDE = 64
_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
    "id2label": dict(enumerate(CLASS_NAMES)),
    "label2id": {name: index for index, name in enumerate(CLASS_NAMES)},
}


class OfPixels(L.LightningModule):
    """Its forward takes images and returns the model's output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Any:
        return self.model(pixel_values=pixel_values)

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch["pixel_values"]).logits, batch["labels"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([one for one in self.parameters() if one.requires_grad], lr=1e-3)


class OfBatches(OfPixels):
    """The batch of the processor is what its forward takes, and the model works out the loss."""

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def loss(self, batch: Any) -> Tensor:
        return self(**batch).loss


def _loader(count: int, seed: int, processor: Any) -> DataLoader[Any]:
    pixels, labels = crops(count, SIDE, seed)

    def collate(indices: list[int]) -> Any:
        batch = processor(images=[pixels[index] for index in indices], do_rescale=False, return_tensors="pt")
        batch["labels"] = labels[indices]
        return batch

    return DataLoader(range(count), batch_size=4, shuffle=seed == 0, collate_fn=collate)  # type: ignore[arg-type]


def _fit(module: L.LightningModule, processor: Any, folder: Path, callbacks: list[Any]) -> nn.Module:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, _loader(8, 0, processor), _loader(8, 1, processor))
    return module


def _processor(kind: str) -> Any:
    import transformers

    return getattr(transformers, kind)(size={"height": SIDE, "width": SIDE})


def vit(folder: Path, callbacks: list[Any]) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(intermediate_size=128, **_SMALL))
    return _fit(OfPixels(model), _processor("ViTImageProcessor"), folder, callbacks)


def dinov2_with_registers(folder: Path, callbacks: list[Any]) -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    model = Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(mlp_ratio=2, **_SMALL))
    return _fit(OfBatches(model), _processor("BitImageProcessor"), folder, callbacks)


def lora(folder: Path, callbacks: list[Any]) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig(intermediate_size=128, **_SMALL))
    names = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    config = LoraConfig(
        r=4, target_modules=sorted(names & {"query", "value", "q_proj", "v_proj"}), modules_to_save=["classifier"]
    )
    return _fit(OfPixels(get_peft_model(model, config)), _processor("ViTImageProcessor"), folder, callbacks)


def watch(processor: str) -> list[Any]:
    of = _processor(processor)
    images = attngrad.ProbeImages(num_images=4, mean=of.image_mean, std=of.image_std)
    return [
        attngrad.AttentionMapMonitor(probe=images),
        attngrad.AttentionDriftMonitor(probe=images),
        attngrad.RewriteRobustnessMonitor(probe=images),
    ]


def _client(name: str, packages: tuple[str, ...], train: Any, processor: str) -> Client:
    return Client(name, packages, train, lambda: watch(processor), figures=(*MAPS, *DRIFT, "rewrite/rewrites"))


_OURS = ("transformers",)
CLIENTS = (
    _client("transformers: ViTForImageClassification", _OURS, vit, "ViTImageProcessor"),
    _client("transformers: Dinov2WithRegisters", _OURS, dinov2_with_registers, "BitImageProcessor"),
    _client("peft: LoRA", ("peft", *_OURS), lora, "ViTImageProcessor"),
)
