"""What each checkpoint is worth: in it, beside it, of just its weights, whatever saves it and however the run ends."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks import checkpoint_audit
from tests.callbacks.rewriting_runs import (
    CHEAP,
    Bright,
    WatchedAudit,
    WatchedRewriting,
    beside_the_line_on_maps,
    bright,
    figures_of,
    figures_of_weights,
    fit_and_save,
    numbers,
    records,
    saving,
    state_of,
)
from tests.callbacks.small_runs import (
    Classifier,
    Squares,
    Stream,
    events,
    fit,
    loader,
    make_trainer,
    scalar_points,
    small_convnet,
    tensorboard,
    tiny_vit,
)
from tests.probe_options import with_probe


def same(one: dict[str, float], other: dict[str, float]) -> bool:
    """To the last bit, with NaN equal to itself."""
    return {name: str(value) for name, value in one.items()} == {name: str(value) for name, value in other.items()}


# In the checkpoint and beside it --------------------------------------------------------------------------------


def test_each_checkpoint_has_the_figures_of_its_own_weights(tmp_path: Path) -> None:
    audit = WatchedAudit(steps=4, num_images=4)
    fit_and_save(audit, saving(tmp_path), max_epochs=3)
    beside = records(tmp_path)
    assert list(beside) == ["step=3", "step=6", "step=9"]
    seen = []
    for name, record in beside.items():
        path = tmp_path / f"{name}.ckpt"
        inside = state_of(path)["record"]
        true = figures_of(path, steps=4, num_images=4)
        assert true
        assert same(numbers(record["figures"]), true)
        assert same(numbers(inside["figures"]), true)
        assert record["checkpoint"] == path.name
        assert record["global_step"] == inside["global_step"] == int(name.removeprefix("step="))
        assert record["epoch"] == inside["epoch"] == record["global_step"] // 3 - 1
        assert record["metrics"] == pytest.approx(inside["metrics"])
        assert (record["why_empty"], inside["why_empty"]) == ("", "")
        assert record["hash"] == audit.hash
        seen.append(str(true))
    assert len(set(seen)) == 3, "the weights of all checkpoints are alike: this test cannot fail"
    assert len(audit.evaluations) == 3


def test_the_record_says_what_is_needed_to_find_the_figures_again(tmp_path: Path) -> None:
    audit = WatchedAudit(target="runner_up", norm="l2", radii=(0.5, 1.0), seed=4, model="net")
    fit_and_save(audit, saving(tmp_path), max_epochs=1)
    record = records(tmp_path)["step=3"]
    expected = {"num_images": 3, "seed": 4, "norm": "l2", "steps": 2, "target": "runner_up", "radii": [0.5, 1.0]}
    assert expected.items() <= record["settings"].items()
    assert {"model": "net", "mean": [0.0], "std": [1.0], "precision": "32-true"}.items() <= record["settings"].items()
    assert record["images"] == {"count": 3, "hash": audit.probe_set.hash}
    assert record["metrics"].keys() == {"train_loss", "val_loss"}
    assert record["seconds"] > 0
    names = record["figures"].keys()
    assert {"rewrite/median_l2", "rewrite/success/0.5", "rewrite/health/never_rewritten", "maps/entropy"} <= names
    assert all(name.startswith(("rewrite/", "maps/")) for name in names)


def test_the_metrics_are_the_runs_own_at_the_moment_of_saving(tmp_path: Path) -> None:
    """Two checkpoints of one step, before and after its validation: the figures are the same, the metrics are not."""
    steps, best = tmp_path / "steps", tmp_path / "best"
    audit = WatchedAudit()
    monitored = saving(best, monitor="val_loss")
    fit_and_save(audit, WatchedRewriting(), saving(steps, every_n_train_steps=3), monitored, max_epochs=3)
    assert len(audit.evaluations) == 3
    for path, score in monitored.best_k_models.items():
        name = Path(path).stem
        assert records(best)[name]["metrics"]["val_loss"] == pytest.approx(float(score))
        assert state_of(Path(path))["record"]["metrics"]["val_loss"] == pytest.approx(float(score))
        assert records(best)[name]["figures"] == records(steps)[name]["figures"]
        assert not any(metric.startswith("attngrad/") for metric in records(best)[name]["metrics"])
    assert "val_loss" not in records(steps)["step=3"]["metrics"]  # there was none yet
    assert records(steps)["step=6"]["metrics"]["val_loss"] == records(best)["step=3"]["metrics"]["val_loss"]


def test_a_model_without_attention_has_the_figures_of_rewriting_alone(tmp_path: Path) -> None:
    fit_and_save(WatchedAudit(), saving(tmp_path), module=bright, max_epochs=1)
    figures = records(tmp_path)["step=3"]["figures"]
    assert all(name.startswith("rewrite/") for name in figures)
    assert "rewrite/map_shift" not in figures
    assert records(tmp_path)["step=3"]["settings"]["method"] is None


def test_seconds_reach_the_loggers(tmp_path: Path) -> None:
    fit_and_save(WatchedAudit(), saving(tmp_path / "saved"), logger=tensorboard(tmp_path), max_epochs=2)
    points = scalar_points(events(tmp_path), "attngrad/audit/seconds")
    assert len(points) == 2
    assert all(seconds > 0 for _, seconds in points)


# What saves -----------------------------------------------------------------------------------------------------


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pairs(*stems: str) -> set[str]:
    return {f"{stem}{ending}" for stem in stems for ending in (".ckpt", ".audit.json")}


def test_the_file_goes_with_its_checkpoint(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2, filename="{step}")
    fit_and_save(WatchedAudit(), best, max_epochs=5)
    kept = {Path(path).stem for path in best.best_k_models}
    assert len(kept) == 2
    assert names(tmp_path) == pairs(*kept)
    for name, record in records(tmp_path).items():
        assert record["metrics"]["val_loss"] == pytest.approx(float(best.best_k_models[str(tmp_path / f"{name}.ckpt")]))


def test_the_one_that_is_always_replaced(tmp_path: Path) -> None:
    fit_and_save(WatchedAudit(), ModelCheckpoint(tmp_path, filename="{step}"), max_epochs=3)  # keeps the last one
    assert names(tmp_path) == pairs("step=9")


@pytest.mark.parametrize("save_last", [True, "link"])
def test_the_last_one_is_described_anew_each_time(tmp_path: Path, save_last: Any) -> None:
    seen: list[tuple[int, int]] = []

    class Reads(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if (tmp_path / "last.ckpt").exists():
                in_file = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
                seen.append((in_file, records(tmp_path)["last"]["global_step"]))

    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=1, save_last=save_last, filename="{step}")
    fit_and_save(Reads(), WatchedAudit(), checkpoint, max_epochs=4)
    best = Path(checkpoint.best_model_path).stem
    assert names(tmp_path) == pairs("last", best)
    assert (tmp_path / "last.ckpt").is_symlink() == (save_last == "link")
    assert not (tmp_path / "last.audit.json").is_symlink()
    assert all(in_file == beside for in_file, beside in seen)
    assert len(seen) == 9
    assert same(numbers(records(tmp_path)["last"]["figures"]), figures_of(tmp_path / "last.ckpt"))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"every_n_train_steps": 2}, [2, 4, 6]),
        ({"save_on_train_epoch_end": True}, [3, 6]),
        ({"save_on_train_epoch_end": False}, [3, 6]),
        ({"every_n_epochs": 2}, [6]),
        ({"monitor": "val_loss"}, [3, 6]),
    ],
    ids=str,
)
@pytest.mark.parametrize("weights_only", [False, True])
def test_whatever_saves_and_whether_it_saves_weights_only(
    tmp_path: Path, options: dict[str, Any], steps: list[int], weights_only: bool
) -> None:
    audit = WatchedAudit()
    fit_and_save(audit, saving(tmp_path, save_weights_only=weights_only, **options), module=bright)
    assert names(tmp_path) == pairs(*(f"step={step}" for step in steps))
    for step in steps:
        record = records(tmp_path)[f"step={step}"]
        weights = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        assert record["global_step"] == step
        assert same(numbers(record["figures"]), figures_of_weights(weights, module=bright))
    assert len(audit.evaluations) == len(steps)


def test_a_validation_after_each_batch(tmp_path: Path) -> None:
    fit_and_save(WatchedAudit(), saving(tmp_path), module=bright, val_check_interval=1 / 3, max_epochs=1)
    assert {name: record["global_step"] for name, record in records(tmp_path).items()} == {
        f"step={step}": step for step in (1, 2, 3)
    }


def test_saved_by_hand_at_any_moment(tmp_path: Path) -> None:
    class Save(pl.Callback):
        def save(self, trainer: pl.Trainer, name: str) -> None:
            trainer.save_checkpoint(tmp_path / f"{name}.ckpt")

        def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self.save(trainer, "start")

        def on_after_backward(self, trainer: pl.Trainer, *_: Any) -> None:
            self.save(trainer, f"backward {trainer.global_step}")  # gradients are there, and the step is not done

        def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step:
                self.save(trainer, "validation")

    audit = WatchedAudit()
    run = fit(audit, Save(), module=bright, max_epochs=1)
    run.trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert run.losses == fit(module=bright, max_epochs=1).losses
    assert not list(tmp_path.glob("*.json"))  # its names are not known to the audit
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 6
    for path in paths:
        record = state_of(path)["record"]
        assert record["why_empty"] == ""
        assert same(record["figures"], figures_of(path, module=bright)), path.name


class Normalised(Classifier):
    """Its buffers change with each batch, whether or not that batch makes a step."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.BatchNorm2d(3), tiny_vit()))


