"""Labels of a batch in all their clothes, read into one of four forms.

=============  ===================================================================================================
``(N,)``       int64: one class an image; below 0, as −100 is, none
``(N, K)``     bool: of K labels some are there; one in each row may be a one-hot class
``(N,)``       float32: one number an image, which may be a class in floating-point clothes
``(N, K)``     float32: K numbers an image: a distribution over classes, or what a regression is to give
=============  ===================================================================================================

Which of them is meant where several can be is for all images together to tell: see `probe.tasks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: Words that a message names.
_NAMED = 3


class LabelsError(ValueError):
    """What stands where labels stand cannot be read; the message says what it is, and what would do."""


def read_labels(value: object, images: int, names: Sequence[str] | None = None) -> Tensor:
    """Labels of a batch.

    Args:
        value: a tensor, an array, or a list of numbers, tensors or words.
        images: how many images the batch holds.
        names: of the classes, in the order of their numbers: words become numbers by them.

    Returns:
        One of the four forms, see the head of this module; never the memory of what was given.

    Raises:
        LabelsError: if they are nothing of the kind.

    Example:
        >>> read_labels(["dog", "cat"], 2, ("cat", "dog"))
        tensor([1, 0])
        >>> read_labels(torch.tensor([[1], [-100]]), 2)
        tensor([   1, -100])
        >>> read_labels(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), 2)
        tensor([[ True,  True, False],
                [False, False, False]])
    """
    if isinstance(value, list | tuple) and value and all(isinstance(word, str) for word in value):
        return _of_words(value, images, names)
    tensor = _as_tensor(value)
    if tensor is None or tensor.dim() == 0 or len(tensor) != images or tensor.is_complex():
        raise LabelsError(f"expected one row an image, for {images} images")
    tensor = tensor.detach()
    if tensor.dim() == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.dim() == 1:
        return tensor.float() if tensor.is_floating_point() else tensor.long()
    if tensor.dim() != 2 or tensor.shape[1] == 0:
        raise LabelsError("expected one class an image, or one row of labels")
    is_marked = (tensor == 0) | (tensor == 1)
    if bool(is_marked.all()):
        return tensor.bool()
    if not tensor.is_floating_point():
        raise LabelsError("several class numbers an image; expected one, or a row of 0 and 1")
    return tensor.float()


def join_labels(parts: Sequence[Tensor]) -> Tensor | None:
    """Labels of several batches as those of one; None where they are of different forms.

    Example:
        >>> join_labels([torch.tensor([[True, False]]), torch.tensor([[0.3, 0.7]])])
        tensor([[1.0000, 0.0000],
                [0.3000, 0.7000]])
    """
    if len({part.shape[1:] for part in parts}) > 1:
        return None
    kinds = {part.dtype for part in parts}
    if len(kinds) > 1:
        parts = [part.float() for part in parts]
    return torch.cat(list(parts))


def groups_of(labels: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """A number for each image by which images may be chosen evenly, (N,); None where labels are no classes.

    That is the class; of several labels the first one, and one more where an image has none of them.
    """
    if labels.dtype == torch.bool:
        first = torch.where(labels.any(dim=1), labels.int().max(dim=1).indices, labels.shape[1])
        return first.cpu().numpy()
    classes = exclusive_classes(labels)
    return None if classes is None else classes.cpu().numpy()


def exclusive_classes(labels: Tensor) -> Tensor | None:
    """Labels of which exactly one is meant in each row, as class numbers (N,); None where that is not so.

    Class numbers as they are; floating-point ones that are whole; rows with a single 1; and distributions, of which
    the largest share counts (that of an image which was mixed up with another).

    Example:
        >>> exclusive_classes(torch.tensor([[0.9, 0.1], [0.3, 0.7]])), exclusive_classes(torch.tensor([2.0, -100.0]))
        (tensor([0, 1]), tensor([ 2, -1]))
        >>> exclusive_classes(torch.tensor([[True, True], [False, True]])) is None
        True
    """
    if labels.dim() == 1:
        if not labels.is_floating_point():
            return labels.clamp_min(-1)
        return labels.long().clamp_min(-1) if is_whole(labels) else None
    total = labels.float().sum(dim=1)
    if bool((labels >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-2):
        return labels.float().max(dim=1).indices
    return None


def is_whole(numbers: Tensor) -> bool:
    """Whether all are whole numbers."""
    return bool((numbers.isfinite() & (numbers == numbers.round())).all())


def _as_tensor(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | list | tuple) and len(value):
        try:
            if isinstance(value[0], Tensor):
                return torch.stack([torch.as_tensor(one) for one in value])
            return torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError, RuntimeError):
            return None
    return None


def _of_words(words: Sequence[str], images: int, names: Sequence[str] | None) -> Tensor:
    if len(words) != images:
        raise LabelsError(f"expected one word an image, for {images} images")
    if names is None:
        raise LabelsError("nothing tells which words are which classes; give ProbeImages(class_names=…)")
    numbers = {name: number for number, name in enumerate(names)}
    unknown = sorted({word for word in words if word not in numbers})
    if unknown:
        raise LabelsError(f"{', '.join(map(repr, unknown[:_NAMED]))} is no name of a class; they are {_some(names)}")
    return torch.tensor([numbers[word] for word in words])


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (", …" if len(names) > _NAMED else "")
