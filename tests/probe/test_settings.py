from __future__ import annotations

import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_attngrad as attngrad
from lightning_attngrad.probe import ProbeImages
from tests.probe.runs import Data, Images, TinyModule


def adapt(batch: Any) -> tuple[Tensor, Tensor | None]:
    return batch[0], None


def run_part(model: nn.Module, images: Tensor) -> Any:
    return model(images)


class Adapter:
    def adapt(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        return batch[0], None


def test_the_name_is_public_and_loaded_when_asked_for() -> None:
    assert attngrad.ProbeImages is ProbeImages
    assert "ProbeImages" in dir(attngrad)


def test_settings_that_say_the_same_are_equal_and_can_be_looked_up() -> None:
    adapter = Adapter()
    loader = DataLoader(Images())
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"num_images": 16}),
        ({"image_key": [0, 0]}, {"image_key": (0, 0)}),
        ({"mean": 0.5, "std": 0.2}, {"mean": [0.5], "std": torch.tensor([0.2], dtype=torch.float64)}),
        ({"pixel_range": [0, 255]}, {"pixel_range": (0.0, 255.0)}),
        ({"channels": 4}, {"channels": [4]}),
        ({"channels": [3, 2, 1]}, {"channels": (3, 2, 1)}),
        ({"class_names": ["a", "b"]}, {"class_names": {1: "b", 0: "a"}}),
        ({"batch_adapter": adapt}, {"batch_adapter": f"{__name__}.adapt"}),
        ({"batch_adapter": adapter.adapt}, {"batch_adapter": adapter.adapt}),
        ({"forward": run_part}, {"forward": f"{__name__}:run_part"}),
        ({"mask": adapt}, {"mask": f"{__name__}:adapt"}),
        ({"mask": ["target", 1]}, {"mask": ("target", 1)}),
        ({"images": loader}, {"images": loader}),
        ({"images": [__file__]}, {"images": (Path(__file__),)}),
    ]
    for one, other in pairs:
        first, second = ProbeImages(**one), ProbeImages(**other)
        assert first == second
        assert hash(first) == hash(second)
        assert {first: "shared"}[second] == "shared"


def test_settings_that_say_other_things_are_not_equal() -> None:
    images = torch.rand(2, 3, 4, 4)
    options: list[dict[str, Any]] = [
        {},
        {"num_images": 8},
        {"image_key": 0},
        {"image_key": "0"},
        {"target_key": 0},
        {"batch_adapter": adapt},
        {"batch_adapter": Adapter().adapt},
        {"forward": run_part},
        {"mask": "mask"},
        {"mean": 0.5, "std": 0.5},
        {"class_names": ["a"]},
        {"model": "net"},
        {"dataloader_idx": 1},
        {"seed": 1},
        {"images": images},
        {"images": images.clone()},  # by identity: comparing pixels would cost more than reading them
        {"images": [__file__], "transform": run_part},
    ]
    made = [ProbeImages(**one) for one in options]
    assert len(set(made)) == len(made)
    assert ProbeImages() != "something else"


