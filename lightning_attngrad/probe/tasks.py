"""What a model's output means, read off outputs, labels and names of classes where that is certain.

Where it is not, nothing is taken for classes: whoever asks for them is told what speaks against it, and what to write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attngrad.explain import ONE_NUMBER, TASKS, UNSAID, WHAT_WOULD_DO, Multilabel, Task, Undecided
from lightning_attngrad.probe.labels import exclusive_classes, is_whole

#: Such a class number marks what has no class in data sets of 8 bits.
_IGNORED = 255
#: Of images drawn at random: so improbable may it be that they miss every class that only the output has.
_CHANCE = 1e-6
#: Modules that a backbone without a classifier ends in, by the names that torchvision and timm give them.
_HEADS = ("head", "heads", "fc", "classifier")
_WIDTHS = ("num_features", "embed_dim", "hidden_dim")
#: A row of so many numbers whose mean and variance are those of a layer norm is no accident.
_LEAST_NORMED = 8

_IN_A_WORD = {**TASKS, UNSAID.name: UNSAID, ONE_NUMBER.name: ONE_NUMBER}
_SAY = "Say ProbeImages(task=…)"
_ONE_OUTPUT = (
    "task='binary' where it tells class 1 from class 0, task='multilabel' where it is one label, task='regression' "
    "where it is a number"
)


@dataclass(frozen=True)
class Seen:
    """What is known of labels beyond those of the probe's images.

    Attributes:
        count: how many there are; drawn at random, or all.
        whole: whether they are those of the whole data set.
        exclusive: whether each image has one class at most.
        largest: class number, where they are exclusive.
        both: whether classes 0 and 1 are among them.
        width: how many labels a row holds, where they are rows.
    """

    count: int
    whole: bool
    exclusive: bool
    largest: int = -1
    both: bool = False
    width: int | None = None

    @classmethod
    def of(cls, labels: Tensor, *, whole: bool) -> Seen:
        """From labels in a form of `probe.labels`."""
        classes, width = exclusive_classes(labels), labels.shape[1] if labels.dim() == 2 else None
        if classes is None:
            return cls(len(labels), whole, exclusive=False, width=width)
        known = classes[(classes >= 0) & (classes != _IGNORED)]
        both = bool((known == 0).any() and (known == 1).any())
        return cls(len(labels), whole, True, int(known.max()) if len(known) else -1, both, width)


def find_task(
    output: Tensor, labels: Tensor | None, seen: Seen | None, names: int | None, model: nn.Module
) -> tuple[Task, str]:
    """What the output means, and what is to be said of it; the latter is empty where there is nothing.

    Args:
        output: (N, K) of the frozen images.
        labels: of them, in a form of `probe.labels`.
        seen: of other images.
        names: how many names of classes are known.
        model: whose output it is.

    Returns:
        A task; :class:`~lightning_attngrad.explain.Undecided` where it cannot be told, ``UNSAID`` where nothing
        speaks for or against classes, and ``ONE_NUMBER`` where nothing does of one output.
    """
    outputs = output.shape[1]
    if outputs == 1:
        return _of_one_output(labels, seen, names)
    if labels is None and seen is not None and not seen.exclusive and seen.width == outputs:
        return TASKS["multilabel"], ""
    if labels is not None and labels.dim() == 2:
        return _of_rows(labels, seen, outputs)
    classes = None if labels is None else exclusive_classes(labels)
    if labels is not None and classes is None:
        return TASKS["regression"], ""  # numbers that are not whole
    largest = _largest_class(classes, seen, outputs)
    if why := _against_classes(output, largest, seen, names, model):
        return _undecided(f"the model gives {outputs} numbers an image, {why}"), ""
    said = (
        f"nothing tells what the {outputs} numbers are that the model gives an image (no labels, no names of "
        f"classes): they are taken for classes. {_SAY}, or class_names=…, and this is not said again"
    )
    return (TASKS["multiclass"], "") if largest >= 0 else (UNSAID, said if names is None else "")


def _largest_class(classes: Tensor | None, seen: Seen | None, outputs: int) -> int:
    """The largest number of a class that is known; −1 where none is."""
    known = torch.zeros(0, dtype=torch.long) if classes is None else classes[classes >= 0]
    if outputs <= _IGNORED:
        known = known[known != _IGNORED]
    return max(int(known.max()) if len(known) else -1, -1 if seen is None else seen.largest)


def _against_classes(output: Tensor, largest: int, seen: Seen | None, names: int | None, model: nn.Module) -> str:
    """What speaks against an output (N, K) being the scores of classes; empty if nothing does."""
    outputs = output.shape[1]
    if names is not None and names != outputs:
        return f"and {names} classes have names"
    if largest >= outputs:
        return f"and there is a label {largest}"
    if names is not None:
        return ""
    if sign := sign_of_embedding(model, output):
        return sign
    if largest >= 0 and seen is not None and _far_too_many(outputs, largest + 1, seen.count):
        return f"and the labels are 0 to {largest}"
    return ""


def labels_for(task: Task, labels: Tensor | None, count: int | None) -> tuple[Tensor | None, str]:
    """Labels as a task has them, and what is to be said where they do not fit it.

    Args:
        task: what the output means.
        labels: in a form of `probe.labels`.
        count: of the task's classes, where that is known.

    Returns:
        ``(N,)`` int64 with −1 for none; ``(N, K)`` bool for ``multilabel``; ``(N, K)`` float32 for ``regression``;
        None where they do not fit.
    """
    if labels is None:
        return None, ""
    if task.name == "regression":
        return (labels[:, None] if labels.dim() == 1 else labels).float(), ""
    if isinstance(task, Multilabel):
        found = _several(labels, None if count is None else count // 2)
    else:
        found = exclusive_classes(labels)
        if found is None and task.name == "binary" and labels.dim() == 1:
            found = (labels > 0.5).long()  # smoothed
        if found is not None:
            found = found.clamp_min(-1)
            if count is not None and task.has_classes and task is not UNSAID:
                found = found.masked_fill(found >= count, -1)
    if found is None and (task.has_classes or task is UNSAID):
        kind = str(labels.dtype).removeprefix("torch.")
        return None, (
            f"labels {kind}{list(labels.shape)} not understood: maps are of predicted classes (they do not fit "
            f"task={task.name!r})"
        )
    return found, ""


def sign_of_embedding(model: nn.Module, output: Tensor) -> str:
    """What tells that an output (N, K) is an embedding, in words; empty if nothing does."""
    width = output.shape[1]
    for module in model.modules():
        ends = getattr(module, "num_classes", None) == 0 or any(
            isinstance(getattr(module, head, None), nn.Identity) for head in _HEADS
        )
        if ends and width in [getattr(module, name, None) for name in _WIDTHS]:
            return f"as many as its {type(module).__name__}, which ends without a classifier, has features"
    length = output.norm(dim=1)
    if torch.allclose(length, torch.ones_like(length), atol=1e-3):
        return "whose squares sum to 1, as those of a normalised embedding do"
    mean, variance = output.mean(dim=1), output.var(dim=1, unbiased=False)
    normed = torch.allclose(mean, torch.zeros_like(mean), atol=1e-3)
    if width >= _LEAST_NORMED and normed and torch.allclose(variance, torch.ones_like(variance), atol=1e-2):
        return "which a layer norm has made alike in mean and variance, as it does with embeddings"
    return ""


def _undecided(why: str) -> Undecided:
    return Undecided(
        f"task: {why}: it is not certain that they are classes, and nothing is explained as if they were. {_SAY} if "
        f"they are ('multiclass', 'multilabel') or if they are numbers ('regression'). Of an embedding {WHAT_WOULD_DO}"
    )


def _of_one_output(labels: Tensor | None, seen: Seen | None, names: int | None) -> tuple[Task, str]:
    if labels is None:
        certain = names == 2 or (seen is not None and seen.both and seen.largest == 1)
        return (TASKS["binary"], "") if certain else (ONE_NUMBER, _of_one("there are no labels"))
    classes = exclusive_classes(labels)
    if classes is not None:
        return _of_one_output_and_classes(classes, seen, names, are_floats=labels.is_floating_point())
    if labels.dim() == 2:
        return _undecided(f"the model gives one number an image, and labels are {labels.shape[1]} a row"), ""
    values = labels[labels.isfinite()].unique()
    smoothed = len(values) == 2 and bool((values >= 0).all()) and abs(float(values.sum()) - 1) < 1e-4
    if names == 2 or smoothed:
        return ONE_NUMBER, _of_one("labels are neither classes nor plainly numbers")
    return TASKS["regression"], ""


def _of_one_output_and_classes(
    classes: Tensor, seen: Seen | None, names: int | None, *, are_floats: bool
) -> tuple[Task, str]:
    known = classes[classes >= 0]
    beyond = bool((known > 1).any())
    if beyond and are_floats:
        return TASKS["regression"], ""
    exceeded = beyond or (seen is not None and seen.largest > 1)
    both = bool((known == 0).any() and (known == 1).any()) or (seen is not None and seen.both)
    if not exceeded and (both or names in (1, 2)):
        return TASKS["binary"], ""
    return ONE_NUMBER, _of_one("labels go beyond 0 and 1" if exceeded else "not both of the labels 0 and 1 are seen")


def _of_one(why: str) -> str:
    return (
        f"the model has one output, and nothing tells what it means ({why}): maps are of that number, which is taken "
        f"for no class. {_SAY}: {_ONE_OUTPUT}"
    )


def _of_rows(labels: Tensor, seen: Seen | None, outputs: int) -> tuple[Task, str]:
    """Of labels (N, L)."""
    marks = labels.dtype == torch.bool
    exclusive = exclusive_classes(labels) is not None and (seen is None or seen.exclusive or not marks)
    if not marks and not exclusive:
        if bool(((labels >= 0) & (labels <= 1)).all()):
            return _undecided("labels between 0 and 1 may be numbers, or labels that were smoothed or mixed up"), ""
        if labels.shape[1] == outputs and _of_three_states(labels):
            return _undecided(
                "rows of nothing but −1, 0 and 1 (or NaN) may be numbers, or labels of which some are not known: make "
                "those 0 in a batch_adapter, and say 'multilabel', if that is what they are"
            ), ""
        return TASKS["regression"], ""
    if labels.shape[1] != outputs:
        return _undecided(f"the model gives {outputs} numbers an image, and labels are {labels.shape[1]} a row"), ""
    if not exclusive:
        return TASKS["multilabel"], ""
    certain = not marks or (seen is not None and seen.whole)
    said = (
        f"of the labels of all {len(labels)} images one is there and no other: they are read as one of {outputs} "
        f"classes. {_SAY}: 'multiclass' if that is so, 'multilabel' if several may be"
    )
    return TASKS["multiclass"], "" if certain else said


def _of_three_states(labels: Tensor) -> bool:
    """Whether rows (N, K) say of labels that they are there, are not, or are not known, as −1 or NaN do."""
    known = labels.isfinite()
    return bool((~known | (labels == 0) | (labels == 1) | (labels == -1)).all())


def _far_too_many(outputs: int, classes: int, drawn: int) -> bool:
    """Whether labels drawn at random would have shown a class of the upper half, were there one for each output."""
    return bool(outputs >= 2 * classes and outputs >= _LEAST_NORMED and (classes / outputs) ** drawn < _CHANCE)


def _several(labels: Tensor, count: int | None) -> Tensor | None:
    """As (N, K) bool."""
    if labels.dim() == 2:
        fits = count is None or labels.shape[1] == count
        shares = labels.dtype == torch.bool or bool(((labels >= 0) & (labels <= 1)).all())
        return labels > 0.5 if fits and shares else None
    if count == 1:
        known = labels.isfinite() & (labels >= 0) & (labels <= 1)
        return (labels > 0.5)[:, None] if bool(known.all()) else None
    if count is None or (labels.is_floating_point() and not is_whole(labels)):
        return None
    classes = labels.long()
    return classes[:, None] == torch.arange(count, device=labels.device)


def task_in_a_word(task: Task) -> str | None:
    """For a checkpoint; None for what has to be found out, or said, again."""
    return task.name if _IN_A_WORD.get(task.name) is task else None


def task_of_a_word(word: Any) -> Task | None:
    """Back from :func:`task_in_a_word`."""
    return _IN_A_WORD.get(word)
