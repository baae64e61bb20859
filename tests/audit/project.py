"""What a user has: a LightningModule and its data, in one file, in the ways that people write them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset


class Squares(Dataset[tuple[Tensor, int]]):
    """A bright square whose place is the class."""

    classes = ("top left", "top right", "bottom")

    def __init__(self, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = 0.3 * torch.rand(length, 3, 16, 16, generator=generator)
        self.targets = [index % 3 for index in range(length)]
        for image, target in zip(self.images, self.targets, strict=True):
            top, left = ((0, 0), (0, 8), (8, 4))[target]
            image[:, top : top + 8, left : left + 8] += 0.3

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __init__(self, length: int, seed: int) -> None:
        self.squares = Squares(length, seed)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self.squares[index] for index in range(len(self.squares)))


class SquaresData(pl.LightningDataModule):
    """Batches of two validation images: a stream has to give several."""

    def __init__(self, seed: int = 1, stream: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.validation = (Stream if stream else Squares)(9, seed)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Squares(96, 0), 4)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.validation, 2)


def network(width: int = 16) -> nn.Module:
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=width, depth=1, num_heads=2, num_classes=3)


class WithNetwork(pl.LightningModule):
    """Is given its network, so that a checkpoint cannot tell how it is made."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Classifier(WithNetwork):
    """Saves its hyper-parameters."""

    def __init__(self, width: int) -> None:
        super().__init__(network(width))
        self.save_hyperparameters()


class Configured(WithNetwork):
    """Is written for LightningCLI, and saves nothing."""

    def __init__(self, width: int, name: str = "squares") -> None:
        super().__init__(network(width))


class Linked(WithNetwork):
    """Two of its arguments are filled in from the data, by a CLI with links; saves nothing."""

    def __init__(self, width: int, class_count: int, contrast: float = 1.0) -> None:
        super().__init__(network(width))
        assert class_count == 3
        self.contrast = contrast

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * self.contrast)


class LinkedData(SquaresData):
    """Knows how many classes there are."""

    class_count = 3

    def __init__(self, seed: int = 1, contrast: float = 1.0) -> None:
        super().__init__(seed)
        self.contrast = contrast


class BuiltInSetup(WithNetwork):
    """Learns the number of classes from its data, as many do, so that there are no weights before that."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Identity())
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        if isinstance(self.net, nn.Identity):
            assert len(self.trainer.datamodule.validation.classes) == 3
            self.net = network(self.hparams["width"])


class Conf(WithNetwork):
    """All hyper-parameters in one."""

    def __init__(self, conf: Any) -> None:
        super().__init__(network(conf["width"]))
        self.save_hyperparameters(conf)


def with_network() -> WithNetwork:
    return WithNetwork(network())


def validation_loader() -> DataLoader[Any]:
    return DataLoader(Squares(9, 1), 2)


def nothing_of_the_kind() -> dict[str, int]:
    return {}


def broken() -> WithNetwork:
    raise OSError("the disk is\nfull")


A_NUMBER = 3