def test_they_are_frozen_and_what_was_given_can_be_changed_afterwards() -> None:
    key: list[Any] = [0, 0]
    settings = ProbeImages(image_key=key)
    key.append(7)
    assert settings == ProbeImages(image_key=[0, 0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.num_images = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert dataclasses.replace(settings, num_images=4) == ProbeImages(4, image_key=[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images: got 0; expected an int of at least 1"),
        ({"num_images": True}, "num_images: got True"),
        ({"dataloader_idx": -1}, "dataloader_idx: got -1; expected an int of at least 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"image_key": ""}, "image_key: got ''; expected a name .* list of names and indices such as .0, 0."),
        ({"image_key": []}, r"image_key: got \[\]"),
        ({"image_key": [0, 0.5]}, r"image_key: got \[0, 0\.5\]"),
        ({"image_key": 1.5}, r"image_key: got 1\.5"),
        ({"target_key": True}, "target_key: got True"),
        ({"batch_adapter": "nothing"}, "batch_adapter: got 'nothing'"),
        ({"forward": "no.such.module"}, r"forward: got 'no\.such\.module', which fails with"),
        ({"forward": 3}, r"forward: got 3; expected a callable \(model, images\) -> output"),
        ({"mask": ""}, "mask: got ''"),
        ({"mean": 0.5}, "expected both, or neither"),
        ({"mean": 0.5, "std": 0}, "std: got"),
        ({"mean": "grey", "std": 0.5}, "expected numbers"),
        ({"pixel_range": 255}, r"pixel_range: got 255; expected the values of black and white .*such as \(0, 255\)"),
        ({"pixel_range": (255, 0)}, r"pixel_range: got \(255, 0\)"),
        ({"pixel_range": (0, float("inf"))}, "pixel_range: got"),
        ({"pixel_range": (0, 1, 2)}, "pixel_range: got"),
        ({"channels": (0, 1)}, r"channels: got \(0, 1\); expected three numbers of channels, from 0"),
        ({"channels": (0, 1, -1)}, "channels: got"),
        ({"channels": True}, "channels: got True"),
        ({"channels": "red"}, "channels: got 'red'"),
        ({"class_names": "cat"}, "class_names: got 'cat'"),
        ({"class_names": {1: "cat"}}, "class_names: got the numbers"),
        ({"model": ""}, "model: got str ''; expected the path of a part"),
        ({"model": 3}, "model: got int 3"),
        ({"images": "no/such/folder"}, "images: got 'no/such/folder', which does not exist; expected a folder"),
        ({"images": ["no/such/file.png"]}, "images: 1 of 1 are no files, such as 'no/such/file.png'"),
        ({"images": torch.rand(3, 4, 4)}, r"images: got a tensor \[3, 4, 4\]"),
        ({"images": torch.rand(0, 3, 4, 4)}, r"images: got a tensor \[0, 3, 4, 4\]"),
        ({"images": torch.zeros(1, 3, 4, 4).byte()}, "images: got a tensor of uint8; expected floating numbers"),
        ({"images": [torch.zeros(3, 4, 4).byte()]}, "images: got a tensor of uint8"),
        ({"images": []}, r"images: got list \[\] \(it is empty\)"),
        ({"images": iter([1])}, "an iterator can be read only once"),
        ({"images": {"image": torch.rand(1, 3, 4, 4)}}, "for a single batch, give a list of it"),
        ({"images": Images()}, "for a data set, give a DataLoader of it"),
        ({"images": 3}, "images: got int 3"),
        (
            {"images": torch.rand(1, 3, 4, 4), "mask": "mask"},
            "mask: got 'mask', but images= is a tensor, without",
        ),
        ({"images": torch.rand(1, 3, 4, 4), "image_key": 0}, "image_key: got 0, but images= is a tensor"),
        ({"transform": run_part}, "transform: it is for the files or pictures of images=, which is None"),
        ({"images": torch.rand(1, 3, 4, 4), "transform": run_part}, "which is a tensor; leave it out"),
    ],
)
def test_what_can_never_work_is_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeImages(**options)


def test_what_images_are() -> None:
    picture = Image.new("RGB", (4, 4))
    batch = (torch.rand(2, 3, 4, 4), torch.tensor([0, 1]))
    for images, kind in (
        (torch.rand(1, 3, 4, 4), "a tensor"),
        ([torch.rand(3, 4, 4)], "a list of Tensor"),
        ([picture, picture], "a list of Image"),
        ([__file__], "a list of str"),
        (str(Path(__file__).parent), "the folder"),
        (Path(__file__), "the file"),
        (DataLoader(Images()), r"a loader (DataLoader)"),
        ([batch, batch], "a list of batches"),
        ([{"image": batch[0]}], "a list of batches"),
    ):
        given = ProbeImages(images=images).given
        assert given is not None
        assert given.kind.startswith(kind)
        assert given.is_loader == kind.startswith(("a loader", "a list of batches"))
    assert ProbeImages().given is None


# LightningCLI ---------------------------------------------------------------------------------------------------


class Probing(pl.Callback):
    """As the callbacks of the package take their settings."""

    def __init__(self, probe: ProbeImages | None = None, every: int = 1) -> None:
        self.probe, self.every = probe, every


def transform(picture: Any) -> Tensor:
    return torch.zeros(3, 4, 4)


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> LightningCLI:
    monkeypatch.setattr(sys, "argv", ["fit.py", *arguments])
    return LightningCLI(TinyModule, Data, run=False, save_config_callback=None)


def config(tmp_path: Path, probes: list[dict[str, Any] | None]) -> str:
    callbacks = [{"class_path": f"{__name__}.Probing", "init_args": {"probe": probe}} for probe in probes]
    trainer = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "callbacks": callbacks}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"trainer": trainer}))
    return str(path)


