"""Where the normalisation of the images of a run is found, in which units, and when it is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import pytest
import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2
from transformers import ViTImageProcessor

from lightning_attngrad.probe import KnownPixels, ProbeImages, ProbeSet
from tests.probe.pictures import (
    MEAN,
    RED_GREEN_BLUE,
    STD,
    WHITE,
    HookedData,
    PictureData,
    Pictures,
    column,
    photographs,
    thirteen_bands,
)
from tests.probe.runs import InHook, TinyModule, everything, run

BYTE_MEAN, BYTE_STD = [255 * value for value in MEAN], [255 * value for value in STD]
BAND_MEAN, BAND_STD = torch.linspace(900, 1500, 13), torch.linspace(200, 700, 13)


def normalised(images: Tensor) -> Tensor:
    return (images - column(MEAN)) / column(STD)


def normalised_bytes(images: Tensor) -> Tensor:
    return (images.float() - column(BYTE_MEAN)) / column(BYTE_STD)


def normalised_bands(images: Tensor) -> Tensor:
    return (images - column(BAND_MEAN)) / column(BAND_STD)


def eight_bits() -> Tensor:
    return (255 * photographs()).round().to(torch.uint8)


class Module(TinyModule):
    """Takes batches that are dictionaries; has whatever attributes are given."""

    def __init__(self, channels: int = 3, **attributes: Any) -> None:
        super().__init__(channels)
        for name, value in attributes.items():
            setattr(self, name, value)

    def _loss(self, batch: Any) -> Tensor:
        return super()._loss((batch["image"], batch["label"]))


class HookedModule(Module):
    """Normalises in its own hook, by torchvision's transform."""

    def __init__(self) -> None:
        super().__init__(normalise=v2.Normalize(MEAN, STD))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "image": self.normalise(batch["image"])}


def known_in(data: pl.LightningDataModule, module: Module | None = None, **settings: Any) -> tuple[KnownPixels, Tensor]:
    """What is known in a run, and the images as the model gets them."""
    answers: list[Any] = []
    probe = ProbeSet(ProbeImages(4, **settings))

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        assert probe.read(trainer, pl_module)
        images, _ = probe.to_device(trainer, pl_module)
        answers.extend((probe.known_pixels(trainer, pl_module, images), images))

    module = module or Module(13 if settings.get("pixel_range") == (0, WHITE) else 3)
    run("fit", module, InHook("on_train_start", body), datamodule=data, max_epochs=1)
    return answers[0], answers[1]


@dataclass
class Case:
    """A run, and what is to be found in it."""

    data: Callable[[], PictureData]
    source: str
    module: Callable[[], Module] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    pixels: Callable[[], Tensor] = photographs


