"""Maps of features that grad-CAM may be read from, as the model computes them."""

from __future__ import annotations

import contextlib
import difflib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_attngrad.attention.embedding import NumberedOutputs, is_linear, walk_graph

#: So many nodes of the graph lie at most between a normalisation and the values that are made of its output.
_NEAR = 64
#: So many normalisations are remembered in front of an attention.
_KEPT = 16


@dataclass(frozen=True, eq=False)
class Features:
    """A map of features.

    Attributes:
        tensor: in the graph.
        number: by which a tap knows it; None where no function of torch gave it to the model.
    """

    tensor: Tensor
    number: int | None


class FeatureMaps:
    """The last map of features in the model, in whatever form: tokens (B, N, D), or (B, h, w, D), or (B, D, h, w).

    Attributes:
        last_normalised: what the last self-attention call makes its values of, normalised (by batch statistics, where
            that is in front of the linear map that makes them); None where no normalisation was seen in front of it.
        last_map: the last tensor (B, D, h, w) or (B, h, w, D) with a graph that has more than one place, or the last
            normalised tokens if they come later: what is pooled, in a model without attention.
        attends: whether there was a self-attention call.
    """

    def __init__(self) -> None:
        self.last_map: Features | None = None
        self.attends = False
        # Since the last self-attention call, and only the latest: nothing is kept alive for long.
        self._normalised: deque[Features] = deque(maxlen=_KEPT)
        self._by_batch: deque[Features] = deque(maxlen=_KEPT)
        self._choice: tuple[Tensor, Sequence[Features], Sequence[Features]] | None = None

    def made(self, output: Tensor, number: int) -> None:
        """A function has returned this, and it has this number."""
        if output.dim() == 4 and output.requires_grad and output.is_floating_point() and _has_places(output):
            self.last_map = Features(output, number)

    def normalised(self, output: Tensor, number: int, *, by_batch: bool = False) -> None:
        """A normalisation has returned this, and it has this number."""
        if output.dim() in (3, 4) and output.is_floating_point():
            (self._by_batch if by_batch else self._normalised).append(Features(output, number))
            if output.requires_grad and _has_places(output):
                self.last_map = Features(output, number)

    def attended(self, values: Tensor) -> None:
        """A self-attention call reads these values."""
        self.attends = True
        self._choice = (values, tuple(self._normalised), tuple(self._by_batch))
        self._normalised.clear()
        self._by_batch.clear()

    @property
    def last_normalised(self) -> Features | None:
        """See the class."""
        if self._choice is None:
            return None
        values, normalised, by_batch = self._choice
        nodes = list(islice(walk_graph(values), _NEAR))
        projection = next((number for number, node in enumerate(nodes) if is_linear(node)), len(nodes))
        return _first_made(normalised, nodes) or _first_made(by_batch, nodes[projection:])

    def release(self) -> None:
        """Let go of all tensors."""
        self.last_map = self._choice = None
        self._normalised.clear()
        self._by_batch.clear()


def _first_made(outputs: Iterable[Features], nodes: Iterable[Any]) -> Features | None:
    """Of the outputs that these nodes of the graph gave, the one of the first node."""
    by_node = {output.tensor.grad_fn: output for output in outputs if output.tensor.grad_fn is not None}
    return next((by_node[node] for node in nodes if node in by_node), None)


def _has_places(output: Tensor) -> bool:
    """Whether a map has more than one place, whichever of its axes are channels."""
    return sum(size > 1 for size in output.shape[1:]) > 1


class Tap(Protocol):
    """An :class:`AttentionTap`.

    Attributes:
        muted: whether functions of torch are none of the model's for now.
        numbered: the tensors that functions of torch gave the model.
    """

    muted: bool
    numbered: NumberedOutputs


@contextlib.contextmanager
def output_of(model: nn.Module, layer: str | None, tap: Tap) -> Iterator[list[Features]]:
    """Keeps what a module of the model gives, with a graph from there on, while a block runs.

    The module itself gets no hook: a hook of all modules listens for it.

    Args:
        model: whose module it is.
        layer: its name, as ``model.named_modules()`` has it; None for none.
        tap: that is active meanwhile.

    Yields:
        A list that holds the output, or its first tensor, of the last time that the module ran.

    Raises:
        ValueError: if the model has no such module.
    """
    kept: list[Features] = []
    if layer is None:
        yield kept
        return
    modules = {name.replace("_orig_mod.", ""): module for name, module in model.named_modules()}
    if not layer or layer not in modules:
        near = difflib.get_close_matches(str(layer), modules, n=3, cutoff=0.3)
        instead = ", ".join(map(repr, near)) or "a name of model.named_modules()"
        raise ValueError(f"layer: got {layer!r}, and {type(model).__name__} has no module of that name; try {instead}")
    sought = modules[layer]
    tap.numbered.remember()

    def keep(module: nn.Module, _: Any, output: Any) -> Any:
        if module is not sought:
            return None
        parts = list(output) if isinstance(output, list | tuple) else [output]
        index = next((i for i, part in enumerate(parts) if isinstance(part, Tensor)), None)
        if index is None:
            return None
        tap.muted = True
        try:
            tensor = parts[index]
            number = tap.numbered.number_of(tensor)
            kept[:] = [Features(tensor if tensor.requires_grad else tensor.detach().requires_grad_(), number)]
            parts[index] = kept[0].tensor.clone()  # whoever goes on in place overwrites the copy
        finally:
            tap.muted = False
        return type(output)(parts) if isinstance(output, list | tuple) else parts[0]

    handle = nn.modules.module.register_module_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
