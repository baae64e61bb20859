"""Which samples the images of a forward pass are of, for models that are given more of a sample than its image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

Forward: TypeAlias = Callable[[Tensor], Any]


class ForwardOfRows(ABC):
    """A forward pass that has to know which samples its images are of: their metadata, or their other images, go along.

    Whoever runs more, fewer or other rows than it was given asks `of_rows` for the pass of those first.
    """

    @abstractmethod
    def __call__(self, images: Tensor) -> Any:
        """The model's output for images (B, C, H, W), one of each of the rows that it is of."""

    @abstractmethod
    def of_rows(self, rows: Tensor) -> ForwardOfRows:
        """The pass of some of these rows.

        Args:
            rows: (R,) ints, places among the rows that this pass is of; a row may be named more than once.
        """


def of_rows(forward: Forward, rows: Tensor) -> Forward:
    """The forward pass of some of the rows that it is of: itself, unless it has to know them.

    Args:
        forward: from images to the model's output.
        rows: (R,) ints, see `ForwardOfRows.of_rows`.

    Example:
        >>> import torch
        >>> of_rows(torch.sum, torch.tensor([0, 0])) is torch.sum
        True
    """
    return forward.of_rows(rows) if isinstance(forward, ForwardOfRows) else forward


def after(change: Callable[[Tensor], Tensor], forward: Forward) -> Forward:
    """The forward pass of changed images, which knows its rows where ``forward`` does."""
    if isinstance(forward, ForwardOfRows):
        return _Changed(change, forward)
    return lambda images: forward(change(images))


class _Changed(ForwardOfRows):
    def __init__(self, change: Callable[[Tensor], Tensor], forward: ForwardOfRows) -> None:
        self._change = change
        self._forward = forward

    def __call__(self, images: Tensor) -> Any:
        return self._forward(self._change(images))

    def of_rows(self, rows: Tensor) -> ForwardOfRows:
        return _Changed(self._change, self._forward.of_rows(rows))
