from __future__ import annotations

import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2

from lightning_attngrad.probe import ProbeImages, ProbeInputError, ProbeSet
from lightning_attngrad.probe.given import files_of, read_pictures
from tests.probe.runs import Data, Images, InHook, TinyModule, everything, rng_state, run

SIDE = 8
TRANSFORM = v2.Compose(
    [v2.Resize((SIDE, SIDE)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
)


def grey(level: int, size: tuple[int, int] = (11, 9)) -> Image.Image:
    return Image.new("L", size, level)


def folder_of(path: Path, **levels: list[int]) -> Path:
    """A folder with a folder for each name, in which each file is of one grey."""
    for name, values in levels.items():
        (path / name).mkdir(parents=True)
        for level in values:
            grey(level).save(path / name / f"{level}.png")
    (path / "notes.txt").write_text("no image")
    return path


def levels_of(images: Tensor) -> list[int]:
    """The greys, as they were before the transform."""
    return [round(255 * (0.25 * float(image.mean()) + 0.5)) for image in images]


class WithTransform(Images):
    def __init__(self, transform: Any = TRANSFORM) -> None:
        super().__init__()
        self.transform = transform


def read(settings: ProbeImages, said: list[str] | None = None, **options: Any) -> ProbeSet:
    probe = ProbeSet(settings)
    if said is not None:
        probe.say = lambda trainer, message: said.append(message)  # type: ignore[method-assign]
    options = {"loader": DataLoader(Images(), batch_size=4), "max_epochs": 1, "module": TinyModule(), **options}
    run("fit", options.pop("module"), InHook("on_train_start", probe.read), **options)
    assert probe.is_frozen
    assert probe.source == "given"
    assert not probe.is_stream
    return probe


def seen(probe: ProbeSet, module: pl.LightningModule) -> Tensor:
    return probe.to_device(module.trainer, module)[0]


def test_a_tensor_is_taken_as_the_model_takes_it() -> None:
    images = torch.rand(5, 3, SIDE, SIDE)
    said: list[str] = []
    probe = read(ProbeImages(images=images), said)
    assert probe.images is not None
    assert torch.equal(probe.images, images)
    assert probe.images.data_ptr() != images.data_ptr()
    assert probe.targets is None
    assert said == []
    few = read(ProbeImages(2, images=images), said)
    assert len(few) == 2
    assert said == ["images: of the 5 images given, the first 2 are used; set num_images"]


def test_a_list_of_tensors_and_pictures() -> None:
    images = list(torch.rand(3, 3, SIDE, SIDE))
    probe = read(ProbeImages(images=images))
    assert probe.images is not None
    assert torch.equal(probe.images, torch.stack(images))
    mixed = read(ProbeImages(images=[grey(100), images[0]], transform=TRANSFORM))
    assert mixed.images is not None
    assert levels_of(mixed.images[:1]) == [100]
    assert torch.equal(mixed.images[1], images[0])


@pytest.mark.parametrize(
    ("images", "got", "write"),
    [
        (torch.rand(3, 8, 8), r"a tensor \[3, 8, 8\]", "images[None]"),
        (torch.rand(2, 8, 8, 3), r"a tensor \[2, 8, 8, 3\]", "images.permute(0, 3, 1, 2)"),
        ([torch.rand(8, 8, 3)] * 2, r"a tensor \[1, 8, 8, 3\]", "[image.permute(2, 0, 1) for image in images]"),
        (np.zeros((2, 8, 8, 3), np.float32), "ndarray of float32 .*", "torch.from_numpy(images).permute(0, 3, 1, 2)"),
        (
            [np.zeros((8, 8, 3), np.uint8)] * 2,
            "a list of ndarray .*",
            "[PIL.Image.fromarray(image) for image in images]",
        ),
        (Image.new("RGB", (8, 8)), "a picture .*", "[picture]"),
    ],
)
def test_what_is_no_batch_says_what_to_write_and_that_is_one(images: Any, got: str, write: str) -> None:
    with pytest.raises(ValueError, match=f"images: got {got}; expected a folder.*Write {re.escape(write)}"):
        ProbeImages(images=images)
    names = {"torch": torch, "PIL": SimpleNamespace(Image=Image), "images": images, "picture": images}
    assert ProbeImages(images=eval(write, names)).given is not None


def test_the_files_of_a_folder_as_many_of_each_subfolder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, cats=list(range(0, 100, 10)), dogs=[200, 210])
    probe = read(ProbeImages(4, images=folder, transform=TRANSFORM))
    assert probe.images is not None
    levels = levels_of(probe.images)
    assert sorted(levels)[2:] == [200, 210]
    again = read(ProbeImages(4, images=str(folder), transform=TRANSFORM))
    assert again.hash == probe.hash
    assert read(ProbeImages(4, images=folder, transform=TRANSFORM, seed=1)).hash != probe.hash


def test_a_list_of_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, cats=[10, 20, 30])
    files = [folder / "cats" / f"{level}.png" for level in (30, 10)]
    probe = read(ProbeImages(images=files, transform=TRANSFORM))
    assert probe.images is not None
    assert levels_of(probe.images) == [30, 10]