def test_buffers_that_change_between_two_steps_are_seen(tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
            trainer.save_checkpoint(tmp_path / f"{index}.ckpt")

    options: dict[str, Any] = {"accumulate_grad_batches": 2, "max_epochs": 1, "train": loader(Squares(16))}
    fit(WatchedAudit(), WatchedRewriting(every_n_steps=1), Save(), module=Normalised, **options)
    for index in range(4):
        path = tmp_path / f"{index}.ckpt"
        assert same(state_of(path)["record"]["figures"], figures_of(path, module=Normalised)), index


def test_saved_after_the_run_with_weights_that_were_never_evaluated(tmp_path: Path) -> None:
    run = fit(WatchedAudit(), module=bright, max_epochs=1)
    run.trainer.save_checkpoint(tmp_path / "end.ckpt")
    record = state_of(tmp_path / "end.ckpt")["record"]
    assert record["figures"] == {}
    assert "the run had ended or failed" in record["why_empty"]


# What costs -----------------------------------------------------------------------------------------------------


class Counted(Classifier):
    """Counts forwards where no snapshot of the module takes the count back."""

    forwards: list[int]

    def __init__(self) -> None:
        super().__init__()
        type(self).forwards = []

    def forward(self, images: Tensor) -> Any:
        self.forwards.append(len(images))
        return super().forward(images)


def forwards_of(*callbacks: Any, **options: Any) -> int:
    run = fit_and_save(*callbacks, module=Counted, **options)
    return len(run.module.forwards)


@pytest.mark.parametrize("audit_first", [True, False])
def test_what_a_monitor_of_the_same_settings_has_measured_is_not_measured_twice(
    tmp_path: Path, audit_first: bool
) -> None:
    def run(*which: str) -> tuple[int, dict[str, Any]]:
        folder = tmp_path / ("-".join(which) or "none")
        made = {"audit": WatchedAudit(steps=5), "monitor": WatchedRewriting(steps=5)}
        number = forwards_of(*(made[name] for name in which), saving(folder), max_epochs=3)
        found = [record["figures"] for record in records(folder).values()] if "audit" in which else []
        if len(which) == 2:
            for record, value in zip(found, made["monitor"].series("area")[1:], strict=True):
                assert float(record["rewrite/area"]) == value
        return number, {"figures": found}

    both = ("audit", "monitor") if audit_first else ("monitor", "audit")
    (none, _), (audit, alone), (monitor, _), (together, beside) = (run(), run("audit"), run("monitor"), run(*both))
    for one, other in zip(alone["figures"], beside["figures"], strict=True):
        assert same(numbers(one), numbers(other))
    assert audit - none > 3 * 5
    # The classes are those of the run: each of the audit's evaluations takes what is there.
    saved = (monitor - none) + (audit - none) - (together - none)
    one_search = (monitor - none) // 4
    assert saved >= 3 * (one_search - 1)
    assert saved > 0.4 * (audit - none)


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 3},
        {"norm": "l2"},
        {"num_images": 4},
        {"seed": 1},
        {"target": "all"},
        {"mean": 0.01, "std": 0.98},
        {"pixel_range": (0, 2)},
    ],
    ids=str,
)
def test_what_a_monitor_of_other_settings_has_measured_is_not_taken(tmp_path: Path, other: dict[str, Any]) -> None:
    fit_and_save(WatchedRewriting(**other), WatchedAudit(steps=4), saving(tmp_path), module=bright)
    path = tmp_path / "step=6.ckpt"
    assert same(numbers(records(tmp_path)["step=6"]["figures"]), figures_of(path, module=bright, steps=4))


