"""What an objective is: a scalar Φ an image whose gradient guides a map (arXiv 2605.11392, our reading; METHODS §2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_attngrad.attention import AttentionCall, UnsupportedModelError
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.plain import Plain, plain


@dataclass(frozen=True, eq=False)
class Seeds:
    """Where a backward pass starts.

    Attributes:
        value: Φ of each image, (B,).
        outputs: tensors of the graph.
        gradients: ∂Φ at each of them.
        given: attention calls whose gradient is known without autograd, and that gradient, last call first.
        retain_graph: whether another backward pass follows this one.
        pooled: pooling weights of last attention calls, by number, states (B, 1, S + h·w), where Φ knows them: a
            gradient that is zero at a whole window says nothing of its tokens.
    """

    value: Tensor
    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    given: tuple[tuple[AttentionCall, Tensor], ...] = ()
    retain_graph: bool = False
    pooled: Mapping[int, Tensor] = field(default_factory=dict)

    def gradient_at(self, tensor: Tensor) -> Tensor:
        """∂Φ at a tensor of the graph, by one backward pass."""
        (gradient,) = self.gradients_at((tensor,))
        return torch.zeros_like(tensor) if gradient is None else gradient

    def gradients_at(self, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """∂Φ at tensors of the graph, by one backward pass; None where Φ does not depend on them."""
        if not self.outputs or not tensors:
            return (None,) * len(tensors)
        return torch.autograd.grad(
            self.outputs, tuple(tensors), self.gradients, retain_graph=self.retain_graph, allow_unused=True
        )


class Objective(ABC):
    """Φ as a function of one forward pass and, for most, of a class an image."""

    needs_target: bool = True
    #: Whether it depends on what a class is, which ``task=`` says.
    asks_task: bool = True

    @property
    def lacks(self) -> Literal["masks", "embeddings"] | None:
        """What it still has to be given of its images, and monitors fill in; None for an objective that is complete.

        Their masks, or their embeddings as they were at the first evaluation of the run.
        """
        return None

    def filled(self, found: Tensor) -> Objective:
        """The same objective with what it :attr:`lacks`, one row an image."""
        raise NotImplementedError(f"{type(self).__name__} lacks nothing")

    @abstractmethod
    def seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:
        """Where the backward pass of Φ starts; ``target`` is (B,) or None."""

    def of_images(self, indices: Tensor) -> Objective:  # noqa: ARG002
        """The same objective for some images (n,) of those that it was made for; most are the same for every image."""
        return self

    def plain(self) -> Plain:
        """What is asked, in plain values: objectives that ask the same are described alike."""
        return plain(self)

    def in_words(self, class_name: Callable[[int], str] = str) -> str:  # noqa: ARG002
        """What is explained, for titles of figures; empty for the class itself.

        Args:
            class_name: from the number of a class to its name; the number itself where it has none.
        """
        return ""

    def check(self) -> None:  # noqa: B027  (most have nothing to check)
        """Refuse an objective that is not complete.

        Raises:
            ValueError: with what is missing.
        """


class ValueObjective(Objective):
    """An objective that is a number an image, computed from the output."""

    @abstractmethod
    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:
        """Φ of each image, (B,), in the graph."""

    def seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:
        return seeds_of(self.value(forward, target))


def seeds_of(value: Tensor) -> Seeds:
    """The start of the backward pass of Φ, (B,), a tensor of the graph.

    Raises:
        UnsupportedModelError: if it is none.
    """
    if not value.requires_grad:
        raise UnsupportedModelError(
            "model: its output does not depend on the attention that was seen: the forward detaches its features, "
            "or computes them under torch.inference_mode or in a torch.autograd.Function. Explain the part before "
            "that."
        )
    return Seeds(value.detach(), (value,), (torch.ones_like(value),))


def class_in_words(number: int, class_name: Callable[[int], str] = str) -> str:
    """A class by its name, or as the class of a number.

    Example:
        >>> class_in_words(3), class_in_words(3, ["cat", "dog", "owl", "hen"].__getitem__)
        ('class 3', 'hen')
    """
    name = class_name(number)
    return name if name != str(number) else f"class {number}"
