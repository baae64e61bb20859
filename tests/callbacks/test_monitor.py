"""When a monitor evaluates, what it says of errors, and what a checkpoint keeps of it."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.probe import Evaluation
from tests.callbacks.rewriting_runs import Bright
from tests.callbacks.small_runs import (
    CLASSES,
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
from tests.probe_options import with_probe
from tests.still_clock import StillClock

KEY = "attngrad/maps/entropy"


def watched(**options: Any) -> WatchedMonitor:
    return WatchedMonitor(**{"on_error": "raise", **options})


# When it evaluates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "trainer", "labels"),
    [
        ({}, {"max_epochs": 3}, ["start", "epoch 1", "epoch 2", "epoch 3"]),
        ({"every_n_epochs": 3}, {"max_epochs": 4}, ["start", "epoch 3", "epoch 4"]),
        ({"every_n_epochs": 5}, {"max_epochs": 2}, ["start", "epoch 2"]),
        # epoch 3 has no validation of its own: epoch 4 makes up for it
        ({"every_n_epochs": 3}, {"max_epochs": 6, "check_val_every_n_epoch": 2}, ["start", "epoch 4", "epoch 6"]),
        ({"every_n_epochs": 2}, {"max_epochs": 3, "check_val_every_n_epoch": 2}, ["start", "epoch 2", "step 9"]),
        ({}, {"max_epochs": 1, "val_check_interval": 2}, ["start", "step 2", "step 3"]),
        ({}, {"max_epochs": 1, "val_check_interval": 1}, ["start", "step 1", "step 2", "epoch 1"]),
        (
            {"every_n_epochs": 2},
            {"max_epochs": 2, "limit_train_batches": 2, "val_check_interval": 0.5},
            ["start", "step 3", "epoch 2"],
        ),
        (
            {},
            {"max_epochs": 2, "val_check_interval": 4, "check_val_every_n_epoch": None},
            ["start", "step 4", "step 6"],
        ),
        ({}, {"max_epochs": -1, "max_steps": 4}, ["start", "epoch 1", "step 4"]),
        ({}, {"max_epochs": -1, "max_steps": 3}, ["start", "epoch 1"]),
        ({"every_n_steps": 2}, {"max_epochs": 1}, ["start", "step 2", "step 3"]),
        ({"every_n_steps": 2}, {"max_epochs": 2, "limit_val_batches": 0}, ["start", "step 2", "step 4", "step 6"]),
        (
            {"every_n_steps": 1},
            {"max_epochs": 2, "limit_train_batches": 2, "accumulate_grad_batches": 2},
            ["start", "step 1", "step 2"],
        ),
        ({}, {"max_epochs": 1, "num_sanity_val_steps": 0}, ["start", "epoch 1"]),
        ({}, {"max_epochs": 2, "reload_dataloaders_every_n_epochs": 1}, ["start", "epoch 1", "epoch 2"]),
        ({}, {"fast_dev_run": True}, ["start", "epoch 1"]),
    ],
)
def test_it_evaluates_at_the_start_by_the_cadence_and_at_the_end(
    monitor: dict[str, Any], trainer: dict[str, Any], labels: list[str]
) -> None:
    callback = watched(**monitor)
    fit(callback, **trainer)
    assert callback.labels == labels
    assert callback.frames == labels


def test_each_evaluation_sees_the_weights_of_its_label() -> None:
    class Weights(pl.Callback):
        def __init__(self) -> None:
            self.at: dict[str, Tensor] = {}

        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.at["start"] = pl_module.net.head.weight.detach().clone()

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            self.at[f"step {trainer.global_step}"] = pl_module.net.head.weight.detach().clone()

    weights, epochs = Weights(), watched(keep_weights=True)
    fit(weights, epochs, max_epochs=-1, max_steps=4)
    expected = [weights.at[label] for label in ("start", "step 3", "step 4")]
    assert all(torch.equal(w["net.head.weight"], e) for w, e in zip(epochs.weights, expected, strict=True))


def test_two_optimizers_that_count_two_steps_a_batch_do_not_jump_over_an_evaluation() -> None:
    class Two(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.SGD(self.net.head.parameters(), 0.1),
                torch.optim.SGD(self.net.blocks.parameters(), 0.1),
            ]

    callback = watched(every_n_steps=3)
    fit(callback, module=Two)
    assert callback.labels == ["start", "step 4", "step 6", "step 10", "step 12"]


def test_a_run_that_stops_between_two_evaluations_ends_with_one() -> None:
    class Stop(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.should_stop = True

    callback = watched(every_n_epochs=5)
    fit(Stop(), callback, max_epochs=9)
    assert callback.labels == ["start", "step 6"]


def test_max_time_ends_with_the_last_weights() -> None:
    callback = watched(every_n_epochs=100)
    run = fit(callback, max_epochs=1000, max_time={"seconds": 0.3}, num_sanity_val_steps=0)
    assert 0 < run.trainer.global_step < 3000
    assert callback.labels == ["start", f"step {run.trainer.global_step}"]


def test_an_interrupted_run_keeps_what_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupt(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    callback = watched()
    with pytest.raises(SystemExit):
        fit(Interrupt(), callback)
    assert callback.frames == ["start", "epoch 1"]


# What is there for others ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("monitor_first", [True, False])
@pytest.mark.parametrize(
    ("options", "validations"),
    [({}, 4), ({"check_val_every_n_epoch": 2}, 2), ({"val_check_interval": 1 / 3}, 12)],
    ids=["every epoch", "every second", "three an epoch"],
)
def test_checkpoint_and_early_stopping_wait_for_no_evaluation(
    tmp_path: Any, monitor_first: bool, options: Any, validations: int
) -> None:
    """On epochs off the cadence, whatever the order of the callbacks."""
    stopping = EarlyStopping(KEY, patience=50)
    checkpoint = ModelCheckpoint(tmp_path, monitor=KEY, save_top_k=-1, filename="{epoch}-{step}")
    mine = watched(every_n_epochs=3)
    order = [mine, stopping, checkpoint] if monitor_first else [stopping, checkpoint, mine]
    fit(*order, max_epochs=4, enable_checkpointing=True, **options)
    entropies = {findings.scalars["entropy"] for _, findings in mine.evaluations}
    scores = [float(score) for score in checkpoint.best_k_models.values()]
    assert len(scores) == validations
    assert all(min(abs(score - entropy) for entropy in entropies) < 1e-6 for score in scores)
    assert math.isfinite(float(stopping.best_score))


def test_early_stopping_on_a_map_stops_the_run() -> None:
    class Best(WatchedMonitor):
        def evaluate(self, *args: Any, **options: Any) -> Any:
            findings = super().evaluate(*args, **options)
            findings.scalars["entropy"] = float(len(self.evaluations))  # worse each time
            return findings

    mine = Best(on_error="raise")
    run = fit(EarlyStopping(KEY, patience=2), mine, max_epochs=20)
    assert run.trainer.current_epoch == 3
    assert mine.labels == ["start", "epoch 1", "epoch 2", "epoch 3"]


def test_a_plateau_scheduler_may_wait_for_a_map() -> None:
    class Plateau(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": KEY}}

    fit(watched(every_n_epochs=3), module=Plateau)
    run = fit(WatchedMonitor(), module=lambda: Plateau(Bright()))
    assert run.trainer.current_epoch == 2
    assert len(run.complaints) == 1


def test_a_checkpoint_by_steps_waits_for_no_evaluation(tmp_path: Any) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor=KEY, save_top_k=-1, every_n_train_steps=2, filename="{step}")
    mine = watched(every_n_steps=2)
    fit(checkpoint, mine, max_epochs=2, enable_checkpointing=True)
    scores = sorted(float(score) for score in checkpoint.best_k_models.values())
    assert scores == pytest.approx(sorted(findings.scalars["entropy"] for _, findings in mine.evaluations[1:]))


@pytest.mark.parametrize("interval", [1, 50])
def test_scalars_of_steps_reach_the_loggers_once_whatever_lightnings_own_interval(tmp_path: Any, interval: int) -> None:
    mine = watched(every_n_steps=2)
    fit(mine, logger=tensorboard(tmp_path), log_every_n_steps=interval, max_epochs=1, limit_train_batches=2)
    points = scalar_points(events(tmp_path), KEY)
    # in the count of the loggers the batch of the second optimizer step is number 1; its validation measures nothing
    assert [step for step, _ in points] == [0, 1]
    start, end = (findings.scalars["entropy"] for _, findings in mine.evaluations)
    assert [value for _, value in points] == pytest.approx([start, end])


def test_a_start_without_a_map_is_not_carried_on() -> None:
    """A zero-initialised classifier gives no gradient and so no map: EarlyStopping would end the run on the NaN."""
    module = Classifier()
    nn.init.zeros_(module.net.head.weight)
    mine = watched(every_n_epochs=4)
    run = fit(EarlyStopping(KEY, patience=50), mine, module=module, max_epochs=4)
    assert math.isnan(mine.evaluations[0][1].scalars["entropy"])
    assert mine.labels == ["start", "epoch 1", "epoch 4"]
    assert run.trainer.current_epoch == 4


def test_seconds_are_the_whole_cost_and_nothing_where_nothing_was_seen(tmp_path: Any, monkeypatch: Any) -> None:
    clock = StillClock().take_over(monkeypatch)

    def spend(seconds: float, function: Any) -> Any:
        def slow(*args: Any, **options: Any) -> Any:
            clock.wait(seconds)
            return function(*args, **options)

        return slow

    from lightning_attngrad.callbacks import monitor
    from lightning_attngrad.probe import ProbeSet

    mine = watched(every_n_epochs=2)
    monkeypatch.setattr(ProbeSet, "read", spend(100, ProbeSet.read))
    monkeypatch.setattr(mine, "evaluate", spend(10, mine.evaluate))
    monkeypatch.setattr(monitor, "log_figures", spend(1, lambda *_: None))
    fit(mine, logger=tensorboard(tmp_path), max_epochs=4, num_sanity_val_steps=0)
    points = scalar_points(events(tmp_path), "attngrad/maps/seconds")
    assert [value for _, value in points] == [11, 0, 11, 0, 11]
    shared = scalar_points(events(tmp_path), "attngrad/probe/seconds")
    assert [value for _, value in shared] == [100, 0, 0, 0, 0]


# Runs after runs ------------------------------------------------------------------------------------------------


def test_two_monitors_with_names_of_their_own() -> None:
    one, other = watched(), watched(name="rollout", method="rollout", every_n_epochs=2)
    run = fit(one, other)
    assert one.labels == ["start", "epoch 1", "epoch 2"]
    assert other.labels == ["start", "epoch 2"]
    keys = run.trainer.callback_metrics
    assert float(keys["attngrad/maps/entropy"]) != float(keys["attngrad/rollout/entropy"])
    assert one.state_key != other.state_key


def test_two_monitors_of_one_name_are_refused_before_training() -> None:
    class Further(WatchedMonitor):
        pass

    module = Classifier()
    with pytest.raises(ValueError, match=r"name: 2 monitors are called 'maps'.*give each its own"):
        fit(WatchedMonitor(), Further(), module=module)
    with pytest.raises(ValueError, match=r"name: 2 monitors are called 'maps'.*give each its own"):
        fit(WatchedMonitor(), WatchedMonitor(), module=module)
    twice = WatchedMonitor()
    with pytest.raises(ValueError, match=r"the same WatchedMonitor stands in the list more than once"):
        fit(twice, twice, module=module)
    assert module.losses == []


def test_another_run_starts_anew_also_on_other_data() -> None:
    mine = watched()
    fit(mine, max_epochs=1)
    first = mine.probe_set.hash
    fit(mine, max_epochs=1, val=loader(Squares(9, seed=99)))
    assert mine.frames == ["start", "epoch 1"]
    assert mine.probe_set.hash != first


def test_fitting_on_with_the_same_trainer_goes_on() -> None:
    mine = watched()
    run = fit(mine, max_epochs=1)
    first = mine.probe_set.hash
    run.trainer.fit_loop.max_epochs = 2
    fit(mine, module=run.module, trainer=run.trainer)
    assert mine.frames == ["start", "epoch 1", "epoch 2"]
    assert mine.probe_set.hash == first


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_validation_of_its_own_is_evaluated_once_and_leaves_no_history(stage: str) -> None:
    mine = watched()
    trainer = make_trainer(mine)
    (results,) = getattr(trainer, stage)(Classifier(), loader(Squares(9, seed=1)), verbose=False)
    assert mine.labels == [stage]
    assert results[KEY] == pytest.approx(mine.evaluations[0][1].scalars["entropy"])
    assert mine.frames == []
    fit(mine, trainer=trainer)
    assert mine.labels == [stage, "start", "epoch 1", "epoch 2"]
    assert mine.frames == ["start", "epoch 1", "epoch 2"]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_an_evaluation_after_fit_is_of_the_same_images(stage: str) -> None:
    mine = watched()
    run = fit(mine, max_epochs=1)
    getattr(run.trainer, stage)(run.module, loader(Squares(9, seed=5)), verbose=False)
    assert mine.labels == ["start", "epoch 1", stage]
    assert mine.frames == ["start", "epoch 1"]
    assert torch.equal(mine.evaluations[-1][0].images, mine.evaluations[0][0].images)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_an_evaluation_of_an_earlier_checkpoint_leaves_the_history_of_the_fit(stage: str, tmp_path: Any) -> None:
    mine = watched()
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    run = fit(mine, saving, enable_checkpointing=True)
    evaluate = getattr(run.trainer, stage)
    evaluate(run.module, loader(Squares(9, seed=1)), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert mine.labels == ["start", "epoch 1", "epoch 2", stage]
    assert mine.frames == ["start", "epoch 1", "epoch 2"]


def test_a_validation_by_another_trainer_is_of_the_same_classes() -> None:
    unlabelled = [loader([image for image, _ in Squares(9, seed=1)], 4) for _ in range(2)]
    mine = watched()
    run = fit(mine, module=Unlabelled, val=unlabelled[0], max_epochs=1)
    torch.nn.init.zeros_(run.module.net.head.weight)
    first = mine.evaluations[0][0].classes()
    run.module.net.head.bias.data[(first[0] + 1) % 3] = 100.0  # another prediction for every image
    make_trainer(mine).validate(run.module, unlabelled[1], verbose=False)
    assert mine.labels[-1] == "validate"
    assert mine.evaluations[-1][0].classes().tolist() == first.tolist()
    assert mine.evaluations[-1][0].logits().argmax(1).tolist() != first.tolist()


# Resuming -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: Any) -> tuple[WatchedMonitor, WatchedMonitor, Any]:
    """Two epochs, and two more from the last checkpoint, with another instance and another Trainer."""
    folder = tmp_path_factory.mktemp("resumed")
    unlabelled = [loader([image for image, _ in Squares(9, seed=1)], 4) for _ in range(2)]
    module = Unlabelled()
    before = watched(every_n_epochs=1)
    fit(before, ModelCheckpoint(folder, save_last=True), module=module, val=unlabelled[0], enable_checkpointing=True)
    after = watched(every_n_epochs=1)
    fit(after, module=Unlabelled, val=unlabelled[1], ckpt_path=folder / "last.ckpt", max_epochs=4)
    return before, after, folder / "last.ckpt"


class Unlabelled(Classifier):
    """Its validation batches are images alone, so that targets are those predicted at the start."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch)


