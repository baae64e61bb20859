"""Pretrain the small backbone that `lightning-attngrad demo` starts from.

    python examples/pretrain_demo_backbone.py                 # five to ten minutes on one core
    python examples/pretrain_demo_backbone.py --compare 6     # and fine-tune from it and from scratch

Trained on: the 1,797 handwritten digits of 8×8 pixels that scikit-learn carries (the test part of the UCI set
"Optical Recognition of Handwritten Digits", Alpaydin and Kaynak, CC BY 4.0), with their labels, enlarged to 28×28
and turned, stretched, sheared, moved and bent at random. They were written and scanned by other people and machines
than the MNIST digits of the demo, of which this script's training sees none.

Everything is drawn from one seed and runs on one thread, so the same versions on the same kind of CPU give the same
file. Copy its sha256 to `lightning_attngrad/demo/models.py` when it takes the shipped one's place.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits as load_scanned_digits
from torch import Tensor, nn

from lightning_attngrad.demo.data import DIGIT_MEAN, DIGIT_STD, DigitsDataModule, load_digits, random_affine
from lightning_attngrad.demo.models import demo_vision_transformer, fill
from lightning_attngrad.demo.module import FineTuner


def scanned_digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits drawn as MNIST's are: strokes of full contrast in a frame of 28×28.

    Returns:
        Images (1797, 1, 28, 28) in [0, 1] and classes (1797,).
    """
    digits = load_scanned_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16  # (N, 1, 8, 8)
    images = F.interpolate(images, (22, 22), mode="bicubic").clamp(0, 1)
    images = ((images - 0.35) * 2.2 + 0.35).clamp(0, 1)  # the scans are grey and blurred
    return F.pad(images, (3, 3, 3, 3)), torch.from_numpy(digits.target).long()


def augment(images: Tensor, strength: float) -> Tensor:
    """Distort images; `strength` grows from 0 to 1, since a fresh model learns little from strong distortion."""
    return random_affine(
        images,
        degrees=5 + 12 * strength,
        scale=0.05 + 0.15 * strength,
        shear=0.05 + 0.2 * strength,
        shift=1 + 1.5 * strength,
        elastic=1.5 * strength,
    )


def normalise(images: Tensor) -> Tensor:
    return (images - DIGIT_MEAN) / DIGIT_STD


def pretrain(epochs: int, seed: int, batch_size: int = 32) -> nn.Module:
    """Train the demo's model to read scikit-learn's digits."""
    torch.manual_seed(seed)
    images, targets = scanned_digits()
    (other_images, other_targets), _ = load_digits()  # of the demo's training part, only to print how it transfers
    model = demo_vision_transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    began = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        strength = min(1.0, epoch / (0.6 * epochs))
        for chosen in torch.randperm(len(images)).split(batch_size)[: len(images) // batch_size]:
            loss = F.cross_entropy(model(normalise(augment(images[chosen], strength))), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 5 == 0 or epoch + 1 == epochs:
            print(
                f"epoch {epoch + 1:>3}/{epochs}   {time.perf_counter() - began:5.0f} s   "
                f"loss {loss.item():.3f}   on MNIST, which it never saw: "
                f"{accuracy(model, other_images[::8], other_targets[::8]):.1%}",
                flush=True,
            )
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    model.eval()
    predicted = torch.cat([model(normalise(batch)).argmax(1) for batch in images.split(250)])
    return float((predicted == targets).float().mean())


def backbone_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights but the head's, in half precision."""
    return {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
        if not name.startswith("head.")
    }


def compare(state: dict[str, Tensor], epochs: int, seed: int) -> None:
    """Fine-tune on the demo's digits from the backbone and from scratch, with all else equal."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for name, start in (("from the backbone", state), ("from scratch", None)):
        L.seed_everything(seed, verbose=False)
        model = demo_vision_transformer()
        if start is not None:
            fill(model, start, name)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        began = time.perf_counter()
        trainer.fit(FineTuner(model, 10), datamodule=DigitsDataModule())
        print(
            f"{epochs} epochs {name}: {time.perf_counter() - began:.0f} s, "
            f"validation accuracy {float(trainer.callback_metrics['val_accuracy']):.1%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60, help="over the 1,797 digits (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo_backbone.safetensors"))
    parser.add_argument(
        "--compare", type=int, default=0, metavar="EPOCHS", help="fine-tune from the result and from scratch"
    )
    options = parser.parse_args()

    torch.set_num_threads(1)  # sums in another order would give another file
    torch.use_deterministic_algorithms(True, warn_only=True)
    state = backbone_state(pretrain(options.epochs, options.seed))
    save_file(state, options.output, metadata={"trained_on": "scikit-learn digits", "licence": "Apache-2.0"})
    contents = options.output.read_bytes()
    print(f"{options.output}: {len(contents) / 1e6:.2f} MB, sha256 {hashlib.sha256(contents).hexdigest()}")
    if options.compare:
        compare(state, options.compare, options.seed)


if __name__ == "__main__":
    main()
