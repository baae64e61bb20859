from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding, BatchFeature
from transformers.modeling_outputs import ModelOutput

from lightning_attngrad.probe import (
    ModelPathError,
    ProbeInputError,
    load_batch_adapter,
    resolve_model,
    split_batch,
)
from lightning_attngrad.probe.resolve import IMAGE_KEYS, TARGET_KEYS

IMAGES = torch.rand(2, 3, 8, 8)
TARGETS = torch.tensor([1, 0])
Pair = namedtuple("Pair", ["label", "image"])


@dataclass
class Sample:
    name: str
    img: Tensor
    y: Tensor


@dataclass
class Output(ModelOutput):
    pixel_values: Any = None
    labels: Any = None


def swap(batch: Any) -> tuple[Tensor, Tensor | None]:
    return batch[1], batch[0]


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, TARGETS),
        [IMAGES, TARGETS],
        (IMAGES, TARGETS, torch.rand(2)),
        {"pixel_values": IMAGES, "labels": TARGETS},
        UserDict(image=IMAGES, target=TARGETS),
        BatchEncoding({"pixel_values": IMAGES, "labels": TARGETS}),
        BatchFeature({"pixel_values": IMAGES, "labels": TARGETS}),
        Output(pixel_values=IMAGES, labels=TARGETS),
        Pair(label=TARGETS, image=IMAGES),
        Sample("a", IMAGES, TARGETS),
        {"image": "a/path.png", "x": IMAGES, "y": TARGETS},
        {"label": ["cat", "dog"], "x": IMAGES, "y": TARGETS},
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_known_forms(batch: Any) -> None:
    images, targets = split_batch(batch)
    assert images is IMAGES
    assert targets is not None
    assert targets.tolist() == [1, 0]


@pytest.mark.parametrize("key", IMAGE_KEYS)
def test_every_well_known_image_key(key: str) -> None:
    assert split_batch({"unrelated": TARGETS, key: IMAGES})[0] is IMAGES


@pytest.mark.parametrize("key", TARGET_KEYS)
def test_every_well_known_target_key(key: str) -> None:
    assert split_batch({"unrelated": TARGETS, "image": IMAGES, key: TARGETS})[1] is not None


def test_a_bare_tensor_has_no_targets() -> None:
    assert split_batch(IMAGES) == (IMAGES, None)


@pytest.mark.parametrize(
    ("batch", "key"),
    [
        ({"inputs": {"image": IMAGES}, "y": TARGETS}, "inputs.image"),
        ({"inputs": {"image": IMAGES}, "y": TARGETS}, ["inputs", "image"]),
        ({"inputs.image": IMAGES, "y": TARGETS}, "inputs.image"),
        ({"views": [torch.rand(2, 3, 4, 4), IMAGES], "y": TARGETS}, ("views", 1)),
        ({"views": [torch.rand(2, 3, 4, 4), IMAGES], "y": TARGETS}, "views.1"),
        ({0: IMAGES, "y": TARGETS}, 0),
        ({0: IMAGES, "y": TARGETS}, "0"),
        ((torch.rand(2, 3, 4, 4), IMAGES, TARGETS), 1),
        ((torch.rand(2, 3, 4, 4), TARGETS, IMAGES), -1),
        (Sample("a", IMAGES, TARGETS), "img"),
    ],
)
def test_image_key_by_name_path_and_index(batch: Any, key: Any) -> None:
    images, targets = split_batch(batch, image_key=key)
    assert images is IMAGES
    assert targets is not None
    assert targets.tolist() == [1, 0]


def test_target_key() -> None:
    batch = {"image": IMAGES, "labels": TARGETS, "fine": {"class": 1 - TARGETS}}
    _, targets = split_batch(batch, target_key="fine.class")
    assert targets is not None
    assert targets.tolist() == [0, 1]


def test_batch_adapter_as_callable_and_import_path() -> None:
    batch = [TARGETS, IMAGES]
    for adapter in (swap, f"{__name__}.swap", f"{__name__}:swap"):
        images, targets = split_batch(batch, batch_adapter=adapter)
        assert images is IMAGES
        assert targets is not None
        assert targets.tolist() == [1, 0]
    assert split_batch(batch, batch_adapter=lambda batch: (batch[1], None))[1] is None
    assert load_batch_adapter(None) is None


@pytest.mark.parametrize("adapter", ["nodots", "no.such.module", f"{__name__}.nothing", f"{__name__}.IMAGES", 3])
def test_a_batch_adapter_that_cannot_be_called_is_refused(adapter: Any) -> None:
    with pytest.raises(ValueError, match="batch_adapter: got"):
        load_batch_adapter(adapter)


def test_a_batch_adapter_must_return_a_pair_with_images() -> None:
    with pytest.raises(ProbeInputError, match=r"batch_adapter: it returned float32\[2, 3, 8, 8\]; expected a pair"):
        split_batch(IMAGES, batch_adapter=lambda batch: batch)
    with pytest.raises(ProbeInputError, match=r"batch_adapter: the images are int64\[2\]"):
        split_batch(IMAGES, batch_adapter=lambda batch: (TARGETS, None))


