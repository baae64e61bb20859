"""Which data the images come from, in both packages of Lightning."""

from __future__ import annotations

from collections import Counter
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_attngrad.probe import ProbeImages, ProbeInputError, ProbeSet
from tests.probe.runs import Images, InHook, TinyModule, everything, listening, rng_state, run, set_of
from tests.probe.training_runs import TrainingOnly, TrainingStream, Views, collecting


def test_a_run_without_a_validation_loader_reads_its_training_data_and_says_so_once() -> None:
    probe = ProbeSet(ProbeImages(6, image_key=[0, 0]))
    said = listening(probe)
    module = TrainingOnly(Views())
    run("fit", module, InHook("on_train_batch_end", probe.read), loader="the module's own", max_epochs=1)
    assert (len(probe), probe.source, probe.is_stream) == (6, "training", False)
    assert probe.targets is not None
    assert Counter(probe.targets.tolist()) == {0: 2, 1: 2, 2: 2}
    assert len(said) == 1
    assert said[0].startswith("the run has no validation loader: the probe images come from the training data")
    assert "ProbeImages(images=…)" in said[0]
    assert probe.class_names(module.trainer) == ("a", "b", "c")
    found = probe.stated_normalisation(module.trainer, module)
    assert found is not None
    assert (found.source, found.certain) == ("Normalize in Views.transform", True)


def test_reading_training_data_leaves_the_run_as_it_was() -> None:
    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        before = rng_state()
        probe = ProbeSet(ProbeImages(6, image_key=[0, 0]))
        assert probe.read(trainer, pl_module)
        probe.to_device(trainer, pl_module)
        assert rng_state() == before

    outcomes = []
    for callbacks in ([], [InHook("on_train_start", body)]):
        torch.manual_seed(0)
        module = TrainingOnly(Views())
        run("fit", module, *callbacks, loader="the module's own")
        outcomes.append(everything(module))
    assert outcomes[0] == outcomes[1]


def test_the_first_of_several_views_is_taken_where_nothing_says_where_the_images_are() -> None:
    probe, second = set_of(6), set_of(6, image_key=[0, 1])
    said = listening(probe)
    for one in (probe, second):
        run("fit", TrainingOnly(Views()), InHook("on_train_start", one.read), loader="the module's own")
    assert probe.images is not None
    assert second.images is not None
    assert torch.equal(probe.images, second.images.flip(-1))
    assert said[-1] == "the images are batch[0][0], the first of several views; image_key=[0, 1] is the second"


def test_a_stream_of_training_data_is_gathered_as_it_goes_by() -> None:
    probe = set_of(6, dataloader_idx=0)
    said = listening(probe)
    module = TrainingOnly(TrainingStream())
    run("fit", module, collecting(probe, "on_train_batch_end"), loader="the module's own", max_epochs=1)
    assert (probe.source, probe.is_stream) == ("training", True)
    assert probe.images is not None
    assert probe.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(said) == 2
    assert said[1] == (
        "the training loader (DataLoader) cannot be read ahead: the 6 probe images are gathered as training goes by"
    )
    state = probe.state_dict()
    again = set_of(6)
    again.load_state_dict(state)
    assert (again.source, again.is_stream, again.hash) == ("training", True, probe.hash)


def test_a_stream_of_validation_that_nothing_goes_through_gives_way_to_training_data() -> None:
    probe = set_of(6)
    said = listening(probe)
    stream = DataLoader(TrainingStream(), batch_size=4)
    run("fit", TinyModule(), InHook("on_train_start", probe.read), loader=stream, limit_val_batches=0, max_epochs=1)
    assert (probe.source, len(probe)) == ("training", 6)
    assert said[0].startswith("no validation goes through its loader: the probe images come from the training data")


def test_validation_data_that_can_be_read_are_used_also_where_validation_is_off() -> None:
    probe = set_of(6)
    said = listening(probe)
    run("fit", TinyModule(), InHook("on_train_start", probe.read), limit_val_batches=0, max_epochs=1)
    assert (probe.source, len(probe), said) == ("validation", 6, [])


def test_nothing_went_by_in_training() -> None:
    probe = set_of(6)
    module = TrainingOnly(TrainingStream())
    with pytest.raises(ProbeInputError, match=r"^training data: no batch went by .* check limit_train_batches"):
        run("fit", module, collecting(probe, "on_nothing"), loader="the module's own", max_epochs=1)


def test_one_of_several_training_loaders_is_mixed_with_the_others() -> None:
    class Two(TrainingOnly):
        def train_dataloader(self) -> Any:
            return {"a": super().train_dataloader(), "b": super().train_dataloader()}

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], batch_idx)

    probe = set_of(6, image_key="b.0", target_key="b.1")
    run("fit", Two(), collecting(probe, "on_train_batch_end"), loader="the module's own", max_epochs=1)
    assert (probe.source, probe.is_stream, len(probe)) == ("training", True, 6)


def test_a_loader_that_there_is_not() -> None:
    probe = set_of(6, dataloader_idx=1)
    with pytest.raises(ProbeInputError, match="dataloader_idx: got 1; expected 0, as there is one training loader"):
        run("fit", TrainingOnly(), InHook("on_train_start", probe.read), loader="the module's own")


@pytest.mark.parametrize("source", ["validation", "training", "stream", "test"])
def test_pytorch_lightning_is_served_alike(source: str) -> None:  # noqa: C901
    other = pytest.importorskip("pytorch_lightning")

    class Module(other.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = TinyModule().net

        def forward(self, images: Tensor) -> Any:
            return self.net(images)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        test_step = validation_step

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            stages.append((self.trainer.state.stage.value, type(self.trainer.state.stage).__module__.split(".")[0]))
            return batch

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    stages: list[Any] = []
    moved: list[Any] = []
    probe = set_of(6)
    said = listening(probe)

    class Reading(other.Callback):  # type: ignore[name-defined,misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            probe.read(trainer, pl_module)
            if probe.is_frozen:
                stages.clear()
                probe.to_device(trainer, pl_module)
                moved.extend(stages)

        on_test_start = on_train_start

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if probe.is_stream:
                probe.collect(batch)

    trainer = other.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Reading()],
    )
    train = DataLoader(TrainingStream() if source == "stream" else Images(16), batch_size=4)
    if source == "test":
        trainer.test(Module(), DataLoader(Images(8), batch_size=4), verbose=False)
    else:
        trainer.fit(Module(), train, DataLoader(Images(8), batch_size=4) if source == "validation" else None)
    assert probe.source == ("training" if source in ("training", "stream") else "validation")
    assert probe.is_full
    assert len(said) == {"validation": 0, "test": 0, "training": 1, "stream": 2}[source]
    if source in ("validation", "training"):
        assert moved == [("validate", "pytorch_lightning")]
