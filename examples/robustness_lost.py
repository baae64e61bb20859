"""Fine-tuning undoes robustness, and the loss does not show it.

A small ViT is first made robust in the plainest way, by training on noisy digits. Then it is fine-tuned on clean
ones, as one does with a model that somebody else has prepared, and the monitor asks after every epoch how little it
takes to rewrite a class.

    python examples/robustness_lost.py
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

import lightning_attngrad as attngrad
from lightning_attngrad.demo.data import DigitsDataModule
from lightning_attngrad.demo.models import demo_vision_transformer, load_backbone
from lightning_attngrad.demo.module import FineTuner


class NoisyFineTuner(FineTuner):
    """Trains on images with Gaussian noise; validates on clean ones."""

    noise = 1.0  # in units of the normalised images: 0.31 of the range from black to white

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        return super().training_step([images + self.noise * torch.randn_like(images), targets], batch_idx)


class Lines(L.Callback):
    """One line an evaluation."""

    def __init__(self, monitor: attngrad.RewriteRobustnessMonitor, before: Mapping[str, float | Tensor]) -> None:
        self.monitor, self.before = monitor, before

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        print("\n          accuracy   loss   median change   log ratio to the start (95 %)")
        self.line("start", self.before)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self.line(f"epoch {trainer.current_epoch + 1}", trainer.callback_metrics)

    def line(self, label: str, run: Mapping[str, float | Tensor]) -> None:
        seen = self.monitor.scalars
        accuracy, loss = float(run["val_accuracy"]), float(run["val_loss"])
        ratio, low, high = (seen[f"log_ratio{end}"] for end in ("", "_low", "_high"))
        print(
            f"{label:9} {accuracy:8.1%}  {loss:6.3f}   {255 * seen['median_linf']:8.1f}/255   "
            f"{ratio:+.2f} [{low:+.2f}, {high:+.2f}]",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noisy-epochs", type=int, default=4, metavar="N")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="of clean fine-tuning")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="that are rewritten")
    parser.add_argument("--batches", type=int, metavar="N", help="an epoch, for a quick try")
    parser.add_argument("--output", type=Path, default=Path("robustness_lost"), metavar="DIR", help="for the figures")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # the matrices are so small that threads only wait for each other

    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    limits = {"limit_train_batches": options.batches, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    model = demo_vision_transformer()
    load_backbone(model)
    data = DigitsDataModule()
    noisy = L.Trainer(max_epochs=options.noisy_epochs, logger=False, **quiet, **limits)
    noisy.fit(NoisyFineTuner(model, 10), datamodule=data)
    monitor = attngrad.RewriteRobustnessMonitor(
        probe=attngrad.ProbeImages(num_images=options.images, mean=data.mean, std=data.std),
        radii=data.radii,
        reference="start",  # the head is trained already: the start means something
        long_every=None,
    )
    trainer = L.Trainer(
        max_epochs=options.epochs,
        default_root_dir=options.output,
        logger=False,
        callbacks=[monitor, Lines(monitor, noisy.callback_metrics)],
        **quiet,
        **limits,
    )
    trainer.fit(FineTuner(model, 10), datamodule=data)
    print(f"\nfigures: {options.output / 'attngrad' / monitor.name}")


if __name__ == "__main__":
    main()
