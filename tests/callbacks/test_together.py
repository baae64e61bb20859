"""One Trainer, one probe: images read once, the model held still once a moment, maps that two ask for found once."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any
from weakref import ref

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks import together
from lightning_attngrad.measure import maps as measured_maps
from lightning_attngrad.measure import rewriting
from lightning_attngrad.probe import ProbeImages, ProbeSet
from tests.callbacks.small_runs import (
    Classifier,
    Squares,
    Stream,
    WatchedMonitor,
    events,
    fit,
    loader,
    make_trainer,
    scalar_points,
    tensorboard,
)

PIXELS = ProbeImages(num_images=3, mean=0.0, std=1.0)


def everything(probe: ProbeImages = PIXELS) -> list[pl.Callback]:
    """One of each, drawing included."""
    given: dict[str, Any] = {"probe": probe, "on_error": "raise"}
    return [
        attngrad.AttentionMapMonitor(**given),
        attngrad.AttentionDriftMonitor(**given),
        attngrad.RewriteRobustnessMonitor(steps=2, long_every=None, **given),
        attngrad.FaithfulnessMonitor(every_n_epochs=1, steps=2, **given),
        attngrad.CheckpointAudit(steps=2, **given),
    ]


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """The calls of a function, as they come; it goes on as it is."""
    calls: list[Any] = []
    real = getattr(owner, name)

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, counting)
    return calls


def test_five_callbacks_read_hold_and_explain_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = counted(monkeypatch, ProbeSet, "read")
    held = counted(monkeypatch, together, "isolated")
    explained = counted(monkeypatch, measured_maps, "_explained")
    rewritten = counted(monkeypatch, rewriting, "_rewritten")
    data = Squares(9, seed=1)
    fit(*everything(), ModelCheckpoint(tmp_path), val=loader(data), max_epochs=2, enable_checkpointing=True)
    assert len(read) == 1
    # the start, two validations; and at each of two checkpoints the audit holds the model still once more
    assert len(held) == 3 + 2
    # at each of three moments the images once, whoever asks, and the two jittered copies of drift
    assert len(explained) == 3 * 3
    assert len(rewritten) == 3, "the audit has the monitor's"


def test_numbers_are_those_of_each_callback_alone(tmp_path: Path) -> None:
    together_, alone = everything(), everything()
    fit(*together_, ModelCheckpoint(tmp_path / "all"), max_epochs=2, enable_checkpointing=True)
    costs = {"seconds", "overhead"}
    for index, callback in enumerate(alone):
        fit(callback, ModelCheckpoint(tmp_path / str(index)), max_epochs=2, enable_checkpointing=True)
        one, other = ({n: v for n, v in c.scalars.items() if n not in costs} for c in (together_[index], callback))
        assert one == pytest.approx(other, rel=1e-6, nan_ok=True), type(callback).__name__
        assert one


def test_settings_that_differ_have_probes_of_their_own() -> None:
    few, many = WatchedMonitor(num_images=2), WatchedMonitor(num_images=5, name="many")
    fit(few, many)
    assert few.shared is not many.shared
    assert [len(evaluation.images) for evaluation, _ in few.evaluations] == [2] * 3
    assert [len(evaluation.images) for evaluation, _ in many.evaluations] == [5] * 3


def test_the_default_is_shared() -> None:
    one, other = attngrad.AttentionMapMonitor(), attngrad.AttentionDriftMonitor()
    fit(one, other, max_epochs=1)
    assert one.shared is other.shared
    assert len(one.probe_set) == 9, "sixteen were asked for, nine are there"


def test_another_trainer_shares_nothing() -> None:
    mine = WatchedMonitor()
    fit(mine, max_epochs=1)
    first = mine.shared
    fit(mine, max_epochs=1)
    assert mine.shared is not first


@pytest.mark.parametrize("key", [None, "nowhere"], ids=["evaluated", "switched off"])
def test_a_trainer_and_its_model_are_let_go_of(key: str | None) -> None:
    run = fit(WatchedMonitor(image_key=key), max_epochs=1)
    trainer, module = ref(run.trainer), ref(run.module)
    del run
    gc.collect()
    assert (trainer(), module()) == (None, None)


def test_an_error_in_one_monitor_leaves_the_others_alone() -> None:
    class FailingMonitor(WatchedMonitor):
        def evaluate(self, evaluation: Any) -> Any:
            raise ZeroDivisionError("of its own")

    before, fails, after = WatchedMonitor(name="before"), FailingMonitor(on_error="log"), WatchedMonitor(name="after")
    run = fit(before, fails, after)
    assert before.labels == after.labels == ["start", "epoch 1", "epoch 2"]
    (message,) = run.messages
    assert message.startswith(
        "FailingMonitor is switched off for the remainder of this run, training goes on: in its evaluation"
    )


def test_images_that_no_model_takes_leave_monitors_of_other_images_alone() -> None:
    class OfBytes(Classifier):
        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss((batch[0].float() / 255, batch[1]))

    squares = Squares(9, seed=1)
    squares.images = (255 * squares.images).to(torch.uint8)
    fails, goes_on = WatchedMonitor(name="fails"), WatchedMonitor(name="goes_on", images=torch.rand(3, 3, 32, 32))
    run = fit(fails, goes_on, module=OfBytes, train=loader(squares), val=loader(squares))
    assert (fails.labels, goes_on.labels) == ([], ["start", "epoch 1", "epoch 2"])
    (message,) = run.complaints
    assert "no model differentiates" in message


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_stream_ends_for_all_also_where_the_audit_stands_first(stage: str) -> None:
    audit, mine = attngrad.CheckpointAudit(probe=PIXELS, steps=2), WatchedMonitor(num_images=3, mean=0.0, std=1.0)
    getattr(make_trainer(audit, mine), stage)(Classifier(), loader(Stream()), verbose=False)
    assert mine.labels == [stage]


def test_images_that_cannot_be_read_are_one_piece_of_news() -> None:
    probe = ProbeImages(image_key="nowhere")
    one, other = attngrad.AttentionMapMonitor(probe=probe), attngrad.AttentionDriftMonitor(probe=probe)
    run = fit(one, other)
    first, second = run.messages
    assert "image_key: got 'nowhere', which leads nowhere" in first
    assert second.startswith("AttentionDriftMonitor is switched off")
    assert "for the same reason as AttentionMapMonitor" in second
    assert "nowhere" not in second


def test_what_is_shared_is_logged_once_and_no_second_is_counted_twice(tmp_path: Path) -> None:
    monitors = everything()[:2]
    run = fit(*monitors, logger=tensorboard(tmp_path), max_epochs=2)
    written = events(tmp_path)
    shared = [value for _, value in scalar_points(written, "attngrad/probe/seconds")]
    assert len(shared) == 3
    assert shared[0] > 0
    own = {name: sum(v for _, v in scalar_points(written, f"attngrad/{name}/seconds")) for name in ("maps", "drift")}
    assert all(seconds > 0 for seconds in own.values())
    for monitor in monitors:
        assert isinstance(monitor, attngrad.Monitor)
        assert own[monitor.name] == pytest.approx(monitor.account.spent, rel=0.2)
        assert monitor.spent == pytest.approx(monitor.account.spent + monitor._together.shared_cost.spent / 2)
    assert "attngrad/probe/seconds" in run.trainer.callback_metrics


def test_whoever_writes_to_the_weights_in_between_gets_new_answers(tmp_path: Path) -> None:
    """Also through ``.data``, of which no counter tells: so averages are put in and out."""

    class Prunes(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            pl_module.net.head.weight.data.mul_(-1.0)

    def entropies(*further: pl.Callback) -> tuple[float, float]:
        monitor = attngrad.AttentionMapMonitor(probe=PIXELS, on_error="raise")
        audit = attngrad.CheckpointAudit(probe=PIXELS, steps=2, on_error="raise")
        fit(monitor, audit, *further, ModelCheckpoint(tmp_path), max_epochs=1, enable_checkpointing=True)
        assert audit.record is not None
        return monitor.scalars["entropy"], audit.record.figures["maps/entropy"]

    seen, saved = entropies()
    assert seen == saved
    seen, saved = entropies(Prunes())
    assert seen != saved


# A monitor of a third party ------------------------------------------------------------------------------------


class Confidence(attngrad.Monitor):
    """All that it takes: one class, one method, no argument that it does not use."""

    def evaluate(self, evaluation: attngrad.Evaluation) -> attngrad.Findings:
        return attngrad.Findings({"mean": evaluation.logits().softmax(dim=1).amax(dim=1).mean()})


def test_a_monitor_of_a_third_party_is_one_class_with_one_method(tmp_path: Path) -> None:
    mine = Confidence(num_images=4, on_error="raise")
    run = fit(mine, attngrad.AttentionMapMonitor(num_images=4), logger=tensorboard(tmp_path))
    points = scalar_points(events(tmp_path), "attngrad/Confidence/mean")
    assert len(points) == 3
    assert all(1 / 3 <= value <= 1 for _, value in points)
    images = torch.stack([image for image, _ in Squares(9, seed=1)])[mine.probe_set.indices]
    with torch.no_grad():
        expected = run.module.eval()(images).softmax(1).amax(1).mean()
    assert points[-1][1] == pytest.approx(float(expected), rel=1e-6)


# Averaged weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beside", "evaluations"), [({"known": 1.0}, 3), ({}, 5)], ids=["one of two", "all"])
def test_a_number_that_is_never_there_does_not_undo_the_cadence(beside: dict[str, float], evaluations: int) -> None:
    class Lacking(attngrad.Monitor):
        def evaluate(self, evaluation: attngrad.Evaluation) -> attngrad.Findings:
            return attngrad.Findings({"unknown": math.nan, **beside})

    mine = Lacking(num_images=3, every_n_epochs=2)
    fit(mine, max_epochs=4)
    assert mine.story.evaluations == evaluations


def test_an_average_that_has_not_begun_is_said_in_every_label_and_warned_of() -> None:
    mine = WatchedMonitor(on_error="raise")
    average = EMAWeightAveraging(decay=0.5, update_starting_at_step=8)
    run = fit(average, mine, max_epochs=4)
    assert mine.labels == [
        "start (weights before averaging)",
        "epoch 1 (starting weights, nothing averaged yet)",
        "epoch 2 (starting weights, nothing averaged yet)",
        "epoch 3 (averaged weights)",
        "epoch 4 (averaged weights)",
    ]
    assert [frame.label for frame in mine.film] == mine.labels
    said = [message for message in run.messages if "has not updated its average" in message]
    assert len(said) == 1
    assert "EMAWeightAveraging" in said[0]
    assert "starting weights" in said[0]


def test_an_average_that_moves_is_not_warned_of() -> None:
    mine = WatchedMonitor(on_error="raise")
    run = fit(EMAWeightAveraging(decay=0.5), mine, max_epochs=3)
    assert mine.labels[1:] == [f"epoch {epoch} (averaged weights)" for epoch in (1, 2, 3)]
    assert not [message for message in run.messages if "has not updated its average" in message]


def test_the_audit_says_whose_weights_a_checkpoint_holds(tmp_path: Path) -> None:
    audit = attngrad.CheckpointAudit(probe=PIXELS, steps=2, on_error="raise")
    fit(EMAWeightAveraging(decay=0.5), audit, ModelCheckpoint(tmp_path), max_epochs=1, enable_checkpointing=True)
    assert audit.record is not None
    assert audit.record.weights == "averaged weights"
    plain = attngrad.CheckpointAudit(probe=PIXELS, steps=2, on_error="raise")
    fit(plain, ModelCheckpoint(tmp_path / "plain"), max_epochs=1, enable_checkpointing=True)
    assert plain.record is not None
    assert plain.record.weights == ""
    assert math.isfinite(plain.record.figures["maps/entropy"])


# Without validation --------------------------------------------------------------------------------------------


class TrainingOnly(pl.LightningModule):
    """As in self-supervised training: no validation step, no validation data."""

    def __init__(self) -> None:
        super().__init__()
        inner = Classifier()
        self.net, self.losses = inner.net, inner.losses

    def forward(self, images: Any) -> Any:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, targets = batch
        return torch.nn.functional.cross_entropy(self(images), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def test_a_run_without_validation_is_evaluated_at_the_end_of_its_epochs(tmp_path: Path) -> None:
    mine = WatchedMonitor(on_error="raise")
    kept = ModelCheckpoint(tmp_path / "kept", monitor="attngrad/maps/entropy", save_top_k=-1)
    fit(
        mine,
        kept,
        module=TrainingOnly,
        val=None,
        max_epochs=3,
        logger=tensorboard(tmp_path),
        enable_checkpointing=True,
    )
    assert mine.labels == ["start", "epoch 1", "epoch 2", "epoch 3"]
    points = scalar_points(events(tmp_path), "attngrad/maps/entropy")
    assert [step for step, _ in points] == [0, 2, 5, 8]
    assert len(kept.best_k_models) == 3


def test_the_cadence_holds_without_validation_too() -> None:
    mine = WatchedMonitor(on_error="raise", every_n_epochs=2)
    fit(mine, module=TrainingOnly, val=None, max_epochs=5)
    assert mine.labels == ["start", "epoch 2", "epoch 4", "epoch 5"]


def test_a_stream_of_training_batches_gives_its_first_images() -> None:
    """As in self-supervised training on a stream: nothing to validate on, nothing that an integer indexes."""
    mine = WatchedMonitor(on_error="raise", num_images=6)
    run = fit(mine, module=TrainingOnly, train=loader(Stream(12)), val=None, max_epochs=2)
    assert mine.labels == ["epoch 1", "epoch 2"]
    assert mine.probe_set.source == "training"
    expected = torch.stack([image for image, _ in Squares(12)])[:6]
    assert torch.equal(mine.evaluations[0][0].images, expected)
    assert any("training" in message for message in run.messages)


def test_steps_of_a_streaming_epoch_are_evaluated_as_soon_as_there_are_images() -> None:
    mine = WatchedMonitor(on_error="raise", num_images=6, every_n_steps=1)
    fit(mine, module=TrainingOnly, train=loader(Stream(20)), val=None, max_epochs=1)
    assert mine.labels == ["step 2", "step 3", "step 4", "step 5"]


def test_validation_that_is_switched_off_switches_no_monitor_off() -> None:
    mine = WatchedMonitor(on_error="raise")
    fit(mine, limit_val_batches=0, max_epochs=2)
    assert mine.labels == ["start", "epoch 1", "epoch 2"]
