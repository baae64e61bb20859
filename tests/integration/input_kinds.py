"""Modules whose ``forward`` takes more than images, each with batches of its own: what a probe has to find its way in.

Every model's output for a sample depends on all that it is given of that sample: whoever mixes up samples, or leaves
something out, gets other numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from tests.integration.harness import BATCH, CLASSES, tiny_vit

Item = Callable[[Tensor, Tensor, Tensor, int], Any]


class Items(Dataset[Any]):
    """A picture, another one, three numbers and a class each, in whatever form."""

    def __init__(self, form: Item, length: int = 8, seed: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.form = form
        self.images = torch.rand(length, 3, 32, 32, generator=generator)
        self.others = torch.rand(length, 3, 32, 32, generator=generator)
        self.numbers = torch.randn(length, 3, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.form(self.images[index], self.others[index], self.numbers[index], index % CLASSES)


class Stream(IterableDataset[Any]):
    """The same, one after the other."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return (self.items[index] for index in range(len(self.items)))


class Module(pl.LightningModule):
    """A backbone and what else goes into the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.1))  # what a run that is disturbed shows
        self.backbone = tiny_vit()
        self.of_numbers = nn.Linear(3, CLASSES)

    def of_one(self, image: Tensor) -> Tensor:
        return self.backbone(self.stem(image))  # type: ignore[no-any-return]

    def of_two(self, image: Tensor, other: Tensor) -> Tensor:
        """Each token of the first picture is beside that of the second."""
        return self.backbone(self.stem(image + 0.5 * other.flip(-1)))  # type: ignore[no-any-return]

    def of_numbers_too(self, image: Tensor, numbers: Tensor) -> Tensor:
        return self.backbone(self.stem(image)) * self.of_numbers(numbers).tanh()  # type: ignore[no-any-return]

    def run(self, batch: Any) -> Tensor:
        """As its own steps run it."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.run(batch).float().square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.run(batch).float().mean(), batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WholeDict(Module):
    def forward(self, batch: Any) -> Tensor:
        return self.of_numbers_too(batch["image"], batch["numbers"])

    def run(self, batch: Any) -> Tensor:
        return self(batch)  # type: ignore[no-any-return]


class WholeTuple(Module):
    def forward(self, batch: Any) -> Tensor:
        image, numbers, _ = batch
        return self.of_numbers_too(image, numbers)

    def run(self, batch: Any) -> Tensor:
        return self(batch)  # type: ignore[no-any-return]


class Annotated(WholeTuple):
    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        return super().forward(batch)


class Keywords(Module):
    def forward(self, input_ids: Any = None, pixel_values: Any = None, labels: Any = None) -> dict[str, Tensor]:
        assert labels is None
        logits = self.of_numbers_too(pixel_values, input_ids)
        return {"logits": logits, "features": logits.flip(1)}

    def run(self, batch: Any) -> Tensor:
        return self(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])["logits"]  # type: ignore[no-any-return]


class AnyKeywords(Module):
    def forward(self, **inputs: Any) -> Tensor:
        assert "labels" not in inputs
        return self.of_one(inputs["pixel_values"])

    def run(self, batch: Any) -> Tensor:
        return self(pixel_values=batch["pixel_values"])  # type: ignore[no-any-return]