@pytest.mark.parametrize(
    ("batch", "path"),
    [
        ({"views": {"one": IMAGES}, "y": TARGETS}, r"such as \['views', 'one'\]"),
        ((TARGETS, [{"deep": [TARGETS, IMAGES]}]), r"such as \[1, 0, 'deep', 1\]"),
        ({"photo": IMAGES}, r"such as \['photo'\]"),
        ({"y": TARGETS}, r"such as \[0, 0\]"),
    ],
)
def test_images_that_are_further_inside_are_pointed_to(batch: Any, path: str) -> None:
    with pytest.raises(ProbeInputError, match=path):
        split_batch(batch)


def test_a_batch_without_images_is_described() -> None:
    batch = {"input_ids": torch.zeros(2, 5, dtype=torch.long), "views": [torch.rand(2, 3), "text"]}
    with pytest.raises(ProbeInputError) as caught:
        split_batch(batch)
    message = str(caught.value)
    assert "'input_ids': int64[2, 5]" in message
    assert "'views': list(float32[2, 3], str)" in message
    assert "image_key" in message
    assert "batch_adapter" in message


@pytest.mark.parametrize("batch", [(IMAGES.byte(), TARGETS), {"image": IMAGES.byte()}, IMAGES.byte()])
def test_uint8_images_get_an_error_of_their_own_unless_they_are_allowed(batch: Any) -> None:
    with pytest.raises(ProbeInputError, match=r"the images are uint8 \[2, 3, 8, 8\].*convert them to float"):
        split_batch(batch)
    assert split_batch(batch, require_float=False)[0].dtype == torch.uint8


@pytest.mark.parametrize("batch", [IMAGES[:, :, None], {"image": IMAGES[:, :, None]}, (IMAGES[:, :, None], TARGETS)])
def test_a_volume_is_called_one(batch: Any) -> None:
    with pytest.raises(ProbeInputError, match=r"are float32\[2, 3, 1, 8, 8\], a volume or a clip, .*ClipStrip"):
        split_batch(batch)
    assert split_batch((IMAGES[:, :, None], IMAGES))[0] is IMAGES  # beside images it is no matter


@pytest.mark.parametrize("key", ["nothing", "image.nothing", ["image", 7, 7, 7, 7], 4])
def test_a_key_that_leads_nowhere_is_refused(key: Any) -> None:
    with pytest.raises(ProbeInputError, match=r"image_key: got .*the batch contains dict\('image'"):
        split_batch({"image": IMAGES}, image_key=key)
    with pytest.raises(ProbeInputError, match="target_key: got 'nothing'"):
        split_batch({"image": IMAGES}, target_key="nothing")


def test_a_key_that_leads_to_something_else_is_refused() -> None:
    with pytest.raises(ProbeInputError, match=r"image_key: the images are int64\[2\]; expected a floating tensor"):
        split_batch((IMAGES, TARGETS), image_key=1)
    with pytest.raises(ProbeInputError, match="image_key: the images are float32"):
        split_batch(IMAGES[0])


def test_resolve_model() -> None:
    module = nn.ModuleDict({"net": nn.Sequential(nn.Linear(1, 1), nn.ReLU())})
    assert resolve_model(module, None) is module
    assert resolve_model(module, "net") is module["net"]
    assert resolve_model(module, "net.1") is module["net"][1]
    compiled = nn.ModuleDict({"net": torch.compile(module["net"])})
    assert resolve_model(compiled, "net.1") is module["net"][1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("backbone", r"'backbone', but the LightningModule has no attribute 'backbone'; expected one of \['net'\]"),
        ("net.5", r"net has no attribute '5'; expected one of \['0'\]"),
        ("net.0.weight", "which is a Parameter; expected the path of an nn.Module"),
        ("net.0.weight.nothing", "net.0.weight has no attribute 'nothing'"),
    ],
)
def test_a_wrong_path_lists_what_there_is(path: str, message: str) -> None:
    module = nn.ModuleDict({"net": nn.Sequential(nn.Linear(1, 1))})
    with pytest.raises(ModelPathError, match=message):
        resolve_model(module, path)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_a_lightning_module_without_a_forward_needs_a_path(package: str) -> None:
    base: Any = pytest.importorskip(package).LightningModule

    class NoForward(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 1)

    class Forward(NoForward):
        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)  # type: ignore[no-any-return]

    class LightningModule(base):  # type: ignore[misc]
        """A base class of a user's own, of the same name."""

        def forward(self, images: Tensor) -> Tensor:
            return images

    module = NoForward()
    with pytest.raises(ModelPathError, match=r"NoForward defines no forward\(\).*one of \['net'\].*as forward"):
        resolve_model(module, None)
    assert resolve_model(module, "net") is module.net
    assert resolve_model(module, None, needs_forward=False) is module
    for other in (Forward(), type("Further", (LightningModule,), {})()):
        assert resolve_model(other, None) is other