def test_a_resumed_run_sees_the_same_images_and_classes(resumed: tuple[WatchedMonitor, WatchedMonitor, Any]) -> None:
    before, after, _ = resumed
    assert before.probe_set.hash == after.probe_set.hash
    assert torch.equal(before.evaluations[0][0].images, after.evaluations[0][0].images)
    assert before.shared.classes is not None
    assert torch.equal(before.shared.classes, after.shared.classes)  # type: ignore[arg-type]


def test_the_film_goes_on_where_it_was(resumed: tuple[WatchedMonitor, WatchedMonitor, Any]) -> None:
    before, after, _ = resumed
    assert before.frames == ["start", "epoch 1", "epoch 2"]
    assert after.labels == ["epoch 3", "epoch 4"]
    assert after.frames == ["start", "epoch 1", "epoch 2", "epoch 3", "epoch 4"]
    for earlier, now in zip(before.film, after.film, strict=False):
        torch.testing.assert_close(now.map, earlier.map, rtol=0, atol=0, equal_nan=True)  # a map of nothing is NaN


def test_the_state_is_plain_enough_for_a_safe_load(resumed: tuple[WatchedMonitor, WatchedMonitor, Any]) -> None:
    before, _, path = resumed
    states = torch.load(path, weights_only=True)["callbacks"]
    assert [frame["label"] for frame in states[before.state_key]["history"]["film"]] == ["start", "epoch 1", "epoch 2"]