class Teaching(Classifier):
    """A student and its teacher: the same images and classes, and other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = small_convnet()


def test_what_a_monitor_of_another_part_of_the_model_has_measured_is_not_taken(tmp_path: Path) -> None:
    options: dict[str, Any] = {"module": Teaching}
    fit_and_save(WatchedRewriting(model="teacher"), WatchedAudit(model="net"), saving(tmp_path), **options)
    true = figures_of(tmp_path / "step=6.ckpt", model="net", **options)
    assert same(numbers(records(tmp_path)["step=6"]["figures"]), true)


def test_one_evaluation_however_many_files_are_saved(tmp_path: Path) -> None:
    audit = WatchedAudit()
    others = [saving(tmp_path / name, monitor=name, filename="{epoch}") for name in ("val_loss", "train_loss")]
    fit_and_save(audit, *others, saving(tmp_path / "last", save_last=True), module=bright, max_epochs=2)
    assert len(audit.evaluations) == 2
    assert {len(records(path)) for path in tmp_path.iterdir()} == {2, 3}


def test_no_checkpoint_no_evaluation() -> None:
    audit = WatchedAudit()
    run = fit(audit, module=bright)
    assert audit.evaluations == []
    assert audit.record is None
    assert run.messages == []


# Averaged weights -----------------------------------------------------------------------------------------------


class AtEpochs(WeightAveraging):
    """As Lightning's manual does it: the average takes in the weights at the end of an epoch."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None and epoch_idx >= 1