@pytest.mark.parametrize("place", ["data set", "datamodule"])
def test_files_go_through_the_transform_of_the_validation_data(tmp_path: Path, place: str) -> None:
    folder = folder_of(tmp_path, cats=[10, 20])
    said: list[str] = []
    if place == "data set":
        loader = DataLoader(WithTransform(), batch_size=4)
        read_from: dict[str, Any] = {"loader": loader}
        name = "WithTransform.transform"
    else:
        read_from = {"datamodule": Data(val_transform=TRANSFORM, train_transform=None)}
        name = "Data.val_transform"
    module = TinyModule()
    probe = read(ProbeImages(images=folder), said, module=module, **read_from)
    assert probe.images is not None
    assert sorted(levels_of(probe.images)) == [10, 20]
    assert said[0] == f"images: the folder {str(folder)!r} goes through the transform of the run's own data, {name}"
    found = probe.stated_normalisation(module.trainer, module)
    assert found is not None
    assert found.std == (0.25,) * 3
    assert found.certain == (place == "data set")


def test_the_normalisation_of_a_transform_of_their_own() -> None:
    module = TinyModule()
    probe = read(ProbeImages(images=[grey(10)], transform=TRANSFORM), module=module)
    found = probe.stated_normalisation(module.trainer, module)
    assert found is not None
    assert (found.mean, found.certain) == ((0.5,) * 3, True)
    assert "ProbeImages(transform=…)" in found.source


def test_tensors_need_not_be_normalised_as_the_validation_data_are() -> None:
    module = TinyModule()
    probe = read(ProbeImages(images=torch.rand(2, 3, 8, 8)), module=module, loader=DataLoader(WithTransform()))
    found = probe.stated_normalisation(module.trainer, module)
    assert found is not None
    assert not found.certain


def test_files_without_a_transform_are_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, cats=[10])
    with pytest.raises(ProbeInputError, match=r"has no transform; give ProbeImages\(images=…, transform=…\)"):
        read(ProbeImages(images=folder))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda picture: [picture], r"the transform \(function\) made list.*expected a floating tensor"),
        (lambda picture: torch.zeros(3, 4, 4).byte(), r"made uint8\[3, 4, 4\]"),
        (lambda picture: picture.nothing, r"transforming .* failed with AttributeError"),
        (lambda picture: torch.zeros(3, 4, 3 + random.randrange(1, 1000)), "different sizes"),
    ],
)
def test_transforms_that_do_not_make_images(transform: Any, message: str) -> None:
    random.seed(0)
    with pytest.raises(ProbeInputError, match=message):
        read_pictures([grey(1), grey(2)], transform)


def test_a_folder_without_images_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ProbeInputError, match=r"holds no image files, which end in \.bmp"):
        files_of(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ProbeInputError, match=r"broken\.jpg.* failed with UnidentifiedImageError"):
        read_pictures(files_of(tmp_path), TRANSFORM)


class Hooked(TinyModule):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 1, batch[1]]


def test_the_batches_of_a_loader_go_through_the_hooks_and_tensors_do_not() -> None:
    images, targets = torch.rand(4, 3, SIDE, SIDE), torch.tensor([2, 0, 1, 1])
    said: list[str] = []
    for given in (
        [(images[:2], targets[:2]), (images[2:], targets[2:])],
        DataLoader(torch.utils.data.TensorDataset(images, targets), batch_size=2),
    ):
        probe = ProbeSet(ProbeImages(4, images=given))
        moved: list[Any] = []

        def body(trainer: Any, pl_module: Any, probe: ProbeSet = probe, moved: list[Any] = moved) -> None:
            assert probe.read(trainer, pl_module)
            moved.append(probe.to_device(trainer, pl_module))

        run("fit", Hooked(), InHook("on_train_start", body), max_epochs=1)
        found, labels = moved[0]
        order = [int((images + 1 - image).flatten(1).abs().amax(1).argmin()) for image in found]
        assert sorted(order) == [0, 1, 2, 3]
        assert torch.equal(found, images[order] + 1)
        assert labels.tolist() == targets[order].tolist()
    module = Hooked()
    probe = read(ProbeImages(images=images), said, module=module)
    assert torch.equal(seen(probe, module), images)
    assert len(said) == 1
    assert said[0].startswith("images: a tensor does not go through Hooked.on_after_batch_transfer")