CASES = {
    "arguments": Case(
        lambda: PictureData(Pictures(photographs(), normalised)),
        "arguments mean and std",
        None,
        {"mean": MEAN, "std": STD},
    ),
    "arguments in 0 to 255": Case(
        lambda: PictureData(Pictures(255 * photographs(), normalised_bytes)),
        "arguments mean and std",
        None,
        {"mean": BYTE_MEAN, "std": BYTE_STD, "pixel_range": (0, 255)},
    ),
    "arguments in counts": Case(
        lambda: PictureData(Pictures(thirteen_bands(), normalised_bands)),
        "arguments mean and std",
        None,
        {"mean": BAND_MEAN.tolist(), "std": BAND_STD.tolist(), "pixel_range": (0, WHITE)},
        lambda: thirteen_bands() / WHITE,
    ),
    "only the range": Case(
        lambda: PictureData(Pictures(thirteen_bands())),
        "argument pixel_range",
        None,
        {"pixel_range": (0, WHITE)},
        lambda: thirteen_bands() / WHITE,
    ),
    "Normalize of the data set": Case(
        lambda: PictureData(WithTransform(v2.Normalize(MEAN, STD))), "Normalize in WithTransform.transform"
    ),
    "Normalize of the data set in 0 to 255": Case(
        lambda: PictureData(WithTransform(v2.Normalize(BYTE_MEAN, BYTE_STD), 255 * photographs())),
        "Normalize in WithTransform.transform",
    ),
    "Normalize of the datamodule": Case(
        lambda: PictureData(Pictures(photographs(), normalised), val_transform=v2.Normalize(MEAN, STD)),
        "Normalize in PictureData.val_transform",
    ),
    "attributes of the datamodule": Case(
        lambda: PictureData(Pictures(photographs(), normalised), mean=torch.tensor(MEAN), std=torch.tensor(STD)),
        "PictureData.mean and PictureData.std",
    ),
    "attributes of the datamodule in 0 to 255": Case(
        lambda: PictureData(Pictures(255 * photographs(), normalised_bytes), mean=BYTE_MEAN, std=BYTE_STD),
        "PictureData.mean and PictureData.std",
    ),
    "a mean of 0 and one large std": Case(
        lambda: PictureData(
            Pictures(255 * (0.2 + 0.5 * photographs()), lambda image: image / 255),
            mean=torch.tensor(0),
            std=torch.tensor(255),
        ),
        "images that lie in [0, 1] already",
        pixels=lambda: 0.2 + 0.5 * photographs(),
    ),
    "a processor of the module": Case(
        lambda: PictureData(Pictures(photographs(), lambda image: 2 * image - 1)),
        "ViTImageProcessor in Module.processor",
        lambda: Module(processor=ViTImageProcessor()),
    ),
    "a processor of the datamodule": Case(
        lambda: PictureData(
            Pictures(photographs(), normalised), processor=ViTImageProcessor(image_mean=list(MEAN), image_std=list(STD))
        ),
        "ViTImageProcessor in PictureData.processor",
    ),
    "a processor that rescales to another range": Case(
        lambda: PictureData(
            Pictures(photographs(), lambda image: (2 * image - 0.4) / 0.1),
            processor=ViTImageProcessor(rescale_factor=2 / 255, image_mean=[0.4] * 3, image_std=[0.1] * 3),
        ),
        "ViTImageProcessor in PictureData.processor",
    ),
    "a processor that only rescales": Case(
        lambda: PictureData(
            Pictures(photographs(), lambda image: 2 * image),
            processor=ViTImageProcessor(do_normalize=False, rescale_factor=2 / 255),
        ),
        "ViTImageProcessor in PictureData.processor",
    ),
    "a hook": Case(
        lambda: HookedData(Pictures(photographs()), normalised),
        "what HookedData.on_after_batch_transfer does to a batch",
    ),
    "a hook on uint8": Case(
        lambda: HookedData(Pictures(eight_bits()), lambda images: normalised(images / 255)),
        "what HookedData.on_after_batch_transfer does to a batch",
    ),
    "a hook that only makes floats": Case(lambda: HookedData(Pictures(eight_bits()), Tensor.float), "uint8 images"),
    "a hook on 0 to 255": Case(
        lambda: HookedData(Pictures(255 * photographs()), normalised_bytes),
        "what HookedData.on_after_batch_transfer does to a batch",
    ),
    "a hook on dark uint8": Case(
        lambda: HookedData(Pictures(eight_bits() // 3), lambda images: images / 255),
        "what HookedData.on_after_batch_transfer does to a batch",
        pixels=lambda: (eight_bits() // 3) / 255,
    ),
    "a hook with the constants of the datamodule": Case(
        lambda: HookedData(Pictures(thirteen_bands()), normalised_bands, mean=BAND_MEAN, std=BAND_STD),
        "HookedData.mean and HookedData.std, by HookedData.on_after_batch_transfer",
        None,
        {"pixel_range": (0, WHITE)},
        lambda: thirteen_bands() / WHITE,
    ),
    "a hook that divides by white": Case(
        lambda: HookedData(Pictures(thirteen_bands()), lambda images: images / WHITE),
        "images that lie in [0, 1] after HookedData.on_after_batch_transfer",
        lambda: Module(13),
        pixels=lambda: thirteen_bands() / WHITE,
    ),
    "a hook after a Normalize of the data set": Case(
        lambda: HookedData(WithTransform(v2.Normalize(MEAN, STD)), lambda images: images / 4),
        "Normalize in WithTransform.transform, then HookedData.on_after_batch_transfer",
    ),
    "a hook of the module": Case(
        lambda: PictureData(Pictures(photographs())),
        "Normalize in HookedModule, by HookedModule.on_after_batch_transfer",
        HookedModule,
    ),
    "a hook that leaves values alone": Case(
        lambda: HookedData(WithTransform(v2.Normalize(MEAN, STD)), lambda images: images.flip(3).flip(3)),
        "Normalize in WithTransform.transform",
    ),
    "images in [0, 1]": Case(lambda: PictureData(Pictures(photographs())), "images that lie in [0, 1] already"),
    "images in [0, 1] that the model normalises": Case(
        lambda: PictureData(Pictures(0.1 + 0.8 * photographs())),
        "images that lie in [0, 1] already",
        lambda: Module(normalise=v2.Normalize(MEAN, STD)),
        pixels=lambda: 0.1 + 0.8 * photographs(),
    ),
    "images in [0, 255]": Case(
        lambda: PictureData(Pictures(255 * photographs())), "images that lie in [0, 255] already"
    ),
    "a timm model": Case(
        lambda: PictureData(Pictures(photographs(), lambda image: 2 * image - 1)),
        "pretrained_cfg of backbone",
        lambda: Module(backbone=timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)),
    ),
}


class WithTransform(Pictures):
    """As torchvision's data sets keep theirs."""

    def __init__(self, transform: Any, images: Tensor | None = None) -> None:
        super().__init__(photographs() if images is None else images, transform)
        self.transform = transform


@pytest.mark.parametrize("name", CASES)
def test_the_pixels_are_those_of_the_picture(name: str) -> None:
    case = CASES[name]
    known, images = known_in(case.data(), case.module and case.module(), **case.settings)
    assert known.why_not == ""
    normalisation = known.required()
    assert normalisation.source == case.source
    order = [int((images_of(name) - image).flatten(1).abs().amax(1).argmin()) for image in images]
    assert sorted(order) == [0, 1, 2, 3]
    torch.testing.assert_close(normalisation.to_pixels(images), case.pixels()[order], rtol=0, atol=1e-4)
    torch.testing.assert_close(normalisation.to_images(normalisation.to_pixels(images)), images, rtol=1e-3, atol=2e-3)


def images_of(name: str) -> Tensor:
    """The images of a case as the model gets them, in the order of the data set."""
    data = CASES[name].data()
    images = torch.stack([data.dataset[index]["image"] for index in range(4)])
    if name == "a hook of the module":
        return normalised(images)
    return data.hook(images) if data.hook is not None else images


def curve(images: Tensor) -> Tensor:
    return normalised(images.clamp_min(0).pow(0.5))


def jitter(images: Tensor) -> Tensor:
    return normalised(images * torch.rand(len(images), 1, 1, 1))


def noise(images: Tensor) -> Tensor:
    return normalised(images + 0.1 * torch.rand_like(images))


def other_order(images: Tensor) -> Tensor:
    return normalised(images).flip(1)


def by_its_own_mean(images: Tensor) -> Tensor:
    return (images - images.mean()) / images.std()


REFUSED = {
    "nothing says": (
        lambda: PictureData(Pictures(photographs(), normalised)),
        {},
        "nothing says how they were normalised",
    ),
    "arguments that do not fit": (
        lambda: PictureData(Pictures(photographs(), normalised)),
        {"mean": 0.5, "std": 0.9},
        "which no pixels in [0, 1] give",
    ),
    "arguments without their unit": (
        lambda: PictureData(Pictures(255 * photographs(), normalised_bytes)),
        {"mean": BYTE_MEAN, "std": BYTE_STD},
        "if these are in units of 0 to 255, pixel_range=(0, 255)",
    ),
    "a range that is too small": (
        lambda: PictureData(Pictures(thirteen_bands())),
        {"pixel_range": (0, 1000)},
        "or a pixel_range that holds all of [300, 2800]",
    ),
    "constants of something else": (
        lambda: PictureData(Pictures(photographs(), normalised), mean=3.2, std=1.1),
        {},
        "the PictureData.mean and PictureData.std does not fit",
    ),
    "a hook of counts without their range": (
        lambda: HookedData(Pictures(thirteen_bands()), normalised_bands),
        {},
        "; pass pixel_range=(black, white), such as (0, 4095)",
    ),
    "counts that a hook divides by 255": (
        lambda: HookedData(Pictures(thirteen_bands()), lambda images: images / 255),
        {},
        "; pass pixel_range=(black, white), such as (0, 4095)",
    ),
    "a curve": (lambda: HookedData(Pictures(photographs()), curve), {}, "it is more than a mean and std"),
    "random brightness": (lambda: HookedData(Pictures(photographs()), jitter), {}, "does not come out as one"),
    "noise": (lambda: HookedData(Pictures(photographs()), noise), {}, "does not come out as one"),
    "channels in another order": (
        lambda: HookedData(Pictures(photographs()), other_order),
        {},
        "it is more than a mean and std for each channel",
    ),
    "statistics of the batch": (
        lambda: HookedData(Pictures(photographs()), by_its_own_mean),
        {},
        "to a batch cannot be",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_not_undone(name: str) -> None:
    data, settings, words = REFUSED[name]
    channels = 13 if "range" in name or "counts" in name else 3
    known, _ = known_in(data(), Module(channels), **settings)
    assert known.normalisation is None
    assert words in known.why_not
    assert "The line to write: probe=attngrad.ProbeImages(" in known.why_not
    # Mean and std of a hook are known, and only black and white are not: then bands compare in a figure.
    assert (known.values is not None) == ("counts" in name)


def test_a_stream_has_gone_through_the_hook_already() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([{"image": image, "label": 0} for image in photographs()])

    data = HookedData(Pictures(photographs()), normalised)
    data.val_dataloader = lambda: DataLoader(Stream(), batch_size=2)  # type: ignore[method-assign]
    probe = ProbeSet(ProbeImages(4))
    answers: list[KnownPixels] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        probe.freeze(trainer)
        answers.append(probe.known_pixels(trainer, pl_module, probe.to_device(trainer, pl_module)[0]))

    callbacks = [
        InHook("on_train_start", lambda trainer, module: probe.read(trainer, module) and None),
        CollectingCallback(probe),
        InHook("on_validation_epoch_end", lambda trainer, module: trainer.sanity_checking or body(trainer, module)),
    ]
    run("fit", Module(), *callbacks, datamodule=data, max_epochs=1, num_sanity_val_steps=0)
    assert answers[0].normalisation is None
    assert "gathered behind it as validation went by" in answers[0].why_not


class CollectingCallback(pl.Callback):
    def __init__(self, probe: ProbeSet) -> None:
        self.probe = probe

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.probe.collect(batch)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "64-true"])
def test_a_hook_is_measured_in_full_precision_whatever_the_run_has(precision: str) -> None:
    answers: list[Any] = []
    probe = ProbeSet(ProbeImages(4, pixel_range=(0, WHITE)))

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        probe.read(trainer, pl_module)
        images, _ = probe.to_device(trainer, pl_module)
        answers.append(probe.known_pixels(trainer, pl_module, images).required())

    data = HookedData(Pictures(thirteen_bands()), lambda images: (images - 1354.4) / 245.72)
    run("validate", Module(13), InHook("on_validation_start", body), datamodule=data, precision=precision)
    assert answers[0].mean == pytest.approx((1354.4,) * 13, rel=1e-5)
    assert answers[0].std == pytest.approx((245.72,) * 13, rel=1e-5)


def test_the_run_is_as_it_was_without_the_question() -> None:
    """The hook draws random numbers, also in what the probe sends through it."""
    outcomes = []
    for asks in (False, True):
        probe = ProbeSet(ProbeImages(4))

        def body(trainer: pl.Trainer, pl_module: Any, probe: ProbeSet = probe, asks: bool = asks) -> None:
            if asks:
                assert probe.read(trainer, pl_module)
                probe.known_pixels(trainer, pl_module, probe.to_device(trainer, pl_module)[0])

        torch.manual_seed(0)
        module = Module()
        data = HookedData(Pictures(photographs()), jitter)
        run("fit", module, InHook("on_train_batch_end", body), datamodule=data)
        outcomes.append(everything(module))
    assert outcomes[0] == outcomes[1]


def test_kornia_as_torchgeo_uses_it() -> None:
    K = pytest.importorskip("kornia.augmentation")
    augment = K.AugmentationSequential(K.Normalize(BAND_MEAN, BAND_STD), data_keys=None, keepdim=True)
    data = HookedData(Pictures(thirteen_bands()), lambda images: augment({"image": images})["image"], aug=augment)
    known, images = known_in(data, pixel_range=(0, WHITE))
    assert known.required().source == "Normalize in HookedData, by HookedData.on_after_batch_transfer"
    assert known.required().mean == tuple(BAND_MEAN.tolist())
    pixels = known.required().to_pixels(images)
    assert sorted(float(image[list(RED_GREEN_BLUE)].mean()) for image in pixels) == pytest.approx(
        sorted((0.03 + 0.25 * photographs()).flatten(1).mean(1).tolist()), abs=1e-4
    )
    assert "kornia" in sys.modules