def probes_of(made: LightningCLI) -> list[ProbeImages | None]:
    callbacks: list[Any] = made.trainer.callbacks  # type: ignore[attr-defined]
    return [callback.probe for callback in callbacks if isinstance(callback, Probing)]


WRITTEN: dict[str, Any] = {
    "num_images": 4,
    "image_key": [0, 0],
    "target_key": "label.fine",
    "forward": f"{__name__}.run_part",
    "mask": "target.mask",
    "mean": [0.1, 0.2, 0.3],
    "std": 0.5,
    "pixel_range": [0, 255],
    "channels": [2, 1, 0],
    "class_names": {0: "cat", 1: "dog"},
    "model": "net",
    "dataloader_idx": 1,
    "seed": 7,
}


def expected() -> ProbeImages:
    return ProbeImages(**{**WRITTEN, "std": [0.5] * 3, "forward": run_part})


def test_settings_come_from_yaml_and_equal_ones_can_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {**WRITTEN, "std": [0.5, 0.5, 0.5]}
    folder = {"images": str(tmp_path), "transform": f"{__name__}.transform"}
    adapter = {"batch_adapter": f"{__name__}.adapt", "image_key": None}
    first, second, third, fourth, none = probes_of(
        cli(monkeypatch, "--config", config(tmp_path, [written, written, folder, adapter, None]))
    )
    assert first == second == expected()
    assert third == ProbeImages(images=tmp_path, transform=transform)
    assert fourth == ProbeImages(batch_adapter=adapt)
    assert none is None


def test_what_print_config_prints_gives_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {**WRITTEN, "std": [0.5, 0.5, 0.5]}
    with pytest.raises(SystemExit) as stopped:
        cli(monkeypatch, "--config", config(tmp_path, [written, {}]), "--print_config")
    assert stopped.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert yaml.safe_load(printed.read_text())["trainer"]["callbacks"][0]["init_args"]["probe"]["num_images"] == 4
    assert probes_of(cli(monkeypatch, "--config", str(printed))) == [expected(), ProbeImages()]


def test_settings_come_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = probes_of(
        cli(
            monkeypatch,
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            f"--trainer.callbacks+={__name__}.Probing",
            "--trainer.callbacks.probe.num_images=3",
            "--trainer.callbacks.probe.image_key=[0,1]",
        )
    )
    assert found == ProbeImages(3, image_key=[0, 1])


def test_a_wrong_value_in_yaml_ends_with_our_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        cli(monkeypatch, "--config", config(tmp_path, [{"num_images": 0}]))
        said = ""
    except (SystemExit, ValueError) as error:
        said = f"{error} {capsys.readouterr().err}"
    assert "num_images: got 0; expected an int of at least 1" in said


@pytest.mark.parametrize(
    "forward", [lambda model, images, batch: 0, lambda model, images, *, batch: 0], ids=["by place", "by name"]
)
def test_a_function_of_a_batch_needs_one(forward: Any) -> None:
    with pytest.raises(
        ValueError, match=r"takes a batch, but images= is a tensor, without one; give a function \(model"
    ):
        ProbeImages(forward=forward, images=torch.rand(2, 3, 8, 8))
    assert ProbeImages(forward=forward).forward is forward
    loader = [(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))]
    assert ProbeImages(forward=forward, images=loader).forward is forward