AVERAGING: dict[str, Callable[[], pl.Callback]] = {
    "ema": lambda: EMAWeightAveraging(decay=0.7),
    "mean": WeightAveraging,
    "epochs": AtEpochs,
}


@pytest.mark.parametrize("audit_first", [True, False])
@pytest.mark.parametrize("kind", AVERAGING)
def test_figures_are_those_of_the_averaged_weights_in_the_checkpoint_or_say_why_not(
    tmp_path: Path, kind: str, audit_first: bool
) -> None:
    audit, averaging = WatchedAudit(), AVERAGING[kind]()
    order = [audit, averaging] if audit_first else [averaging, audit]
    every, epochs = tmp_path / "every", tmp_path / "epochs"
    rewriting = WatchedRewriting(every_n_steps=1)  # sees the weights before averaging: nothing to be taken over
    callbacks = [rewriting, *order, saving(every, every_n_train_steps=2), saving(epochs, monitor="val_loss")]
    fit_and_save(*callbacks, max_epochs=3)
    empty = []
    for path in [*every.glob("*.ckpt"), *epochs.glob("*.ckpt")]:
        inside = state_of(path)["record"]
        beside = records(path.parent)[path.stem]
        assert inside["global_step"] == beside["global_step"] == int(path.stem.removeprefix("step="))
        assert inside["why_empty"] == beside["why_empty"]
        assert inside["metrics"] == beside["metrics"]
        for figures in (numbers(inside["figures"]), numbers(beside["figures"])):
            assert same(figures, {} if inside["why_empty"] else figures_of(path)), path
        if inside["why_empty"]:
            empty.append(path)
            assert "averaged weights are in place during a validation only" in inside["why_empty"]
    assert [path.stem for path in sorted(epochs.glob("*.ckpt"))] == ["step=3", "step=6", "step=9"]
    seen = [path for path in epochs.glob("*.ckpt") if path not in empty]
    # The average that takes in the weights at the end of an epoch has not been validated with when it is saved.
    assert len(seen) == (1 if kind == "epochs" else 3)
    assert {path.stem for path in every.glob("*.ckpt")} == {path.stem for path in empty if path.parent == every}
    weights = torch.load(epochs / "step=9.ckpt", weights_only=True)
    assert any(not torch.equal(w, weights["state_dict"][n]) for n, w in weights["current_model_state"].items())


