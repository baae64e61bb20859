"""A ViT on colour photographs of 84×84 pixels: composites of five classes, and a pretrained backbone."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from benchmarks import backbone
from benchmarks.stamps import MEAN, STAMPS, STD, Scene, missing

__all__ = ["MEAN", "STAMPS", "STD", "missing", "network", "train", "validation"]

SIZE = 84
#: Class → folders of photographs below the stamps.
CLASSES = {
    "mammal": ("animals/mammals",),
    "food": ("food",),
    "plant": ("plants",),
    "thing": ("household", "hobbies", "sports"),
    "vehicle": ("vehicles", "military/vehicles"),
}
COMPOSITES_A_STAMP = 4
TRAINING_STEPS, BATCH = 250, 16


def network() -> nn.Module:
    """A ViT-S of 37 tokens, its weights at random."""
    return backbone.network(SIZE, len(CLASSES))


def train(model: nn.Module, stamps: Path) -> None:
    """Fine-tune all of the pretrained backbone on composites of the training stamps."""
    backbone.fine_tune(model, _scene(stamps, held_out=False, seed=0), TRAINING_STEPS, BATCH)


def validation(stamps: Path) -> tuple[Tensor, Tensor]:
    """Composites of stamps and parts of backgrounds that training has not seen: pixels (V, 3, 84, 84), labels (V,)."""
    images, labels, _ = _scene(stamps, held_out=True, seed=1).everything(COMPOSITES_A_STAMP)
    return images, labels


def _scene(stamps: Path, held_out: bool, seed: int) -> Scene:
    """Every fourth stamp of a class is held out."""
    return Scene(stamps, CLASSES, lambda number: (number % 4 == 3) == held_out, held_out=held_out, seed=seed, size=SIZE)