class LeftAndRight(Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.of_two(left, right)

    def run(self, batch: Any) -> Tensor:
        return self(batch[0], batch[1])  # type: ignore[no-any-return]


class ColourAndDepth(Module):
    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        return self.of_two(rgb, depth)

    def run(self, batch: Any) -> Tensor:
        return self(batch["rgb"], batch["depth"])  # type: ignore[no-any-return]


class WithNumbers(Module):
    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        return self.of_numbers_too(image, numbers)

    def run(self, batch: Any) -> Tensor:
        return self(batch[0], batch[1])  # type: ignore[no-any-return]


class WithNumbersByName(WithNumbers):
    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        return self.of_numbers_too(x, numbers)

    def run(self, batch: Any) -> Tensor:
        return self(batch["image"], batch["numbers"])  # type: ignore[no-any-return]


class Views(Module):
    def forward(self, views: list[Tensor]) -> Tensor:
        return self.of_two(*views)

    def run(self, batch: Any) -> Tensor:
        return self(batch[0])  # type: ignore[no-any-return]


class Inner(Module):
    def forward(self, inputs: Any) -> Tensor:
        return self.of_numbers_too(inputs["image"], inputs["numbers"])

    def run(self, batch: Any) -> Tensor:
        return self(batch["inputs"])  # type: ignore[no-any-return]


class Fields(NamedTuple):
    image: Tensor
    numbers: Tensor
    label: Tensor


@dataclasses.dataclass
class Record:
    image: Tensor
    numbers: Tensor
    names: list[str]


class OfRecords(Module):
    def forward(self, batch: Any) -> Tensor:
        lengths = torch.tensor([[float(len(name))] for name in batch.names])
        return self.of_numbers_too(batch.image, batch.numbers) * lengths

    def run(self, batch: Any) -> Tensor:
        return self(batch)  # type: ignore[no-any-return]


def _records(items: list[Record]) -> Record:
    return Record(
        torch.stack([item.image for item in items]),
        torch.stack([item.numbers for item in items]),
        [item.names[0] for item in items],
    )


class BytesInside(Module):
    def forward(self, images: Tensor) -> Tensor:
        return self.of_one((images.float() / 255 - 0.5) / 0.25)

    def run(self, batch: Any) -> Tensor:
        return self(batch[0])  # type: ignore[no-any-return]


class BytesInAHook(Module):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, label = batch
        if self.trainer.training:
            images = images.flip(-1)
        return (images.float() / 255 - 0.5) / 0.25, label

    def forward(self, images: Tensor) -> Tensor:
        return self.of_one(images)

    def run(self, batch: Any) -> Tensor:
        return self(batch[0])  # type: ignore[no-any-return]


class OwnWay(Module):
    """Nothing could be guessed: the numbers go in by an attribute, under a name of their own."""

    def encode(self, image: Tensor, numbers: Tensor) -> Tensor:
        return self.of_numbers_too(image, numbers)

    def forward(self) -> Tensor:
        raise AssertionError

    def run(self, batch: Any) -> Tensor:
        return self.encode(batch["image"], batch["more"][0])


def own_way(model: Any, images: Tensor, batch: Any) -> Tensor:
    assert batch["image"] is images
    return model.encode(images, batch["more"][0])  # type: ignore[no-any-return]


def own_way_by_name(model: Any, images: Tensor, *, batch: Any) -> Tensor:
    return own_way(model, images, batch)


def _entry(name: str) -> Callable[[Any, Tensor], Any]:
    return lambda batch, images: {**batch, name: images}


def _place(place: int) -> Callable[[Any, Tensor], Any]:
    return lambda batch, images: [images if index == place else one for index, one in enumerate(batch)]


def _view(view: int) -> Callable[[Any, Tensor], Any]:
    return lambda batch, images: [_place(view)(batch[0], images), batch[1]]


def _field(batch: Any, images: Tensor) -> Any:
    return batch._replace(image=images) if isinstance(batch, tuple) else dataclasses.replace(batch, image=images)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One of them.

    Attributes:
        module: the LightningModule.
        form: of an item.
        with_images: a batch with other images in the place of those that are explained.
        says: what is said of the way in which it is run; empty where that is ``model(images)``.
        options: of ``ProbeImages``.
        pixels: likewise, how the images are normalised.
        collate: of items.
    """

    module: type[Module]
    form: Item
    with_images: Callable[[Any, Tensor], Any]
    says: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    pixels: dict[str, float] = dataclasses.field(default_factory=lambda: {"mean": 0.0, "std": 1.0})
    collate: Any = default_collate

    def loader(self, *, stream: bool = False, length: int = 8, seed: int = 2) -> Any:
        items: Any = Items(self.form, length, seed)
        return DataLoader(Stream(items) if stream else items, batch_size=BATCH, collate_fn=self.collate)

    def batch(self, indices: list[int]) -> Any:
        """Of these items, as it is collated."""
        items = Items(self.form)
        return self.collate([items[index] for index in indices])


def _as_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


KINDS: dict[str, Kind] = {
    "whole dict": Kind(
        WholeDict, lambda i, o, n, y: {"image": i, "numbers": n, "label": y}, _entry("image"), "model(batch)"
    ),
    "whole tuple": Kind(WholeTuple, lambda i, o, n, y: (i, n, y), _place(0), "model(batch)"),
    "annotated": Kind(Annotated, lambda i, o, n, y: (i, n, y), _place(0), "model(batch)"),
    "keywords": Kind(
        Keywords,
        lambda i, o, n, y: {"pixel_values": i, "input_ids": n, "labels": y},
        _entry("pixel_values"),
        "model(pixel_values=batch['pixel_values'], input_ids=batch['input_ids'])",
    ),
    "any keywords": Kind(
        AnyKeywords,
        lambda i, o, n, y: {"pixel_values": i, "labels": y},
        _entry("pixel_values"),
        "model(pixel_values=images)",
    ),
    "left and right": Kind(LeftAndRight, lambda i, o, n, y: (i, o, y), _place(0), "model(*batch[:2])"),
    "right and left": Kind(
        LeftAndRight, lambda i, o, n, y: (i, o, y), _place(1), "model(*batch[:2])", {"image_key": 1}
    ),
    "colour and depth": Kind(
        ColourAndDepth,
        lambda i, o, n, y: {"depth": o, "rgb": i, "label": y},
        _entry("rgb"),
        "model(depth=batch['depth'], rgb=batch['rgb'])",
        {"image_key": "rgb"},
    ),
    "numbers": Kind(WithNumbers, lambda i, o, n, y: (i, n, y), _place(0), "model(*batch[:2])"),
    "numbers by name": Kind(
        WithNumbersByName,
        lambda i, o, n, y: {"image": i, "numbers": n, "label": y},
        _entry("image"),
        "model(images, numbers=batch['numbers'])",
    ),
    "views": Kind(Views, lambda i, o, n, y: ([i, o], y), _view(0), "model(batch[0])"),
    "second view": Kind(Views, lambda i, o, n, y: ([i, o], y), _view(1), "model(batch[0])", {"image_key": [0, 1]}),
    "inner": Kind(
        Inner,
        lambda i, o, n, y: {"inputs": {"image": i, "numbers": n}, "y": y},
        lambda batch, images: {**batch, "inputs": {**batch["inputs"], "image": images}},
        "model(batch['inputs'])",
        {"image_key": "inputs.image"},
    ),
    "fields": Kind(
        WithNumbers,
        lambda i, o, n, y: Fields(i, n, torch.tensor(y)),
        _field,
        "model(image=batch.image, numbers=batch.numbers)",
    ),
    "records": Kind(
        OfRecords, lambda i, o, n, y: Record(i, n, ["n" * (y + 1)]), _field, "model(batch)", collate=_records
    ),
    "bytes inside": Kind(BytesInside, lambda i, o, n, y: (_as_bytes(i), y), _place(0), pixels={}),
    "bytes in a hook": Kind(
        BytesInAHook, lambda i, o, n, y: (_as_bytes(i), y), _place(0), pixels={"mean": 0.5, "std": 0.25}
    ),
    "own way": Kind(
        OwnWay,
        lambda i, o, n, y: {"image": i, "more": [n], "label": y},
        _entry("image"),
        options={"forward": own_way},
    ),
    "own way by name": Kind(
        OwnWay,
        lambda i, o, n, y: {"image": i, "more": [n], "label": y},
        _entry("image"),
        options={"forward": "tests.integration.input_kinds.own_way_by_name"},
    ),
}