def test_a_checkpoint_in_the_middle_of_an_epoch_holds_what_was_seen_by_then(tmp_path: Any) -> None:
    fit(watched(), ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="four"), enable_checkpointing=True)
    after = watched()
    fit(after, ckpt_path=tmp_path / "four.ckpt")
    assert after.frames == ["start", "epoch 1", "epoch 2"]
    assert after.labels == ["epoch 2"]


def test_a_checkpoint_without_the_monitor_starts_its_film_at_its_step(tmp_path: Any) -> None:
    fit(ModelCheckpoint(tmp_path, filename="plain"), max_epochs=1, enable_checkpointing=True)
    mine = watched()
    fit(mine, ckpt_path=tmp_path / "plain.ckpt")
    assert mine.frames == ["step 3", "epoch 2"]


def test_resuming_on_other_images_says_so_and_starts_another_film(tmp_path: Any) -> None:
    fit(watched(), ModelCheckpoint(tmp_path, filename="one"), max_epochs=1, enable_checkpointing=True)
    mine = watched()
    run = fit(mine, ckpt_path=tmp_path / "one.ckpt", val=loader(Squares(2, seed=9)))  # even fewer than asked for
    assert mine.frames == ["step 3", "epoch 2"]
    assert sum("not those of the run that is resumed" in message for message in run.messages) == 1


