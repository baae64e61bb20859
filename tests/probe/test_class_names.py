from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import ConcatDataset, DataLoader, Subset

from lightning_attngrad.probe import find_class_names
from tests.probe.runs import Data, Images, InHook, TinyModule, run


def found(loader: Any = None, module: Any = None, datamodule: Any = None, explicit: Any = None) -> Any:
    """What is found from inside a run."""
    answers: list[Any] = []

    def body(trainer: pl.Trainer, pl_module: Any) -> None:
        answers.append(find_class_names(trainer, explicit))

    run(
        "fit",
        module or TinyModule(),
        InHook("on_train_start", body),
        loader=loader,
        datamodule=datamodule,
        max_epochs=1,
    )
    return answers[0]


def named(*names: Any, attribute: str = "classes") -> Images:
    dataset = Images()
    setattr(dataset, attribute, list(names))
    return dataset


@pytest.mark.parametrize(
    "dataset",
    [
        named("a", "b"),
        named("a", "b", attribute="class_names"),
        named(("a", "synonym"), ("b", "synonym")),
        Subset(named("a", "b"), range(4)),
        Subset(Subset(named("a", "b"), range(8)), range(4)),
        ConcatDataset([Images(), named("a", "b")]),
    ],
)
def test_names_from_the_data_set(dataset: Any) -> None:
    assert found(DataLoader(dataset, batch_size=4)) == ("a", "b")


def test_names_from_the_features_of_a_hugging_face_data_set() -> None:
    dataset = Images()
    dataset.features = {  # type: ignore[attr-defined]
        "coarse": SimpleNamespace(names=["no", "no"]),
        "image": SimpleNamespace(),
        "label": SimpleNamespace(names=["a", "b"]),
    }
    assert found(DataLoader(dataset, batch_size=4)) == ("a", "b")
    del dataset.features["label"]  # type: ignore[attr-defined]
    assert found(DataLoader(dataset, batch_size=4)) == ("no", "no")


def test_names_from_the_datamodule_and_its_validation_data_set() -> None:
    assert found(datamodule=Data(class_names=["a", "b"])) == ("a", "b")
    assert found(datamodule=Data(classes=("a", "b"))) == ("a", "b")
    assert found(datamodule=Data(val_set=Subset(named("a", "b"), range(4)))) == ("a", "b")
    assert found(datamodule=Data(train_set=named("a", "b"))) is None


def test_names_from_the_model_unless_they_are_placeholders() -> None:
    module = TinyModule()
    module.net.config = SimpleNamespace(id2label={0: "a", 1: "b"})
    assert found(module=module) == ("a", "b")
    module.net.config = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})
    assert found(module=module) is None


def test_the_order_of_the_sources() -> None:
    loader = DataLoader(named("set"), batch_size=4)
    module = TinyModule()
    module.net.config = SimpleNamespace(id2label={0: "model"})
    assert found(loader, module) == ("set",)
    assert found(loader, module, Data(loader, class_names=["datamodule"])) == ("datamodule",)
    assert found(loader, module, Data(loader, class_names=["datamodule"]), ["argument"]) == ("argument",)


def test_nothing_tells() -> None:
    assert found() is None


def test_explicit_names() -> None:
    assert find_class_names(None, ("a", "b")) == ("a", "b")  # type: ignore[arg-type]
    assert find_class_names(None, {1: "b", 0: "a"}) == ("a", "b")  # type: ignore[arg-type]


@pytest.mark.parametrize("explicit", ["cat", [], {}, {1: "a"}, 3])
def test_explicit_names_of_the_wrong_kind_are_refused(explicit: Any) -> None:
    with pytest.raises(ValueError, match="class_names: got"):
        find_class_names(None, explicit)  # type: ignore[arg-type]