def test_weights_only_with_averaging_are_the_raw_ones_and_that_is_said(tmp_path: Path) -> None:
    callbacks = [EMAWeightAveraging(decay=0.7), WatchedAudit(), saving(tmp_path, save_weights_only=True)]
    fit_and_save(*callbacks, module=bright)
    for record in records(tmp_path).values():
        assert record["figures"] == {}
        assert "it holds the weights before averaging" in record["why_empty"]
    raw = tmp_path / "raw"
    fit_and_save(saving(raw, save_weights_only=True), module=bright)
    one, other = (torch.load(folder / "step=6.ckpt", weights_only=True)["state_dict"] for folder in (tmp_path, raw))
    assert all(torch.equal(one[name], other[name]) for name in other), "Lightning has come to save averages: say so"


def test_weights_swapped_in_at_the_very_end_are_not_taken_for_those_that_were_evaluated(
    tmp_path: Path,
) -> None:
    averaging = StochasticWeightAveraging(1e-2, swa_epoch_start=1)
    run = fit_and_save(WatchedAudit(), averaging, saving(tmp_path), max_epochs=3)
    run.trainer.save_checkpoint(tmp_path / "end.ckpt")
    for path in tmp_path.glob("*.ckpt"):
        record = state_of(path)["record"]
        assert bool(record["why_empty"]) == (path.stem == "end")
        assert same(record["figures"], {} if record["why_empty"] else figures_of(path)), path


# Ends and beginnings --------------------------------------------------------------------------------------------


class Boom(pl.Callback):
    """Ends the run at a step."""

    def __init__(self, error: type[BaseException] = ZeroDivisionError, step: int = 5) -> None:
        self.error, self.step = error, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


@pytest.mark.parametrize(("error", "raised"), [(ZeroDivisionError, ZeroDivisionError), (KeyboardInterrupt, SystemExit)])
def test_what_is_saved_on_the_way_out_says_that_it_was_not_evaluated(
    tmp_path: Path, error: type[BaseException], raised: type[BaseException]
) -> None:
    audit = WatchedAudit()
    with pytest.raises(raised):
        fit_and_save(audit, Boom(error), saving(tmp_path, save_on_exception=True), module=bright)
    assert names(tmp_path) == {*pairs("step=3"), "step=5.ckpt"}  # no hook follows in which a file could be written
    record = state_of(tmp_path / "step=5.ckpt")["record"]
    assert (record["figures"], record["global_step"]) == ({}, 5)
    assert "the run had ended or failed" in record["why_empty"]
    assert len(audit.evaluations) == 1