def test_a_test_from_a_checkpoint_does_not_use_the_classes_of_other_images(tmp_path: Any) -> None:
    fit(watched(), ModelCheckpoint(tmp_path, filename="one"), max_epochs=1, enable_checkpointing=True)
    mine = watched(num_images=2)
    other = loader(Squares(9, seed=9))
    make_trainer(mine).test(Classifier(), other, ckpt_path=tmp_path / "one.ckpt", verbose=False)
    assert mine.shared.classes is not None
    assert mine.shared.classes.tolist() == mine.evaluations[0][0].targets.tolist()  # type: ignore[union-attr]


def test_a_resumed_stream_keeps_its_images(tmp_path: Any) -> None:
    before, after = watched(), watched()
    fit(before, ModelCheckpoint(tmp_path, filename="s"), val=loader(Stream()), max_epochs=1, enable_checkpointing=True)
    fit(after, val=loader(Stream(5)), ckpt_path=tmp_path / "s.ckpt")
    assert torch.equal(before.evaluations[0][0].images, after.evaluations[0][0].images)
    assert after.frames == ["start", "epoch 1", "epoch 2"]


# Streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sanity", "wanted", "labels"),
    [
        (0, 3, ["epoch 1", "epoch 2"]),
        (2, 8, ["start", "epoch 1", "epoch 2"]),
        # the sanity check gives 4 of 8: they would come again, so the first validation starts over
        (1, 8, ["epoch 1", "epoch 2"]),
        (2, 100, ["epoch 1", "epoch 2"]),
    ],
)
def test_a_stream_gives_its_images_as_it_goes_by(sanity: int, wanted: int, labels: list[str]) -> None:
    mine = watched(num_images=wanted)
    run = fit(mine, val=loader(Stream()), num_sanity_val_steps=sanity)
    assert mine.labels == labels
    images = mine.evaluations[0][0].images
    assert len(images) == min(wanted, 12)
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images)
    assert sum("gathered as validation goes by" in message for message in run.messages) == 1