def test_a_stream_that_is_given_is_read_at_once_and_only_as_far_as_needed() -> None:
    drawn: list[int] = []

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            for index in range(100):
                drawn.append(index)
                yield torch.full((3, SIDE, SIDE), float(index)), index % 3

    probe = read(ProbeImages(5, images=DataLoader(Stream(), batch_size=2)))
    assert probe.images is not None
    assert probe.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert probe.targets is not None
    assert probe.targets.tolist() == [0, 1, 2, 0, 1]
    assert len(drawn) == 6


def test_a_loader_that_fails_or_gives_nothing() -> None:
    class Broken(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield torch.rand(3, SIDE, SIDE)
            raise OSError("gone")

    with pytest.raises(ProbeInputError, match=r"batch 1 of the DataLoader failed with OSError\('gone'\)"):
        read(ProbeImages(5, images=DataLoader(Broken(), batch_size=1)))

    class Empty(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ProbeInputError, match="gave no batch"):
        read(ProbeImages(5, images=DataLoader(Empty(), batch_size=1)))


def test_masks_and_keys_of_a_loader_that_is_given() -> None:
    batch = {"views": [torch.rand(2, 3, SIDE, SIDE)], "label": torch.tensor([1, 0]), "mask": torch.ones(2, SIDE, SIDE)}
    batch["mask"][:, 4:] = 0  # type: ignore[call-overload]
    probe = read(ProbeImages(2, images=[batch], image_key=["views", 0], mask="mask"))
    assert probe.masks is not None
    assert float(probe.masks.mean()) == 0.5
    assert probe.targets is not None


class Noise:
    """Draws from all streams, and from a generator of its own."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self, picture: Any) -> Tensor:
        noise = random.random() + float(torch.rand(())) + float(self.generator.random())
        return torch.full((3, SIDE, SIDE), noise)


def test_what_is_given_leaves_the_run_as_it_was_and_is_the_same_after_a_resume(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, cats=[10, 20], dogs=[30, 40])
    noise = Noise()
    hashes: list[Any] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        before = rng_state()
        first = ProbeSet(ProbeImages(4, images=folder, transform=noise))
        first.read(trainer, pl_module)
        first.to_device(trainer, pl_module)
        assert rng_state() == before
        again = ProbeSet(ProbeImages(4, images=folder, transform=noise))
        again.load_state_dict(first.state_dict())
        assert not again.is_frozen
        again.read(trainer, pl_module)
        hashes.extend([first.hash, again.hash])

    outcomes = []
    for callbacks in ([], [InHook("on_train_start", body)]):
        torch.manual_seed(0)
        module = TinyModule()
        run("fit", module, *callbacks, loader=DataLoader(WithTransform(), batch_size=4))
        outcomes.append(everything(module))
    assert outcomes[0] == outcomes[1]
    assert hashes[0] == hashes[1]
    assert noise.generator.random() == Noise().generator.random()


def test_other_images_after_a_resume_are_said() -> None:
    state = read(ProbeImages(images=torch.rand(2, 3, SIDE, SIDE))).state_dict()
    assert state["images"] is None  # given again, they need not lie in a checkpoint
    probe = ProbeSet(ProbeImages(images=torch.rand(2, 3, SIDE, SIDE)))
    probe.load_state_dict(state)
    said: list[str] = []
    probe.say = lambda trainer, message: said.append(message)  # type: ignore[method-assign]
    run("fit", TinyModule(), InHook("on_train_start", probe.read), max_epochs=1)
    assert len(said) == 1
    assert "not those of the run that is resumed" in said[0]


def test_a_run_without_any_loader_of_validation() -> None:
    class TrainingOnly(TinyModule):
        def train_dataloader(self) -> Any:
            return DataLoader(Images(8), batch_size=4)

    said: list[str] = []
    probe = read(
        ProbeImages(images=torch.rand(2, 3, SIDE, SIDE)), said, module=TrainingOnly(), loader="the module's own"
    )
    assert len(probe) == 2
    assert said == []
