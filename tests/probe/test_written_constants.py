"""Means and standard deviations that are written in transforms, on datamodules, in modules and on processors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision.transforms import v2
from transformers import CLIPImageProcessor, CLIPProcessor, ViTImageProcessor

from lightning_attngrad.probe import Normalisation
from lightning_attngrad.probe.written_constants import of_datamodule, of_module, of_processors
from tests.probe.runs import Data, Images, InHook, TinyModule, run, set_of

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
V1 = torchvision.transforms.Normalize(MEAN, STD)
V2 = v2.Normalize(list(MEAN), list(STD))


def stated(dataset: Any = None, *, datamodule: Any = None) -> Normalisation | None:
    """What the transforms of a run say."""
    answers: list[Any] = []
    probe = set_of(2)

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        probe.read(trainer, pl_module)
        answers.append(probe.stated_normalisation(trainer, pl_module))

    loader = DataLoader(dataset or Images(), batch_size=4)
    run("fit", TinyModule(), InHook("on_train_start", body), loader=loader, datamodule=datamodule, max_epochs=1)
    return answers[0]  # type: ignore[no-any-return]


def transformed(transform: Any, attribute: str = "transform") -> Images:
    dataset = Images()
    setattr(dataset, attribute, transform)
    return dataset


class Noise:
    """Has a mean and a std, and is no normalisation."""

    mean, std = 0.1, 0.2


@pytest.mark.parametrize(
    "dataset",
    [
        transformed(V1),
        transformed(V2),
        transformed(torchvision.transforms.Compose([Noise(), torchvision.transforms.ToTensor(), V1])),
        transformed(v2.Compose([v2.Resize(8), v2.Compose([V2])])),
        transformed(nn.Sequential(v2.Resize(8), V2)),
        transformed(torchvision.datasets.vision.StandardTransform(V1, None), "transforms"),
        transformed(torchvision.transforms._presets.ImageClassification(crop_size=8, mean=MEAN, std=STD)),
        Subset(transformed(V1), range(4)),
        ConcatDataset([Subset(transformed(V1), range(4))]),
    ],
)
def test_normalize_of_the_validation_data_set(dataset: Any) -> None:
    result = stated(dataset)
    assert result is not None
    assert result.mean == pytest.approx(MEAN)
    assert result.std == pytest.approx(STD)
    assert (result.certain, result.pixel_range) == (True, (0, 1))
    assert result.source.startswith(("Normalize in Images.transform", "ImageClassification in Images.transform"))


def test_normalize_of_the_transforms_of_the_datamodule() -> None:
    other = v2.Normalize([0.0] * 3, [1.0] * 3)
    for attributes in (
        {"transform": V1},
        {"val_transform": [V1], "a_transform": other},
        {"test_transforms": {"image": V1}, "transform": other},
    ):
        result = stated(datamodule=Data(**attributes))
        assert result is not None
        assert (result.mean, result.certain) == (MEAN, False)
    assert stated(datamodule=Data(train_transform=V1)) is None
    assert stated(datamodule=Data(target_transform=V1)) is None


def test_the_datamodule_s_own_numbers_and_augmentations() -> None:
    augment = nn.Sequential(v2.RandomHorizontalFlip(), nn.Sequential(V2))
    found = list(of_datamodule(Data(aug=augment, mean=torch.tensor(0), std=torch.tensor(255))))
    assert [(one.mean, one.pixel_range, one.source) for one in found] == [
        (MEAN, (0.0, 1.0), "Normalize in Data"),
        ((0.0,), None, "Data.mean and Data.std"),
    ]
    assert not any(one.certain for one in found)
    assert list(of_datamodule(None)) == []


@pytest.mark.parametrize(
    "numbers",
    [{"mean": 1.0}, {"mean": "a", "std": "b"}, {"mean": [0.1, 0.2], "std": [0.3]}, {"mean": 0.0, "std": 0.0}],
)
def test_attributes_that_are_no_mean_and_std_are_left_alone(numbers: dict[str, Any]) -> None:
    assert list(of_datamodule(Data(**numbers))) == []


def test_normalize_inside_a_module_and_where_kornia_keeps_its_numbers() -> None:
    class Normalize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flags = {"mean": torch.tensor([124.0]), "std": torch.tensor([58.0])}

    found = list(of_module(nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(Normalize()), nn.LayerNorm(3)), "Net"))
    assert [(one.mean, one.std, one.pixel_range, one.source) for one in found] == [
        ((124.0,), (58.0,), None, "Normalize in Net")
    ]


@pytest.mark.parametrize(
    ("options", "mean", "pixel_range"),
    [
        ({}, (0.5,) * 3, (0.0, 1.0)),
        ({"do_normalize": False}, (0.0,), (0.0, 1.0)),
        ({"rescale_factor": 1 / 127.5}, (0.5,) * 3, (0.0, 2.0)),
        ({"do_rescale": False}, (0.5,) * 3, (0.0, 1.0)),
        ({"do_rescale": False, "image_mean": [124.0], "image_std": [58.0]}, (124.0,), None),
    ],
)
def test_processors(options: dict[str, Any], mean: tuple[float, ...], pixel_range: Any) -> None:
    (found,) = of_processors([SimpleNamespace(preparation=ViTImageProcessor(**options)), None])
    assert (found.mean, found.pixel_range, found.certain) == (mean, pixel_range, False)
    assert found.source == "ViTImageProcessor in SimpleNamespace.preparation"


def test_bytes_are_rescaled_to_both_sides_of_zero() -> None:
    from transformers import EfficientNetImageProcessor

    processor = EfficientNetImageProcessor(do_normalize=False, rescale_factor=1 / 127.5, rescale_offset=True)
    (found,) = of_processors([SimpleNamespace(processor=processor)])
    assert found.pixel_range == (-1.0, 1.0)


def test_a_processor_of_images_and_text_is_asked_for_its_part() -> None:
    processor = CLIPProcessor.__new__(CLIPProcessor)  # its tokenizer needs files
    processor.image_processor = CLIPImageProcessor()
    (found,) = of_processors([SimpleNamespace(processor=processor, mean=3, other=Noise())])
    assert found.mean[0] == pytest.approx(0.48145466)