def test_a_stream_and_steps() -> None:
    mine = watched(every_n_steps=2)
    fit(mine, val=loader(Stream()), num_sanity_val_steps=0)
    assert mine.labels == ["epoch 1", "step 4", "step 6"]


# Errors ---------------------------------------------------------------------------------------------------------


class Fragile(Classifier):
    """Fails only where gradients are taken in evaluation mode: in an evaluation of a monitor."""

    def __init__(self, left: int = 0) -> None:
        super().__init__()
        self.register_buffer("left", torch.tensor(left))

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            raise RuntimeError("out of luck")
        return self.net(images)  # type: ignore[no-any-return]


def test_an_error_is_said_once_and_training_goes_on() -> None:
    run = fit(WatchedMonitor(), module=Fragile, max_epochs=3)
    assert run.losses == fit(module=Fragile, max_epochs=3).losses
    (message,) = run.messages
    assert "in its evaluation at start: RuntimeError: out of luck" in message
    assert "is switched off for the remainder of this run, training goes on" in message
    assert "on_error='raise'" in message


def test_an_error_can_be_raised_instead() -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(WatchedMonitor(on_error="raise"), module=Fragile)


def test_a_monitor_that_was_switched_off_works_again_in_the_next_run() -> None:
    mine = WatchedMonitor()
    fit(mine, module=Fragile)
    run = fit(mine)
    assert mine.labels == ["start", "epoch 1", "epoch 2"]
    assert run.messages == []


