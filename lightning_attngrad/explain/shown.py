"""What every result can do: be drawn, be saved, and be seen in a notebook.

The figures are those of `reporting`, which knows arrays and nothing of this room; they are loaded when one is drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

#: Names of classes, in their order or by their numbers.
ClassNames: TypeAlias = Sequence[str] | Mapping[int, str]


class Shown(ABC):
    """A result that can be looked at."""

    @abstractmethod
    def plot(self) -> Any:
        """Draw it: a ``matplotlib.figure.Figure``, without pyplot."""

    def save(self, path: str | Path, **options: Any) -> Path:
        """Draw it into a file.

        Args:
            path: that ends with ``.png``, ``.pdf`` or ``.svg``.
            **options: of :meth:`plot`.

        Returns:
            The path.

        Raises:
            ValueError: for a name that ends otherwise, and where :meth:`plot` raises one.
        """
        from lightning_attngrad.reporting.saving import save_figure  # noqa: PLC0415

        return save_figure(self.plot(**options), path)

    def _repr_html_(self) -> str:
        """The figure and the line of `repr`, where a notebook shows results."""
        from lightning_attngrad.reporting.saving import as_html  # noqa: PLC0415

        return as_html(self.plot(), repr(self))


def shares(heatmap: Tensor) -> Tensor:
    """Maps (…, h, w) in times an equal share, on the CPU, as figures take them; NaN where one is zero everywhere.

    Example:
        >>> shares(torch.tensor([[1.0, -1.0], [2.0, 0.0]])).tolist()
        [[1.0, -1.0], [2.0, 0.0]]
    """
    maps = heatmap.detach().float().cpu()
    maps = maps / maps.abs().amax(dim=(-2, -1), keepdim=True)  # the sum of very large patches would be infinite
    return maps / maps.abs().mean(dim=(-2, -1), keepdim=True)


def name_of(names: Sequence[str] | None, number: int) -> str:
    """The name of a class, or its number."""
    return names[number] if names is not None and 0 <= number < len(names) else str(number)


def listed(names: ClassNames | None) -> Sequence[str] | None:
    """Names by number as a list.

    Example:
        >>> listed({0: "cat", 2: "owl"})
        ['cat', '1', 'owl']
    """
    if not isinstance(names, Mapping):
        return names
    return [names.get(number, str(number)) for number in range(max(names, default=-1) + 1)]


def counted(number: int, what: str) -> str:
    """How many, in words."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def one_grid(heatmap: Tensor) -> str:
    """Rows and columns of maps (…, h, w), in words."""
    return f"{heatmap.shape[-2]} × {heatmap.shape[-1]}"


def needs(images: Tensor | None, heatmap: Tensor) -> Tensor:
    """The images that are shown, where there are any.

    Raises:
        ValueError: for another number of images than of maps, or none.
    """
    if images is None:
        raise ValueError("images: this result keeps none; pass plot(images=…), (B, C, H, W)")
    if images.dim() != 4 or len(images) != len(heatmap):
        raise ValueError(
            f"images: got shape {tuple(images.shape)}; expected (B, C, H, W) with B = {len(heatmap)}, one a map"
        )
    return images


def is_signed(heatmap: Tensor) -> bool:
    """Whether a map has negative parts."""
    return bool((torch.nan_to_num(heatmap) < 0).any())