def test_what_was_saved_just_before_an_error_has_its_file(tmp_path: Path) -> None:
    class Late(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            raise ZeroDivisionError

    late, audit = Late(), WatchedAudit()
    with pytest.raises(ZeroDivisionError):
        fit_and_save(late, audit, saving(tmp_path, save_on_train_epoch_end=False), module=bright)
    assert names(tmp_path) == pairs("step=3")
    assert same(numbers(records(tmp_path)["step=3"]["figures"]), figures_of(tmp_path / "step=3.ckpt", module=bright))


def test_fast_dev_run_saves_nothing_and_says_nothing(tmp_path: Path) -> None:
    run = fit_and_save(WatchedAudit(), saving(tmp_path), module=bright, fast_dev_run=True)
    assert run.messages == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"image_key": "nowhere"},
            "switched off: in its images: ProbeInputError: image_key: got 'nowhere'",
        ),
        ({"val": "stream"}, "no validation had given them"),
    ],
)
def test_without_images_there_is_a_record_that_says_why(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    given = {name: value for name, value in options.items() if name != "val"}
    audit = attngrad.CheckpointAudit(**with_probe({**CHEAP, "on_error": "log", **given}))
    data = {"val": loader(Stream())} if "val" in options else {}
    save = saving(tmp_path, every_n_train_steps=2)
    run = fit_and_save(audit, save, num_sanity_val_steps=0, module=bright, **data)
    assert len([message for message in run.messages if "no map can be made" not in message]) == 1
    record = records(tmp_path)["step=2"]
    assert record["figures"] == {}
    assert words in record["why_empty"]
    later = records(tmp_path)["step=4"]  # by now a stream has given its images
    assert bool(later["figures"]) == ("val" in options)


def test_without_validation_the_images_are_those_of_training(tmp_path: Path) -> None:
    audit = attngrad.CheckpointAudit(**with_probe({**CHEAP, "on_error": "log"}))
    run = fit_and_save(audit, saving(tmp_path, every_n_train_steps=2), module=bright, val=None)
    (message,) = beside_the_line_on_maps(run.messages)
    assert "the run has no validation loader: the probe images come from the training data" in message
    assert [bool(record["figures"]) for record in records(tmp_path).values()] == [True] * 3
    training = [image for image, _ in Squares()]
    assert audit.probe_set.images is not None
    assert all(any(torch.equal(image, one) for one in training) for image in audit.probe_set.images)


def test_an_evaluation_that_fails_leaves_a_reason_and_training_goes_on(tmp_path: Path) -> None:
    audit = attngrad.CheckpointAudit(**with_probe({**CHEAP, "on_error": "log", "target": 3}))
    run = fit_and_save(audit, saving(tmp_path))
    (message,) = run.messages
    assert "the model's classes are 0 to 2" in message
    assert "training goes on" in message
    assert run.losses == fit().losses
    for step in (3, 6):
        record = state_of(tmp_path / f"step={step}.ckpt")["record"]
        assert "the audit is switched off" in record["why_empty"]
        assert records(tmp_path)[f"step={step}"]["why_empty"] == record["why_empty"]
    with pytest.raises(ValueError, match="the model's classes are 0 to 2"):
        fit_and_save(WatchedAudit(target=3), saving(tmp_path / "raised"))


def test_a_resumed_run_keeps_images_and_classes(tmp_path: Path) -> None:
    class Unlabelled(Classifier):
        def __init__(self) -> None:
            super().__init__(Bright())

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch)

    def images() -> Any:
        return loader([image for image, _ in Squares(9, seed=1)])

    before, after = (WatchedAudit(target="runner_up", num_images=6) for _ in range(2))
    fit_and_save(before, saving(tmp_path), module=Unlabelled, val=images())
    fit_and_save(
        after, saving(tmp_path), module=Unlabelled, val=images(), ckpt_path=tmp_path / "step=6.ckpt", max_epochs=4
    )
    assert before.hash == after.hash
    assert {record["hash"] for record in records(tmp_path).values()} == {before.hash}
    assert list(records(tmp_path)) == ["step=12", "step=3", "step=6", "step=9"]
    assert before._frozen is not None
    probe = after.evaluations[-1][0]
    # the classes of the first checkpoint, which the last one would give otherwise
    assert probe.model(probe.images).argmax(1).tolist() != before._frozen.own.tolist(), "nothing could have changed"


@pytest.mark.parametrize("changed", ["images", "settings"])
def test_a_resumed_run_on_something_else_has_another_hash_and_leaves_the_files_of_before(
    tmp_path: Path, changed: str
) -> None:
    before, after = WatchedAudit(), WatchedAudit(**({"steps": 3} if changed == "settings" else {}))
    fit_and_save(before, saving(tmp_path, monitor="val_loss"), module=bright, max_epochs=1)
    there = (tmp_path / "step=3.audit.json").read_bytes()
    options = {"val": loader(Squares(7, seed=9))} if changed == "images" else {}
    path = tmp_path / "step=3.ckpt"
    fit_and_save(after, saving(tmp_path, monitor="val_loss"), module=bright, ckpt_path=path, max_epochs=3, **options)
    assert (tmp_path / "step=3.audit.json").read_bytes() == there
    hashes = [record["hash"] for record in records(tmp_path).values()]
    assert hashes == [before.hash, after.hash, after.hash]
    assert before.hash != after.hash


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_of_an_earlier_run_keep_their_files(tmp_path: Path, weights_only: bool) -> None:
    """One ModelCheckpoint in two runs, and the sanity check of the second finds the files of the first."""
    checkpoint = saving(tmp_path, monitor="val_loss", save_weights_only=weights_only)
    fit_and_save(WatchedAudit(), checkpoint, module=bright, max_epochs=1)
    there = (tmp_path / "step=3.audit.json").read_bytes()
    fit_and_save(WatchedAudit(), checkpoint, module=bright, max_epochs=1, num_sanity_val_steps=2)
    assert (tmp_path / "step=3.audit.json").read_bytes() == there