class FailsLater(WatchedMonitor):
    def evaluate(self, *args: Any, **options: Any) -> Any:
        if len(self.evaluations) == 2:
            raise RuntimeError("out of luck")
        return super().evaluate(*args, **options)


def test_after_an_error_only_what_is_waited_for_goes_on_and_nothing_is_drawn(tmp_path: Any) -> None:
    mine = FailsLater()
    stopping = EarlyStopping(KEY, patience=50)
    run = fit(mine, stopping, max_epochs=4, logger=tensorboard(tmp_path))
    assert run.trainer.current_epoch == 4
    (message,) = run.messages
    last = mine.evaluations[-1][1].scalars["entropy"]
    assert f"{KEY} stays {last:.3g}" in message
    written = events(tmp_path)
    assert float(run.trainer.callback_metrics[KEY]) == pytest.approx(last)
    for key in (KEY, "attngrad/maps/border_mass", "attngrad/maps/seconds"):
        assert len(scalar_points(written, key)) == 2  # no flat line that looks like a finding


def test_early_stopping_on_a_monitor_that_never_worked_does_not_crash() -> None:
    key = "attngrad/maps/head_entropy/net.blocks.0.attn"
    run = fit(WatchedMonitor(), EarlyStopping(key), module=Fragile, max_epochs=3)
    (message,) = run.messages
    assert f"{key} stays nan; early stopping on that would end the run" in message
    assert len(run.losses) == 3


