"""What an evaluation of drift measures: maps against those of a reference, and against maps of jittered images."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.explain import UNSAID, Task, of_class
from lightning_attngrad.measure.maps import Maps
from lightning_attngrad.metrics.functional import DRIFT_MEASURES, drift_ratio, map_drift, spearman_drift
from lightning_attngrad.probe import Evaluation

#: Classes that have a scalar of their own.
_MOST_CLASSES = 20
#: The measure that alarms, classes and counts go by.
LEADING = "spearman"
#: A map has moved where it is further from the reference than so many times its own floor.
MOVED = 2.0


@dataclass(frozen=True, eq=False)
class Reference:
    """The maps that others are compared with, and what was predicted there.

    Attributes:
        label: of the evaluation, such as ``start``.
        heatmap: (N, h, w).
        layers: (N, L, h, w) what each layer added; None for methods that have no such parts.
        predicted: (N,) classes, or (N, K) bool, which labels; None where the model or the objective has none.
        probability: (N,) of these classes, or (N, K) of all labels.
    """

    label: str
    heatmap: Tensor
    layers: Tensor | None
    predicted: Tensor | None
    probability: Tensor | None

    @classmethod
    def of(cls, maps: Maps, label: str, task: Task = UNSAID) -> Reference:
        """From maps that were found of a model whose output means ``task``."""
        scores = task.of_logits(maps.logits)
        predicted = None if maps.target is None else task.predicted(scores)
        probability = None
        if predicted is not None:
            probability = task.probabilities(scores)
            classes = predicted.shape[1:]
            probability = probability[:, : classes[0]] if classes else of_class(probability, predicted)
        return cls(label, maps.heatmap, maps.layers, predicted, probability)

    @property
    def says_something(self) -> bool:
        """Whether any map has an order of patches: those of a zero-initialised classifier have none."""
        flat = self.heatmap.flatten(1)
        return bool((flat.isfinite().all(dim=1) & (flat != flat[:, :1]).any(dim=1)).any())

    def plain(self) -> dict[str, Any]:
        """As a checkpoint can hold it."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Drift:
    """How far N maps are from the reference, and how far noise alone moves them: the noise floor.

    Attributes:
        distance: (N,) by measure.
        floor: (N,) by measure: the mean of the jittered copies.
        layers: (L,) Spearman distance of each layer's maps, mean of the images; empty without layers.
        layer_floor: (L,) likewise.
    """

    distance: dict[str, Tensor]
    floor: dict[str, Tensor]
    layers: Tensor
    layer_floor: Tensor

    @property
    def ratio(self) -> dict[str, float]:
        """Mean drift over mean floor, by measure."""
        return {name: float(value) for name, value in drift_ratio(self.distance, self.floor).items()}

    def moved(self, factor: float) -> Tensor:
        """Which maps are further from the reference than a factor times their own floor, (N,) bool."""
        return self.distance[LEADING] > factor * self.floor[LEADING]

    def stayed(self) -> Tensor:
        """Which maps are no further from the reference than noise moves them, (N,) bool."""
        return self.distance[LEADING] <= self.floor[LEADING]


@dataclass(frozen=True)
class PastDrift:
    """What is remembered of an evaluation, in plain values: the curves and layers of figures go through all of them.

    Attributes:
        label: of the evaluation.
        distance: mean of the images, by measure.
        floor: likewise.
        layers: of each layer; empty without layers.
    """

    label: str
    distance: dict[str, float]
    floor: dict[str, float]
    layers: list[float]

    @classmethod
    def of(cls, drift: Drift, label: str) -> PastDrift:
        """From what was measured."""
        means = [
            {name: float(value.nanmean()) for name, value in part.items()} for part in (drift.distance, drift.floor)
        ]
        return cls(label, means[0], means[1], drift.layers.tolist())

    def plain(self) -> dict[str, Any]:
        """As a checkpoint can hold it."""
        return asdict(self)


def measure_drift(reference: Reference | None, now: Maps, jittered: Sequence[Maps]) -> Drift:
    """Compare maps with those of a reference, and with those of jittered copies of their images.

    Args:
        reference: None where there is nothing to compare with: the distances are then NaN.
        now: of N images.
        jittered: of their copies, by the same weights.

    Returns:
        The distances and their floor.
    """
    nothing = {name: torch.full((len(now.heatmap),), torch.nan) for name in DRIFT_MEASURES}
    copies = [map_drift(now.heatmap, copy.heatmap) for copy in jittered]
    layers = now.layers
    none = torch.zeros(0)
    return Drift(
        distance=nothing if reference is None else map_drift(reference.heatmap, now.heatmap),
        floor={name: torch.stack([copy[name] for copy in copies]).mean(dim=0) for name in DRIFT_MEASURES},
        layers=none if layers is None else _of_layers(None if reference is None else reference.layers, layers),
        layer_floor=none
        if layers is None
        else torch.stack([_of_layers(copy.layers, layers) for copy in jittered]).mean(dim=0),
    )


