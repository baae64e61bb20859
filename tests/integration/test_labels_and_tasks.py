"""Labels in all their clothes, in real runs: what the output is found to mean, what is explained, and what is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lightning_attngrad as attngrad
from tests.callbacks.small_runs import Classifier, WatchedMonitor, captured_figures, fit, tiny_vit, words

LABELS = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]]
FIRST = [0, 1, None, 1, 2, 0]  # the first label of each image
CLASSES = [0, 1, 2, 0, 1, 2]
ONE_HOT = torch.eye(3)[CLASSES]
NAMES = ("cat", "dog", "owl")


class Labelled(Dataset[Any]):
    """Six images, and whatever stands beside them; nothing tells of labels without reading."""

    def __init__(self, item: Callable[[Tensor, int], Any]) -> None:
        self.images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.item = item

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.item(self.images[index], index)


class AsStream(IterableDataset[Any]):
    def __init__(self, of: Labelled) -> None:
        self.of = of

    def __iter__(self) -> Iterator[Any]:
        return (self.of[index] for index in range(len(self.of)))


class Module(Classifier):
    """Looks only at the images of a batch."""

    def loss(self, batch: Any) -> Tensor:
        images = batch if isinstance(batch, Tensor) else batch["image"] if isinstance(batch, dict) else batch[0]
        output = self(images)
        output = output[0] if isinstance(output, tuple) else output
        return output.square().mean()  # type: ignore[no-any-return]


class MixesUp(Module):
    """Labels become distributions when a batch reaches the device, as Mixup does."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return images, 0.8 * nn.functional.one_hot(labels, 3) + 0.2 / 3


class TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = tiny_vit(num_classes=0), nn.Linear(32, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.net(images)
        return embedding, self.head(embedding)


@dataclass
class Case:
    item: Callable[[Tensor, int], Any]
    task: str
    targets: Any
    module: Callable[[], Module] = lambda: Module(tiny_vit())
    settings: dict[str, Any] = field(default_factory=dict)
    classes: list[int | None] | None = None
    says: tuple[str, ...] = ()
    stream: bool = False


def of_outputs(count: int) -> Callable[[], Module]:
    return lambda: Module(tiny_vit(num_classes=count))


NUMBERS = [[0.5, -2.0], [1.5, 3.0], [0.25, 0.0], [-1.0, 1.0], [2.0, 2.5], [0.0, -0.5]]
CASES = {
    "multi-hot floats in a tuple": Case(
        lambda image, n: (image, torch.tensor(LABELS[n]).float()), "multilabel", LABELS, classes=FIRST
    ),
    "multi-hot ints by name": Case(
        lambda image, n: {"image": image, "labels": torch.tensor(LABELS[n])}, "multilabel", LABELS, classes=FIRST
    ),
    "multi-hot, as they go by": Case(
        lambda image, n: (image, torch.tensor(LABELS[n])), "multilabel", LABELS, classes=FIRST, stream=True
    ),
    "classes of a task of labels": Case(
        lambda image, n: (image, CLASSES[n]),
        "multilabel",
        ONE_HOT.tolist(),
        settings={"task": "multilabel"},
        classes=list(CLASSES),
    ),
    "ignored values": Case(
        lambda image, n: (image, -100 if n == 2 else CLASSES[n]),
        "multiclass",
        [0, 1, -1, 0, 1, 2],
        classes=[0, 1, None, 0, 1, 2],
    ),
    "words further inside": Case(
        lambda image, n: {"image": image, "truth": {"fine": NAMES[CLASSES[n]]}},
        "multiclass",
        CLASSES,
        settings={"target_key": "truth.fine", "class_names": NAMES},
        classes=list(CLASSES),
    ),
    "words that go by": Case(
        lambda image, n: {"image": image, "label": NAMES[CLASSES[n]]},
        "multiclass",
        CLASSES,
        settings={"class_names": NAMES},
        classes=list(CLASSES),
        stream=True,
    ),
    "one-hot rows": Case(
        lambda image, n: (image, ONE_HOT[n]),
        "multiclass",
        CLASSES,
        classes=list(CLASSES),
        says=("'multilabel' if several may be",),
    ),
    "mixed up on the device": Case(
        lambda image, n: (image, CLASSES[n]),
        "multiclass",
        CLASSES,
        module=lambda: MixesUp(tiny_vit()),
        classes=list(CLASSES),
    ),
    "a column of floats": Case(
        lambda image, n: (image, torch.tensor([float(n % 2)])), "binary", [0, 1] * 3, of_outputs(1), classes=[0, 1] * 3
    ),
    "two numbers": Case(
        lambda image, n: (image, torch.tensor(NUMBERS[n])), "regression", NUMBERS, of_outputs(2), classes=[0] * 6
    ),
    "one number": Case(
        lambda image, n: (image, NUMBERS[n][0]), "regression", [[row[0]] for row in NUMBERS], of_outputs(1)
    ),
    "one output, of which nothing is known": Case(
        lambda image, n: image, "one number", None, of_outputs(1), says=("the model has one output",)
    ),
    "several class numbers an image": Case(
        lambda image, n: (image, torch.tensor([n, 3, 4])),
        "unsaid",
        None,
        says=("labels int64[6, 3] not understood: maps are of predicted classes", "nothing tells what the 3 numbers"),
    ),
}


def in_order(found: Any, images: Tensor) -> list[int]:
    """Which of the six images each one is."""
    every = Labelled(lambda image, n: image).images
    return [int((every - image).abs().amax(dim=(1, 2, 3)).argmin()) for image in images]


@pytest.mark.parametrize("name", CASES)
def test_what_is_found_explained_and_said(name: str, monkeypatch: Any) -> None:
    case = CASES[name]
    captured_figures(monkeypatch)
    data: Any = Labelled(case.item)
    if case.stream:
        data = AsStream(data)
    monitor = WatchedMonitor(draws=True, num_images=6, on_error="raise", **case.settings)
    train = DataLoader(Labelled(case.item), batch_size=3)
    run = fit(monitor, module=case.module, train=train, val=DataLoader(data, batch_size=3), max_epochs=1)
    evaluation, _ = monitor.evaluations[-1]
    assert evaluation.task.name == case.task
    order = in_order(monitor, evaluation.images.cpu())
    assert sorted(order) == list(range(6))
    if case.targets is None:
        assert evaluation.targets is None
    else:
        found = evaluation.targets.float().tolist()  # type: ignore[union-attr]
        assert found == [case.targets[place] for place in order]
    if case.classes is not None:
        expected = [case.classes[place] for place in order]
        for place, explained in zip(expected, evaluation.classes().tolist(), strict=True):
            assert place is None or explained == place
    said = [message for message in run.messages if "gathered as validation goes by" not in message]
    assert len(said) == len(case.says)
    for line in case.says:
        (message,) = [one for one in said if line in one]
        assert "\n" not in message


def test_captions_name_all_labels_and_the_one_that_is_explained(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    monitor = WatchedMonitor(draws=True, num_images=6, on_error="raise", class_names=NAMES)
    loader = DataLoader(Labelled(lambda image, n: (image, torch.tensor(LABELS[n]).float())), batch_size=3)
    fit(monitor, module=lambda: Module(tiny_vit()), train=loader, val=loader, max_epochs=1)
    evaluation, _ = monitor.evaluations[0]
    said = words(drawn[0][1]["attngrad/maps/overlay"])
    probabilities = torch.sigmoid(evaluation.logits())
    for image, row in enumerate(evaluation.targets.tolist()):  # type: ignore[union-attr]
        there = [number for number, is_there in enumerate(row) if is_there]
        explained = int(evaluation.classes()[image])
        if len(there) > 1:
            # In one line, or in as many as the room beside the image asks for.
            line = ", ".join(f"{NAMES[number]} ({float(probabilities[image, number]):.2f})" for number in there)
            assert line.replace(",", "") in " ".join(said).replace(",", "")
            assert NAMES[explained] in said
        elif there:
            assert NAMES[there[0]] in said
            assert f"true, p = {float(probabilities[image, there[0]]):.2f}" in said
        else:
            assert "none" in said
            assert explained == int(probabilities[image].argmax())
    assert "the map is of" in said


def test_without_labels_a_figure_names_the_class_that_its_map_is_of(monkeypatch: Any) -> None:
    drawn = captured_figures(monkeypatch)
    monitor = WatchedMonitor(draws=True, num_images=2, on_error="raise", class_names=NAMES)
    loader = DataLoader(Labelled(lambda image, n: image), batch_size=3)
    fit(monitor, module=lambda: Module(tiny_vit()), train=loader, val=loader, max_epochs=1)
    evaluation, _ = monitor.evaluations[-1]
    said = words(drawn[-1][1]["attngrad/maps/overlay"])
    assert said.count("the map is of") == 2
    where = said.index("the map is of")
    assert said[where + 1] == NAMES[int(evaluation.classes()[0])]
    assert any(
        f"maps of {NAMES[int(evaluation.classes()[0])]}" in text for text in words(drawn[-1][1]["attngrad/maps/film"])
    )


def test_of_a_regression_what_needs_classes_is_switched_off_in_words_and_all_else_goes_on() -> None:
    watched = WatchedMonitor(num_images=6, mean=0.0, std=1.0)
    others = [
        attngrad.AttentionDriftMonitor(probe=watched.probe),
        attngrad.RewriteRobustnessMonitor(probe=watched.probe, steps=2),
        attngrad.FaithfulnessMonitor(probe=watched.probe, steps=2),
    ]
    loader = DataLoader(Labelled(lambda image, n: (image, torch.tensor(NUMBERS[n]))), batch_size=3)
    run = fit(watched, *others, module=of_outputs(2), train=loader, val=loader, max_epochs=1)
    rewriting, faithfulness = run.complaints
    assert "RewriteRobustnessMonitor is switched off" in rewriting
    assert "'regression' has no classes, and an image is rewritten from one to another" in rewriting
    assert "FaithfulnessMonitor is switched off" in faithfulness
    assert "'regression' has no classes, and faithfulness watches the probability of one" in faithfulness
    assert len(watched.evaluations) == 2
    assert others[0].scalars["spearman"] >= 0
    assert run.losses == fit(module=of_outputs(2), train=loader, val=loader, max_epochs=1).losses


@pytest.mark.parametrize(
    ("net", "names", "why"),
    [
        (lambda: tiny_vit(num_classes=0), None, "which ends without a classifier"),
        (
            lambda: nn.Sequential(tiny_vit(num_classes=0), nn.Linear(32, 32)),
            NAMES,
            "32 numbers an image, and 3 classes",
        ),
        (lambda: nn.Sequential(tiny_vit(num_classes=9), nn.LayerNorm(9)), None, "layer norm"),
        (TwoAnswers, None, "which of them are class scores is not said: output[0]"),
    ],
    ids=["a backbone", "a projection", "behind a layer norm", "an embedding and logits"],
)
def test_an_embedding_is_never_explained_as_classes(net: Any, names: Any, why: str) -> None:
    loader = DataLoader(Labelled(lambda image, n: (image, CLASSES[n])), batch_size=3)
    settings = {"num_images": 4, "class_names": names, "mean": 0.0, "std": 1.0}
    asks = WatchedMonitor(**settings)
    rewriting = attngrad.RewriteRobustnessMonitor(name="other", probe=asks.probe, steps=2)
    goes_on = WatchedMonitor(name="function", objective=first_number, **settings)
    run = fit(asks, rewriting, goes_on, module=lambda: Module(net()), train=loader, val=loader, max_epochs=1)
    first, second = run.complaints
    assert why in first
    for what in ("objective='start'", "Similarity(vectors, names)", "objective=function"):
        assert what in first
    assert "for the same reason as WatchedMonitor" in second or why in second
    assert asks.evaluations == []
    assert len(goes_on.evaluations) == 2


def first_number(output: Any) -> Tensor:
    return (output[0] if isinstance(output, tuple) else output)[:, 0]  # type: ignore[no-any-return]


def test_a_function_that_hardly_varies_is_warned_of_once() -> None:
    def length(output: Tensor) -> Tensor:
        return output.norm(dim=1)

    def normed() -> Module:
        return Module(nn.Sequential(tiny_vit(num_classes=0), nn.LayerNorm(32, elementwise_affine=False)))

    loader = DataLoader(Labelled(lambda image, n: image), batch_size=3)
    run = fit(WatchedMonitor(num_images=4, objective=length), module=normed, train=loader, val=loader, max_epochs=1)
    (message,) = [one for one in run.messages if "objective" in one]
    assert "for all 4 images" in message
    assert "task=Similarity(vectors, names)" in message
    run = fit(
        WatchedMonitor(num_images=4, objective=first_number), module=normed, train=loader, val=loader, max_epochs=1
    )
    assert not [one for one in run.messages if "objective" in one]


def test_labels_and_task_are_the_same_after_a_resume(tmp_path: Path) -> None:
    """Of a stream, whose images and labels lie in the checkpoint; nothing is found out again."""

    def stream() -> DataLoader[Any]:
        return DataLoader(AsStream(Labelled(lambda image, n: (image, torch.tensor(LABELS[n])))), batch_size=3)

    train = DataLoader(Labelled(lambda image, n: (image, torch.tensor(LABELS[n]))), batch_size=3)
    first = WatchedMonitor(num_images=6, on_error="raise")
    saves = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    module = lambda: Module(tiny_vit())  # noqa: E731
    fit(first, saves, module=module, train=train, val=stream(), max_epochs=1, enable_checkpointing=True)
    again = WatchedMonitor(num_images=6, on_error="raise")
    run = fit(again, module=module, train=train, val=stream(), max_epochs=2, ckpt_path=str(tmp_path / "last.ckpt"))
    then, now = first.evaluations[-1][0], again.evaluations[-1][0]
    assert then.task is now.task
    assert now.task.name == "multilabel"
    assert torch.equal(then.targets, now.targets)  # type: ignore[arg-type]
    assert then.images_hash == now.images_hash
    assert torch.equal(then.classes(), now.classes())
    assert len(again.frames) == len(first.frames) + 1
    assert run.complaints == []
    # another meaning is another history
    other = WatchedMonitor(num_images=6, on_error="raise", task="multiclass")
    run = fit(other, module=module, train=train, val=stream(), max_epochs=2, ckpt_path=str(tmp_path / "last.ckpt"))
    assert any("task: 'multilabel' then, None now" in message for message in run.messages)
    assert len(other.frames) == 1