def test_figures_that_cannot_be_drawn_leave_the_numbers(monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("no fonts")

    monkeypatch.setattr("lightning_attngrad.measure.map_figures.map_grid", broken)
    mine = WatchedMonitor(draws=True)
    run = fit(mine)
    assert run.losses == fit().losses
    (message,) = run.messages
    assert "could not draw: OSError: no fonts" in message
    assert mine.labels == ["start", "epoch 1", "epoch 2"]
    assert math.isfinite(float(run.trainer.callback_metrics[KEY]))
    with pytest.raises(OSError, match="no fonts"):
        fit(WatchedMonitor(draws=True, on_error="raise"))


# Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("num_images", 0, "int of at least 1"),
        ("num_images", True, "int of at least 1"),
        ("every_n_epochs", 0, "positive int"),
        ("every_n_epochs", 1.5, "positive int"),
        ("every_n_steps", -1, "positive int"),
        ("method", "gradcam", "grad_cam"),
        ("method", ["rollout"], "rollout"),
        ("objective", "logits", "logit"),
        ("top_k", 0, "positive int"),
        ("top_k", "3", "positive int"),
        ("classes", [-1], "class numbers from 0"),
        ("classes", ["cat"], "class numbers from 0"),
        ("classes", 3, "class numbers from 0"),
        ("class_names", "cat", "sequence of names"),
        ("class_names", [], "sequence of names"),
        ("class_names", {1: "cat"}, "expected 0 to 0"),
        ("image_key", 1.5, "name"),
        ("target_key", {}, "name"),
        ("batch_adapter", "nowhere", "import path"),
        ("batch_adapter", "no.such.function", "import path"),
        ("batch_adapter", 3, "callable"),
        ("model", "", "path"),
        ("model", nn.Identity(), "path"),
        ("mean", [0.5], "expected both"),
        ("std", [0.5], "expected both"),
        ("dataloader_idx", -1, "at least 0"),
        ("name", "", "a word"),
        ("name", "late layers", "a word"),
        ("name", 3, "a word"),
        ("seed", -1, "from 0"),
        ("seed", 0.5, "from 0"),
        ("on_error", "ignore", "'log' or 'raise'"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_given_and_what_would_do(
    argument: str, value: Any, expected: str
) -> None:
    with pytest.raises(ValueError) as caught:
        attngrad.AttentionMapMonitor(**with_probe({argument: value}))
    message = str(caught.value)
    assert message.startswith((f"{argument}: got", "mean, std: got" if argument in ("mean", "std") else argument))
    assert "got" in message
    assert expected in message


def test_options_are_those_of_the_method() -> None:
    with pytest.raises(ValueError, match=r"correction: got 'squared'; expected .*absolute"):
        attngrad.AttentionMapMonitor(method="gradient_guided", method_options={"correction": "squared"})
    with pytest.raises(ValueError, match=r"correction: got 'negative'.*an option of method='gradient_guided'"):
        attngrad.AttentionMapMonitor(method_options={"correction": "negative"})


def test_arguments_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"every_n_epochs, every_n_steps: got 1 and 1"):
        attngrad.AttentionMapMonitor(every_n_epochs=1, every_n_steps=1)
    with pytest.raises(ValueError, match=r"mean, std: got 2 and 1 numbers"):
        attngrad.ProbeImages(mean=(0.5, 0.5), std=(0.5,))
    with pytest.raises(ValueError, match=r"mean, std: got mean='a'.*expected numbers"):
        attngrad.ProbeImages(mean="a", std="b")
    with pytest.raises(ValueError, match=r"std: got .*expected positive"):
        attngrad.ProbeImages(mean=(0.5,), std=(0.0,))


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_a_wrong_model_path_is_an_error_before_training_that_lists_what_is_there(stage: str) -> None:
    module, trainer = Classifier(), make_trainer(WatchedMonitor(model="backbone"))
    with pytest.raises(ValueError, match=r"model: got 'backbone', but the LightningModule has no.*\['net'\]"):
        getattr(trainer, stage)(module, loader(Squares(4)))
    assert module.losses == []


def test_a_module_without_a_forward_is_asked_for_the_path() -> None:
    class NoForward(Classifier):
        forward = pl.LightningModule.forward

        def loss(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    with pytest.raises(ValueError, match=r"model: got None, but NoForward defines no forward.*\['net'\]"):
        fit(WatchedMonitor(), module=NoForward)
    mine = watched(model="net")
    fit(mine, module=NoForward)
    assert mine.labels == ["start", "epoch 1", "epoch 2"]


def test_a_number_of_classes_that_the_model_does_not_have() -> None:
    run = fit(WatchedMonitor(classes=[1, 7]))
    (message,) = run.messages
    assert "classes: got (1, 7); the model's classes are 0 to 2" in message


# Names ----------------------------------------------------------------------------------------------------------


def test_a_class_without_a_name_is_called_by_its_number() -> None:
    nothing = torch.zeros(1)
    probe = Evaluation(nn.Identity(), nn.Identity(), nothing, None, nothing, ("left", "right"), "start")
    assert [probe.class_name(index) for index in (0, 1, 2, -1)] == ["left", "right", "2", "-1"]


class Named(Squares):
    classes = CLASSES


@pytest.mark.parametrize("source", ["argument", "mapping", "dataset", "datamodule"])
def test_class_names_come_from_argument_data_set_or_datamodule(source: str) -> None:
    class Data(pl.LightningDataModule):
        class_names = CLASSES

        def train_dataloader(self) -> Any:
            return loader(Squares())

        def val_dataloader(self) -> Any:
            return loader(Squares(9))

    options: dict[str, Any] = {
        "argument": {"class_names": list(CLASSES)},
        "mapping": {"class_names": dict(enumerate(CLASSES))},
    }
    mine = watched(**options.get(source, {}))
    run: dict[str, Any] = {"dataset": {"val": loader(Named(9))}, "datamodule": {"datamodule": Data()}}
    fit(mine, max_epochs=1, **run.get(source, {}))
    assert mine.evaluations[0][0].class_names == CLASSES
