"""One classifier in several spellings: whatever its output is called, its maps, numbers and captions are the same."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks import monitor as module_of_monitors
from lightning_attngrad.measure.maps import Maps, explain_images
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.small_runs import Classifier, events, fit, tensorboard, tiny_vit, words

IMAGES = 6
COSTS = ("seconds", "overhead")


def squares(classes: int, length: int, seed: int) -> TensorDataset:
    """A bright square in a place of its own for each class."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(length, 3, 32, 32, generator=generator)
    targets = torch.arange(length) % classes
    for image, target in zip(images, targets.tolist(), strict=True):
        top, left = divmod(int(target), 2)
        image[:, 16 * top : 16 * top + 16, 16 * left : 16 * left + 16] += 0.6
    return TensorDataset(images, targets)


class Maker(Classifier):
    """Trains its logits by one rule, and says in its own way what they are."""

    def __init__(
        self, spelt: Callable[[nn.Module, Tensor], Tensor], loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor]
    ):
        super().__init__(tiny_vit(num_classes=0))
        self.head = nn.Linear(32, 1)
        self.prototypes = nn.Parameter(
            torch.randn(3, 32, generator=torch.Generator().manual_seed(4)), requires_grad=False
        )
        self.spelt, self.loss_of = spelt, loss_of

    def forward(self, images: Tensor) -> Tensor:
        return self.spelt(self, images)

    def loss(self, batch: Any) -> Tensor:
        return self.loss_of(self, *batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)  # gently: every image is to be rewritten


def z_of(module: Any, images: Tensor) -> Tensor:
    return module.head(module.net(images))  # type: ignore[no-any-return]