def test_the_best_of_an_earlier_run_elsewhere_keeps_its_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    fit_and_save(WatchedAudit(), ModelCheckpoint(one, filename="{step}"), module=bright, max_epochs=1)
    there = (one / "step=3.audit.json").read_bytes()
    last = ModelCheckpoint(other, save_top_k=0, save_last=True)
    fit_and_save(WatchedAudit(), last, module=bright, ckpt_path=one / "step=3.ckpt")
    assert (one / "step=3.audit.json").read_bytes() == there
    assert names(other) == pairs("last")


def test_going_on_with_the_same_trainer_evaluates_again(tmp_path: Path) -> None:
    audit = WatchedAudit()
    run = fit_and_save(audit, saving(tmp_path, filename="{epoch}"), module=bright, max_epochs=1)
    with torch.no_grad():
        run.module.net.linear.weight.neg_()  # between two fits a user may do anything
    run.trainer.fit_loop.max_epochs = 2
    fit(module=run.module, trainer=run.trainer)
    assert list(records(tmp_path)) == ["epoch=0", "epoch=1"]
    path = tmp_path / "epoch=1.ckpt"
    assert same(numbers(records(tmp_path)["epoch=1"]["figures"]), figures_of(path, module=bright))


# Elsewhere ------------------------------------------------------------------------------------------------------


def test_restored_in_a_validation_the_figures_are_identical_for_one_checkpoint_after_another(tmp_path: Path) -> None:
    fit_and_save(WatchedAudit(), saving(tmp_path), module=bright, max_epochs=3)
    audit, monitor = WatchedAudit(), WatchedRewriting()
    trainer = make_trainer(audit, monitor)  # one for all, and the audit ahead of the monitor
    found = []
    for path in sorted(tmp_path.glob("*.ckpt")):
        trainer.validate(bright(), loader(Squares(9, seed=1)), ckpt_path=path, weights_only=True, verbose=False)
        assert audit.record is not None
        assert same(audit.record.figures, numbers(records(tmp_path)[path.stem]["figures"])), path
        assert audit.hash == records(tmp_path)[path.stem]["hash"]
        found.append(str(audit.record.figures))
    assert len(set(found)) == 3
    assert names(tmp_path) == pairs("step=3", "step=6", "step=9")  # nothing is written but in a fit


def test_a_validation_has_a_record_and_a_test_has_none() -> None:
    validating, testing = WatchedAudit(), WatchedAudit()
    make_trainer(validating).validate(bright(), loader(Squares(9, seed=3)), verbose=False)
    make_trainer(testing).test(bright(), loader(Squares(9, seed=2)), verbose=False)
    assert validating.record is not None
    assert validating.record.figures
    assert validating.record.why_empty == ""
    assert testing.record is None


def test_two_audits_of_one_run_write_two_files(tmp_path: Path) -> None:
    callbacks = [WatchedAudit(), WatchedAudit(name="far", norm="l2"), ModelCheckpoint(tmp_path, filename="{step}")]
    fit_and_save(*callbacks, module=bright)
    assert names(tmp_path) == {*pairs("step=6"), "step=6.far.json"}
    both = [json.loads((tmp_path / f"step=6.{name}.json").read_text()) for name in ("audit", "far")]
    assert [record["settings"]["norm"] for record in both] == ["linf", "l2"]
    assert ["rewrite/median_l2" in record["figures"] for record in both] == [False, True]
    for name, record in zip(("audit", "far"), both, strict=True):
        assert same(state_of(tmp_path / "step=6.ckpt", name)["record"]["figures"], numbers(record["figures"]))
    with pytest.raises(ValueError, match=r"name: 2 monitors are called 'audit'.*give each its own"):
        fit(WatchedAudit(), WatchedAudit(), module=bright)


