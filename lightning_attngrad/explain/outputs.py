"""What a model's output means: what a class is, its score, its probability, and what rewriting to it means.

The one place that knows; explanation, faithfulness, drift, rewriting, captions and the audit all ask here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_attngrad.explain.plain import plain
from lightning_attngrad.explain.returned import find_embedding_vector, row_of_numbers, row_of_scores

#: Where there are no classes.
WHAT_WOULD_DO = (
    "objective='start' explains what stays of each image's own starting embedding, task=Similarity(vectors, names) the "
    "likeness to class prototypes or text vectors, which then are the classes, and objective=function any number an "
    "image"
)


class Task(ABC):
    """What the output of a model means.

    A *class* is whatever an image can be explained for or rewritten to, by number: in multi-label classification K
    labels are 2·K classes, label c switched on (c) and switched off (K + c).

    Attributes:
        name: as ``task=`` takes it.
        has_classes: whether there is anything to be predicted, or rewritten to.
    """

    name: ClassVar[str]
    has_classes: ClassVar[bool] = True

    @property
    def of_rows(self) -> Task:
        """What rows of scores mean that are of no image: of its pixels, or of a detector's queries."""
        return self

    @abstractmethod
    def scores(self, output: Any, batch: int) -> Tensor:
        """Score of each class, (B, K), float32 or wider, in the graph.

        Args:
            output: what the model returned.
            batch: number of images B.

        Raises:
            ValueError: if the output does not mean this; the message says what it may mean.
        """

    def probabilities(self, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Of each class, (…, K).

        Raises:
            ValueError: if there are no classes.
        """
        raise ValueError(f"task: {self.name!r} has no classes, and no probabilities of them")

    def rival(self, scores: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """The largest score (B,) of what the target classes (B,) exclude.

        Raises:
            ValueError: if there are no classes.
        """
        raise ValueError(f"task: {self.name!r} has no classes that exclude others, so there is no margin; use 'logit'")

    def log_odds(self, scores: Tensor, target: Tensor) -> Tensor:
        """``log p / (1 − p)`` of the target classes, (B,)."""
        return of_class(scores, target) - self.rival(scores, target)

    def margin(self, scores: Tensor, target: Tensor) -> Tensor:
        """By how much the target classes (B,) lead, (B,): predicted where it is above 0."""
        return of_class(scores, target) - self.rival(scores, target)

    def chosen(self, scores: Tensor) -> Tensor:
        """The class (B,) that is explained where none is asked for: the most probable one."""
        return scores.detach().argmax(dim=1)

    def class_of(self, labels: Tensor, scores: Tensor) -> Tensor:
        """The class (B,) that is explained where labels are known: the true one, else :meth:`chosen`.

        Args:
            labels: (B,) int64, −1 where an image has none; in multi-label classification (B, K) bool.
            scores: (B, ·).
        """
        known = (labels >= 0) & (labels < scores.shape[1])
        return torch.where(known, labels, self.chosen(scores))

    def true_classes(self, labels: Tensor) -> list[int]:
        """The true classes of one image, from what it has in ``labels``; none where that is not known."""
        return [int(labels)] if labels.dim() == 0 and labels >= 0 else []

    def predicted(self, scores: Tensor) -> Tensor | None:
        """What is predicted: classes (B,), or in multi-label classification (B, K) bool; None without classes."""
        return self.chosen(scores) if self.has_classes and scores.shape[1] > 1 else None

    def predicted_classes(self, scores: Tensor) -> list[int]:
        """What is predicted of one image, from its scores (K,), most probable first; none without classes."""
        found = self.predicted(scores[None])
        return [] if found is None else [int(found[0])]

    def likeliest(self, scores: Tensor, most: int) -> Tensor | None:
        """The most probable classes (B, ≤ most) that may stand side by side; None where there are fewer than two."""
        if not self.has_classes or scores.shape[1] < 2:
            return None
        return scores.topk(min(most, scores.shape[1]), dim=1).indices

    def logits(self, scores: Tensor) -> Tensor:
        """The output as the model's user knows it, (B, ·)."""
        return scores

    def of_logits(self, logits: Tensor) -> Tensor:
        """The scores, back from :meth:`logits`."""
        return logits

    def need_classes(self, what_for: str) -> None:
        """Refuse where there are no classes.

        Args:
            what_for: they are needed, for the message.

        Raises:
            ValueError: with what would do.
        """
        if not self.has_classes:
            raise ValueError(f"task: {self.name!r} has no classes, and {what_for}")

    def plain(self) -> Any:
        """For hashes and conditions; None for classes that exclude each other, which is what nothing said has been."""
        return self.name

    def in_words(self, names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:  # noqa: ARG002
        """Names of the ``count`` classes, from the names that the user knows; None without any."""
        return None if names is None else tuple(names)

    def check_target(self, classes: Tensor, count: int) -> None:
        """Refuse classes that are not there.

        Raises:
            ValueError: naming them.
        """
        if bool(((classes < 0) | (classes >= count)).any()):
            raise ValueError(f"target: got {classes.unique().tolist()}; the model's classes are 0 to {count - 1}")


class Multiclass(Task):
    """K ≥ 2 outputs, of which one class is true: softmax."""

    name = "multiclass"

    def plain(self) -> Any:
        return None

    def scores(self, output: Any, batch: int) -> Tensor:
        scores = row_of_scores(output, batch)
        if scores.shape[1] < 2:
            raise ValueError(
                "task: got 'multiclass', and the model has one output; with one output 'binary' has two classes, "
                "'multilabel' one label, and 'regression' none"
            )
        return scores

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def rival(self, scores: Tensor, target: Tensor) -> Tensor:
        return scores.scatter(1, target[:, None], -torch.inf).amax(dim=1)

    def log_odds(self, scores: Tensor, target: Tensor) -> Tensor:
        return of_class(scores, target) - scores.scatter(1, target[:, None], -torch.inf).logsumexp(dim=1)


class Binary(Multiclass):
    """One output z, classes 0 and 1 with p = σ(∓z): read as its two-output twin (−z/2, z/2); two outputs as they are.

    So both forms of one classifier have the same maps, distances and captions.
    """

    name = "binary"

    def plain(self) -> Any:
        return self.name

    def in_words(self, names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
        """Where only the class 1 has a name, 0 is that it is not there."""
        return (f"no {names[0]}", names[0]) if names is not None and len(names) == 1 else super().in_words(names, count)

    def scores(self, output: Any, batch: int) -> Tensor:
        scores = row_of_scores(output, batch)
        if scores.shape[1] == 1:
            return torch.cat([-scores / 2, scores / 2], dim=1)
        if scores.shape[1] > 2:
            raise ValueError(
                f"task: got 'binary', and the model has {scores.shape[1]} outputs; expected one, or two; or say "
                "task='multiclass' or 'multilabel'"
            )
        return scores


class Multilabel(Task):
    """K outputs, each a label that is there or not: label c is read as a binary classifier of its own.

    Classes 0 … K−1 are the labels switched on, with score z_c/2, and K … 2·K−1 the same switched off, with −z_c/2.
    """

    name = "multilabel"

    def scores(self, output: Any, batch: int) -> Tensor:
        numbers = row_of_scores(output, batch)
        return torch.cat([numbers / 2, -numbers / 2], dim=1)

    def probabilities(self, scores: Tensor) -> Tensor:
        return (2 * scores).sigmoid()

    def rival(self, scores: Tensor, target: Tensor) -> Tensor:
        return -of_class(scores, target)

    def chosen(self, scores: Tensor) -> Tensor:
        """The most probable label; a single label is a binary classifier, whose other class is that it is not there."""
        scores = scores.detach()
        return (scores if scores.shape[1] == 2 else self.logits(scores)).argmax(dim=1)

    def class_of(self, labels: Tensor, scores: Tensor) -> Tensor:
        """The first label that the image has; of a single label, whether it has it; else :meth:`chosen`."""
        if labels.shape[1] == 1:
            return (~labels[:, 0]).long()
        return torch.where(labels.any(dim=1), labels.int().argmax(dim=1), self.chosen(scores))

    def true_classes(self, labels: Tensor) -> list[int]:
        found: list[int] = labels.nonzero().flatten().tolist()
        return found if found or len(labels) > 1 else [1]

    def predicted(self, scores: Tensor) -> Tensor:
        return self.logits(scores) > 0

    def predicted_classes(self, scores: Tensor) -> list[int]:
        logits = self.logits(scores)
        on = [int(label) for label in logits.argsort(descending=True, stable=True) if logits[label] > 0]
        return on if on or len(logits) > 1 else [1]

    def likeliest(self, scores: Tensor, most: int) -> Tensor | None:
        labels = scores.shape[1] // 2
        among = scores if labels == 1 else self.logits(scores)
        return among.topk(min(most, among.shape[1]), dim=1).indices

    def logits(self, scores: Tensor) -> Tensor:
        return 2 * scores[..., : scores.shape[-1] // 2]

    def of_logits(self, logits: Tensor) -> Tensor:
        return torch.cat([logits / 2, -logits / 2], dim=-1)

    def in_words(self, names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
        fits = names is not None and len(names) == count // 2
        labels = list(names) if fits and names is not None else [str(number) for number in range(count // 2)]
        return (*labels, *(f"no {label}" for label in labels))

    def switched(self, classes: Tensor, scores: Tensor) -> Tensor:
        """Labels (B, T), as the classes to which their switching leads: off where they are predicted now, else on."""
        count = scores.shape[1] // 2
        labels = classes % count
        return torch.where(self.logits(scores).gather(1, labels) > 0, labels + count, labels)


class Regression(Task):
    """Numbers, one or several, by their place: no classes, nothing to be predicted or rewritten to."""

    name = "regression"
    has_classes = False

    def in_words(self, names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
        """Names of the numbers; those of something else are as many only by accident."""
        return super().in_words(names, count) if names is not None and len(names) == count else None

    def class_of(self, labels: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """The first number; a function as the objective explains another."""
        return torch.zeros(len(scores), dtype=torch.long, device=scores.device)

    def scores(self, output: Any, batch: int) -> Tensor:
        return row_of_numbers(output, batch)

    def chosen(self, scores: Tensor) -> Tensor:
        if scores.shape[1] > 1:
            raise ValueError(
                f"target: None, and the model gives {scores.shape[1]} numbers an image; say which one is explained, by "
                "its place from 0"
            )
        return torch.zeros(len(scores), dtype=torch.long, device=scores.device)

    def check_target(self, classes: Tensor, count: int) -> None:
        if bool(((classes < 0) | (classes >= count)).any()):
            raise ValueError(f"target: got {classes.unique().tolist()}; the model's numbers are 0 to {count - 1}")


class Embedding(Task):
    """Features, which are no classes."""

    name = "embedding"
    has_classes = False

    def scores(self, output: Any, batch: int) -> Tensor:  # noqa: ARG002
        raise ValueError(f"task: the output is an embedding, which has no classes to explain. {WHAT_WOULD_DO}")


class Undecided(Embedding):
    """What the output means could not be told: whoever needs to know is told why, and what to write.

    Args:
        why: for the message.
        said: what the user says that rows of scores mean, where the output is none of one row an image.
    """

    name = "undecided"

    def __init__(self, why: str, said: Task | None = None) -> None:
        self.why, self._said = why, said

    @property
    def of_rows(self) -> Task:
        return UNSAID if self._said is None else self._said

    def scores(self, output: Any, batch: int) -> Tensor:  # noqa: ARG002
        raise ValueError(self.why)

    def need_classes(self, what_for: str) -> None:  # noqa: ARG002
        self.scores(None, 0)


class OneNumber(Regression):
    """One output of which nothing tells what it means: a number, and no class, until somebody says otherwise."""

    name = "one number"

    def plain(self) -> Any:
        return None

    def need_classes(self, what_for: str) -> None:
        raise ValueError(
            "model: its output has 1 number an image, not one row of logits an image (2 or more classes), and "
            f"{what_for}. Say ProbeImages(task='binary') if it tells class 1 from class 0, 'multilabel' if it is one "
            "label, or set ProbeImages(model=…) to the part that classifies"
        )


class Unsaid(Multiclass):
    """Nothing is said: two or more outputs are classes; one output is a number, which is not taken for a class."""

    name = "unsaid"

    def scores(self, output: Any, batch: int) -> Tensor:
        numbers = row_of_numbers(output, batch)
        return numbers if numbers.shape[1] == 1 else row_of_scores(output, batch)

    def check_target(self, classes: Tensor, count: int) -> None:
        if count == 1:
            raise ValueError(
                f"target: got {classes.unique().tolist()}, and the model has one output: say what it means, with "
                "task='binary' (classes 0 and 1), task='multilabel' (one label) or task='regression' (a number)"
            )
        super().check_target(classes, count)


@dataclass(frozen=True, eq=False)
class Similarity(Multiclass):
    """Likeness of an image's embedding to vectors: class prototypes, or text vectors of CLIP and SigLIP.

    They are then the classes, everywhere: probabilities are the softmax of ``scale``·likeness, and rewriting leads to
    another vector.

    Args:
        vectors: (K, D), one a class.
        names: K names.
        scale: by which the likeness is multiplied; CLIP has 100.
        cosine: whether embedding and vectors are brought to length 1; without, the likeness is their product, as that
            of a linear classifier.
        read: from the model's output to embeddings (B, D), where they are not the output itself, its
            ``image_embeds``, ``pooler_output`` or ``embedding``, or the first of a tuple.

    Example:
        >>> similarity = Similarity(torch.eye(2), ("left", "right"))
        >>> similarity.scores(torch.tensor([[3.0, 4.0]]), 1)
        tensor([[0.6000, 0.8000]])
    """

    vectors: Tensor
    names: Sequence[str] | None = None
    scale: float = 1.0
    cosine: bool = True
    read: Callable[[Any], Tensor] | None = None
    name = "similarity"

    def __post_init__(self) -> None:
        vectors = self.vectors
        if not isinstance(vectors, Tensor) or vectors.dim() != 2 or len(vectors) < 2 or not vectors.is_floating_point():
            got = f"shape {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"vectors: got {got}; expected floats (K, D), one row a class, two or more")
        if self.names is not None and len(self.names) != len(vectors):
            raise ValueError(f"names: got {len(self.names)} for {len(vectors)} vectors; expected one a vector")

    def scores(self, output: Any, batch: int) -> Tensor:
        embedding: Tensor = find_embedding_vector(output, batch) if self.read is None else self.read(output)
        vectors = self.vectors.detach().to(embedding.device, torch.promote_types(embedding.dtype, torch.float32))
        if embedding.shape != (batch, vectors.shape[1]):
            raise ValueError(
                f"vectors: they have {vectors.shape[1]} numbers each, and the embedding is {tuple(embedding.shape)}; "
                f"expected ({batch}, {vectors.shape[1]})"
            )
        embedding = embedding.to(vectors.dtype)
        if self.cosine:
            embedding = torch.nn.functional.normalize(embedding, dim=1)
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return self.scale * embedding @ vectors.T

    def plain(self) -> Any:
        return plain(self)

    def in_words(self, names: Sequence[str] | None, count: int) -> tuple[str, ...] | None:
        return super().in_words(self.names if self.names is not None else names, count)


#: By the word that ``task=`` takes.
TASKS: dict[str, Task] = {task.name: task for task in (Multiclass(), Binary(), Multilabel(), Regression(), Embedding())}
UNSAID = Unsaid()
ONE_NUMBER = OneNumber()


def check_task(task: str | Task | None) -> Task:
    """A task from its name, or itself; None is :class:`Unsaid`.

    Raises:
        ValueError: for anything else.
    """
    if task is None:
        return UNSAID
    if isinstance(task, Task):
        return task
    if isinstance(task, str) and task in TASKS:
        return TASKS[task]
    raise ValueError(f"task: got {task!r}; expected one of {', '.join(map(repr, TASKS))}, Similarity(vectors), or None")


def of_class(scores: Tensor, target: Tensor) -> Tensor:
    """The score (B,) of one class an image."""
    return scores.gather(1, target[:, None])[:, 0]
