"""Modules that take more than images: run as their own steps run them, sample by sample, and left as they were."""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.probe import UnknownSamplesError
from tests.integration.harness import make_trainer, tiny_vit
from tests.integration.input_kinds import KINDS, Kind, Module
from tests.integration.reference_monitor import NUM_IMAGES, Reference
from tests.probe.runs import everything

#: Kinds whose streams keep batches of another form each.
STREAMED = ("whole dict", "left and right", "views", "records", "bytes inside", "own way")


def train(kind: Kind, callbacks: list[Any], *, stream: bool = False, **options: Any) -> Any:
    """A fit from fixed seeds."""
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    module = kind.module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make_trainer(callbacks, **{"max_epochs": 1, **options})
        trainer.fit(module, kind.loader(seed=1), kind.loader(stream=stream))
    return module


def left_by(module: Module) -> dict[str, Any]:
    found = everything(module)
    found["metrics"] = {name: value for name, value in found["metrics"].items() if not name.startswith("attngrad")}
    return found


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """What the package says while the block runs."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("lightning_attngrad")
    log.addHandler(handler)
    try:
        yield messages
    finally:
        log.removeHandler(handler)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_run_as_its_own_step_does_and_left_as_it_was(name: str) -> None:
    kind, reference = KINDS[name], Reference(KINDS[name])
    with heard() as messages:
        module = train(kind, [reference])
    assert left_by(module) == left_by(train(kind, []))
    assert reference.labels == ["start", "epoch 1"]
    of_the_way = [one for one in messages if " is run as " in one]
    assert len(of_the_way) == bool(kind.says)  # once, and not of what is plain
    assert all(one.startswith(f"{kind.module.__name__} is run as {kind.says};") for one in of_the_way)


@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_keeps_what_goes_along_with_its_images(name: str) -> None:
    reference = Reference(KINDS[name])
    module = train(KINDS[name], [reference], stream=True)
    assert reference.labels[-1] == "epoch 1"
    assert reference.probe_set.is_stream
    assert left_by(module) == left_by(train(KINDS[name], [], stream=True))


@pytest.mark.parametrize("name", ["numbers", "left and right", "own way"])
def test_more_images_than_samples_are_run_each_with_what_goes_along_with_it(name: str) -> None:
    reference = Reference(KINDS[name], thorough=True)
    train(KINDS[name], [reference], limit_val_batches=0, max_steps=1)
    assert reference.labels[0] == "start"


@pytest.mark.parametrize("name", ["numbers", "bytes inside"])
def test_every_callback_runs_them_and_leaves_them_as_they_were(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    probe = attngrad.ProbeImages(num_images=NUM_IMAGES, **kind.options, **kind.pixels)
    options: dict[str, Any] = {"probe": probe, "on_error": "raise"}

    def saving() -> list[Any]:
        return [ModelCheckpoint(dirpath=tmp_path)]

    callbacks = [
        attngrad.AttentionMapMonitor(**options),
        attngrad.AttentionDriftMonitor(**options),
        attngrad.RewriteRobustnessMonitor(steps=2, **options),
        attngrad.FaithfulnessMonitor(steps=2, **options),
        attngrad.CheckpointAudit(steps=2, **options),
    ]
    run = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    module = train(kind, [*callbacks, *saving()], **run)
    assert left_by(module) == left_by(train(kind, saving(), **run))
    assert module.trainer.callback_metrics["attngrad/faithfulness/srg"].isfinite()
    assert module.trainer.callback_metrics["attngrad/drift/floor/spearman"] > 0
    assert list(tmp_path.rglob("*.json"))  # of the audit


@pytest.mark.parametrize("stream", [False, True])
def test_a_validation_of_its_own_under_inference_mode(stream: bool) -> None:
    reference = Reference(KINDS["numbers"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer([reference]).validate(KINDS["numbers"].module(), KINDS["numbers"].loader(stream=stream))
    assert len(reference.labels) == 1


@pytest.mark.parametrize("name", ["left and right", "own way"])
def test_a_resumed_stream_has_its_batches_again(name: str, tmp_path: Path) -> None:
    kind, before = KINDS[name], Reference(KINDS[name])
    saving = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    train(kind, [before, ModelCheckpoint(dirpath=tmp_path, save_last=True)], stream=True, **saving)
    torch.load(tmp_path / "last.ckpt", weights_only=True)  # plain values and tensors
    after, module = Reference(kind), kind.module()
    other = Kind(**{**vars(kind), "form": lambda i, o, n, y: kind.form(i.flip(0), o, n, y)})  # not these again
    with heard() as messages, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer([after], max_epochs=2).fit(
            module, kind.loader(), other.loader(stream=True), ckpt_path=tmp_path / "last.ckpt"
        )
    assert after.probe_set.hash == before.probe_set.hash
    assert after.labels[-1] == "epoch 2"  # compared with the first images' own steps
    assert not [one for one in messages if "not comparable" in one]


def test_a_resumed_stream_whose_batches_are_no_plain_values_is_gathered_anew(tmp_path: Path) -> None:
    kind, before = KINDS["records"], Reference(KINDS["records"])
    saving = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    train(kind, [before, ModelCheckpoint(dirpath=tmp_path, save_last=True)], stream=True, **saving)
    after, module = Reference(kind), kind.module()
    with heard() as messages, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer([after], max_epochs=2).fit(
            module, kind.loader(), kind.loader(stream=True), ckpt_path=tmp_path / "last.ckpt"
        )
    assert after.labels[-1] == "epoch 2"
    assert [one for one in messages if "gathered as validation goes by" in one]


# What cannot be run -------------------------------------------------------------------------------------------------


class Students(nn.Module):
    """Two transformers, and a ``forward`` that takes what no batch of these runs holds."""

    def build(self) -> None:
        self.student_backbone = tiny_vit()
        self.teacher_backbone = tiny_vit()
        self.head = nn.Linear(4, 4)
        self.switched_off: list[bool] = []

    def forward(self, crops: Any, teacher_temperature: Any) -> Tensor:
        return self.head(self.student_backbone(crops) / teacher_temperature)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.switched_off.append(all(one._off for one in self.trainer.callbacks[:2]))  # type: ignore[union-attr, index]
        return self(batch[0], 0.1).square().mean()  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0], 0.1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def warned_on(package: Any) -> tuple[list[str], Any]:
    class OfThePackage(Students, package.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.build()

    kind, module = KINDS["whole tuple"], OfThePackage()
    monitors = [attngrad.AttentionMapMonitor(num_images=2), attngrad.AttentionDriftMonitor(num_images=2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(monitors, package, max_epochs=1).fit(module, kind.loader(), kind.loader())
    return [str(one.message) for one in caught if "switched off" in str(one.message)], module


def test_where_nothing_fits_one_message_before_training_says_what_to_write() -> None:
    messages, module = warned_on(pl)
    assert len(messages) == 2
    first, second = messages
    for part in (
        "in its images: NoWayError: model: no way was found to run OfThePackage on the probe's images, batch[0]",
        "OfThePackage.forward(crops, teacher_temperature)",
        "the batch of 2 samples is list(float32[2, 3, 32, 32], float32[2, 3], int64[2])",
        "int64[2]), of which batch[2] may be labels, which are never handed over (target_key says which are)",
        "Tried: model(images): TypeError: ",
        "model(*batch[:2]): ",
        "Parts that contain attention: 'student_backbone' (VisionTransformer), 'teacher_backbone' (VisionTransformer)",
        "Write ProbeImages(model='student_backbone'), which takes the images alone",
        "ProbeImages(forward=run) with def run(model, images, batch): return model(images, batch[1])",
        "image_key=[0, 0] for batch[0][0]",
    ):
        assert part in first
    assert "for the same reason as AttentionMapMonitor" in second
    assert module.switched_off == [True, True]  # before the first step, and training went on
    other = pytest.importorskip("pytorch_lightning")
    assert warned_on(other)[0] == messages


def test_the_line_that_is_proposed_works() -> None:
    class OfThePackage(Students, pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.build()

    kind = KINDS["whole tuple"]
    probe = attngrad.ProbeImages(num_images=2, model="student_backbone")
    monitor = attngrad.AttentionMapMonitor(probe=probe, on_error="raise")
    off = attngrad.AttentionDriftMonitor(num_images=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer([monitor, off], max_epochs=1).fit(OfThePackage(), kind.loader(), kind.loader())
    assert monitor.scalars["entropy"] > 0
    assert off._off


def test_a_module_without_forward_is_told_which_parts_contain_attention() -> None:
    class WithoutForward(Module):
        def run(self, batch: Any) -> Tensor:
            return self.of_one(batch[0])

    with pytest.raises(ValueError, match=r"Parts that contain attention: ProbeImages\(model='backbone'\) for Vis"):
        train(
            Kind(WithoutForward, KINDS["numbers"].form, KINDS["numbers"].with_images), [attngrad.AttentionMapMonitor()]
        )


class Contrasting(Module):
    """Each picture against the numbers of every sample of the batch, as CLIP does."""

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self.of_one(images) @ self.of_numbers(numbers).mT

    def run(self, batch: Any) -> Tensor:
        return self(batch[0], batch[1])  # type: ignore[no-any-return]


def test_an_output_that_depends_on_the_other_samples_is_refused() -> None:
    kind = Kind(Contrasting, KINDS["numbers"].form, KINDS["numbers"].with_images)
    monitor = attngrad.AttentionMapMonitor(num_images=3, on_error="raise")
    with pytest.raises(
        ValueError, match=r"model\(\*batch\[:2\]\): what it says of a sample depends on which others are"
    ):
        train(kind, [monitor])


class Draws(Module):
    """Noise in evaluation too: another output each time, which is no dependence on other samples."""

    def forward(self, images: Tensor, numbers: Tensor) -> Tensor:
        return self.of_numbers_too(images, numbers) + 5 * torch.randn(len(images), 4)

    def run(self, batch: Any) -> Tensor:
        return self(batch[0], batch[1])  # type: ignore[no-any-return]


def test_an_output_that_is_drawn_is_not_taken_for_one_that_depends_on_others() -> None:
    kind = Kind(Draws, KINDS["numbers"].form, KINDS["numbers"].with_images)
    monitor = attngrad.AttentionMapMonitor(num_images=3, on_error="raise")
    train(kind, [monitor])
    assert monitor.scalars["entropy"] > 0


class LooksAtTheType(Module):
    """Bytes are pixels, floats are normalised already: the same numbers as floats are something else."""

    def forward(self, images: Tensor) -> Tensor:
        return self.of_one(images / 255 if images.dtype == torch.uint8 else images)

    def run(self, batch: Any) -> Tensor:
        return self(batch[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [None, lambda model, images: model(images)])
def test_bytes_that_the_model_treats_otherwise_than_floats_are_refused(forward: Any) -> None:
    kind = Kind(LooksAtTheType, KINDS["bytes inside"].form, KINDS["bytes inside"].with_images)
    probe = attngrad.ProbeImages(num_images=3, forward=forward)
    with pytest.raises(ValueError, match=r"uint8 .* gives something else for the same numbers as floats; convert them"):
        train(kind, [attngrad.AttentionMapMonitor(probe=probe, on_error="raise")])


class Inquiring(attngrad.Monitor):
    """Runs the model without saying which samples the images are of, or as many as they are not."""

    def evaluate(self, evaluation: attngrad.Evaluation) -> attngrad.Findings:
        with pytest.raises(UnknownSamplesError, match=r"say evaluation\.forward_of\(indices\)\(images\)"):
            evaluation.forward(evaluation.images)
        with pytest.raises(UnknownSamplesError, match="got 3 images for 2 samples"):
            evaluation.forward_of(torch.tensor([0, 2]))(evaluation.images)
        return attngrad.Findings({"asked": 1.0})


def test_whose_images_they_are_has_to_be_said() -> None:
    monitor = Inquiring(num_images=3, on_error="raise")
    train(KINDS["numbers"], [monitor])
    assert monitor.scalars["asked"] == 1


def failing(model: Any, images: Tensor, batch: Any) -> Tensor:
    return batch["nothing"]  # type: ignore[no-any-return]


def test_a_function_of_the_user_that_fails_is_told_what_it_was_given() -> None:
    probe = attngrad.ProbeImages(num_images=3, forward=failing)
    said = (
        r"forward: failing\(model, images, batch\) fails .* KeyError: 'nothing'. model is WholeDict, images is "
        r"float32\[2, 3, 32, 32\], and batch is dict\('image': float32\[2, 3, 32, 32\]"
    )
    with pytest.raises(ValueError, match=said):
        train(KINDS["whole dict"], [attngrad.AttentionMapMonitor(probe=probe, on_error="raise")])