def test_an_object_store(monkeypatch: Any) -> None:
    fsspec = pytest.importorskip("fsspec")
    folder = "memory://bucket/run"
    fit_and_save(WatchedAudit(), ModelCheckpoint(folder, filename="{step}"), module=bright)
    with fsspec.open(f"{folder}/step=6.audit.json") as stream:
        assert json.load(stream)["global_step"] == 6


# Disks ----------------------------------------------------------------------------------------------------------


def warned(*callbacks: Any) -> list[str]:
    """What is said in a run that goes on to its end."""
    run = fit_and_save(*callbacks, module=bright, max_epochs=3)
    assert len(run.losses) == 9
    return beside_the_line_on_maps(run.messages)


def test_a_place_that_cannot_be_written_to_is_named_once_and_training_goes_on(tmp_path: Path) -> None:
    for step in (3, 6):
        (tmp_path / f"step={step}.audit.json").mkdir()
    audit = WatchedAudit()
    for _ in range(2):  # once in each run
        said = warned(audit, saving(tmp_path, enable_version_counter=False))
        assert len(said) == 1
        assert f"could not write {tmp_path / 'step=3.audit.json'}: " in said[0]
        assert "Is a directory" in said[0]
        assert "The figures are in the checkpoint itself; training goes on" in said[0]
    assert state_of(tmp_path / "step=6.ckpt")["record"]["figures"]
    assert json.loads((tmp_path / "step=9.audit.json").read_text())["global_step"] == 9
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_error_of_an_object_store_that_is_no_oserror(tmp_path: Path, monkeypatch: Any) -> None:
    class HttpError(Exception):
        pass

    def refused(*_: Any, **__: Any) -> None:
        raise HttpError("403")

    monkeypatch.setattr("lightning_attngrad.measure.audit_record.write_to", refused)
    said = warned(WatchedAudit(), saving(tmp_path))
    assert len(said) == 1
    assert "403" in said[0]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk on which no file can grow any more; the kernel itself refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel for a limit")
def test_a_full_disk(tmp_path: Path, monkeypatch: Any) -> None:
    real = checkpoint_audit.AuditRecord.write_beside

    def on_a_full_disk(self: Any, *arguments: Any) -> None:
        with files_of_at_most(200):
            real(self, *arguments)

    fit_and_save(WatchedAudit(), saving(tmp_path, filename="old"), module=bright, max_epochs=1)
    there = (tmp_path / "old.audit.json").read_bytes()
    monkeypatch.setattr(checkpoint_audit.AuditRecord, "write_beside", on_a_full_disk)
    said = warned(WatchedAudit(), saving(tmp_path, filename="old", save_top_k=1, enable_version_counter=False))
    assert len(said) == 1
    assert f"could not write {tmp_path / 'old.audit.json'}: [Errno 27]" in said[0]
    assert (tmp_path / "old.audit.json").read_bytes() == there  # the old one, whole
    assert names(tmp_path) == pairs("old")


# Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("num_images", 0, "int of at least 1"),
        ("norm", "l1", "linf, l2, l0, l0_patches"),
        ("steps", 0, "number of gradients"),
        ("target", "likely", "random, runner_up"),
        ("radii", (0.1, math.inf), "positive numbers"),
        ("radii", 0.1, "positive numbers"),
        ("mean", (0.5,), "expected both"),
        ("name", "two words", "a word"),
        ("on_error", "ignore", "'log' or 'raise'"),
    ],
)
def test_a_wrong_argument_is_named_at_construction(argument: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match="got ") as caught:
        attngrad.CheckpointAudit(**with_probe({argument: value}))
    assert argument in str(caught.value)
    assert expected in str(caught.value)


def test_a_wrong_model_path_is_an_error_before_training() -> None:
    module = Classifier()
    with pytest.raises(ValueError, match=r"model: got 'backbone', but the LightningModule has no"):
        fit(WatchedAudit(model="backbone"), module=module)
    assert module.losses == []