def binary_loss(module: Any, images: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(z_of(module, images)[:, 0], targets.flatten().float())


def two_outputs(module: Any, images: Tensor) -> Tensor:
    z = z_of(module, images)
    return torch.cat([-z / 2, z / 2], dim=1)


def embedding_of(module: Any, images: Tensor) -> Tensor:
    return module.net(images)  # type: ignore[no-any-return]


def linear_of(module: Any, images: Tensor) -> Tensor:
    return nn.functional.linear(module.net(images), module.prototypes)


def linear_loss(module: Any, images: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(linear_of(module, images), targets)


@dataclass
class Twin:
    """What came of a run: numbers as two loggers have them, maps, and every word of every figure."""

    csv: dict[str, list[float]]
    tensorboard: dict[str, list[float]]
    figures: set[str]
    words: dict[str, list[str]]
    maps: list[Maps]
    evaluations: list[Evaluation]
    messages: list[str]
    weights: dict[str, Tensor]

    def numbers(self) -> dict[str, list[float]]:
        return {
            name: values
            for name, values in self.csv.items()
            if name.startswith("attngrad/") and not name.endswith(COSTS) and "per_class" not in name
        }


def run(folder: Path, spelt: Any, loss_of: Any, classes: int, monkeypatch: Any, **settings: Any) -> Twin:
    """Four monitors in one fit."""
    maps: list[Maps] = []
    evaluations: list[Evaluation] = []
    said: dict[str, list[str]] = {}
    log = module_of_monitors.log_figures

    class Keeps(attngrad.Monitor):
        def evaluate(self, evaluation: Evaluation) -> Findings:
            evaluations.append(evaluation)
            maps.append(explain_images(evaluation, watched.question))
            return Findings({"least": float(maps[-1].heatmap.min())})

    def log_and_read(trainer: Any, figures: Any, step: int) -> None:
        drawn = dict(figures)
        said.update({f"{name} at {step}": words(figure) for name, figure in drawn.items()})
        log(trainer, drawn, step)

    probe = attngrad.ProbeImages(num_images=IMAGES, mean=0.0, std=1.0, **settings)
    every: dict[str, Any] = {"probe": probe, "scalars": "all", "on_error": "raise"}
    watched = attngrad.AttentionMapMonitor(**every)
    with monkeypatch.context() as patched:
        patched.setattr(module_of_monitors, "log_figures", log_and_read)
        done = fit(
            watched,
            attngrad.AttentionDriftMonitor(**every),
            attngrad.RewriteRobustnessMonitor(**every, steps=6, long_every=None),
            attngrad.FaithfulnessMonitor(**every, steps=3, every_n_epochs=1),
            Keeps(name="kept", **every),
            module=lambda: Maker(spelt, loss_of),
            train=DataLoader(squares(classes, 12, 0), batch_size=4),
            val=DataLoader(squares(classes, 12, 1), batch_size=4),
            max_epochs=1,
            logger=[CSVLogger(folder, name="csv", version=""), tensorboard(folder / "board")],
        )
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    of_csv = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    board = events(folder / "board")
    of_board = {name: [event.value for event in board.Scalars(name)] for name in board.Tags()["scalars"]}
    weights = {name: value.clone() for name, value in done.module.state_dict().items()}
    return Twin(of_csv, of_board, set(board.Tags()["images"]), said, maps, evaluations, done.messages, weights)


def assert_twins(one: Twin, other: Twin, *, further: frozenset[str] = frozenset()) -> None:
    """Weights of both were trained alike, so that numbers, maps and captions are to be equal."""
    apart = {name: float((value - other.weights[name]).abs().max()) for name, value in one.weights.items()}
    assert {name: distance for name, distance in apart.items() if distance > 0} == {}
    mine, others = one.numbers(), other.numbers()
    assert set(others) - set(mine) == further
    assert len(mine) > 50
    for name, values in mine.items():
        assert others[name] == pytest.approx(values, abs=1e-5, rel=1e-5, nan_ok=True), name
        assert other.tensorboard[name] == pytest.approx(one.tensorboard[name], abs=1e-5, rel=1e-5, nan_ok=True), name
    distances = [value for quantile in ("q25", "median", "q75") for value in mine[f"attngrad/rewrite/{quantile}_linf"]]
    assert any(math.isfinite(value) and value > 0 for value in distances)
    assert len(one.maps) == len(other.maps) == 2
    for now, then in zip(one.maps, other.maps, strict=True):
        torch.testing.assert_close(now.heatmap, then.heatmap, rtol=1e-5, atol=1e-5)
        assert float(now.heatmap.abs().max()) > 1e-3
    assert one.figures == other.figures
    for name in one.words:
        if not name.startswith("attngrad/rewrite/classes"):  # a matrix has its classes in the order of their numbers
            assert other.words[name] == one.words[name], name


@pytest.fixture(scope="module")
def binary_twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    names = ["no square", "square"]
    spellings: dict[str, tuple[Any, dict[str, Any]]] = {
        "one output": (z_of, {"class_names": ["square"]}),
        "two outputs": (two_outputs, {"class_names": names}),
        "one label": (z_of, {"class_names": ["square"], "task": "multilabel"}),
    }
    with pytest.MonkeyPatch.context() as patched:
        return {
            name: run(tmp_path_factory.mktemp("twin"), spelt, binary_loss, 2, patched, **settings)
            for name, (spelt, settings) in spellings.items()
        }


def test_a_model_of_one_output_is_its_twin_of_two(binary_twins: dict[str, Twin]) -> None:
    one, two = binary_twins["one output"], binary_twins["two outputs"]
    assert one.evaluations[0].task.name == "binary"  # found out: nobody said so
    assert two.evaluations[0].task.name == "multiclass"
    assert one.messages == two.messages == []
    assert_twins(one, two)
    per_class = {name for name in one.csv if "per_class" in name}
    assert {name.rsplit("/", 1)[1] for name in per_class} == {"no square", "square"}
    for name in per_class:
        assert two.csv[name] == pytest.approx(one.csv[name], abs=1e-5)
    # both classes are among the images, and each is explained for its own
    assert set(one.evaluations[0].classes().tolist()) == {0, 1}
    assert any("no square" in text for text in one.words["attngrad/maps/overlay at 0"])


def test_one_label_is_a_binary_classifier(binary_twins: dict[str, Twin]) -> None:
    binary, label = binary_twins["one output"], binary_twins["one label"]
    assert label.evaluations[0].task.name == "multilabel"
    assert_twins(binary, label, further=frozenset({"attngrad/rewrite/also_changed"}))
    assert label.csv["attngrad/rewrite/also_changed"] == [0] * len(label.csv["attngrad/rewrite/also_changed"])


def test_class_zero_of_one_output_is_the_other_way_round(binary_twins: dict[str, Twin]) -> None:
    """What was wrong: for images of class 0 the map was that of the evidence for class 1."""
    found = binary_twins["one output"]
    evaluation = found.evaluations[0]
    logits = evaluation.logits()
    assert logits.shape == (IMAGES, 2)
    torch.testing.assert_close(logits[:, 0], -logits[:, 1])
    value = found.maps[0].value
    torch.testing.assert_close(value, found.maps[0].logits.gather(1, evaluation.classes()[:, None])[:, 0])


def test_prototypes_are_a_linear_head_without_a_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a", "b", "c"]
    linear = run(tmp_path / "linear", linear_of, linear_loss, 3, monkeypatch, class_names=names)
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    likeness = attngrad.Similarity(vectors, names, cosine=False)
    prototypes = run(tmp_path / "prototypes", embedding_of, linear_loss, 3, monkeypatch, task=likeness)
    assert linear.evaluations[0].task.name == "multiclass"
    assert prototypes.evaluations[0].task is likeness
    assert prototypes.messages == linear.messages == []
    assert_twins(linear, prototypes)
