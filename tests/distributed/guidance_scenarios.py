"""What each of two processes does with guided attention; see ``scenarios``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import lightning_attngrad as attngrad
from tests.distributed.scenarios import TIMEOUT, two_processes
from tests.integration.harness import CLASSES, TinyModule, make_trainer, seed_everything, tiny_vit

#: Of all processes together, at a step.
IMAGES_AT_ONCE, STEPS = 4, 3
WEIGHT = 3.0


class Masked(Dataset[dict[str, Any]]):
    """The same images each time, every third with an empty mask: processes have different numbers of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randn(IMAGES_AT_ONCE * STEPS, 3, 32, 32, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = torch.zeros(32, 32)
        if index % 3:
            mask[8:24, : 8 * (1 + index % 4)] = 1
        return {"image": self.images[index], "label": index % CLASSES, "mask": mask, "index": index}


class _Plain(TinyModule):
    """Nothing that differs with the share of a batch: no statistics of it, no random numbers."""

    def build(self, backbone: nn.Module) -> None:
        super().build(backbone)
        self.stem = nn.Identity()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.backbone(batch["image"]), batch["label"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class _Sharded(_Plain):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for block in self.backbone.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)  # type: ignore[arg-type]
        fully_shard(self.backbone, mesh=mesh)


def guided_weights(kind: type[TinyModule], weight: float | None, processes: int = 1, **options: Any) -> dict[str, Any]:
    """The parameters of a guided run, whole; with ``weight=None`` of one without the callback."""
    seed_everything(0)
    module = kind(tiny_vit())
    guidance = [] if weight is None else [attngrad.AttentionGuidance("mask", weight, model="backbone", largest=0.5)]
    # Lightning's own sampler shuffles: at each step, both processes together are to see the images of one.
    trainer = make_trainer(guidance, max_epochs=1, use_distributed_sampler=False, **options)
    images, rank = Masked(), torch.distributed.get_rank() if processes > 1 else 0
    mine = range(rank, len(images), processes)
    trainer.fit(module, DataLoader(images, batch_size=IMAGES_AT_ONCE // processes, sampler=mine))
    whole = (getattr(value, "full_tensor", lambda value=value: value)() for value in module.parameters())
    weights = {name: value.detach() for (name, _), value in zip(module.named_parameters(), whole, strict=True)}
    sharded = sum(hasattr(parameter, "to_local") for parameter in module.parameters())
    return {"weights": weights, "sharded": sharded, "steps": trainer.global_step}


def guided(directory: Path) -> dict[str, Any]:
    runs = (("guided", WEIGHT), ("weight 0", 0.0), ("without", None))
    return {name: guided_weights(_Plain, weight, 2, **two_processes()) for name, weight in runs}


def guided_sharded(directory: Path) -> dict[str, Any]:
    def strategy() -> dict[str, Any]:
        sharding = ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            process_group_backend="gloo",
            timeout=timedelta(seconds=TIMEOUT),
        )
        return {"strategy": sharding, "devices": 2}

    runs = (("guided", WEIGHT), ("weight 0", 0.0), ("without", None))
    return {name: guided_weights(_Sharded, weight, 2, **strategy()) for name, weight in runs}


def guided_in_one_process(weight: float | None) -> dict[str, Tensor]:
    """On whole batches, as both processes have halves of them."""
    weights: dict[str, Tensor] = guided_weights(_Plain, weight)["weights"]
    return weights


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (guided, guided_sharded)