def _of_layers(before: Tensor | None, after: Tensor) -> Tensor:
    """Mean Spearman distance of each layer, (N, L, h, w) twice to (L,)."""
    if before is None:
        return torch.full((after.shape[1],), torch.nan)
    return spearman_drift(before, after).nanmean(dim=0)


def drift_scalars(drift: Drift) -> dict[str, float]:
    """Means of the images by measure, of their floors, and the ratio of both."""
    scalars = {name: float(values.nanmean()) for name, values in drift.distance.items()}
    scalars |= {f"floor/{name}": float(values.nanmean()) for name, values in drift.floor.items()}
    return scalars | {f"ratio/{name}": value for name, value in drift.ratio.items()}


def class_scalars(evaluation: Evaluation, drift: Drift) -> dict[str, float]:
    """Spearman drift of each true class or label, mean of its images; of the first 20 of them."""
    targets = evaluation.targets
    if targets is None or targets.is_floating_point():
        return {}
    if targets.dim() == 2:
        of = {index: targets[:, index] for index in targets.any(dim=0).nonzero().flatten().tolist()}
    else:
        of = {index: targets == index for index in targets.unique().tolist() if index >= 0}
    classes = sorted(of)[:_MOST_CLASSES]
    # Loggers take few signs in a name, and a slash would open a folder.
    names = [re.sub(r"[^\w .-]", "_", evaluation.class_name(index)) for index in classes]
    return {
        f"per_class/{name if names.count(name) == 1 else index}": float(drift.distance[LEADING][of[index]].nanmean())
        for name, index in zip(names, classes, strict=True)
    }


def disagreement_scalars(drift: Drift, reference: Reference | None, now: Reference, factor: float) -> dict[str, float]:
    """How many predictions changed under a stable map, and how many maps changed under a stable prediction."""
    if now.predicted is None:
        return {}
    if reference is None or reference.predicted is None:
        return {"prediction_changed_map_stable": math.nan, "map_changed_prediction_stable": math.nan}
    changed = now.predicted != reference.predicted
    if changed.dim() == 2:  # any of the labels
        changed = changed.any(dim=1)
    return {
        "prediction_changed_map_stable": float((changed & drift.stayed()).sum()),
        "map_changed_prediction_stable": float((~changed & drift.moved(factor)).sum()),
    }


class DriftAlarm:
    """Raised while the ratio of drift to its floor has been above a threshold for some evaluations in a row.

    Args:
        threshold: of the ratio.
        after: so many evaluations in a row.

    Attributes:
        evaluations: above the threshold, in a row, up to now.

    Raises:
        ValueError: for a threshold that is no positive number, or no positive number of evaluations.

    Example:
        >>> alarm = DriftAlarm(threshold=3.0, after=2)
        >>> [alarm.hear(ratio) for ratio in (5.0, 4.0, 6.0, 1.0)]
        [False, True, False, False]
    """

    def __init__(self, threshold: float, after: int) -> None:
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not number or not 0 < threshold < math.inf:
            raise ValueError(
                f"alarm: got {threshold!r}; expected a positive number, such as 3 for three times the floor, or None"
            )
        self.threshold, self.after, self.evaluations = float(threshold), after, 0

    @property
    def is_raised(self) -> bool:
        """Whether it is on."""
        return self.evaluations >= self.after

    def hear(self, ratio: float) -> bool:
        """Take in the ratio of an evaluation; whether the alarm is raised by this very one."""
        self.evaluations = self.evaluations + 1 if ratio > self.threshold else 0
        return self.evaluations == self.after


def what_moved(evaluation: Evaluation, drift: Drift, layer_names: Sequence[str], scalars: Mapping[str, float]) -> str:
    """The part of the map, the class and the images whose maps are furthest from the reference, as a sentence."""
    parts = []
    if len(drift.layers) and not drift.layers.isnan().all():
        layer = int(drift.layers.nan_to_num(-1).max(dim=0).indices)
        parts.append(f"the part {layer_names[layer]} ({float(drift.layers[layer]):.2f})")
    classes = {
        name: value for name, value in scalars.items() if name.startswith("per_class/") and not math.isnan(value)
    }
    if classes:
        name = max(classes, key=lambda name: classes[name])
        parts.append(f"the class {name.removeprefix('per_class/')} ({classes[name]:.2f})")
    furthest = drift.distance[LEADING].nan_to_num(-1).argsort(descending=True, stable=True)[:3].tolist()
    parts.append(f"the images {', '.join(map(str, furthest))} of {len(evaluation.images)}")
    return f"Most of all: {', '.join(parts)}."
