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

from lightning_attngrad.probe import Normalisation, check_normalisation, find_normalisation
from tests.probe.runs import Data, Images, InHook, TinyModule, run

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
V1 = torchvision.transforms.Normalize(MEAN, STD)
V2 = v2.Normalize(list(MEAN), list(STD))
OUTSIDE = torch.tensor([-2.0, 2.0]).expand(1, 3, 1, 2)


def found(dataset: Any = None, *, module: Any = None, datamodule: Any = None, **options: Any) -> Normalisation | None:
    answers: list[Any] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        answers.append(find_normalisation(trainer, pl_module, **options))

    loader = DataLoader(dataset or Images(), batch_size=4)
    run(
        "fit",
        module or TinyModule(),
        InHook("on_train_start", body),
        loader=loader,
        datamodule=datamodule,
        max_epochs=1,
    )
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
    result = found(dataset)
    assert result is not None
    assert result.mean == pytest.approx(MEAN)
    assert result.std == pytest.approx(STD)
    assert result.source.startswith(("Normalize in Images.transform", "ImageClassification in Images.transform"))


def test_normalize_of_the_datamodule() -> None:
    other = v2.Normalize([0.0] * 3, [1.0] * 3)
    for attributes in (
        {"transform": V1},
        {"val_transform": [V1], "a_transform": other},
        {"test_transforms": {"image": V1}, "transform": other},
    ):
        result = found(datamodule=Data(**attributes))
        assert result is not None
        assert result.mean == MEAN
    assert found(datamodule=Data(train_transform=V1)) is None
    assert found(datamodule=Data(target_transform=V1)) is None


def test_images_in_the_unit_interval_are_pixels_already() -> None:
    images = torch.rand(2, 3, 4, 4)
    result = found(images=images)
    assert result is not None
    assert torch.equal(result.to_pixels(images), images)
    assert found() is None
    assert found(images=OUTSIDE) is None


def test_the_constants_of_timm_only_for_images_outside_the_unit_interval() -> None:
    module = TinyModule()
    module.net.pretrained_cfg = {"mean": MEAN, "std": STD}
    result = found(module=module, images=OUTSIDE)
    assert result is not None
    assert (result.mean, result.source) == (MEAN, "pretrained_cfg of net")
    assert found(module=module) is None  # a wrong guess would spoil every figure
    inside = found(module=module, images=torch.rand(1, 3, 2, 2))
    assert inside is not None
    assert inside.mean == (0.0,)


def test_the_configuration_of_a_real_timm_model() -> None:
    import timm

    module = TinyModule()
    module.backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    result = found(module=module, images=OUTSIDE)
    assert result is not None
    assert result.mean == (0.5, 0.5, 0.5)


def test_arguments_win_and_go_together() -> None:
    result = found(transformed(V1), mean=[0.1], std=0.2)
    assert result == Normalisation((0.1,), (0.2,), "arguments mean and std")
    for options in ({"mean": [0.1]}, {"std": [0.1]}):
        with pytest.raises(ValueError, match="expected both, or neither"):
            find_normalisation(SimpleNamespace(), nn.Identity(), **options)  # type: ignore[arg-type]


def test_to_pixels_undoes_clamps_and_is_float32() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    normalisation = Normalisation(MEAN, STD, "test")
    assert torch.allclose(normalisation.to_pixels(V1(pixels)), pixels, atol=1e-6)
    extreme = normalisation.to_pixels(torch.tensor([-9.0, 9.0], dtype=torch.bfloat16).expand(1, 3, 1, 2))
    assert extreme.dtype == torch.float32
    assert extreme.unique().tolist() == [0.0, 1.0]


def test_one_number_fits_any_number_of_channels_and_three_do_not() -> None:
    assert Normalisation((0.5,), (0.5,), "test").to_pixels(torch.zeros(1, 1, 2, 2)).unique().tolist() == [0.5]
    with pytest.raises(ValueError, match="the images have 1 channels"):
        Normalisation(MEAN, STD, "test").to_pixels(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((), ()), ((0.5,), (0.0,))])
def test_numbers_that_do_not_fit_are_refused(mean: Any, std: Any) -> None:
    with pytest.raises(ValueError, match="got"):
        Normalisation(mean, std, "test")


def test_constants_for_other_channels_than_those_of_the_images_are_passed_over() -> None:
    module = TinyModule()
    module.net.pretrained_cfg = {"mean": MEAN, "std": STD}  # as timm keeps it with in_chans=1
    assert found(module=module, images=OUTSIDE[:, :1]) is None


@pytest.mark.parametrize("mean", ["grey", ["a"], object()])
def test_arguments_that_are_no_numbers_are_refused(mean: Any) -> None:
    with pytest.raises(ValueError, match="expected numbers"):
        check_normalisation(mean, 0.5)


def test_no_arguments_are_no_normalisation() -> None:
    assert check_normalisation(None, None) is None
