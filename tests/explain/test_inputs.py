"""A model and images as people hand them over: what each message says to write does work."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import lightning_attngrad as attngrad
from lightning_attngrad.explain.inputs import check_images
from tests.simulated_gpu.device import SimulatedGpu
from tests.zoo import ZOO

VIT = ZOO["vit"]
IMAGES = VIT.images()  # (2, 3, 32, 48)
TRANSFORM = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
ARRAY = np.asarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3)), dtype=np.uint8)
PICTURE = Image.fromarray(ARRAY)
EXPECTED = "; expected a floating-point tensor (B, C, H, W), normalised for the model"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    PICTURE.save(path)
    return path


def message(images: Any) -> str:
    with pytest.raises(ValueError, match="images: got") as caught:
        check_images(images)
    return str(caught.value)


@pytest.mark.parametrize(
    ("images", "got", "write"),
    [
        (IMAGES[0], "torch.float32 (3, 32, 48)", "images[None]"),
        (IMAGES[0, 0], "torch.float32 (32, 48)", "images[None, None]"),
        (IMAGES[:, 0], "torch.float32 (2, 32, 48)", "images[None]"),
        (IMAGES[0].permute(1, 2, 0), "torch.float32 (32, 48, 3)", "images.permute(2, 0, 1)[None]"),
        (IMAGES.permute(0, 2, 3, 1), "torch.float32 (2, 32, 48, 3)", "images.permute(0, 3, 1, 2)"),
        (IMAGES.byte(), "torch.uint8 (2, 3, 32, 48)", "images.float() / 255"),
        (IMAGES.long(), "torch.int64 (2, 3, 32, 48)", "images.float()"),
        (ARRAY, "ndarray of uint8 (32, 48, 3)", "torch.from_numpy(images).permute(2, 0, 1)[None].float() / 255"),
        (
            np.stack([ARRAY] * 2),
            "ndarray of uint8 (2, 32, 48, 3)",
            "torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255",
        ),
        (IMAGES.double().numpy(), "ndarray of float64 (2, 3, 32, 48)", "torch.from_numpy(images).float()"),
        (PICTURE, "a picture (Image)", "transform(images)[None]"),
        ([PICTURE] * 2, "list of 2, the first a Image", "torch.stack([transform(image) for image in images])"),
        ([ARRAY], "list of 1, the first a ndarray", "torch.stack([transform(image) for image in images])"),
        (list(IMAGES), "list of 2, the first a Tensor", "torch.stack(images)"),
        ((IMAGES, torch.tensor([0, 1])), "tuple of 2, the first a Tensor", "images[0]"),
        (
            {"pixel_values": IMAGES, "labels": torch.tensor([0, 1])},
            "dict with 'pixel_values', 'labels'",
            "images['pixel_values']",
        ),
        (DataLoader(list(zip(IMAGES, [0, 1], strict=True)), 2), "DataLoader", "next(iter(images))[0]"),
        (IMAGES[:, None], "torch.float32 (2, 1, 3, 32, 48)", "strip.images(clips)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_message_says_to_write_is_a_batch_of_images(images: Any, got: str, write: str) -> None:
    said = message(images)
    assert said.startswith(f"images: got {got}{EXPECTED}. Write {write}")
    names = {"torch": torch, "images": images, "transform": TRANSFORM, "PIL": Image}
    if "ClipStrip" in said:
        names |= {"strip": attngrad.ClipStrip(frames=1), "clips": images}
    check_images(eval(write, names))


def test_a_file(file: Path) -> None:
    import PIL.Image

    for given in (file, str(file)):
        write = "transform(PIL.Image.open(images).convert('RGB'))[None]"
        assert message(given).startswith(f"images: got {type(given).__name__}{EXPECTED}. Write {write}")
        check_images(eval(write, {"PIL": PIL, "transform": TRANSFORM, "images": given}))


@pytest.mark.parametrize("images", [None, 3, [], [1, 2], {"labels": 3}, IMAGES[:0], IMAGES[..., :0]])
def test_where_nothing_can_be_said_to_write_the_message_ends(images: Any) -> None:
    assert message(images).endswith(EXPECTED)


def test_images_of_many_channels_are_not_taken_for_channels_last() -> None:
    for shape in ((2, 13, 32, 32), (1, 4, 4, 4), (2, 3, 32, 3), (1, 1, 1, 1)):
        check_images(torch.rand(shape))


def test_explain_and_rewrite_ask_alike() -> None:
    for call in (attngrad.explain, lambda model, images: attngrad.rewrite(model, images, 1, steps=1)):
        with pytest.raises(ValueError, match=r"Write images\[None\] for a single image"):
            call(VIT.build(), IMAGES[0])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Linear, "got type; expected a torch.nn.Module. This is the class: write Linear(…), with its weights"),
        ("vit_tiny", "got str; expected a torch.nn.Module. Write timm.create_model"),
        (VIT.build().forward, "got method; expected a torch.nn.Module. Give the module itself, and the function as"),
        (None, "got NoneType; expected a torch.nn.Module"),
    ],
)
def test_what_is_no_module(model: Any, says: str) -> None:
    for call in (attngrad.explain, attngrad.rewrite):
        with pytest.raises(TypeError, match=f"^model: {re.escape(says)}"):
            call(model, IMAGES)


# Images and model that do not go together: asked after torch's own error only ---------------------------------------


def explained(model: nn.Module, images: Tensor, **options: Any) -> Any:
    return attngrad.explain(model, images, **options)


def rewritten(model: nn.Module, images: Tensor, **options: Any) -> Any:
    return attngrad.rewrite(model, images, 1, steps=1, mean=0.0, std=1.0, **options)


CALLS = pytest.mark.parametrize("call", [explained, rewritten])


@CALLS
@pytest.mark.parametrize(
    ("of_model", "of_images", "mixed"),
    [
        (torch.float32, torch.float64, False),
        (torch.float32, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float64, torch.float32, False),
    ],
)
def test_another_type(call: Callable[..., Any], of_model: torch.dtype, of_images: torch.dtype, mixed: bool) -> None:
    model, images = VIT.build().to(of_model), IMAGES.sigmoid().to(of_images)
    autocast = r", or run under torch\.autocast\('cpu'\)" if mixed else ""
    says = rf"images: they are {of_images}, and the weights of \w+ are {of_model}; write images\.to\({of_model}\)"
    with pytest.raises(ValueError, match=f"^{says}{autocast}$") as caught:
        call(model, images)
    assert isinstance(caught.value.__cause__, RuntimeError)
    call(model, images.to(of_model))  # what it says to write


@CALLS
def test_another_device(call: Callable[..., Any]) -> None:
    with SimulatedGpu() as gpu:
        model = gpu.move(VIT.build())
        with pytest.raises(
            ValueError, match=r"images: they are on cpu, and \w+ is on meta; write images\.to\('meta'\)$"
        ):
            call(model, IMAGES.sigmoid())


@CALLS
@pytest.mark.parametrize(
    ("channels", "says"),
    [
        (1, r"they have 1 channel, and \w+ takes 3; write images\.expand\(-1, 3, -1, -1\)$"),
        (4, r"they have 4 channels, and \w+ takes 3; write images\[:, :3\]$"),
        (5, r"they have 5 channels, and \w+ takes 3$"),
    ],
)
def test_other_channels(call: Callable[..., Any], channels: int, says: str) -> None:
    with pytest.raises(ValueError, match=f"^images: {says}"):
        call(VIT.build(), torch.rand(2, channels, 32, 48))


@CALLS
def test_a_forward_that_brings_them_together_is_let_do_so(call: Callable[..., Any]) -> None:
    model = VIT.build().bfloat16()
    found = call(model, IMAGES.sigmoid(), forward=lambda images: model(images.bfloat16()))
    assert len(found.images) == len(IMAGES)


@CALLS
def test_an_error_of_the_model_itself_stays_what_it_is(call: Callable[..., Any]) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = VIT.build()

        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("the device is on fire")

    with pytest.raises(RuntimeError, match="the device is on fire"):
        call(Broken(), IMAGES.sigmoid())


# Values -------------------------------------------------------------------------------------------------------------


def asked(work: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    assert all(Path(warning.filename) == Path(__file__) for warning in caught), "where the user called"
    return [str(warning.message) for warning in caught if "nobody has scaled" in str(warning.message)]


def test_pictures_of_bytes_are_asked_about() -> None:
    model, images = VIT.build(), 255 * IMAGES.sigmoid()
    images[0, 0, 0, :2] = torch.tensor([0.0, 255.0])
    (of_explain,) = asked(lambda: attngrad.explain(model, images))
    assert of_explain.startswith("images: their values go from 0 to 255, as those of pictures that nobody has scaled.")
    assert "write images / 255" in of_explain
    (of_rewrite,) = asked(lambda: attngrad.rewrite(model, images, 1, steps=1))
    assert of_rewrite.endswith("If so, say pixel_range=(0, 255)")
    assert not asked(lambda: attngrad.rewrite(model, images, 1, steps=1, pixel_range=(0, 255)))


@pytest.mark.parametrize("images", [IMAGES, IMAGES.sigmoid(), IMAGES.abs(), 1e4 * IMAGES.sigmoid()])
def test_others_are_not(images: Tensor) -> None:
    assert not asked(lambda: attngrad.explain(VIT.build(), images))
