"""What the classes are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lightning_attngrad.probe.loaders import dataset_chain, evaluation_datasets
from lightning_attngrad.probe.resolve import TARGET_KEYS

ClassNames = Sequence[str] | Mapping[int, str]


def find_class_names(
    trainer: pl.Trainer, explicit: ClassNames | None = None, datasets: Iterable[Any] | None = None
) -> tuple[str, ...] | None:
    """Find the names of the classes, in the order of their numbers.

    Looked at in this order: the argument; ``class_names`` or ``classes`` of the datamodule; the same of its
    validation data set and of the data sets behind the loaders, through Subset and ConcatDataset, and
    ``features[…].names`` of Hugging Face data sets; ``id2label`` of a Hugging Face model, unless it is the
    placeholder ``LABEL_0``, ….

    Args:
        trainer: the Trainer.
        explicit: the names, or a mapping from class number to name.
        datasets: where to look, instead of behind the evaluation loaders.

    Returns:
        The names, or None if nothing tells.

    Raises:
        ValueError: if ``explicit`` is a bare string, is empty, or is a mapping that does not number the
            classes from 0.
    """
    if explicit is not None:
        return check_class_names(explicit)
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None and (names := _names_of(datamodule)) is not None:
        return names
    for dataset in [*_datasets_of(datamodule), *(evaluation_datasets(trainer) if datasets is None else datasets)]:
        names = _names_of(dataset) or _names_of_features(dataset)
        if names is not None:
            return names
    model = getattr(trainer, "lightning_module", None)
    return None if model is None else _names_of_model(model)


def check_class_names(explicit: ClassNames) -> tuple[str, ...]:
    """Names given by the user, in the order of their numbers.

    Raises:
        ValueError: as `find_class_names` does.
    """
    if isinstance(explicit, str) or not isinstance(explicit, Sequence | Mapping) or not explicit:
        raise ValueError(
            f"class_names: got {explicit!r}; expected a sequence of names, or a mapping from class number to name"
        )
    if isinstance(explicit, Mapping):
        if sorted(explicit) != list(range(len(explicit))):
            raise ValueError(f"class_names: got the numbers {sorted(explicit)}; expected 0 to {len(explicit) - 1}")
        return tuple(str(explicit[number]) for number in range(len(explicit)))
    return tuple(str(name) for name in explicit)


def _names_of(holder: Any) -> tuple[str, ...] | None:
    for attribute in ("class_names", "classes"):
        names = getattr(holder, attribute, None)
        if isinstance(names, list | tuple) and names:
            # ImageNet's classes are tuples of synonyms: the first is the usual one.
            return tuple(str(name[0]) if isinstance(name, tuple | list) and name else str(name) for name in names)
    return None


def _names_of_features(dataset: Any) -> tuple[str, ...] | None:
    """Names of the label column of a Hugging Face data set."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    columns = [*TARGET_KEYS, *(column for column in features if column not in TARGET_KEYS)]
    for column in columns:
        names = getattr(features.get(column), "names", None)
        if isinstance(names, list | tuple) and names:
            return tuple(str(name) for name in names)
    return None


def _datasets_of(datamodule: Any) -> list[Any]:
    """Data sets that a datamodule keeps under a name with "val" in it."""
    if datamodule is None:
        return []
    kept = [value for name, value in vars(datamodule).items() if "val" in name and hasattr(value, "__getitem__")]
    return [dataset for value in kept for dataset in dataset_chain(value)]


def _names_of_model(model: nn.Module) -> tuple[str, ...] | None:
    for module in model.modules():
        labels = getattr(getattr(module, "config", None), "id2label", None)
        if not isinstance(labels, Mapping) or sorted(labels, key=str) != sorted(range(len(labels)), key=str):
            continue
        names = tuple(str(labels[number]) for number in range(len(labels)))
        if names and any(name != f"LABEL_{number}" for number, name in enumerate(names)):
            return names
    return None
